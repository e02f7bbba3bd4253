//! The two requests at the door, over a connection whose server has one of the ticket's keys.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use viworks_common::enrolment::{
    EnrolmentAnswer, EnrolmentChallenge, EnrolmentRequest, Exchange, PATH, RedeemRequest, Ticket,
    WireChallenge, clock_suits,
};
use viworks_common::id::{GatewayName, InstallId};
use viworks_common::pin::SpkiPin;
use viworks_common::text;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_runtime::{fault, random};

use super::{EnrolError, Papers};
use crate::config::door_place;
use crate::outbound::door::{Door, DoorFailure, json, read};

/// About how long the first pause between attempts is; each is twice as long as the one before.
const PAUSE: Duration = Duration::from_secs(1);
/// About how long the longest is.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// The longest that a busy backend may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// What the machine says about itself.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The certificate request, PEM.
    pub csr: String,
    /// The installation.
    pub install_id: InstallId,
    /// How the gateway is to be called, when somebody said so.
    pub name: Option<GatewayName>,
    /// What the machine calls itself.
    pub host: String,
}

/// What came of it.
#[derive(Debug)]
pub struct Enrolled {
    /// What the backend answered.
    pub papers: Papers,
    /// The door, host and port.
    pub place: String,
    /// The key that it showed.
    pub pin: SpkiPin,
}

