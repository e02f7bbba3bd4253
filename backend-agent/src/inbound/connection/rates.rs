//! How often a session may say what costs the backend something: far more than an honest gateway does.

use std::time::Duration;

use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::session::BackendEvent;
use viworks_common::time::Monotonic;

/// Catalogues, each of them parsed and stored.
const CATALOGUES: Quota = Quota {
    per_minute: 4,
    burst: 16,
};
/// Messages about commands beyond what the backend's own offers allow.
const COMMANDS: Quota = Quota {
    per_minute: 600,
    burst: 1_024,
};
/// Messages about one command that was offered.
const PER_OFFER: u32 = 8;
/// Messages that offers allow at once.
const ALLOWANCE_MAX: u32 = 65_536;
/// Heartbeats, answers to probes and reports at once.
const CONTROL_BURST: u32 = 64;
/// How many of them may come in a heartbeat interval, in the long run.
const CONTROL_PER_HEARTBEAT: u128 = 8;

/// What one session has left.
#[derive(Debug)]
pub(super) struct Rates {
    control: Quota,
    controls: Bucket,
    catalogues: Bucket,
    commands: Bucket,
    allowance: u32,
}

impl Rates {
    pub(super) fn new(heartbeat_interval: Duration) -> Self {
        let interval = heartbeat_interval.as_millis().max(1);
        let per_minute = (60_000 * CONTROL_PER_HEARTBEAT / interval).max(60);
        Self {
            control: Quota {
                per_minute: u32::try_from(per_minute).unwrap_or(u32::MAX),
                burst: CONTROL_BURST,
            },
            controls: Bucket::default(),
            catalogues: Bucket::default(),
            commands: Bucket::default(),
            allowance: 0,
        }
    }

    /// A command is offered: its gateway will have something to say.
    pub(super) const fn offered(&mut self) {
        let more = self.allowance.saturating_add(PER_OFFER);
        self.allowance = if more < ALLOWANCE_MAX {
            more
        } else {
            ALLOWANCE_MAX
        };
    }

    /// Live output of a command that nobody knows.
    pub(super) fn unknown_output(&mut self, now: Monotonic) -> bool {
        allowed(self.commands.take(COMMANDS, now))
    }

    /// Whether the event may have an effect; one too many ends the session.
    pub(super) fn allow(&mut self, event: &BackendEvent, now: Monotonic) -> bool {
        match event {
            BackendEvent::Heartbeat(_)
            | BackendEvent::ProbeAnswered { .. }
            | BackendEvent::PinReport(_)
            | BackendEvent::Event(_) => allowed(self.controls.take(self.control, now)),
            BackendEvent::Catalogue(_) => allowed(self.catalogues.take(CATALOGUES, now)),
            BackendEvent::Accepted(_)
            | BackendEvent::Rejected(_)
            | BackendEvent::Started(_)
            | BackendEvent::Result(_) => {
                if let Some(left) = self.allowance.checked_sub(1) {
                    self.allowance = left;
                    return true;
                }
                allowed(self.commands.take(COMMANDS, now))
            }
            // Bounded by credit, or once in a session.
            BackendEvent::Telemetry(_)
            | BackendEvent::Output(_)
            | BackendEvent::Hello { .. }
            | BackendEvent::Confirmed { .. }
            | BackendEvent::Bye { .. }
            | BackendEvent::Closed(_) => true,
        }
    }
}

const fn allowed(taken: Taken) -> bool {
    matches!(taken, Taken::Allowed { .. })
}

#[cfg(test)]
mod tests {
    use viworks_common::wire::message::{Catalogue, PinReport};

    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_secs(1_000 + seconds))
    }

    #[test]
    fn a_flood_is_noticed_and_an_honest_pace_is_not() {
        let report = BackendEvent::PinReport(PinReport { version: 1 });
        let catalogue = BackendEvent::Catalogue(Catalogue {
            digest: String::new(),
            commands: Vec::new(),
        });
        let mut rates = Rates::new(Duration::from_secs(15));
        for minute in 0..60 {
            for second in [0, 15, 30, 45] {
                assert!(rates.allow(&report, at(minute * 60 + second)));
            }
            assert!(rates.allow(&catalogue, at(minute * 60)));
        }
        for (event, most) in [(report, 200), (catalogue, 20)] {
            let taken = (0..10_000)
                .take_while(|_| rates.allow(&event, at(3_600)))
                .count();
            assert!(taken < most, "{taken}");
        }
    }
}
