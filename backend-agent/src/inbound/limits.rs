//! Admission control: how many connections, from one source and altogether, and how many openings at once.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use viworks_common::limits::RETRY_AFTER_MAX;

/// The bounds of the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Open sockets.
    pub connections: usize,
    /// Open sockets of one source: an IPv4 address or an IPv6 /64 network.
    pub per_source: usize,
    /// Handshakes and session openings at once.
    pub openings: usize,
}

/// Why a connection is closed before it cost anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// As many sockets are open as may be.
    Full,
    /// The source holds as many as it may.
    SourceFull,
}

impl Turned {
    /// The reason in metrics and in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "connections_full",
            Self::SourceFull => "source_full",
        }
    }
}

/// The gate. Clones share it.
#[derive(Debug, Clone)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: AdmissionLimits,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    openings: Arc<Semaphore>,
    sources: Mutex<BTreeMap<IpAddr, usize>>,
}

/// The room one connection takes; given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    gate: Gate,
    source: IpAddr,
    _connection: OwnedSemaphorePermit,
}

/// The room of one handshake or opening; given back when dropped.
#[derive(Debug)]
pub struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl Gate {
    /// An empty gate.
    #[must_use]
    pub fn new(limits: AdmissionLimits) -> Self {
        Self {
            shared: Arc::new(Shared {
                limits,
                connections: Arc::new(Semaphore::new(limits.connections)),
                // Twice as many: those that will be told to come back need a handshake, too.
                handshakes: Arc::new(Semaphore::new(limits.openings.saturating_mul(2))),
                openings: Arc::new(Semaphore::new(limits.openings)),
                sources: Mutex::default(),
            }),
        }
    }

    /// Takes in a connection from `address`.
    ///
    /// # Errors
    ///
    /// At either bound.
    pub fn admit(&self, address: IpAddr) -> Result<Admitted, Turned> {
        let connection = Arc::clone(&self.shared.connections)
            .try_acquire_owned()
            .map_err(|_none_left| Turned::Full)?;
        let source = network(address);
        let mut sources = self.sources();
        let held = sources.entry(source).or_default();
        if *held >= self.shared.limits.per_source {
            return Err(Turned::SourceFull);
        }
        *held += 1;
        drop(sources);
        Ok(Admitted {
            gate: self.clone(),
            source,
            _connection: connection,
        })
    }

    /// Waits for the turn to do a handshake; the caller bounds the wait.
    pub async fn handshake(&self) -> Option<Turn> {
        let permit = Arc::clone(&self.shared.handshakes).acquire_owned().await;
        permit.ok().map(|permit| Turn { _permit: permit })
    }

    /// Takes the room for opening a session; `None` when as many are being opened as may be.
    #[must_use]
    pub fn opening(&self) -> Option<Turn> {
        let permit = Arc::clone(&self.shared.openings).try_acquire_owned().ok();
        permit.map(|permit| Turn { _permit: permit })
    }

    /// When a refused gateway should come back: the fuller the house, the further they are spread.
    #[must_use]
    pub fn retry_after(&self, random: u64) -> Duration {
        let open = self
            .shared
            .limits
            .connections
            .saturating_sub(self.shared.connections.available_permits());
        // About a hundred openings a second are a safe guess for the smallest machine.
        let spread = u64::try_from(open / 100).unwrap_or(u64::MAX).clamp(5, 120);
        Duration::from_secs(1 + random % spread).min(RETRY_AFTER_MAX)
    }

    fn sources(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        // Nothing panics while it is held.
        self.shared
            .sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut sources = self.gate.sources();
        if let Some(held) = sources.get_mut(&self.source) {
            *held -= 1;
            if *held == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

/// Whoever has one IPv6 address has its whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: AdmissionLimits = AdmissionLimits {
        connections: 3,
        per_source: 2,
        openings: 1,
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_cannot_take_every_place() {
        let gate = Gate::new(LIMITS);
        let first = gate.admit(ip("192.0.2.1")).unwrap();
        let _second = gate.admit(ip("::ffff:192.0.2.1")).unwrap();
        assert_eq!(gate.admit(ip("192.0.2.1")).unwrap_err(), Turned::SourceFull);
        let _other = gate.admit(ip("192.0.2.2")).unwrap();
        assert_eq!(gate.admit(ip("192.0.2.3")).unwrap_err(), Turned::Full);
        drop(first);
        gate.admit(ip("192.0.2.1")).unwrap();
    }

    #[test]
    fn a_refusal_gives_its_place_back() {
        let gate = Gate::new(AdmissionLimits {
            per_source: 0,
            ..LIMITS
        });
        for _ in 0..10 {
            assert_eq!(gate.admit(ip("192.0.2.1")).unwrap_err(), Turned::SourceFull);
        }
        assert_eq!(gate.shared.connections.available_permits(), 3);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let gate = Gate::new(LIMITS);
        let _first = gate.admit(ip("2001:db8::1")).unwrap();
        let _second = gate.admit(ip("2001:db8::2")).unwrap();
        assert_eq!(
            gate.admit(ip("2001:db8::3")).unwrap_err(),
            Turned::SourceFull
        );
        gate.admit(ip("2001:db8:0:1::1")).unwrap();
    }

    #[tokio::test]
    async fn openings_are_bounded_and_given_back() {
        let gate = Gate::new(LIMITS);
        let _handshakes = (gate.handshake().await, gate.handshake().await);
        let opening = gate.opening().unwrap();
        assert!(gate.opening().is_none());
        drop(opening);
        assert!(gate.opening().is_some());
    }

    #[test]
    fn no_source_is_remembered_when_all_have_left() {
        let gate = Gate::new(LIMITS);
        drop(gate.admit(ip("192.0.2.1")).unwrap());
        assert!(gate.sources().is_empty());
    }

    #[test]
    fn refused_gateways_come_back_spread_out() {
        let gate = Gate::new(LIMITS);
        let delays: std::collections::BTreeSet<_> =
            (0..100).map(|random| gate.retry_after(random)).collect();
        assert_eq!(delays.len(), 5);
        assert!(delays.iter().all(|delay| *delay >= Duration::from_secs(1)));
    }
}
