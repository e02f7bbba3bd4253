//! Headers as proxies send them, damaged ones, and the laws that hold for any bytes.

use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Origin {
    Origin::Client(text.parse().unwrap())
}

/// A header of version 2.
fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, body].concat()
}

/// 192.0.2.9:50000 connected to 198.51.100.1:443.
const TCP4: &[u8] = &[192, 0, 2, 9, 198, 51, 100, 1, 0xc3, 0x50, 0x01, 0xbb];

fn tcp6(client: Ipv6Addr) -> Vec<u8> {
    [
        &client.octets()[..],
        &Ipv6Addr::LOCALHOST.octets(),
        &[0xc3, 0x50, 0x01, 0xbb],
    ]
    .concat()
}

fn extension(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind][..], &length, value].concat()
}

#[expect(
    clippy::panic_in_result_fn,
    reason = "what a header says, and the laws that hold for each"
)]
fn origin(bytes: &[u8]) -> Result<Option<Origin>, ProxyProtocolError> {
    let header = parse(bytes)?;
    // Whatever the client says itself is left alone.
    let followed = parse(&[bytes, b"\x16\x03\x01"].concat());
    if header.is_some() {
        assert_eq!(followed, Ok(header));
    }
    Ok(header.map(|header| {
        assert_eq!(header.length, bytes.len());
        header.origin
    }))
}

#[test]
fn the_line_that_nginx_sends_names_the_client() {
    let line = b"PROXY TCP4 192.0.2.9 198.51.100.1 50000 443\r\n";
    assert_eq!(origin(line), Ok(Some(at("192.0.2.9:50000"))));
    let line = b"PROXY TCP6 2001:db8::9 ::1 50000 443\r\n";
    assert_eq!(origin(line), Ok(Some(at("[2001:db8::9]:50000"))));
    let mapped = b"PROXY TCP6 ::ffff:192.0.2.9 ::1 1 443\r\n";
    assert_eq!(origin(mapped), Ok(Some(at("192.0.2.9:1"))));
    for unknown in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ::1 what ever 7\r\n"] {
        assert_eq!(origin(unknown.as_bytes()), Ok(Some(Origin::Proxy)));
    }
}

#[test]
fn a_line_that_is_not_exactly_one_is_refused() {
    for line in [
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY UDP4 192.0.2.9 198.51.100.1 50000 443\r\n",
        "PROXY tcp4 192.0.2.9 198.51.100.1 50000 443\r\n",
        "PROXY TCP4 192.0.2.9 198.51.100.1 50000\r\n",
        "PROXY TCP4 192.0.2.9 198.51.100.1 50000 443 \r\n",
        "PROXY TCP4  192.0.2.9 198.51.100.1 50000 443\r\n",
        "PROXY TCP4 2001:db8::9 ::1 50000 443\r\n",
        "PROXY TCP6 192.0.2.9 198.51.100.1 50000 443\r\n",
        "PROXY TCP4 192.0.2.9 198.51.100.1 65536 443\r\n",
        "PROXY TCP4 192.0.2.9 198.51.100.1 050 443\r\n",
        "PROXY TCP4 192.0.2.9 198.51.100.1 +50 443\r\n",
        "PROXY TCP4 192.0.2.009 198.51.100.1 50 443\r\n",
        "PROXY TCP4 192.0.2.9 gateway 50 443\r\n",
        "PROXY TCP4 192.0.2.9\n198.51.100.1 50 443\r\n",
    ] {
        assert_eq!(
            origin(line.as_bytes()),
            Err(ProxyProtocolError::Line),
            "{line:?}"
        );
    }
    let endless = [b"PROXY UNKNOWN ", &[b'x'; LINE_BYTES_MAX][..]].concat();
    assert_eq!(parse(&endless), Err(ProxyProtocolError::Line));
    assert_eq!(parse(&endless[..LINE_BYTES_MAX - 1]), Ok(None));
    let longest = [&endless[..LINE_BYTES_MAX - 2], b"\r\n"].concat();
    assert_eq!(origin(&longest), Ok(Some(Origin::Proxy)));
}

