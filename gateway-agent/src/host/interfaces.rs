//! The network interfaces of this process's own network namespace with their counters, and which of them matter most:
//! the one that leads to the world, then hardware, then the rest.
//!
//! `/sys` shows the namespace that it was mounted in, which is another one after `unshare -n` or in some containers;
//! `/proc/net` shows the reader's own. So what there is, and what it counted, is asked there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

const CLASS: &str = "/sys/class/net";
const DEVICES: &str = "/proc/net/dev";
/// A route that is up.
const ROUTE_UP: u32 = 1;
/// A route that refuses what it matches.
const ROUTE_REJECT: u32 = 0x200;

/// What an interface has counted since it is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Packets that came and could not be received.
    pub receive_errors: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets that could not be sent.
    pub send_errors: u64,
}

/// The interfaces that this process could use, with what they counted.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn counters() -> io::Result<BTreeMap<OsString, Counters>> {
    Ok(devices(&fs::read(DEVICES)?))
}

/// Whether `/sys` tells of the same interfaces; otherwise nothing in it is about those of this process.
#[must_use]
pub fn are_in_sys(own: &BTreeMap<OsString, Counters>) -> bool {
    let Ok(entries) = fs::read_dir(CLASS) else {
        return false;
    };
    // Beside the interfaces there are files, such as bonding_masters.
    let there: BTreeSet<OsString> = entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name())
        .collect();
    own.keys().eq(there.iter())
}

/// The table of `/proc/net/dev`: after each name eight numbers of what came and eight of what went.
fn devices(table: &[u8]) -> BTreeMap<OsString, Counters> {
    let device = |line: &[u8]| {
        // A name may hold a colon, a number cannot.
        let colon = line.iter().rposition(|byte| *byte == b':')?;
        let name = words(&line[..colon]).next()?;
        let numbers: Vec<u64> = words(&line[colon + 1..])
            .map(|number| std::str::from_utf8(number).ok()?.parse().ok())
            .collect::<Option<_>>()?;
        let at = |index: usize| numbers.get(index).copied();
        let counters = Counters {
            received_bytes: at(0)?,
            received_packets: at(1)?,
            receive_errors: at(2)?,
            sent_bytes: at(8)?,
            sent_packets: at(9)?,
            send_errors: at(10)?,
        };
        Some((named(name), counters))
    };
    table
        .split(|byte| *byte == b'\n')
        .filter_map(device)
        .collect()
}

/// How important an interface is; the smaller, the more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// The default route leads over it.
    Uplink,
    /// Hardware that is up.
    Hardware,
    /// Up, and made of software: bridges, tunnels, containers' ends.
    Software,
    /// Hardware without a link.
    Unplugged,
    /// All others.
    Down,
}

/// What is known of this host's interfaces beside their counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranks {
    uplinks: BTreeSet<OsString>,
}

impl Ranks {
    /// Reads the kernel's routes; without any no interface is an uplink.
    #[must_use]
    pub fn read() -> Self {
        let table = |path: &str| fs::read(path).unwrap_or_default();
        let mut uplinks = default_routes(&table("/proc/net/route"));
        uplinks.extend(default_routes_v6(&table("/proc/net/ipv6_route")));
        Self { uplinks }
    }

    /// How important `name` is.
    #[must_use]
    pub fn of(&self, name: &OsStr) -> Rank {
        let folder = Path::new(CLASS).join(name);
        let state = fs::read_to_string(folder.join("operstate")).unwrap_or_default();
        // Loopback and some tunnels say that they do not know.
        let up = matches!(state.trim(), "up" | "unknown");
        let hardware = folder.join("device").exists();
        if self.uplinks.contains(name) {
            return Rank::Uplink;
        }
        match (hardware, up) {
            (true, true) => Rank::Hardware,
            (false, true) => Rank::Software,
            (true, false) => Rank::Unplugged,
            (false, false) => Rank::Down,
        }
    }
}

/// The interfaces of the default routes in `/proc/net/route`.
fn default_routes(table: &[u8]) -> BTreeSet<OsString> {
    let route = |line: &[u8]| {
        let mut fields = words(line);
        let name = fields.next()?;
        let (destination, _gateway) = (hexadecimal(fields.next()?)?, fields.next()?);
        let flags = hexadecimal(fields.next()?)?;
        // Reference count, use, metric.
        let mask = hexadecimal(fields.nth(3)?)?;
        let default = destination == 0 && mask == 0;
        (default && flags & ROUTE_UP != 0 && flags & ROUTE_REJECT == 0).then(|| named(name))
    };
    table
        .split(|byte| *byte == b'\n')
        .filter_map(route)
        .collect()
}

/// The interfaces of the default routes in `/proc/net/ipv6_route`.
fn default_routes_v6(table: &[u8]) -> BTreeSet<OsString> {
    let route = |line: &[u8]| {
        let fields: Vec<&[u8]> = words(line).collect();
        let (destination, length) = (*fields.first()?, *fields.get(1)?);
        let (flags, name) = (hexadecimal(fields.get(8)?)?, *fields.get(9)?);
        let default = destination.iter().all(|digit| *digit == b'0') && length == b"00";
        (default && flags & ROUTE_UP != 0 && flags & ROUTE_REJECT == 0).then(|| named(name))
    };
    table
        .split(|byte| *byte == b'\n')
        .filter_map(route)
        .collect()
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace)
        .filter(|w| !w.is_empty())
}

fn named(name: &[u8]) -> OsString {
    OsString::from_vec(OsStr::from_bytes(name).as_bytes().to_vec())
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_of_the_default_route_is_the_uplink() {
        let table = b"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            zz9\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
            veth1\t00000000\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n\
            off\t00000000\t0100A8C0\t0200\t0\t0\t100\t00000000\t0\t0\t0\n\
            eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_routes(table), BTreeSet::from(["zz9".into()]));
        let six = b"00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 wwan0\n\
            00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo\n\
            fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n";
        assert_eq!(default_routes_v6(six), BTreeSet::from(["wwan0".into()]));
        assert_eq!(default_routes(b"garbage\n\xff"), BTreeSet::new());
    }

    #[test]
    fn counters_are_read_by_their_columns() {
        let table = b"Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    lo:      11       1    0    0    0     0          0         0       12       2    0    0    0     0       0          0\n  a:b\xfc: 21 2 3 0 0 0 0 0 24 5 6 0 0 0 0 0\n";
        let found = devices(table);
        let odd = Counters {
            received_bytes: 21,
            received_packets: 2,
            receive_errors: 3,
            sent_bytes: 24,
            sent_packets: 5,
            send_errors: 6,
        };
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[OsStr::new("lo")].sent_bytes, 12);
        assert_eq!(found[OsStr::from_bytes(b"a:b\xfc")], odd);
    }

    #[test]
    fn an_uplink_comes_before_everything_else() {
        let ranks = Ranks {
            uplinks: BTreeSet::from(["zz9".into()]),
        };
        assert_eq!(ranks.of(OsStr::new("zz9")), Rank::Uplink);
        assert!(Rank::Uplink < ranks.of(OsStr::new("lo")));
    }
}
