//! The PROXY protocol, versions 1 and 2: what a proxy says about the client before the client's own first byte.
//!
//! nginx sends version 1, which is a line of text; version 2 is binary, and what the load balancers of clouds send.
//! Both are bounded, and nothing of them is believed before the whole header is there and right. Whether the peer may
//! send one at all is for the caller to know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header that is read: of version 2 with its extensions.
pub const HEADER_BYTES_MAX: usize = 2 * 1024;

/// The longest line of version 1, its end included.
const LINE_BYTES_MAX: usize = 107;

/// What a line of version 1 begins with.
const LINE_START: &[u8] = b"PROXY ";

/// What a header of version 2 begins with.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The fixed part of version 2: signature, version and command, family, length of the rest.
const FIXED_BYTES: usize = 16;

/// The kind of the extension that holds a checksum of the whole header.
const KIND_CRC32C: u8 = 0x03;

/// Whom a connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Somebody at this address, who connected to the proxy.
    Client(SocketAddr),
    /// The proxy itself, which looks whether we are there, or does not know for whom it connects.
    Proxy,
}

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whom the connection belongs to.
    pub origin: Origin,
    /// How many bytes the header has; what follows is the client's.
    pub length: usize,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyProtocolError {
    /// They begin like neither version.
    #[error("the connection does not begin with a header of the PROXY protocol")]
    Missing,
    /// A line of version 1 that is none.
    #[error("the line of the PROXY protocol, version 1, is malformed")]
    Line,
    /// Another version, or another command than LOCAL and PROXY.
    #[error(
        "the header of the PROXY protocol has the version and command {0:#04x}, which nobody has defined"
    )]
    Command(u8),
    /// A client that has no TCP address.
    #[error(
        "the header of the PROXY protocol names a client of the family {0:#04x}, which is not TCP over IP"
    )]
    Family(u8),
    /// Longer than anybody needs.
    #[error("the header of the PROXY protocol announces {0} bytes")]
    TooLong(usize),
    /// The addresses or extensions do not fit into the announced length.
    #[error("what the header of the PROXY protocol holds does not fit into its length")]
    Length,
    /// Damaged on its way.
    #[error("the checksum of the header of the PROXY protocol is wrong")]
    Checksum,
}

/// Reads a header from the first bytes of a connection. `None` as long as it is not complete: then all bytes so far
/// belong to it, and more have to come.
///
/// # Errors
///
/// When no further byte can make a header of them.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, ProxyProtocolError> {
    if starts_like(bytes, SIGNATURE) {
        binary(bytes)
    } else if starts_like(bytes, LINE_START) {
        line(bytes)
    } else {
        Err(ProxyProtocolError::Missing)
    }
}

/// Whether `bytes` begin with `start`, as far as they go.
fn starts_like(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(one, other)| one == other)
}

fn line(bytes: &[u8]) -> Result<Option<Header>, ProxyProtocolError> {
    let within = bytes.get(..LINE_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < LINE_BYTES_MAX {
            Ok(None)
        } else {
            Err(ProxyProtocolError::Line)
        };
    };
    let text = bytes
        .get(LINE_START.len()..end)
        .and_then(|text| std::str::from_utf8(text).ok());
    let origin = text.and_then(line_origin).ok_or(ProxyProtocolError::Line)?;
    Ok(Some(Header {
        origin,
        length: end + 2,
    }))
}

fn line_origin(text: &str) -> Option<Origin> {
    // Whatever follows is not to be looked at.
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Some(Origin::Proxy);
    }
    let mut words = text.split(' ');
    let family = words.next()?;
    let (client, ours) = (words.next()?, words.next()?);
    let (their_port, _our_port) = (port(words.next()?)?, port(words.next()?)?);
    if words.next().is_some() {
        return None;
    }
    let (client, _ours): (IpAddr, IpAddr) = match family {
        "TCP4" => (
            client.parse::<Ipv4Addr>().ok()?.into(),
            ours.parse::<Ipv4Addr>().ok()?.into(),
        ),
        "TCP6" => (
            client.parse::<Ipv6Addr>().ok()?.into(),
            ours.parse::<Ipv6Addr>().ok()?.into(),
        ),
        _ => return None,
    };
    Some(Origin::Client(SocketAddr::new(
        client.to_canonical(),
        their_port,
    )))
}

