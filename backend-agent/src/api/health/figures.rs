//! Parts of the health document that are read from this process and its machine: disk, certificates, clock, sessions,
//! telemetry, descriptors, Redis.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rustix::fs::statvfs;
use viworks_api::{HealthCheck, HealthStatus};
use viworks_common::human;
use viworks_runtime::{blocking, descriptors};

use super::super::ApiState;
use super::{check, micros};

/// How long a look at the disk, or at this process's files, may take.
const LOOK_TIME: Duration = Duration::from_secs(1);

/// A disk with less room than this is one to look at, in bytes.
const ROOM_BYTES: u64 = 256 * 1024 * 1024;

/// Numbers of a part, with the unit in each name.
pub(super) type Figures = BTreeMap<String, i64>;

/// Names and numbers as figures.
pub(super) fn figures<const N: usize>(pairs: [(&str, u64); N]) -> Figures {
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let pairs = pairs.map(|(name, number)| (name.to_owned(), whole(number)));
    pairs.into_iter().collect()
}

/// Every part.
pub(super) async fn parts(state: &ApiState) -> Vec<HealthCheck> {
    // Beside each other: the document is there within three seconds whatever hangs.
    let (disk, files) = tokio::join!(disk(&state.state_folder), files());
    let mut parts = vec![
        disk,
        certificates(state),
        clock(state),
        sessions(state),
        telemetry(state),
        files,
    ];
    parts.extend(redis(state));
    parts
}

/// While Redis is not asked, a condition of the queue says why.
fn redis(state: &ApiState) -> Option<HealthCheck> {
    let latency = state.redis.as_ref()?.latency()?;
    Some(HealthCheck {
        latency_us: Some(micros(latency)),
        ..check("queue", HealthStatus::Pass, "Redis answers")
    })
}

async fn disk(folder: &Path) -> HealthCheck {
    let name = "disk";
    let folder = folder.to_owned();
    let look = {
        let folder = folder.clone();
        move || statvfs(&folder)
    };
    let room = match blocking::call(name, LOOK_TIME, look).await {
        Ok(Ok(room)) => room,
        Ok(Err(error)) => {
            let detail = format!("{}: {error}", folder.display());
            return check(name, HealthStatus::Fail, detail);
        }
        Err(error) => {
            let detail = format!("the disk of {} does not answer: {error}", folder.display());
            return check(name, HealthStatus::Fail, detail);
        }
    };
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    let all = room.f_blocks.saturating_mul(room.f_frsize);
    let mebibytes = human::count(free / (1024 * 1024));
    let detail = format!(
        "{mebibytes} MiB are free on the disk of {}",
        folder.display()
    );
    let status = if free < ROOM_BYTES {
        HealthStatus::Warn
    } else {
        HealthStatus::Pass
    };
    HealthCheck {
        figures: figures([("free_bytes", free), ("size_bytes", all)]),
        ..check(name, status, detail)
    }
}

/// What is wrong with one is a condition; here is how long each has.
fn certificates(state: &ApiState) -> HealthCheck {
    let now = state.clock.wall().unix_millis() / 1_000;
    let mut figures = Figures::new();
    let mut told = Vec::new();
    for (name, not_after) in state.counters.certificate_ends_at() {
        let left = not_after.saturating_sub(now);
        figures.insert(format!("{name}_remaining_s"), left);
        told.push(format!("{name}: {} days left", left / 86_400));
    }
    let ending = state.counters.gateway_certificates_ending.get();
    figures.insert("gateways_ending".to_owned(), ending);
    let detail = if told.is_empty() {
        "not looked at yet".to_owned()
    } else {
        told.join(", ")
    };
    HealthCheck {
        figures,
        ..check("certificate", HealthStatus::Pass, detail)
    }
}

fn clock(state: &ApiState) -> HealthCheck {
    let ahead = state.counters.clock_apart.get();
    let detail = format!("the wall clock is {ahead} s ahead of the time line");
    HealthCheck {
        figures: Figures::from([("ahead_s".to_owned(), ahead)]),
        ..check("clock", HealthStatus::Pass, detail)
    }
}

fn sessions(state: &ApiState) -> HealthCheck {
    let counters = &state.counters;
    let figures = Figures::from([
        ("connections".to_owned(), counters.connections.get()),
        ("sessions".to_owned(), counters.sessions.get()),
        ("openings".to_owned(), counters.openings.get()),
    ]);
    let detail = format!(
        "{} sessions of gateways here, {} being opened",
        counters.sessions.get(),
        counters.openings.get()
    );
    HealthCheck {
        figures,
        ..check("sessions", HealthStatus::Pass, detail)
    }
}

/// Refusals are conditions while they happen; here is how many there were since this process started.
fn telemetry(state: &ApiState) -> HealthCheck {
    let counters = &state.counters;
    let (rows, batches) = (
        counters.telemetry_rows.get(),
        counters.telemetry_refused.get(),
    );
    let records = counters.records_refused();
    let detail = format!(
        "{rows} readings stored since the start; {records} refused, and {batches} batches to come again"
    );
    HealthCheck {
        figures: figures([
            ("stored_readings", rows),
            ("refused_readings", records),
            ("refused_batches", batches),
        ]),
        ..check("telemetry", HealthStatus::Pass, detail)
    }
}

async fn files() -> HealthCheck {
    let name = "descriptors";
    let count = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let open = blocking::call(name, LOOK_TIME, count).await.unwrap_or(0);
    let open = u64::try_from(open).unwrap_or(u64::MAX);
    let most = descriptors::limits().soft.unwrap_or(u64::MAX);
    // At the bound, connections are not accepted.
    let status = if open.saturating_mul(10) >= most.saturating_mul(9) {
        HealthStatus::Warn
    } else {
        HealthStatus::Pass
    };
    let detail = format!("{open} files and sockets open, {most} may be");
    HealthCheck {
        figures: figures([("open", open), ("open_max", most)]),
        ..check(name, status, detail)
    }
}
