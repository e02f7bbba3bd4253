//! The address of a door: a host and a port, and nothing else.

use http::Uri;

/// Host and port of a door; `None` when the text is no address of one.
#[must_use]
pub fn door_place(url: &str) -> Option<(String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let (host, authority) = (uri.host()?, uri.authority()?);
    // No user, no query, no fragment: nothing that would be left out in silence.
    let port = match authority.as_str().strip_prefix(host)? {
        "" => 443,
        port => port.strip_prefix(':')?.parse().ok()?,
    };
    let is_door = uri.scheme_str() == Some("https")
        && matches!(uri.path(), "" | "/")
        && uri.query().is_none()
        && !url.contains('#')
        && port != 0;
    is_door.then(|| (host.to_owned(), port))
}
