//! A client of the API on this machine, which needs nothing of what surrounds a test.

/// A client of plain HTTP: it reads neither this machine's certificate authorities, of which there may be none, nor the
/// proxies that variables name.
///
/// # Panics
/// When the library refuses to be used like that.
#[must_use]
pub fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .build()
        .expect("a client without certificates and proxies needs nothing")
}
