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
    by_any_means(output, TOOLS, address)
}

fn by_any_means(
    output: &mut dyn Write,
    tools: &[&str],
    address: IpAddr,
) -> Result<(), BuiltinError> {
    for tool in tools.iter().filter(|tool| Path::new(tool).exists()) {
        if let Some(answer) = by_tool(output, tool, address)? {
            return answer;
        }
    }
    match icmp_socket(address) {
        Ok(socket) => by_socket(output, &socket, address),
        // Not permitted to this user: the kernel's ping_group_range.
        Err(_denied) => by_tcp(output, address),
    }
}

fn by_socket(output: &mut dyn Write, socket: &Socket, address: IpAddr) -> Result<(), BuiltinError> {
    // A packet filter of this host refuses only what is sent. Nobody counts the answer to this one.
    match (&*socket).write_all(&echo_request(address, 0)) {
        Ok(()) => by_icmp(output, socket, address),
        Err(_refused) => by_tcp(output, address),
    }
}

/// What the system's tool finds; `None` when it may not be used, or cannot send.
fn by_tool(
    output: &mut dyn Write,
    tool: &str,
    address: IpAddr,
) -> Result<Option<Result<(), BuiltinError>>, BuiltinError> {
    let attempts = ATTEMPTS.to_string();
    let patience = PATIENCE.as_secs().to_string();
    let result = Command::new(tool)
        .args(["-n", "-c", &attempts, "-W", &patience, &address.to_string()])
        .stdin(Stdio::null())
        .output();
    // Not for this user, not for this machine, or gone since.
    let Ok(result) = result else {
        return Ok(None);
    };
    // Every ping sums up what it sent; one that lacks a right or a capability never comes to that.
    let sent = String::from_utf8_lossy(&result.stdout).contains("packets transmitted");
    if !sent && !result.status.success() {
        return Ok(None);
    }
    output.write_all(&result.stdout)?;
    if result.status.success() {
        return Ok(Some(Ok(())));
    }
    let said = String::from_utf8_lossy(&result.stderr);
    Ok(Some(Err(BuiltinError::Failed(if said.trim().is_empty() {
        format!("{address} did not answer")
    } else {
        said.trim().to_owned()
    }))))
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

    /// A program that stands where ping would.
    fn tool(folder: &Path, name: &str, script: &str, mode: u32) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_ping_that_may_not_be_used_is_done_without() {
        let folder = tempfile::tempdir().unwrap();
        let home = IpAddr::from([127, 0, 0, 1]);
        let denied =
            "echo 'PING 127.0.0.1: 56 data bytes'; echo 'Operation not permitted' >&2; exit 2";
        let useless = [
            tool(folder.path(), "not-executable", "exit 0", 0o644),
            tool(folder.path(), "denied", denied, 0o755),
        ];
        let useless: Vec<&str> = useless.iter().map(String::as_str).collect();
        let mut output = Vec::new();
        by_any_means(&mut output, &useless, home).unwrap();
        let text = String::from_utf8(output).unwrap();
        assert!(text.contains("answered: 3 of 3"), "{text}");
        assert!(!text.contains("data bytes"), "{text}");
    }

    #[test]
    fn icmp_that_is_refused_when_it_is_sent_is_done_without() {
        // It was never told where to send.
        let mute = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        let mut output = Vec::new();
        by_socket(&mut output, &mute, IpAddr::from([127, 0, 0, 1])).unwrap();
        let text = String::from_utf8(output).unwrap();
        assert!(
            text.contains("by tcp in ") && text.contains("answered: 3 of 3"),
            "{text}"
        );
    }

    #[test]
    fn a_ping_that_works_has_the_last_word() {
        let folder = tempfile::tempdir().unwrap();
        let home = IpAddr::from([127, 0, 0, 1]);
        let summary = "echo '3 packets transmitted, 0 received, 100% packet loss'";
        let silent = tool(
            folder.path(),
            "silent",
            &format!("{summary}; exit 1"),
            0o755,
        );
        let good = tool(folder.path(), "good", "echo fine", 0o755);
        let mut output = Vec::new();
        let refusal = by_any_means(&mut output, &[&silent, &good], home).unwrap_err();
        assert!(refusal.to_string().contains("did not answer"), "{refusal}");
        output.clear();
        by_any_means(&mut output, &[&good, &silent], home).unwrap();
        assert_eq!(output, b"fine\n");
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