/// A port as the protocol writes it: digits, and no zero before them.
fn port(text: &str) -> Option<u16> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    (canonical && digits).then(|| text.parse().ok()).flatten()
}

fn binary(bytes: &[u8]) -> Result<Option<Header>, ProxyProtocolError> {
    let Some((fixed, _)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
        return Ok(None);
    };
    let [.., command, family, high, low] = *fixed;
    let rest = usize::from(u16::from_be_bytes([high, low]));
    let length = FIXED_BYTES + rest;
    if !matches!(command, 0x20 | 0x21) {
        return Err(ProxyProtocolError::Command(command));
    }
    if length > HEADER_BYTES_MAX {
        return Err(ProxyProtocolError::TooLong(length));
    }
    let Some(header) = bytes.get(..length) else {
        return Ok(None);
    };
    let body = header.get(FIXED_BYTES..).unwrap_or_default();
    let origin = if command == 0x20 {
        // The family, and what stands in place of addresses, are not to be looked at.
        Origin::Proxy
    } else {
        let (origin, extensions) = addresses(family, body)?;
        check_extensions(header, extensions)?;
        origin
    };
    Ok(Some(Header { origin, length }))
}

/// Whom the body names, and how many bytes of extensions are behind that.
fn addresses(family: u8, body: &[u8]) -> Result<(Origin, usize), ProxyProtocolError> {
    let client = match family {
        0x00 => return Ok((Origin::Proxy, body.len())),
        0x11 => {
            let (address, rest) = take::<4>(body)?;
            let (_ours, rest) = take::<4>(rest)?;
            (IpAddr::from(address), rest)
        }
        0x21 => {
            let (address, rest) = take::<16>(body)?;
            let (_ours, rest) = take::<16>(rest)?;
            (IpAddr::from(address), rest)
        }
        other => return Err(ProxyProtocolError::Family(other)),
    };
    let (address, rest) = client;
    let (port, rest) = take::<2>(rest)?;
    let (_ours, rest) = take::<2>(rest)?;
    let client = SocketAddr::new(address.to_canonical(), u16::from_be_bytes(port));
    Ok((Origin::Client(client), rest.len()))
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), ProxyProtocolError> {
    let (taken, rest) = bytes
        .split_first_chunk()
        .ok_or(ProxyProtocolError::Length)?;
    Ok((*taken, rest))
}

/// Walks the extensions, which are the last `left` bytes of the header. Only the checksum means something here.
fn check_extensions(header: &[u8], mut left: usize) -> Result<(), ProxyProtocolError> {
    while left > 0 {
        let at = header.len() - left;
        let extension = header.get(at..).unwrap_or_default();
        let (kind, rest) = take::<1>(extension)?;
        let (length, rest) = take::<2>(rest)?;
        let length = usize::from(u16::from_be_bytes(length));
        let value = rest.get(..length).ok_or(ProxyProtocolError::Length)?;
        if kind == [KIND_CRC32C] {
            let stated = value
                .try_into()
                .map_err(|_length| ProxyProtocolError::Length)?;
            if crc32c_without(header, at + 3) != u32::from_be_bytes(stated) {
                return Err(ProxyProtocolError::Checksum);
            }
        }
        left -= 3 + length;
    }
    Ok(())
}

/// The CRC-32C of a header, with zeros where its own checksum of four bytes stands.
fn crc32c_without(header: &[u8], checksum_at: usize) -> u32 {
    const REVERSED_CASTAGNOLI: u32 = 0x82f6_3b78;
    let own = checksum_at..checksum_at + 4;
    let mut crc = u32::MAX;
    for (index, &byte) in header.iter().enumerate() {
        crc ^= u32::from(if own.contains(&index) { 0 } else { byte });
        for _bit in 0..8 {
            crc = (crc >> 1) ^ (REVERSED_CASTAGNOLI & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests;
