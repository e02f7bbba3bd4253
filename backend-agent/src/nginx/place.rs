//! Where something of this machine listens, and whether a word of nginx's configuration leads there.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use super::directive::Directive;

/// The port of HTTP, where none is named.
const HTTP: u16 = 80;

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// One address.
    Address(SocketAddr),
    /// A port of every address that this machine has of these kinds.
    Everywhere {
        port: u16,
        has_ipv4: bool,
        has_ipv6: bool,
    },
    /// A socket in the file system.
    Unix(PathBuf),
}

/// What is known of a word about a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// It leads somewhere else.
    Elsewhere,
    /// It is a name with the port of the place, and where it leads is for DNS to say.
    Unknown,
    /// It leads there by this address.
    By(IpAddr),
    /// It leads there by the file system.
    ByFile,
}

impl Reach {
    /// Whether it is known to lead there.
    pub(super) const fn is_there(self) -> bool {
        matches!(self, Self::By(_) | Self::ByFile)
    }

    /// That of several words by which one comes nearest.
    pub(super) fn nearest(all: impl IntoIterator<Item = Self>) -> Self {
        let mut nearest = Self::Elsewhere;
        for reach in all {
            if reach.is_there() {
                return reach;
            }
            if reach == Self::Unknown {
                nearest = reach;
            }
        }
        nearest
    }
}

impl Place {
    /// Where a listener of the backend is. `None` for port 0, which becomes another one with each start.
    pub(super) fn of_listener(listen: SocketAddr) -> Option<Self> {
        // One of all IPv6 addresses takes IPv4 as well.
        let is_both = listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        (listen.port() != 0).then(|| Self::of_address(listen, is_both))
    }

    /// Where a server of `http` is by this `listen`. `None` for a name, which DNS knows.
    pub(super) fn of_listen(listen: &Directive) -> Option<Self> {
        let value = listen.value();
        if let Some(path) = value.strip_prefix("unix:") {
            return Some(Self::Unix(real(path)));
        }
        let (host, port) = match value.parse::<u16>() {
            Ok(port) => ("*", port),
            Err(_) => split(value)?,
        };
        let host = match host {
            "*" => Ipv4Addr::UNSPECIFIED.into(),
            "localhost" => Ipv4Addr::LOCALHOST.into(),
            host => host.parse().ok()?,
        };
        let is_both = listen.arguments.iter().any(|it| it == "ipv6only=off");
        Some(Self::of_address(SocketAddr::new(host, port), is_both))
    }

    /// Its port, where it has one.
    pub(super) const fn port(&self) -> Option<u16> {
        match self {
            Self::Address(address) => Some(address.port()),
            Self::Everywhere { port, .. } => Some(*port),
            Self::Unix(_) => None,
        }
    }

    /// Where a server of `http` is that says nothing about it.
    pub(super) const fn of_silence() -> Self {
        Self::Everywhere {
            port: HTTP,
            has_ipv4: true,
            has_ipv6: false,
        }
    }

    fn of_address(address: SocketAddr, is_both: bool) -> Self {
        let (ip, port) = (address.ip(), address.port());
        if ip.is_unspecified() {
            Self::Everywhere {
                port,
                has_ipv4: ip.is_ipv4() || is_both,
                has_ipv6: ip.is_ipv6(),
            }
        } else {
            Self::Address(address)
        }
    }

    /// Whether a word leads here: `HOST:PORT`, or `unix:PATH`, as nginx takes it.
    pub(super) fn reached_by(&self, word: &str) -> Reach {
        let no = Reach::Elsewhere;
        let (own, port) = match (self, word.strip_prefix("unix:")) {
            (Self::Unix(own), Some(path)) => {
                // Behind a further colon is a path of HTTP.
                let path = path.split(':').next().unwrap_or(path);
                return if real(path) == *own {
                    Reach::ByFile
                } else {
                    no
                };
            }
            (Self::Unix(_), None) | (_, Some(_)) => return no,
            (Self::Address(own), None) => (Some(own.ip().to_canonical()), own.port()),
            (Self::Everywhere { port, .. }, None) => (None, *port),
        };
        let Some((host, named)) = split(word) else {
            return no;
        };
        if named != port {
            return no;
        }
        let ip = match host.parse::<IpAddr>() {
            Ok(ip) => reached(ip.to_canonical()),
            Err(_) if host.eq_ignore_ascii_case("localhost") => {
                return match own {
                    None => Reach::By(self.loopback()),
                    Some(own) if own.is_loopback() => Reach::By(own),
                    Some(_) => no,
                };
            }
            // Without a port it is the name of something in this file.
            Err(_) if !word.contains(':') => return no,
            Err(_) => return Reach::Unknown,
        };
        let is_here = match (self, own) {
            (_, Some(own)) => ip == own,
            (
                Self::Everywhere {
                    has_ipv4, has_ipv6, ..
                },
                None,
            ) => (if ip.is_ipv4() { *has_ipv4 } else { *has_ipv6 }) && is_of_this_machine(ip),
            (_, None) => false,
        };
        if is_here { Reach::By(ip) } else { no }
    }

