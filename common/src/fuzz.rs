//! What fuzzers do to this crate: each body takes any bytes whatever and panics when a law of the product is broken.
//!
//! `fuzz/` feeds them with new bytes, and the tests below with every stored one.

mod arguments;
mod certificate;
mod enrolment;
mod envelope;
mod message;
mod proxy_protocol;
mod samples;
mod session;

pub use arguments::arguments;
pub use certificate::certificate;
pub use enrolment::enrolment;
pub use envelope::envelope;
pub use message::message;
pub use proxy_protocol::proxy_protocol;
pub use session::session;

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn replay(target: &str, body: impl Fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        let mut replayed = 0;
        for entry in std::fs::read_dir(folder.join(target)).unwrap() {
            body(&std::fs::read(entry.unwrap().path()).unwrap());
            replayed += 1;
        }
        assert!(replayed > 3, "{target} has {replayed} stored inputs");
        // What every fuzzer begins with.
        body(&[]);
    }

    #[test]
    fn the_stored_envelopes_keep_the_laws() {
        replay("envelope", super::envelope);
    }

    #[test]
    fn the_stored_messages_keep_the_laws() {
        replay("message", super::message);
    }

    #[test]
    fn the_stored_sessions_keep_the_laws() {
        replay("session", super::session);
    }

    #[test]
    fn the_stored_arguments_keep_the_laws() {
        replay("arguments", super::arguments);
    }

    #[test]
    fn the_stored_certificates_keep_the_laws() {
        replay("certificate", super::certificate);
    }

    #[test]
    fn the_stored_requests_for_enrolment_keep_the_laws() {
        replay("enrolment", super::enrolment);
    }

    #[test]
    fn the_stored_headers_of_proxies_keep_the_laws() {
        replay("proxy_protocol", super::proxy_protocol);
    }
}
