//! When it is said what a run waits for: at once and again on a terminal, now and then to other readers.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use viworks_api::{Gateway, Run};
use viworks_common::id::GatewayName;
use viworks_runtime::clock::{Clock, SystemClock};

use crate::client::Client;
use crate::failure::Failure;
use crate::output;
use crate::views::live::Live;
use crate::views::waiting::{Standing, Waiting, away, sentence};

/// How often a terminal's line is renewed.
const TICK: Duration = Duration::from_millis(500);
/// How long nothing is said: most commands are over by then.
const QUIET: Duration = Duration::from_secs(1);
/// How often a reader that is no terminal is told.
const NOW_AND_THEN: Duration = Duration::from_secs(60);
/// How often gateways are asked for.
const ASK: Duration = Duration::from_secs(10);

/// Says on standard error what the run waits for, until it is dropped. Ends only when standard output does.
pub(super) async fn tell(client: &Client, run: &Run, live: &Mutex<Live>) -> Failure {
    let terminal = std::io::stderr().is_terminal();
    let started = Instant::now();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: BTreeMap<GatewayName, Gateway> = BTreeMap::new();
    let mut asked: Option<Instant> = None;
    let mut told: Option<(Instant, Vec<Waiting>)> = None;
    let mut advised = false;
    loop {
        ticks.tick().await;
        let standing = {
            let mut live = live.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(failure) = live.release_old() {
                return failure;
            }
            Standing::of(&live)
        };
        if started.elapsed() < QUIET || standing.total == 0 {
            continue;
        }
        if standing.waiting.is_empty() && (!terminal || standing.running.is_empty()) {
            output::clear_status();
            continue;
        }
        let named = standing.named().to_vec();
        let unknown = named
            .iter()
            .any(|waiting| !known.contains_key(&waiting.gateway));
        if asked.is_none_or(|asked| asked.elapsed() >= ASK) || unknown {
            asked = Some(Instant::now());
            for Waiting { gateway: name, .. } in &named {
                // Without the right to read gateways the reason stays unsaid; the wait goes on.
                if let Ok(gateway) = client.gateway(name.as_str()).await {
                    known.insert(name.clone(), gateway);
                }
            }
        }
        let now = SystemClock.wall();
        let text = sentence(&standing, &known, run, started.elapsed(), now);
        let advice = away(&standing, &known).filter(|_advice| !advised);
        if terminal {
            if let Some(advice) = advice {
                advised = true;
                output::note(&advice);
            }
            output::status(&text);
            continue;
        }
        let due = told.as_ref().is_none_or(|(at, before)| {
            at.elapsed() >= NOW_AND_THEN || (*before != named && at.elapsed() >= ASK)
        });
        if due {
            output::note(&text);
            if let Some(advice) = advice {
                advised = true;
                output::note(&advice);
            }
            told = Some((Instant::now(), named));
        }
    }
}
