//! As much of URLs as it takes to refuse an unsafe or senseless one.

/// Why a URL will not do: the message, and the help.
pub(super) type Refusal = (String, String);

/// Characters that no URL holds as they are (RFC 3986).
const NEVER: [char; 9] = ['"', '<', '>', '\\', '^', '`', '{', '|', '}'];

/// Checks that `url` has one of `schemes`, a host, and nothing that does not belong into a configuration.
///
/// # Errors
///
/// What is wrong with it, and what to do about that.
pub fn check(url: &str, schemes: &[&str]) -> Result<(), Refusal> {
    let wanted = || {
        schemes
            .iter()
            .map(|scheme| format!("{scheme}://"))
            .collect::<Vec<_>>()
            .join(" or ")
    };
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err((
            format!("{url:?} is not a URL"),
            format!("it must start with {}", wanted()),
        ));
    };
    let scheme = scheme.to_ascii_lowercase();
    if !schemes.contains(&scheme.as_str()) {
        let secure = format!("{scheme}s");
        if schemes.contains(&secure.as_str()) {
            return Err((
                format!("{scheme}:// is not encrypted"),
                format!("use {secure}://, there is no plain-text mode"),
            ));
        }
        return Err((
            format!("{scheme}:// cannot be used here"),
            format!("it must start with {}", wanted()),
        ));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err((
            "the URL holds a user name or password".to_owned(),
            "remove what stands before the @; identities come from certificates and files"
                .to_owned(),
        ));
    }
    check_authority(url, authority)
}

fn check_authority(url: &str, authority: &str) -> Result<(), Refusal> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !authority.ends_with(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    };
    let no_part = |c: char| c.is_whitespace() || c.is_control() || NEVER.contains(&c);
    if url.contains(no_part) || host.is_empty() {
        return Err((
            format!("{url:?} has no usable host"),
            "for example wss://agents.example.org:8081".to_owned(),
        ));
    }
    let is_ipv6 = host.starts_with('[') && host.ends_with(']');
    if host.contains(['[', ']', ':']) && !is_ipv6 {
        return Err((
            format!("{host:?} is not a host"),
            "an IPv6 address stands in brackets: [::1]".to_owned(),
        ));
    }
    match port.map(str::parse::<u16>) {
        None => Ok(()),
        Some(Ok(port)) if port > 0 => Ok(()),
        Some(Ok(_) | Err(_)) => Err((
            format!("{authority:?} has no usable port"),
            "a port is a number from 1 to 65535".to_owned(),
        )),
    }
}

/// The host of a URL, an address of IPv6 without its brackets; none where it names none.
#[must_use]
pub fn host(url: &str) -> Option<&str> {
    let (_scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let host = match authority.strip_prefix('[') {
        Some(address) => address.split(']').next()?,
        None => authority.split(':').next()?,
    };
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(url: &str) -> String {
        check(url, &["wss"]).unwrap_err().0
    }

    #[test]
    fn good_urls_pass() {
        for url in [
            "wss://backend.example:8081",
            "wss://10.0.0.1/agents",
            "WSS://[::1]:8081/x?y",
            "wss://h",
        ] {
            check(url, &["wss"]).unwrap();
        }
        check("http://127.0.0.1:8080", &["https", "http"]).unwrap();
    }

    #[test]
    fn a_plain_websocket_is_called_what_it_is() {
        assert_eq!(message("ws://backend.example"), "ws:// is not encrypted");
        assert_eq!(
            message("https://backend.example"),
            "https:// cannot be used here"
        );
    }

    #[test]
    fn senseless_urls_are_refused() {
        assert_eq!(
            message("backend.example"),
            "\"backend.example\" is not a URL"
        );
        assert_eq!(
            message("wss://user:secret@host"),
            "the URL holds a user name or password"
        );
        for url in [
            "wss://",
            "wss:///path",
            "wss://a b",
            "wss://:80",
            "wss://h:0",
            "wss://h:x",
            "wss://h:65536",
            "wss://::1:80",
            "wss://h\"x",
            "wss://h/\n[executor]",
            "wss://h/a\\b",
        ] {
            assert!(check(url, &["wss"]).is_err(), "{url}");
        }
    }

    #[test]
    fn the_host_of_a_url_is_found_whatever_stands_around_it() {
        for (url, wanted) in [
            ("wss://agents.example.org", Some("agents.example.org")),
            (
                "https://agents.example.org:8082/path?query",
                Some("agents.example.org"),
            ),
            ("wss://[2001:db8::1]:8081/", Some("2001:db8::1")),
            ("agents.example.org", None),
            ("wss:///path", None),
        ] {
            assert_eq!(host(url), wanted, "{url}");
        }
    }
}
