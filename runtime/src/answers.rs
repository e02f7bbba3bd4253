//! What every answer over HTTP has, whichever program gives it, the one to whom there is no place to give included.

/// What every answer tells a browser: it is data, belongs into no page and no frame, and leaves no trace.
pub const ALWAYS: [(&str, &str); 6] = [
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    (
        "content-security-policy",
        "default-src 'none'; frame-ancestors 'none'",
    ),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// What a connection is told for which there is no place, as it goes over the socket.
#[must_use]
pub fn no_place() -> String {
    let mut answer = "HTTP/1.1 503 Service Unavailable\r\n".to_owned();
    let own = [
        ("retry-after", "1"),
        ("connection", "close"),
        ("content-length", "0"),
    ];
    for (name, value) in own.into_iter().chain(ALWAYS) {
        answer.extend([name, ": ", value, "\r\n"]);
    }
    answer.push_str("\r\n");
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_finds_no_place_gets_the_headers_of_every_other_answer() {
        let answer = no_place();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "");
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        for (name, value) in ALWAYS {
            assert!(head.contains(&format!("\r\n{name}: {value}")), "{head}");
        }
        assert!(head.contains("\r\ncache-control: no-store"), "{head}");
    }
}
