//! The walk of a gateway whose certificate has ended. The running agent gets another one at the door by itself, so what
//! matters is whether it can, and whatever else can be looked at without a certificate that is good.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;
use viworks_common::human;
use viworks_common::id::AgentId;
use viworks_common::renewal::has_lapsed;
use viworks_common::time::Timestamp;
use viworks_runtime::ask::walk::Stop;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use super::super::status::look_for_agent;
use super::{
    CERTIFICATE, CHALLENGE, CLOCK, CLOCK_FIX, DNS, DOOR_FIX, Doctor, SESSION, TCP, TLS, UPGRADE,
    is_connected, step_of,
};
use crate::config::door_place;
use crate::material::BY_HAND;
use crate::outbound::dial;
use crate::outbound::door::{Door, DoorFailure};
use crate::outbound::errand::Errand;
use crate::outbound::failure::DialFailure;
use crate::outbound::lapsed::clock_at;
use crate::outbound::pins::Pins;
use crate::setup::Setup;

/// Why a step is left out that only a good certificate passes.
const NEEDS_ONE: &str = "only a certificate that is good comes as far";

/// What becomes of a gateway at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
enum AtDoor {
    /// The configuration names none.
    Unnamed,
    /// It answers.
    Answers {
        /// Its address.
        url: String,
    },
    /// It does not, or somebody else does.
    Amiss {
        /// Its address.
        url: String,
        /// What came of a look.
        cause: String,
    },
}

impl Doctor {
    /// Looks at all that shows no certificate, and ends the walk with the one that has ended; not where the running
    /// agent has a session all the same.
    pub(super) async fn lapsed(&mut self, setup: &Setup) -> Result<(), Stop> {
        let material = &setup.material;
        let (agent_id, not_after) = (material.name.agent_id, material.shown.not_after);
        let now = SystemClock.wall();
        let ended = format!(
            "the certificate in {} expired at {} ({})",
            material.shown.path.display(),
            human::to_the_second(not_after),
            human::relative(not_after, now)
        );
        let status = match self.agent(&setup.config.gateway.socket).await {
            Ok(status) => status,
            Err(stop) => {
                self.walk.warn(stop.step, stop.cause, stop.fix);
                None
            }
        };
        if let Some(status) = status.as_ref().filter(|status| is_connected(status)) {
            let fix = "ask again in a moment: the agent may just have got another one; if it stays, compare this machine's clock with the right time";
            self.walk.warn(CERTIFICATE, ended, fix);
            return self.connected(status);
        }
        self.way(setup).await;
        let (door, time) = self.at_the_door(setup, agent_id).await;
        self.by_their_clock(not_after, (&door, time))?;
        for step in [UPGRADE, CHALLENGE, SESSION] {
            self.walk.skip(step, NEEDS_ONE);
        }
        let (what, fix) = verdict(&door, status.as_ref());
        let cause = format!("{ended}; {what}");
        Err(Stop::at(CERTIFICATE, ExitCode::Unavailable, cause, fix))
    }

    /// The way to where gateways connect, as far as a server shows its key before it has seen a certificate.
    async fn way(&mut self, setup: &Setup) {
        let outbound = self.within_limits(&setup.config.outbound);
        let (host, port) = (&outbound.host, outbound.port);
        let begun = SystemClock.now();
        let tcp = dial::connect(host, port, None, &outbound.timeouts).await;
        let tcp = match tcp {
            Ok(tcp) => tcp,
            Err(failure) => return self.not_passed(&failure),
        };
        let peer = tcp
            .peer_addr()
            .map_or_else(|_gone| host.clone(), |peer| peer.to_string());
        drop(tcp);
        self.walk
            .pass(DNS, format!("{host} is at {peer}"), Duration::ZERO);
        let connected = format!("{peer} takes the connection");
        self.walk.pass(TCP, connected, self.took(begun));
        let (begun, limit) = (SystemClock.now(), self.step_limit());
        let pins = Pins::open(&setup.config.gateway.state_folder, outbound.pins.clone());
        let trusted = pins.accepted().pins;
        let number = trusted.len();
        let opened = Door::open_as(trusted, host, port, &outbound.server_name);
        match timeout(limit, Box::pin(opened)).await {
            Ok(Ok(door)) => {
                let shown = format!(
                    "the server shows the key {}, one of {number} that are trusted",
                    door.pin
                );
                self.walk.pass(TLS, shown, self.took(begun));
            }
            Ok(Err(DoorFailure::OtherServer { seen, .. })) => {
                self.not_passed(&DialFailure::PinMismatch { seen });
            }
            Ok(Err(DoorFailure::Unreached { failure, .. })) => self.not_passed(&failure),
            Ok(Err(other)) => self.walk.skip(TLS, other.to_string()),
            Err(_late) => {
                let late = format!("nothing came of it within {}", in_time(limit));
                self.walk.skip(TLS, late);
            }
        }
    }

    /// It is in the way as well, and not the first thing that is.
    fn not_passed(&mut self, failure: &DialFailure) {
        let step = step_of(failure);
        self.walk.reach(DNS, step);
        self.walk.warn(step, failure.to_string(), failure.fix());
    }

