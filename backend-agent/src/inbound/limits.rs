//! Admission control: how many connections, from one source and altogether, and how many openings at once.
//!
//! A quarter of every kind of place is kept for sources that held a session a short while ago, so that strangers who
//! take whatever they can get do not keep the fleet from coming back.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use viworks_common::places::{PlaceLimits, network};
use viworks_runtime::door::{Door, Seat};

/// One in so many places is kept for sources that held a session recently.
const RESERVED_SHARE: usize = 4;

/// How long after the last session was established a source is known.
const KNOWN_TIME: Duration = Duration::from_secs(3_600);

/// Known sources at once; beyond that the longest unused ones are forgotten.
const KNOWN_MAX: u64 = 100_000;

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

/// Connections of proxies that have not said for whom they are. At the bound the one goes that has waited longest:
/// whoever holds such connections without a word keeps nobody else out. One that has said it and is judged stays; where
/// all are, the newcomer is refused.
#[derive(Debug)]
pub struct Arrivals {
    door: Door<()>,
}

/// The room of one arrival; given back when dropped.
pub type Arrival = Seat<()>;

impl Arrivals {
    /// Room for so many.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            door: Door::new(PlaceLimits {
                total: most,
                per_source: most,
                per_known: most,
            }),
        }
    }

    /// Takes one in.
    ///
    /// # Errors
    ///
    /// When there is room for nobody.
    pub fn enter(&self) -> Result<Arrival, Turned> {
        // As one that is known: of these there may be as many as of all.
        let entered = self.door.enter(&(), true);
        entered
            .map(|let_in| let_in.seat)
            .map_err(|_bound| Turned::Full)
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
    connections: Places,
    arrivals: Arrivals,
    handshakes: Places,
    openings: Places,
    sources: Mutex<BTreeMap<IpAddr, usize>>,
    known: Cache<IpAddr, ()>,
}

/// Places of one kind: some for anybody, some for known sources only.
#[derive(Debug)]
struct Places {
    anybody: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
}

impl Places {
    fn new(places: usize) -> Self {
        let reserved = places / RESERVED_SHARE;
        Self {
            anybody: Arc::new(Semaphore::new(places - reserved)),
            reserved: Arc::new(Semaphore::new(reserved)),
        }
    }

    fn take(&self, known: bool) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.anybody).try_acquire_owned().ok();
        place.or_else(|| {
            known
                .then(|| Arc::clone(&self.reserved).try_acquire_owned().ok())
                .flatten()
        })
    }

    async fn wait(&self, known: bool) -> Option<OwnedSemaphorePermit> {
        let anybody = Arc::clone(&self.anybody).acquire_owned();
        let reserved = Arc::clone(&self.reserved).acquire_owned();
        tokio::select! {
            biased;
            place = anybody => place.ok(),
            place = reserved, if known => place.ok(),
        }
    }

    #[cfg(test)]
    fn free(&self) -> usize {
        self.anybody.available_permits() + self.reserved.available_permits()
    }
}

/// The room one connection takes; given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    gate: Gate,
    source: IpAddr,
    known: bool,
    _connection: OwnedSemaphorePermit,
}

impl Admitted {
    /// Waits for the turn to do a handshake; the caller bounds the wait.
    pub async fn handshake(&self) -> Option<Turn> {
        let place = self.gate.shared.handshakes.wait(self.known).await;
        place.map(|permit| Turn { _permit: permit })
    }

    /// Takes the room for opening a session; `None` when as many are being opened as may be.
    #[must_use]
    pub fn opening(&self) -> Option<Turn> {
        let place = self.gate.shared.openings.take(self.known);
        place.map(|permit| Turn { _permit: permit })
    }

