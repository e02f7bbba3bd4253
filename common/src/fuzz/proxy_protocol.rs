//! Headers of the PROXY protocol: bounded, complete at one byte and no other, and refused for good.

use crate::proxy_protocol::{HEADER_BYTES_MAX, parse};

/// Takes the bytes as the first ones of a connection.
pub fn proxy_protocol(data: &[u8]) {
    match parse(data) {
        Ok(Some(header)) => {
            assert!(
                header.length <= data.len().min(HEADER_BYTES_MAX),
                "it takes what is the client's"
            );
            let (own, _clients) = data.split_at(header.length);
            assert_eq!(parse(own), Ok(Some(header)), "what follows changes it");
            for cut in 0..own.len() {
                let (start, _) = own.split_at(cut);
                assert_eq!(parse(start), Ok(None), "complete before its end");
            }
        }
        Ok(None) => assert!(data.len() < HEADER_BYTES_MAX, "it never ends"),
        Err(error) => {
            let longer = [data, b"\r\n"].concat();
            assert_eq!(parse(&longer), Err(error), "more bytes mend it");
        }
    }
}