    /// What becomes of this gateway at the door, and what time it is there. A challenge that nobody answers costs the
    /// backend nothing.
    async fn at_the_door(&self, setup: &Setup, agent_id: AgentId) -> (AtDoor, Option<Timestamp>) {
        let outbound = &setup.config.outbound;
        let Some(url) = outbound.door_url.clone() else {
            return (AtDoor::Unnamed, None);
        };
        let Some((host, port)) = door_place(&url) else {
            let cause = "that is no address of a door".to_owned();
            return (AtDoor::Amiss { url, cause }, None);
        };
        let pins = Pins::open(&setup.config.gateway.state_folder, outbound.pins.clone());
        let asked = async {
            let opened = Door::open(pins.accepted().pins, &host, port).await;
            let mut door = opened.map_err(|failure| failure.to_string())?;
            clock_at(&mut door, agent_id).await
        };
        let limit = self.step_limit();
        match timeout(limit, Box::pin(asked)).await {
            Ok(Ok(time)) => (AtDoor::Answers { url }, Some(time)),
            Ok(Err(cause)) => (AtDoor::Amiss { url, cause }, None),
            Err(_late) => {
                let cause = format!("nothing came of it within {}", in_time(limit));
                (AtDoor::Amiss { url, cause }, None)
            }
        }
    }

    /// Ends the walk where it is the clock that is wrong, and not the certificate that has ended.
    fn by_their_clock(
        &mut self,
        not_after: Timestamp,
        (door, time): (&AtDoor, Option<Timestamp>),
    ) -> Result<(), Stop> {
        let Some(time) = time else {
            self.walk.skip(CLOCK, no_time(door));
            return Ok(());
        };
        let ahead = SystemClock.wall().unix_millis() - time.unix_millis();
        if !has_lapsed(not_after, time) {
            let cause = format!(
                "by the backend's clock the certificate is good until {}: this clock is {} the backend's",
                human::to_the_second(not_after),
                human::apart(ahead)
            );
            return Err(Stop::at(CLOCK, ExitCode::NoGo, cause, CLOCK_FIX));
        }
        if let Err(stop) = self.clock(ahead) {
            self.walk.warn(stop.step, stop.cause, stop.fix);
        }
        Ok(())
    }
}

/// Why nobody says what time it is.
const fn no_time(door: &AtDoor) -> &'static str {
    match door {
        AtDoor::Unnamed => {
            "no door is configured that could say what time it is: set door_url in [outbound]"
        }
        AtDoor::Answers { .. } | AtDoor::Amiss { .. } => "the door did not say what time it is",
    }
}

fn in_time(limit: Duration) -> String {
    format!(
        "{} ms",
        human::count(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
    )
}

/// What comes of a certificate that has ended, and what to do.
fn verdict(door: &AtDoor, status: Option<&Value>) -> (String, String) {
    let clock = "unless this machine's clock is wrong";
    match (door, status) {
        (AtDoor::Unnamed, _) => (
            "no other one comes by itself, because door_url in [outbound] is not set".to_owned(),
            format!(
                "set door_url in [outbound] to the backend's door (public_url of its [enrolment]): the agent that runs \
                 takes it over without a restart, at once with SIGHUP, and gets another one there by itself; where there \
                 is no door, {BY_HAND}; {clock}"
            ),
        ),
        (AtDoor::Amiss { url, cause }, _) => (
            format!(
                "the agent asks the door, {url}, for another one by itself, and no door is there: {cause}"
            ),
            format!("{DOOR_FIX}; where there is no door any more, {BY_HAND}; {clock}"),
        ),
        (AtDoor::Answers { url }, None) => (
            format!(
                "an agent that runs asks the door, {url}, for another one by itself; the door answers, and no agent runs"
            ),
            format!("start the agent: {}; {clock}", look_for_agent()),
        ),
        (AtDoor::Answers { url }, Some(status)) => {
            let asks = format!(
                "the running agent asks the door, {url}, for another one by itself, and the door answers"
            );
            let conditions = status["conditions"].as_array().into_iter().flatten();
            let mut of_door = conditions.filter(|it| it["name"] == Errand::Certificate.condition());
            let Some(told) = of_door.next() else {
                let fix = format!(
                    "nothing, while it asks: it is connected within a few minutes, and viworks-gateway-agent status tells \
                     how it goes; {clock}"
                );
                return (asks, fix);
            };
            let word = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
            (format!("{asks}: {}", word("cause")), word("fix"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whoever_can_get_another_certificate_by_itself_is_told_how() {
        let url = || "https://door.test:8082".to_owned();
        let (answers, cause) = (AtDoor::Answers { url: url() }, "refused".to_owned());
        let amiss = AtDoor::Amiss { url: url(), cause };
        let waiting = json!({ "conditions": [] });
        let refused = json!({ "conditions": [
            { "name": "disk", "cause": "full", "fix": "make room" },
            { "name": "certificate.door", "cause": "the gateway is revoked", "fix": "do what it says" },
        ] });
        for (door, status, cause, fix) in [
            (
                &AtDoor::Unnamed,
                None,
                "door_url in [outbound] is not set",
                "set door_url",
            ),
            (
                &AtDoor::Unnamed,
                Some(&waiting),
                "is not set",
                "signed for its key by hand",
            ),
            (&amiss, None, "no door is there: refused", "check door_url"),
            (
                &amiss,
                None,
                "no door is there",
                "signed for its key by hand",
            ),
            (&answers, None, "no agent runs", "start it: "),
            (
                &answers,
                Some(&waiting),
                "the door answers",
                "nothing, while it asks",
            ),
            (
                &answers,
                Some(&refused),
                "the gateway is revoked",
                "do what it says",
            ),
        ] {
            let (what, help) = verdict(door, status);
            // Only a door redeems a ticket, and a backend without one makes none.
            assert!(!help.contains("replace"), "{door:?} {status:?}: {help}");
            assert!(what.contains(cause), "{door:?} {status:?}: {what}");
            assert!(help.contains(fix), "{door:?} {status:?}: {help}");
            // What is written into the configuration there is taken over by itself.
            assert!(!help.contains("restart the agent"), "{help}");
        }
        assert!(no_time(&AtDoor::Unnamed).contains("no door is configured"));
        for door in [&answers, &amiss] {
            assert!(no_time(door).contains("did not say"), "{door:?}");
        }
    }
}