#[test]
fn a_binary_header_names_the_client() {
    assert_eq!(
        origin(&header(0x21, 0x11, TCP4)),
        Ok(Some(at("192.0.2.9:50000")))
    );
    let client = "2001:db8::9".parse().unwrap();
    let named = origin(&header(0x21, 0x21, &tcp6(client)));
    assert_eq!(named, Ok(Some(at("[2001:db8::9]:50000"))));
    let mapped = origin(&header(
        0x21,
        0x21,
        &tcp6(Ipv4Addr::new(192, 0, 2, 9).to_ipv6_mapped()),
    ));
    assert_eq!(mapped, Ok(Some(at("192.0.2.9:50000"))));
}

#[test]
fn a_proxy_that_speaks_for_itself_is_known_as_that() {
    for (command, family, body) in [
        (0x20, 0x00, &[][..]),
        (0x20, 0x11, TCP4),
        (0x20, 0xff, b"?"),
        (0x21, 0x00, &[]),
    ] {
        assert_eq!(
            origin(&header(command, family, body)),
            Ok(Some(Origin::Proxy))
        );
    }
}

#[test]
fn a_binary_header_that_nobody_has_defined_is_refused() {
    for command in [0x00, 0x10, 0x11, 0x22, 0x31] {
        let refused = parse(&header(command, 0x11, TCP4));
        assert_eq!(refused, Err(ProxyProtocolError::Command(command)));
    }
    for family in [0x01, 0x12, 0x22, 0x31, 0x32, 0x41] {
        let refused = parse(&header(0x21, family, &[0; 216]));
        assert_eq!(refused, Err(ProxyProtocolError::Family(family)));
    }
    assert_eq!(
        parse(&header(0x21, 0x11, &TCP4[..11])),
        Err(ProxyProtocolError::Length)
    );
    assert_eq!(
        parse(&header(0x21, 0x21, TCP4)),
        Err(ProxyProtocolError::Length)
    );
}

#[test]
fn what_announces_more_than_is_read_is_refused_before_it_comes() {
    let longest = header(0x20, 0x00, &vec![0; HEADER_BYTES_MAX - FIXED_BYTES]);
    assert_eq!(origin(&longest), Ok(Some(Origin::Proxy)));
    let more = header(0x20, 0x00, &vec![0; HEADER_BYTES_MAX - FIXED_BYTES + 1]);
    assert_eq!(
        parse(&more[..FIXED_BYTES]),
        Err(ProxyProtocolError::TooLong(HEADER_BYTES_MAX + 1))
    );
}

#[test]
fn extensions_are_passed_over_within_their_bounds() {
    let (authority, padding) = (extension(0x02, b"agents.example"), extension(0x04, &[]));
    let several = [TCP4, &authority, &padding].concat();
    assert_eq!(
        origin(&header(0x21, 0x11, &several)),
        Ok(Some(at("192.0.2.9:50000")))
    );
    for cut in [1, 2, 3, authority.len() - 1] {
        let cut = [TCP4, &authority[..cut]].concat();
        assert_eq!(
            parse(&header(0x21, 0x11, &cut)),
            Err(ProxyProtocolError::Length)
        );
    }
    let beyond = [TCP4, &[0x02, 0xff, 0xff, b'x']].concat();
    assert_eq!(
        parse(&header(0x21, 0x11, &beyond)),
        Err(ProxyProtocolError::Length)
    );
}

