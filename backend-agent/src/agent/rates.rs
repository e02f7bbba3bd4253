//! How often a gateway may say what costs the backend something, over all its sessions: far more than an honest one
//! does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use viworks_common::limits::COMMANDS_UNREPORTED_MAX;
use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::session::BackendEvent;
use viworks_common::time::Monotonic;

/// Catalogues, each of them parsed and stored.
const CATALOGUES: Quota = Quota {
    per_minute: 4,
    burst: 16,
};
/// Requests for a certificate, each of them verified, signed and registered; an honest gateway asks once a minute.
const CERTIFICATES: Quota = Quota {
    per_minute: 2,
    burst: 8,
};
/// Messages about commands beyond what the backend's own offers allow.
const COMMANDS: Quota = Quota {
    per_minute: 600,
    burst: 1_024,
};
/// Results and output of commands that nobody knows: at once twice what a journal holds, for an honest gateway tells
/// such a result once, and once more when the connection was lost before it was acknowledged.
const UNKNOWN: Quota = Quota {
    per_minute: 60,
    burst: 512,
};
const _: () = assert!(UNKNOWN.burst as usize == 2 * COMMANDS_UNREPORTED_MAX);
/// Messages about one command that was offered.
const PER_OFFER: u32 = 8;
/// Messages that offers allow at once.
const ALLOWANCE_MAX: u32 = 65_536;
/// Heartbeats, answers to probes and reports at once.
const CONTROL_BURST: u32 = 64;
/// How many of them may come in a heartbeat interval, in the long run.
const CONTROL_PER_HEARTBEAT: u128 = 8;
/// How many of them a session may begin with.
const SAID_AT_START: u32 = 4;

/// What a gateway has left.
#[derive(Debug, Default)]
pub(super) struct Rates {
    controls: Bucket,
    catalogues: Bucket,
    certificates: Bucket,
    commands: Bucket,
    unknown: Bucket,
    allowance: u32,
}

impl Rates {
    /// Whether it says nothing that new ones do not.
    pub(super) fn are_full(&self, now: Monotonic) -> bool {
        let buckets = [
            self.controls,
            self.catalogues,
            self.certificates,
            self.commands,
            self.unknown,
        ];
        buckets.iter().all(|bucket| bucket.is_full(now))
    }
}

/// A session's hold on what its gateway has left.
#[derive(Debug)]
pub struct Pace {
    rates: Arc<Mutex<Rates>>,
    control: Quota,
    /// How long one more of what `control` bounds takes to be allowed.
    pause: Duration,
}

impl Pace {
    pub(super) fn new(rates: Arc<Mutex<Rates>>, heartbeat_interval: Duration) -> Self {
        let interval = heartbeat_interval.as_millis().max(1);
        let per_minute = (60_000 * CONTROL_PER_HEARTBEAT / interval).max(60);
        let control = Quota {
            per_minute: u32::try_from(per_minute).unwrap_or(u32::MAX),
            burst: CONTROL_BURST,
        };
        Self {
            rates,
            pause: Duration::from_secs(60) / control.per_minute.max(1),
            control,
        }
    }

    /// A command is offered: its gateway will have something to say.
    pub fn offered(&self) {
        let mut rates = self.rates();
        let more = rates.allowance.saturating_add(PER_OFFER);
        rates.allowance = more.min(ALLOWANCE_MAX);
    }

    /// A result or live output of a command that nobody knows.
    ///
    /// # Errors
    /// When it is one too many: until the next one may come.
    pub fn unknown(&self, now: Monotonic) -> Result<(), Duration> {
        allowed(self.rates().unknown.take(UNKNOWN, now))
    }