/// Redeems the ticket; tries again for as long as `patience` while the backend is busy, not reached, or does not
/// answer. `told` hears of each pause: what the attempt before it ended with.
///
/// # Errors
///
/// Why this machine is no gateway; [`EnrolError::InDoubt`] when the backend may have made one all the same.
pub async fn redeem(
    ticket: &Ticket,
    machine: &Machine,
    patience: Duration,
    mut told: impl FnMut(&EnrolError),
) -> Result<Enrolled, EnrolError> {
    let end = Instant::now() + patience;
    let mut in_doubt = false;
    let mut pause = PAUSE;
    loop {
        let error = match redeem_once(ticket, machine, &mut in_doubt).await {
            Ok(enrolled) => return Ok(enrolled),
            Err(error) => error,
        };
        let left = end.saturating_duration_since(Instant::now());
        let Some(asked) = error.again().filter(|_more| !left.is_zero()) else {
            return Err(if in_doubt { error.in_doubt() } else { error });
        };
        told(&error);
        // Spread: where many machines were switched on together, they do not come back together.
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        let spread = Duration::from_millis(random::uniform(0..pause_ms)) + pause / 2;
        let asked = asked.min(RETRY_AFTER_MAX);
        sleep((asked + spread).min(left)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// One attempt; `in_doubt` becomes true when the backend may have carried it out without an answer.
async fn redeem_once(
    ticket: &Ticket,
    machine: &Machine,
    in_doubt: &mut bool,
) -> Result<Enrolled, EnrolError> {
    let (host, port) = place(&ticket.url)?;
    let place = format!("{host}:{port}");
    let mut door = Door::open(ticket.pins.clone(), &host, port).await?;
    let asked = json(&EnrolmentRequest::Challenge { ticket: ticket.id });
    let (answer, _proof) = door.post(PATH, asked, None).await?;
    let challenged = read(&answer).map_err(|reason| EnrolError::UnreadChallenge {
        place: place.clone(),
        reason,
    });
    let EnrolmentChallenge { challenge, time } = challenged?;
    clock_is_right(SystemClock.wall(), time, door.good_for)?;
    let request = request(ticket, machine, challenge);
    let exchange = Exchange::new(&ticket.secret, ticket.id, &challenge);
    let proof = exchange.prove(&request);
    fault::point("enrol.asked");
    let before = std::mem::replace(in_doubt, true);
    let answered = door.post(PATH, request.clone(), Some(proof)).await;
    if let Err(DoorFailure::Refused {
        for_certain: true, ..
    }) = answered
    {
        *in_doubt = before;
    }
    let (answer, proof) = answered?;
    fault::point("enrol.answered");
    let authentic = proof.is_some_and(|proof| exchange.authenticates(&request, &answer, &proof));
    if !authentic {
        return Err(EnrolError::Forged { place });
    }
    // The backend's own words: what they are, they stay however often it is asked.
    let unread = |reason: String| EnrolError::UnreadAnswer {
        place: place.clone(),
        reason,
    };
    let answer: EnrolmentAnswer = read(&answer).map_err(unread)?;
    let secrets = exchange.open(&request, &answer.sealed);
    let secrets = secrets.map_err(|bad| unread(bad.to_string()))?;
    let papers = Papers {
        answer,
        secrets,
        door: Some(ticket.url.clone()),
    };
    let examined = papers.examine(&machine.csr);
    examined.map_err(|reason| EnrolError::UnusableAnswer {
        place: place.clone(),
        reason,
    })?;
    Ok(Enrolled {
        papers,
        pin: door.pin,
        place,
    })
}

/// Refuses a clock by which the gateway's certificate would not be good, or by which that of the backend is not, though
/// it is by the backend's clock: no agent would connect.
fn clock_is_right(
    own: Timestamp,
    backends: Timestamp,
    good_for: Option<(Timestamp, Timestamp)>,
) -> Result<(), EnrolError> {
    let (ahead, behind) = (
        own.saturating_since(backends),
        backends.saturating_since(own),
    );
    if clock_suits(own, backends, good_for) {
        return Ok(());
    }
    Err(EnrolError::Clock {
        off: ahead.max(behind),
        ahead: !ahead.is_zero(),
    })
}

fn request(ticket: &Ticket, machine: &Machine, challenge: WireChallenge) -> Vec<u8> {
    let version = env!("CARGO_PKG_VERSION").parse();
    json(&EnrolmentRequest::Redeem(RedeemRequest {
        ticket: ticket.id,
        challenge,
        csr: machine.csr.clone(),
        install_id: machine.install_id,
        name: machine.name.clone(),
        host: machine.host.clone(),
        agent_version: version.expect("the version of this program is one"),
    }))
}

/// Host and port of a door.
fn place(url: &str) -> Result<(String, u16), EnrolError> {
    door_place(url).ok_or_else(|| EnrolError::Url {
        url: text::line(url).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_by_which_the_backend_s_certificate_is_not_good_is_wrong() {
        let hours = |hours: i64| Timestamp::from_unix_micros(hours * 3_600_000_000);
        let now = hours(1_000_000);
        let at = |off: i64| hours(1_000_000 + off);
        let fresh = Some((at(-1), at(8_760)));
        for (off, is_right) in [(0, true), (-1, true), (-2, false), (23, true), (25, false)] {
            let judged = clock_is_right(at(off), now, fresh);
            assert_eq!(judged.is_ok(), is_right, "{off}");
        }
        let error = clock_is_right(at(-2), now, fresh).unwrap_err();
        let told = "clock is 2 h 0 min behind the backend's";
        assert!(error.to_string().contains(told), "{error}");
        // Where the certificate is not good by either clock, or cannot be read, no clock is to blame.
        let past = Some((at(-48), at(-24)));
        for shown in [past, None] {
            for (off, is_right) in [(-23, true), (23, true), (-25, false)] {
                let judged = clock_is_right(at(off), now, shown);
                assert_eq!(judged.is_ok(), is_right, "{off}");
            }
        }
    }

    #[test]
    fn a_door_is_a_host_and_a_port_and_nothing_else() {
        for (url, host, port) in [
            ("https://door.test", "door.test", 443),
            ("https://door.test/", "door.test", 443),
            ("https://127.0.0.1:8082", "127.0.0.1", 8082),
            ("https://[::1]:65535/", "[::1]", 65_535),
        ] {
            assert_eq!(place(url).unwrap(), (host.to_owned(), port), "{url}");
        }
        for url in [
            "https://door.test:99999",
            "https://door.test:0",
            "https://door.test:",
            "https://somebody@door.test:8082",
            "https://door.test:8082/elsewhere",
            "https://door.test:8082/?a=b",
            "https://door.test:8082/#there",
            "http://door.test:8082",
            "https://",
        ] {
            assert!(matches!(place(url), Err(EnrolError::Url { .. })), "{url}");
        }
    }
}