#[test]
fn a_checksum_is_checked_where_there_is_one() {
    let checked = |checksum: u32| {
        let value = extension(KIND_CRC32C, &checksum.to_be_bytes());
        header(
            0x21,
            0x11,
            &[TCP4, &extension(0x04, b"pad"), &value].concat(),
        )
    };
    let unchecked = checked(0);
    let right = crc32c_without(&unchecked, unchecked.len() - 4);
    let whole = checked(right);
    assert_eq!(origin(&whole), Ok(Some(at("192.0.2.9:50000"))));
    assert_eq!(
        parse(&checked(right ^ 1)),
        Err(ProxyProtocolError::Checksum)
    );
    let mut damaged = whole;
    // The last byte of the client's address.
    damaged[FIXED_BYTES + 3] ^= 1;
    assert_eq!(parse(&damaged), Err(ProxyProtocolError::Checksum));
    let short = [TCP4, &extension(KIND_CRC32C, &[0; 3])].concat();
    assert_eq!(
        parse(&header(0x21, 0x11, &short)),
        Err(ProxyProtocolError::Length)
    );
}

#[test]
fn the_checksum_is_the_one_of_its_standard() {
    // The check value of CRC-32C; the four zeros behind it stand where the checksum would.
    let crc = |bytes: &[u8]| crc32c_without(bytes, usize::MAX - 4);
    assert_eq!(crc(b"123456789"), 0xe306_9283);
    // RFC 3720, B.4.
    assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc(&[0xff; 32]), 0x62a8_ab43);
}

#[test]
fn other_bytes_are_no_header() {
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"GET / HTTP/1.1\r\n",
        b"PROXZ",
        b"\r\n\r\n\0\r\nQUIT\r",
        b"proxy ",
    ] {
        assert_eq!(parse(bytes), Err(ProxyProtocolError::Missing), "{bytes:?}");
    }
    assert_eq!(parse(b""), Ok(None));
}

fn any_header() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        Just(TCP4.to_vec()),
        any::<Ipv6Addr>().prop_map(tcp6),
        prop::collection::vec(any::<u8>(), 0..64),
    ];
    let tail = prop::collection::vec(
        (any::<u8>(), prop::collection::vec(any::<u8>(), 0..9)),
        0..4,
    );
    let families = prop::sample::select(&[0x00, 0x11, 0x21, 0x31][..]);
    let binary = (0x20..=0x22u8, families, body, tail).prop_map(|(command, family, body, tail)| {
        let tail = tail.iter().map(|(kind, value)| extension(*kind, value));
        let body = std::iter::once(body)
            .chain(tail)
            .collect::<Vec<_>>()
            .concat();
        header(command, family, &body)
    });
    let line = (any::<SocketAddr>(), any::<SocketAddr>()).prop_map(|(client, ours)| {
        let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
        let (client, port) = (client.ip(), client.port());
        format!(
            "PROXY {family} {client} {} {port} {}\r\n",
            ours.ip(),
            ours.port()
        )
        .into_bytes()
    });
    prop_oneof![binary, line]
}

proptest! {
    #[test]
    fn a_header_is_complete_at_its_last_byte_and_not_before(bytes in any_header(), more in prop::collection::vec(any::<u8>(), 0..9)) {
        if let Ok(Some(header)) = parse(&bytes) {
            prop_assert_eq!(header.length, bytes.len());
            prop_assert_eq!(parse(&[bytes.clone(), more].concat()), Ok(Some(header)));
            for cut in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..cut]), Ok(None), "cut at {}", cut);
            }
        }
    }

    #[test]
    fn what_is_refused_stays_refused_whatever_follows(bytes in any_header(), cut: prop::sample::Index, more in prop::collection::vec(any::<u8>(), 0..9)) {
        let start = &bytes[..cut.index(bytes.len())];
        if let Err(error) = parse(start) {
            prop_assert_eq!(parse(&[start, &more].concat()), Err(error));
        }
    }

    #[test]
    fn a_client_is_read_as_the_proxy_wrote_it(client: SocketAddr) {
        let ours = if client.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" };
        let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
        let line = format!("PROXY {family} {} {ours} {} 443\r\n", client.ip(), client.port());
        let named = SocketAddr::new(client.ip().to_canonical(), client.port());
        prop_assert_eq!(origin(line.as_bytes()), Ok(Some(Origin::Client(named))));
    }
}
