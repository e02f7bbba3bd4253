//! What goes wrong during a soak, and how often.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use viworks_testkit::proxy::Proxy;
use viworks_testkit::sim::random::Random;

use crate::backends::{Backends, Which};
use crate::fleet::Fleet;
use crate::memory::Memory;
use crate::servers::Servers;

/// Between two faults, in milliseconds.
const PAUSE_MS: (u64, u64) = (1_000, 5_000);

/// How long a gateway is frozen, in milliseconds; below the time limit of the commands.
const FROZEN_MS: (u64, u64) = (2_000, 15_000);

/// So often the first backend is killed in the first third of the time; it then lives long enough for its memory to be
/// judged.
const FIRST_KILLS: u64 = 3;

/// So often the second one is killed at any time, where there is one, and each of the servers.
const SECOND_KILLS: u64 = 4;
const SERVER_KILLS: u64 = 6;

/// How long a server is gone then, in milliseconds.
const GONE_MS: (u64, u64) = (100, 5_000);

/// A kill that comes at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    Backend(Which),
    Database,
    Queue,
}

/// The kills of a soak, the first one last.
fn plan(
    backends: &Backends,
    servers: &Servers,
    whole: Duration,
    chance: &mut Random,
) -> Vec<(Duration, Kill)> {
    let mut wanted = vec![(Kill::Backend(Which::First), FIRST_KILLS, whole / 3)];
    if backends.are_two() {
        wanted.push((Kill::Backend(Which::Second), SECOND_KILLS, whole));
    }
    if servers.database.is_some() {
        wanted.push((Kill::Database, SERVER_KILLS, whole));
    }
    if servers.queue.is_some() {
        wanted.push((Kill::Queue, SERVER_KILLS, whole));
    }
    let mut planned = Vec::new();
    for (kill, times, within) in wanted {
        let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        // One in each part, so that none is left for a time when it is over.
        for part in 0..times {
            let (begins, ends) = (part * within / times, (part + 1) * within / times);
            planned.push((chance.millis(begins, ends), kill));
        }
    }
    planned.sort_unstable_by_key(|(at, _kill)| std::cmp::Reverse(*at));
    planned
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// What chance began with.
    seed: u64,
    gateway_kills: u64,
    freezes: u64,
    cuts: u64,
    backend_kills: u64,
    database_kills: u64,
    queue_kills: u64,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} gateways killed, {} frozen, {} cuts of connections, a backend killed {} times",
            self.gateway_kills, self.freezes, self.cuts, self.backend_kills
        )?;
        let servers = [
            ("the database server", self.database_kills),
            ("the server between the backends", self.queue_kills),
        ];
        for (what, times) in servers.into_iter().filter(|(_what, times)| *times > 0) {
            write!(f, ", {what} killed {times} times")?;
        }
        write!(f, " (seed {})", self.seed)
    }
}

/// Injects faults until the time is over; memory is sampled beside that.
pub(crate) async fn inject(
    backends: &mut Backends,
    servers: &mut Servers,
    fleet: &mut Fleet,
    relay: &Proxy,
    (until, seed): (Instant, u64),
    memory: &mut Memory,
) -> anyhow::Result<Faults> {
    let began = Instant::now();
    let whole = until.saturating_duration_since(began);
    let mut faults = Faults {
        seed,
        ..Faults::default()
    };
    let mut chance = Random::new(seed);
    let mut frozen: BTreeMap<usize, Instant> = BTreeMap::new();
    let size = u64::try_from(fleet.size())?;
    let mut planned = plan(backends, servers, whole, &mut chance);
    let mut first_kills = FIRST_KILLS;
    while Instant::now() < until {
        sleep(chance.millis(PAUSE_MS.0, PAUSE_MS.1)).await;
        let now = Instant::now();
        for number in due(&mut frozen, now) {
            fleet.thaw(number);
        }
        if let Some((_at, kill)) = planned.pop_if(|(at, _kill)| began + *at <= now) {
            match kill {
                Kill::Backend(which) => {
                    backends.kill(relay, which).await;
                    faults.backend_kills += 1;
                    first_kills -= u64::from(which == Which::First);
                }
                Kill::Database => {
                    if let Some(server) = &mut servers.database {
                        server.kill();
                        sleep(chance.millis(GONE_MS.0, GONE_MS.1)).await;
                        server.start_again();
                    }
                    faults.database_kills += 1;
                }
                Kill::Queue => {
                    if let Some(server) = &mut servers.queue {
                        server.kill();
                        sleep(chance.millis(GONE_MS.0, GONE_MS.1)).await;
                        server.start_again();
                    }
                    faults.queue_kills += 1;
                }
            }
        }
        // Whoever dials now comes to this one.
        backends.lead(relay, chance.below(2));
        let number = usize::try_from(chance.below(size))?;
        match chance.below(100) {
            0..40 => {
                frozen.remove(&number);
                fleet.kill(backends.first(), number)?;
                faults.gateway_kills += 1;
            }
            40..70 => {
                fleet.freeze(number);
                frozen.insert(number, now + chance.millis(FROZEN_MS.0, FROZEN_MS.1));
                faults.freezes += 1;
            }
            70..97 => {
                relay.cut(16, u16::try_from(chance.below(16))?);
                faults.cuts += 1;
            }
            _ => {
                relay.cut(1, 0);
                faults.cuts += 1;
            }
        }
        if first_kills == 0 {
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