    /// Notes that a session was established from here: this source is known for a while.
    pub fn vouch(&self) {
        self.gate.shared.known.insert(self.source, ());
    }
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
        Self::remembering(limits, KNOWN_MAX)
    }

    fn remembering(limits: AdmissionLimits, known_max: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                limits,
                connections: Places::new(limits.connections),
                arrivals: Arrivals::new(limits.connections),
                // Twice as many: those that will be told to come back need a handshake, too.
                handshakes: Places::new(limits.openings.saturating_mul(2)),
                openings: Places::new(limits.openings),
                sources: Mutex::default(),
                known: Cache::builder()
                    .max_capacity(known_max)
                    .eviction_policy(EvictionPolicy::lru())
                    .time_to_live(KNOWN_TIME)
                    .build(),
            }),
        }
    }

    /// Takes in a connection of a proxy until it is known for whom it is, and [`Self::admit`] can decide. When as many
    /// of these are open as there may be connections, the one goes that has waited longest without a word.
    ///
    /// # Errors
    ///
    /// When there is room for nobody.
    pub fn arrive(&self) -> Result<Arrival, Turned> {
        self.shared.arrivals.enter()
    }

    /// Takes in a connection from `address`.
    ///
    /// # Errors
    ///
    /// At either bound.
    pub fn admit(&self, address: IpAddr) -> Result<Admitted, Turned> {
        let source = network(address);
        let known = self.shared.known.contains_key(&source);
        let connection = self.shared.connections.take(known).ok_or(Turned::Full)?;
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
            known,
            _connection: connection,
        })
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
        assert_eq!(gate.shared.connections.free(), 3);
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

    #[test]
    fn connections_of_a_proxy_are_bounded_until_it_is_known_for_whom_they_are() {
        let gate = Gate::new(LIMITS);
        let mut arrived: Vec<_> = (0..LIMITS.connections)
            .map(|_| gate.arrive().unwrap())
            .collect();
        // They have no place among the connections yet.
        let _admitted = gate.admit(ip("192.0.2.1")).unwrap();
        drop(arrived.pop());
        let last = gate.arrive().unwrap();
        let is_cut = |arrival: &Arrival| arrival.cut().is_cancelled();
        assert!(!arrived.iter().any(is_cut));
        // Who has waited longest goes for the newcomer.
        let newcomer = gate.arrive().unwrap();
        let cut: Vec<_> = arrived.iter().map(is_cut).collect();
        assert_eq!(cut, [true, false]);
        assert!(!is_cut(&last) && !is_cut(&newcomer));
    }

    #[tokio::test]
    async fn openings_are_bounded_and_given_back() {
        let gate = Gate::new(LIMITS);
        let admitted = gate.admit(ip("192.0.2.1")).unwrap();
        let _handshakes = (admitted.handshake().await, admitted.handshake().await);
        let opening = admitted.opening().unwrap();
        assert!(admitted.opening().is_none());
        drop(opening);
        assert!(admitted.opening().is_some());
    }

    #[tokio::test]
    async fn strangers_cannot_take_the_places_of_those_who_held_a_session() {
        let gate = Gate::new(AdmissionLimits {
            connections: 8,
            per_source: 8,
            openings: 4,
        });
        let fleet = ip("192.0.2.1");
        gate.admit(fleet).unwrap().vouch();
        let strangers: Vec<_> =
            std::iter::from_fn(|| gate.admit(ip("198.51.100.9")).ok()).collect();
        assert_eq!(strangers.len(), 6);
        let turns: Vec<_> = strangers.iter().map_while(Admitted::opening).collect();
        assert_eq!(turns.len(), 3);
        let back = gate.admit(fleet).unwrap();
        assert!(back.opening().is_some() && back.handshake().await.is_some());
        // What nobody reserved is open to the fleet as well.
        drop(strangers);
        let all: Vec<_> = std::iter::from_fn(|| gate.admit(fleet).ok()).collect();
        assert_eq!(all.len(), 7);
    }

    #[test]
    fn of_sources_that_held_a_session_the_latest_are_known() {
        let gate = Gate::remembering(LIMITS, 10);
        for host in 0..100 {
            let source = ip(&format!("192.0.2.{host}"));
            gate.admit(source).unwrap().vouch();
            gate.shared.known.run_pending_tasks();
            assert!(gate.shared.known.contains_key(&source), "{host}");
        }
        assert_eq!(gate.shared.known.entry_count(), 10);
        assert!(!gate.shared.known.contains_key(&ip("192.0.2.0")));
    }

    #[test]
    fn no_source_is_remembered_when_all_have_left() {
        let gate = Gate::new(LIMITS);
        drop(gate.admit(ip("192.0.2.1")).unwrap());
        assert!(gate.sources().is_empty());
    }
}