    const fn loopback(&self) -> IpAddr {
        if let Self::Everywhere {
            has_ipv4: false, ..
        } = self
        {
            IpAddr::V6(Ipv6Addr::LOCALHOST)
        } else {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Everywhere { port, .. } => write!(f, "port {port} of this machine"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A host, without brackets, and its port.
fn split(word: &str) -> Option<(&str, u16)> {
    if word.is_empty() {
        return None;
    }
    let (host, port) = match word.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']')?;
            (host, behind.strip_prefix(':'))
        }
        None => match word.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (word, None),
        },
    };
    let port = port.map_or(Some(HTTP), |port| port.parse().ok())?;
    Some((host, port))
}

/// Where a connection to this address goes: nobody connects to all of them.
const fn reached(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(_) | IpAddr::V6(_) => ip,
    }
}

/// Whether this machine has an address: only such a one can be bound.
pub(super) fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// A path as it is where its folder is there, whatever links lead to it.
fn real(path: &str) -> PathBuf {
    let path = Path::new(path);
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => path.components().collect(),
    }
}

#[cfg(test)]
mod tests {
    use viworks_testkit::network::own_address;

    use super::super::directive::parse;
    use super::*;

    fn listening(listen: &str) -> Option<Place> {
        let parsed = parse(&format!("listen {listen};"), Path::new("nginx.conf")).unwrap();
        Place::of_listen(&parsed[0])
    }

    #[test]
    fn a_listen_is_where_its_words_say() {
        let everywhere = |port, has_ipv4, has_ipv6| {
            Some(Place::Everywhere {
                port,
                has_ipv4,
                has_ipv6,
            })
        };
        let at = |address: &str| Some(Place::Address(address.parse().unwrap()));
        for (listen, place) in [
            ("8443 ssl", everywhere(8443, true, false)),
            ("*:8443", everywhere(8443, true, false)),
            ("0.0.0.0:8443", everywhere(8443, true, false)),
            ("[::]:8443", everywhere(8443, false, true)),
            ("[::]:8443 ipv6only=off", everywhere(8443, true, true)),
            ("10.0.0.7:8443", at("10.0.0.7:8443")),
            ("10.0.0.7", at("10.0.0.7:80")),
            ("[::1]", at("[::1]:80")),
            ("localhost:8443", at("127.0.0.1:8443")),
            (
                "unix:/nonexistent/./x.sock",
                Some(Place::Unix("/nonexistent/x.sock".into())),
            ),
            ("api.example.org:8443", None),
        ] {
            assert_eq!(listening(listen), place, "{listen}");
        }
    }

    #[test]
    fn a_word_leads_to_a_listen_in_whatever_way_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::fs::create_dir(folder.path().join("run")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("run"), &link).unwrap();
        let by_link = format!("unix:{}/x.sock", link.display());
        let socket = format!("unix:{}/run/x.sock", folder.path().display());
        let by = |ip: &str| Reach::By(ip.parse().unwrap());
        let no = Reach::Elsewhere;
        for (listen, word, reach) in [
            ("8443", "127.0.0.1:8443", by("127.0.0.1")),
            ("8443", "127.0.0.7:8443", by("127.0.0.7")),
            ("8443", "localhost:8443", by("127.0.0.1")),
            ("8443", "0.0.0.0:8443", by("127.0.0.1")),
            ("8443", "[::ffff:127.0.0.1]:8443", by("127.0.0.1")),
            ("8443", "[::1]:8443", no),
            ("8443", "127.0.0.1:8444", no),
            ("8443", "192.0.2.1:8443", no),
            ("8443", "elsewhere.example.org:8443", Reach::Unknown),
            ("8443", "elsewhere.example.org:8444", no),
            ("8443", "an_upstream", no),
            ("[::]:8443", "localhost:8443", by("::1")),
            ("[::]:8443 ipv6only=off", "127.0.0.1:8443", by("127.0.0.1")),
            ("127.0.0.1:8443", "localhost:8443", by("127.0.0.1")),
            ("127.0.0.1:8443", "127.0.0.2:8443", no),
            ("127.0.0.1:80", "127.0.0.1", by("127.0.0.1")),
            (&socket, &socket, Reach::ByFile),
            (&socket, &by_link, Reach::ByFile),
            (&socket, &format!("{socket}:/v1/runs"), Reach::ByFile),
            (&socket, "unix:/run/x.sock", no),
            (&socket, "127.0.0.1:8443", no),
            ("8443", &socket, no),
        ] {
            let place = listening(listen).unwrap();
            assert_eq!(place.reached_by(word), reach, "{listen} by {word}");
        }
        // As others on its network know this machine.
        if let Some(own) = own_address() {
            let place = listening("8443").unwrap();
            let word = SocketAddr::new(own, 8443).to_string();
            assert_eq!(place.reached_by(&word), Reach::By(own));
        }
    }

    #[test]
    fn a_backend_that_listens_on_all_addresses_takes_ipv4_as_well() {
        let place = Place::of_listener("[::]:8081".parse().unwrap()).unwrap();
        assert!(place.reached_by("127.0.0.1:8081").is_there());
        assert!(place.reached_by("[::1]:8081").is_there());
        assert_eq!(Place::of_listener("127.0.0.1:0".parse().unwrap()), None);
    }
}
