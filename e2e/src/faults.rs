//! What goes wrong during a soak, and how often.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use viworks_runtime::random::uniform;
use viworks_testkit::postgres::Own;
use viworks_testkit::proxy::Proxy;

use crate::backends::Backends;
use crate::fleet::Fleet;
use crate::memory::Memory;

/// Between two faults, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 1_000..5_000;

/// How long a gateway is frozen, in milliseconds; below the time limit of the commands.
const FROZEN_MS: std::ops::Range<u64> = 2_000..15_000;

/// The backend is killed at these parts of the time; it then lives long enough for its memory to be judged.
const BACKEND_KILLS: [f64; 3] = [0.1, 0.2, 0.3];

/// The same of the database server, where there is one.
const SERVER_KILLS: [f64; 6] = [0.15, 0.25, 0.4, 0.55, 0.7, 0.85];

/// How long it is gone then, in milliseconds.
const SERVER_GONE_MS: std::ops::Range<u64> = 100..5_000;

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    gateway_kills: u64,
    freezes: u64,
    cuts: u64,
    backend_kills: u64,
    server_kills: u64,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} gateways killed, {} frozen, {} cuts of connections, a backend killed {} times",
            self.gateway_kills, self.freezes, self.cuts, self.backend_kills
        )?;
        match self.server_kills {
            0 => Ok(()),
            times => write!(f, ", the database server killed {times} times"),
        }
    }
}

/// Injects faults until the time is over; memory is sampled beside that.
pub(crate) async fn inject(
    backends: &mut Backends,
    mut server: Option<&mut Own>,
    fleet: &mut Fleet,
    relay: &Proxy,
    until: Instant,
    memory: &mut Memory,
) -> anyhow::Result<Faults> {
    let began = Instant::now();
    let whole = until.saturating_duration_since(began);
    let mut faults = Faults::default();
    let mut frozen: BTreeMap<usize, Instant> = BTreeMap::new();
    let size = u64::try_from(fleet.size())?;
    let mut pending = BACKEND_KILLS
        .iter()
        .map(|part| began + whole.mul_f64(*part));
    let mut next_kill = pending.next();
    let mut judged_from = None;
    let mut server_kills = SERVER_KILLS.iter().map(|part| began + whole.mul_f64(*part));
    let mut next_server_kill = server_kills.next();
    while Instant::now() < until {
        sleep(Duration::from_millis(uniform(PAUSE_MS))).await;
        let now = Instant::now();
        for number in due(&mut frozen, now) {
            fleet.thaw(number);
        }
        if next_kill.is_some_and(|at| at <= now) {
            next_kill = pending.next();
            backends.kill(relay, faults.backend_kills).await;
            faults.backend_kills += 1;
            if next_kill.is_none() {
                judged_from = Some(Instant::now());
            }
            continue;
        }
        if let Some(server) = server.as_deref_mut()
            && next_server_kill.is_some_and(|at| at <= now)
        {
            next_server_kill = server_kills.next();
            server.kill();
            sleep(Duration::from_millis(uniform(SERVER_GONE_MS))).await;
            server.start_again();
            faults.server_kills += 1;
            continue;
        }
        // Whoever dials now comes to this one.
        backends.lead(relay, uniform(0..2));
        let number = usize::try_from(uniform(0..size))?;
        match uniform(0..100) {
            0..40 => {
                frozen.remove(&number);
                fleet.kill(backends.first(), number)?;
                faults.gateway_kills += 1;
            }
            40..70 => {
                fleet.freeze(number);
                frozen.insert(number, now + Duration::from_millis(uniform(FROZEN_MS)));
                faults.freezes += 1;
            }
            70..97 => {
                relay.cut(16, u16::try_from(uniform(0..16))?);
                faults.cuts += 1;
            }
            _ => {
                relay.cut(1, 0);
                faults.cuts += 1;
            }
        }
        if judged_from.is_some() {
            memory.sample(backends.first().backend().pid(), fleet.pids());
        }
    }
    Ok(faults)
}

fn due(frozen: &mut BTreeMap<usize, Instant>, now: Instant) -> Vec<usize> {
    let due: Vec<_> = frozen
        .iter()
        .filter(|(_, until)| **until <= now)
        .map(|(number, _)| *number)
        .collect();
    for number in &due {
        frozen.remove(number);
    }
    due
}
