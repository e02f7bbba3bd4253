//! Networks of addresses in CIDR notation, as a configuration names whom it trusts.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An IP network: an address and how many of its leading bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpNetwork {
    address: IpAddr,
    bits: u8,
}

/// Why a text names no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNetwork {
    /// It is no address, or what follows the slash is no number of bits.
    #[error(
        "it is no address such as 192.0.2.7 or 2001:db8::7, and no network such as 192.0.2.0/24"
    )]
    Form,
    /// More bits than an address has.
    #[error("an address of its kind has {max} bits")]
    Bits {
        /// How many there are.
        max: u8,
    },
    /// Bits beyond the prefix are set, so that it is not clear what is meant.
    #[error("bits beyond its prefix are set; the network is {0}")]
    HostBits(IpNetwork),
}

const fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The leading `bits` of an address, the others zero.
fn leading(address: IpAddr, bits: u8) -> IpAddr {
    let bits = u32::from(bits);
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

impl IpNetwork {
    /// Whether an address belongs to it. An IPv4 address counts as one in whatever form a socket shows it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        width(address) == width(self.address) && leading(address, self.bits) == self.address
    }

    /// Whether its addresses cannot all be one site's: it is wider than `10.0.0.0/8` or `fc00::/7`, the widest networks
    /// that everybody may use within a site.
    #[must_use]
    pub const fn holds_strangers(&self) -> bool {
        self.bits
            < match self.address {
                IpAddr::V4(_) => 8,
                IpAddr::V6(_) => 7,
            }
    }
}

impl FromStr for IpNetwork {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_unreadable| InvalidNetwork::Form)?;
        let max = width(address);
        let bits = match bits {
            None => max,
            Some(bits) if bits.is_empty() || !bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                return Err(InvalidNetwork::Form);
            }
            Some(bits) => match bits.parse() {
                Ok(bits) if bits <= max => bits,
                Ok(_) | Err(_) => return Err(InvalidNetwork::Bits { max }),
            },
        };
        // An IPv4 address in the form of IPv6 is one of IPv4, as it is when somebody comes from it.
        let (address, bits) = match (address.to_canonical(), bits.checked_sub(96)) {
            (canonical @ IpAddr::V4(_), Some(of_them)) if address.is_ipv6() => (canonical, of_them),
            _ => (address, bits),
        };
        let network = Self {
            address: leading(address, bits),
            bits,
        };
        if network.address == address {
            Ok(network)
        } else {
            Err(InvalidNetwork::HostBits(network))
        }
    }
}

impl fmt::Display for IpNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, bits } = self;
        if *bits == width(*address) {
            write!(f, "{address}")
        } else {
            write!(f, "{address}/{bits}")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_belongs_to_the_networks_that_it_begins_like() {
        assert!(network("192.0.2.0/24").contains(ip("192.0.2.255")));
        assert!(!network("192.0.2.0/24").contains(ip("192.0.3.0")));
        assert!(network("127.0.0.1").contains(ip("127.0.0.1")));
        assert!(!network("127.0.0.1").contains(ip("127.0.0.2")));
        assert!(network("2001:db8::/32").contains(ip("2001:db8:ffff::1")));
        assert!(!network("2001:db8::/32").contains(ip("2001:db9::1")));
        assert!(network("0.0.0.0/0").contains(ip("203.0.113.9")));
        // In whatever form either is written.
        assert!(network("::ffff:10.0.0.1").contains(ip("10.0.0.1")));
        assert!(network("::ffff:10.0.0.0/104").contains(ip("::ffff:10.9.9.9")));
        assert!(!network("::ffff:10.0.0.0/104").contains(ip("11.0.0.0")));
        assert!(!network("0.0.0.0/0").contains(ip("2001:db8::1")));
    }

    #[test]
    fn an_ipv4_address_is_one_where_a_socket_shows_it_within_ipv6() {
        assert!(network("192.0.2.0/24").contains(ip("::ffff:192.0.2.9")));
        assert!(!network("::/0").contains(ip("::ffff:192.0.2.9")));
    }

    #[test]
    fn what_is_wider_than_a_site_holds_strangers() {
        for wide in [
            "0.0.0.0/0",
            "::/0",
            "128.0.0.0/1",
            "2000::/3",
            "::ffff:0:0/96",
            "::ffff:0:0/97",
        ] {
            assert!(network(wide).holds_strangers(), "{wide}");
        }
        for own in [
            "10.0.0.0/8",
            "127.0.0.1",
            "fc00::/7",
            "::1",
            "::ffff:10.0.0.0/104",
        ] {
            assert!(!network(own).holds_strangers(), "{own}");
        }
    }

    #[test]
    fn what_is_no_network_is_told_why() {
        for form in [
            "",
            "proxy",
            "10.0.0.0/",
            "10.0.0.0/x",
            "10.0.0.0/+8",
            "10.0.0/8",
            "::1/64/64",
        ] {
            assert_eq!(
                form.parse::<IpNetwork>(),
                Err(InvalidNetwork::Form),
                "{form}"
            );
        }
        for bits in ["10.0.0.0/33", "10.0.0.0/999"] {
            assert_eq!(
                bits.parse::<IpNetwork>(),
                Err(InvalidNetwork::Bits { max: 32 }),
                "{bits}"
            );
        }
        let meant = network("10.0.0.0/8");
        assert_eq!(
            "10.1.0.0/8".parse::<IpNetwork>(),
            Err(InvalidNetwork::HostBits(meant))
        );
    }

    proptest! {
        #[test]
        fn a_network_is_read_back_as_it_is_written_and_contains_itself(address: IpAddr, bits in 0..=128u8) {
            let bits = bits.min(width(address));
            let network = network(&format!("{}/{bits}", leading(address, bits)));
            prop_assert_eq!(network.to_string().parse::<IpNetwork>(), Ok(network));
            // Within IPv6 there is no network of IPv4 addresses.
            if address.to_canonical() == address {
                prop_assert!(network.contains(address));
            }
        }
    }
}