    /// Whether the event may have an effect; one too many ends the session.
    ///
    /// # Errors
    /// When it may not: until the next one may come.
    pub fn allow(&self, event: &BackendEvent, now: Monotonic) -> Result<(), Duration> {
        match event {
            BackendEvent::Heartbeat(_)
            | BackendEvent::ProbeAnswered { .. }
            | BackendEvent::PinReport(_)
            | BackendEvent::KeyReported(_)
            | BackendEvent::Event(_) => {
                allowed(self.rates().controls.take(self.control, now)).map_err(|next| {
                    // Whoever came back for the next one alone would be thrown out again by the one behind it.
                    next.saturating_add(self.pause * (SAID_AT_START - 1))
                })
            }
            BackendEvent::Catalogue(_) => allowed(self.rates().catalogues.take(CATALOGUES, now)),
            BackendEvent::CertificateWanted(_) => {
                allowed(self.rates().certificates.take(CERTIFICATES, now))
            }
            BackendEvent::Accepted(_)
            | BackendEvent::Rejected(_)
            | BackendEvent::Started(_)
            | BackendEvent::Result(_) => {
                let mut rates = self.rates();
                if let Some(left) = rates.allowance.checked_sub(1) {
                    rates.allowance = left;
                    return Ok(());
                }
                allowed(rates.commands.take(COMMANDS, now))
            }
            // Bounded by credit or by what the gateway was given, or once in a session.
            BackendEvent::Telemetry(_)
            | BackendEvent::TrustReported(_)
            | BackendEvent::Output(_)
            | BackendEvent::Hello { .. }
            | BackendEvent::Confirmed { .. }
            | BackendEvent::Bye { .. }
            | BackendEvent::Closed(_) => Ok(()),
        }
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        // Nothing panics while it is held.
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn allowed(taken: Taken) -> Result<(), Duration> {
    match taken {
        Taken::Allowed { .. } => Ok(()),
        Taken::Refused { retry_after } => Err(retry_after),
    }
}

#[cfg(test)]
mod tests {
    use viworks_common::wire::message::{Catalogue, CertRequest, PinReport};

    use super::*;

    const HEARTBEATS: Duration = Duration::from_secs(15);

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_secs(1_000 + seconds))
    }

    #[test]
    fn whoever_comes_back_when_it_was_told_has_a_session() {
        let report = BackendEvent::PinReport(PinReport { version: 1 });
        let rates = Arc::<Mutex<Rates>>::default();
        let session = || Pace::new(Arc::clone(&rates), HEARTBEATS);
        let mut now = at(0);
        for _session in 0..100 {
            let refused = (0..1_000).find_map(|_| session().allow(&report, now).err());
            now = now.saturating_add(refused.unwrap());
            for _said in 0..SAID_AT_START {
                assert_eq!(session().allow(&report, now), Ok(()));
            }
        }
    }

    #[test]
    fn a_flood_is_noticed_in_whatever_session_and_an_honest_pace_is_not() {
        let report = BackendEvent::PinReport(PinReport { version: 1 });
        let catalogue = BackendEvent::Catalogue(Catalogue {
            digest: String::new(),
            commands: Vec::new(),
        });
        let rates = Arc::<Mutex<Rates>>::default();
        let session = || Pace::new(Arc::clone(&rates), HEARTBEATS);
        for minute in 0..60 {
            for second in [0, 15, 30, 45] {
                let now = at(minute * 60 + second);
                assert_eq!(session().allow(&report, now), Ok(()));
            }
            assert_eq!(session().allow(&catalogue, at(minute * 60)), Ok(()));
        }
        let wanted = BackendEvent::CertificateWanted(CertRequest { csr: String::new() });
        for (event, most) in [(report, 200), (catalogue, 20), (wanted, 10)] {
            let taken = (0..10_000)
                .take_while(|_| session().allow(&event, at(3_600)).is_ok())
                .count();
            assert!(taken < most, "{taken}");
        }
        assert!(!rates.lock().unwrap().are_full(at(3_600)));
        assert!(rates.lock().unwrap().are_full(at(7_200)));
    }

    #[test]
    fn what_nobody_asked_for_is_told_once_and_again_and_then_it_is_too_much() {
        let pace = Pace::new(Arc::default(), HEARTBEATS);
        let taken = (0..10_000)
            .take_while(|_| pace.unknown(at(0)).is_ok())
            .count();
        assert_eq!(taken, 2 * COMMANDS_UNREPORTED_MAX);
        let wait = pace.unknown(at(0)).unwrap_err();
        assert!(pace.unknown(at(0).saturating_add(wait)).is_ok());
    }
}
