//! `net.ping`: whether a host answers, by whatever this host allows: the system's `ping`, an ICMP socket, or TCP.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{Clock, SystemClock};

use super::{BuiltinError, network};

/// Where distributions put the tool.
const TOOLS: &[&str] = &["/bin/ping", "/usr/bin/ping", "/sbin/ping"];
/// How many times a host is asked.
const ATTEMPTS: u16 = 3;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Ports that are tried when there is only TCP; a refusal is an answer.
const PORTS: &[u16] = &[443, 80, 22];
/// How long one port may take; all attempts at all ports stay within the command's time limit.
const PORT_PATIENCE: Duration = Duration::from_secs(1);

pub(super) fn ping(output: &mut dyn Write, host: &str) -> Result<(), BuiltinError> {
    let addresses = network::addresses(host)?;
    // IPv4 sorts first, and is what most gateways have.
    let address = addresses
        .first()
        .copied()
        .ok_or_else(|| BuiltinError::Failed(format!("{host} has no address")))?;
    if let Some(tool) = TOOLS.iter().find(|tool| Path::new(tool).exists()) {
        return by_tool(output, tool, address);
    }
    match icmp_socket(address) {
        Ok(socket) => by_icmp(output, &socket, address),
        // Not permitted to this user: the kernel's ping_group_range.
        Err(_denied) => by_tcp(output, address),
    }
}

fn by_tool(output: &mut dyn Write, tool: &str, address: IpAddr) -> Result<(), BuiltinError> {
    let attempts = ATTEMPTS.to_string();
    let patience = PATIENCE.as_secs().to_string();
    let result = Command::new(tool)
        .args(["-n", "-c", &attempts, "-W", &patience, &address.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| BuiltinError::Failed(format!("{tool}: {error}")))?;
    output.write_all(&result.stdout)?;
    if result.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&result.stderr);
    Err(BuiltinError::Failed(if said.trim().is_empty() {
        format!("{address} did not answer")
    } else {
        said.trim().to_owned()
    }))
}

fn icmp_socket(address: IpAddr) -> io::Result<Socket> {
    let (domain, protocol) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.connect(&SocketAddr::new(address, 0).into())?;
    Ok(socket)
}

fn by_icmp(output: &mut dyn Write, socket: &Socket, address: IpAddr) -> Result<(), BuiltinError> {
    ask(output, "icmp", address, |sequence| {
        let request = echo_request(address, sequence);
        let deadline = SystemClock.now().saturating_add(PATIENCE);
        (&*socket).write_all(&request)?;
        loop {
            let left = left_until(deadline).ok_or(ErrorKind::TimedOut)?;
            socket.set_read_timeout(Some(left))?;
            let mut answer = [0; 256];
            let length = (&*socket).read(&mut answer)?;
            if is_reply(address, answer.get(..length).unwrap_or_default(), sequence) {
                return Ok(());
            }
        }
    })
}

fn by_tcp(output: &mut dyn Write, address: IpAddr) -> Result<(), BuiltinError> {
    ask(output, "tcp", address, |_sequence| {
        let mut last = io::Error::from(ErrorKind::TimedOut);
        for port in PORTS {
            match TcpStream::connect_timeout(&SocketAddr::new(address, *port), PORT_PATIENCE) {
                Ok(_stream) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    })
}

/// Asks a few times and reports each answer and the sum.
fn ask(
    output: &mut dyn Write,
    method: &str,
    address: IpAddr,
    mut once: impl FnMut(u16) -> io::Result<()>,
) -> Result<(), BuiltinError> {
    let mut answered = 0_u16;
    for sequence in 1..=ATTEMPTS {
        let sent = SystemClock.now();
        match once(sequence) {
            Ok(()) => {
                answered += 1;
                let micros = SystemClock.now().saturating_since(sent).as_micros();
                writeln!(
                    output,
                    "{address}: answer {sequence} by {method} in {}.{:03} ms",
                    micros / 1000,
                    micros % 1000
                )?;
            }
            Err(error) => writeln!(
                output,
                "{address}: no answer {sequence} by {method}: {error}"
            )?,
        }
    }
    writeln!(output, "answered: {answered} of {ATTEMPTS}")?;
    if answered == 0 {
        return Err(BuiltinError::Failed(format!("{address} did not answer")));
    }
    Ok(())
}

/// An echo request; on this kind of socket the kernel fills in identifier and, for IPv6, checksum.
fn echo_request(address: IpAddr, sequence: u16) -> [u8; 16] {
    let mut request = [0_u8; 16];
    request[0] = match address {
        IpAddr::V4(_) => 8,
        IpAddr::V6(_) => 128,
    };
    request[6..8].copy_from_slice(&sequence.to_be_bytes());
    request[8..].copy_from_slice(b"viworks!");
    let checksum = internet_checksum(&request);
    request[2..4].copy_from_slice(&checksum.to_be_bytes());
    request
}

fn is_reply(address: IpAddr, answer: &[u8], sequence: u16) -> bool {
    let kind = match address {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => 129,
    };
    answer.first() == Some(&kind) && answer.get(6..8) == Some(&sequence.to_be_bytes()[..])
}

fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or_default(),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

fn left_until(deadline: Monotonic) -> Option<Duration> {
    let left = deadline.saturating_since(SystemClock.now());
    (!left.is_zero()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_with_its_checksum_sums_to_zero() {
        let request = echo_request(IpAddr::from([127, 0, 0, 1]), 7);
        assert_eq!(internet_checksum(&request), 0);
    }

    #[test]
    fn only_the_reply_to_this_request_counts() {
        let address = IpAddr::from([127, 0, 0, 1]);
        let mut reply = echo_request(address, 7);
        assert!(!is_reply(address, &reply, 7));
        reply[0] = 0;
        assert!(is_reply(address, &reply, 7));
        assert!(!is_reply(address, &reply, 8));
        assert!(!is_reply(address, &reply[..4], 7));
    }
}
