//! Parts of the health document that are read from this process and its machine: disk, certificates, clock, sessions,
//! telemetry, descriptors, Redis, the door for new gateways.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use rustix::fs::statvfs;
use viworks_api::{HealthCheck, HealthStatus};
use viworks_common::human;
use viworks_runtime::blocking::{CALLS_MAX, PerKey};
use viworks_runtime::conditions::Condition;
use viworks_runtime::descriptors;

use super::super::ApiState;
use super::{check, micros};
use crate::pki::signing::SIGNING;

/// How long a look at the disk, or at this process's files, may take.
const LOOK_TIME: Duration = Duration::from_secs(1);

/// A disk with less room than this is one to look at, in bytes.
const ROOM_BYTES: u64 = 256 * 1024 * 1024;

/// Of a disk there is one look at a time, however many ask while it does not answer: the bytes that are free of how
/// many there are.
static DISKS: LazyLock<PerKey<PathBuf, Result<(u64, u64), String>>> =
    LazyLock::new(|| PerKey::new("disk", CALLS_MAX));

/// The same for the files of this process.
static FILES: LazyLock<PerKey<(), Option<usize>>> =
    LazyLock::new(|| PerKey::new("descriptors", CALLS_MAX));

/// Numbers of a part, with the unit in each name.
pub(super) type Figures = BTreeMap<String, i64>;

/// Names and numbers as figures.
pub(super) fn figures<const N: usize>(pairs: [(&str, u64); N]) -> Figures {
    let pairs = pairs.map(|(name, number)| (name.to_owned(), whole(number)));
    pairs.into_iter().collect()
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
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
        door(state),
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
    let look = |folder: &PathBuf| -> Result<(u64, u64), String> {
        let room = statvfs(folder).map_err(|error| error.to_string())?;
        let bytes = |blocks: u64| blocks.saturating_mul(room.f_frsize);
        Ok((bytes(room.f_bavail), bytes(room.f_blocks)))
    };
    let (free, all) = match DISKS.ask(folder.to_owned(), LOOK_TIME, look).await {
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
    let mebibytes = human::count(free / (1024 * 1024));
    let detail = format!(
        "{mebibytes} MiB are free on the disk of {}",
        folder.display()
    );
    let is_short = free < ROOM_BYTES;
    let status = if is_short {
        HealthStatus::Warn
    } else {
        HealthStatus::Pass
    };
    HealthCheck {
        fix: is_short.then(|| "make room on it".to_owned()),
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
        let days = u64::try_from(left / 86_400).unwrap_or_default();
        let days = human::counted_all(days, "day", "days");
        told.push(format!("{name}: {days} left"));
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
    let apart = human::apart(ahead.saturating_mul(1_000));
    let detail = format!("the wall clock is {apart} the time line");
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
    let here = u64::try_from(counters.sessions.get()).unwrap_or_default();
    let detail = format!(
        "{} here, {} being opened",
        human::counted_all(here, "session of a gateway", "sessions of gateways"),
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
        "{} stored since the start; {} refused, and {} to come again",
        human::counted_all(rows, "reading", "readings"),
        human::count(records),
        human::counted_all(batches, "batch", "batches"),
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

/// Where machines become gateways, and gateways come back whose certificates have ended.
fn door(state: &ApiState) -> HealthCheck {
    let (listens, signs) = (state.tickets.door(), state.tickets.signs());
    of_door(listens, signs, &state.conditions.list())
}

fn of_door(listens: Option<SocketAddr>, signs: bool, conditions: &[Condition]) -> HealthCheck {
    let name = "door";
    let Some(address) = listens else {
        let detail = if signs {
            "off, because listen in [enrolment] is not set: machines become gateways by a request and \
             viworks-backend-agent pki sign-request, and no gateway comes back by itself whose certificate has ended"
        } else {
            "off, because listen in [enrolment] is not set, and neither ca_key_file nor ca_sign_command in [keys] with \
             which certificates would be signed: they are issued and renewed elsewhere"
        };
        return check(name, HealthStatus::Pass, detail);
    };
    let detail = format!(
        "listens on {address} for machines with a ticket, and for gateways whose certificates have ended"
    );
    // Whoever comes gets nothing.
    if conditions.iter().any(|found| found.name == SIGNING) {
        let detail = format!("{detail}; nobody gets a certificate there, see {SIGNING}");
        return check(name, HealthStatus::Warn, detail);
    }
    check(name, HealthStatus::Pass, detail)
}

async fn files() -> HealthCheck {
    let count = |_own: &()| Some(std::fs::read_dir("/proc/self/fd").ok()?.count());
    let open = FILES.ask((), LOOK_TIME, count).await.ok().flatten();
    let open = open.and_then(|open| u64::try_from(open).ok());
    of_files(open, descriptors::limits().soft)
}

/// How many are open of how many there may be, as far as that is known and there is a limit.
fn of_files(open: Option<u64>, most: Option<u64>) -> HealthCheck {
    // At the bound, connections are not accepted.
    let is_close = open
        .zip(most)
        .is_some_and(|(open, most)| open.saturating_mul(10) >= most.saturating_mul(9));
    let status = if is_close {
        HealthStatus::Warn
    } else {
        HealthStatus::Pass
    };
    let open_ones = open.map_or_else(
        || "how many files and sockets are open is not known".to_owned(),
        |open| {
            let files = human::counted_all(open, "file or socket", "files and sockets");
            format!("{files} open")
        },
    );
    let bound = most.map_or_else(
        || "there is no limit".to_owned(),
        |most| format!("{} may be", human::count(most)),
    );
    let mut detail = format!("{open_ones}, {bound}");
    let fix = is_close.then(|| {
        format!(
            "raise the hard limit ({}) and restart",
            descriptors::RAISED_BY
        )
    });
    if let Some(fix) = &fix {
        detail.push_str("; ");
        detail.push_str(fix);
    }
    let mut known = Figures::new();
    known.extend(open.map(|it| ("open".to_owned(), whole(it))));
    known.extend(most.map(|it| ("open_max".to_owned(), whole(it))));
    HealthCheck {
        fix,
        figures: known,
        ..check("descriptors", status, detail)
    }
}

#[cfg(test)]
mod tests {
    use viworks_common::time::Timestamp;
    use viworks_runtime::conditions::Severity;

    use super::*;

    #[test]
    fn the_door_says_where_it_listens_or_why_not_and_whether_it_is_of_use() {
        let told = |listens, signs, conditions: &[Condition]| {
            let part = of_door(listens, signs, conditions);
            assert_eq!(part.name, "door");
            (part.status, part.detail)
        };
        let address: SocketAddr = "127.0.0.1:8082".parse().unwrap();
        let (status, detail) = told(Some(address), true, &[]);
        assert_eq!(status, HealthStatus::Pass);
        assert!(
            detail.starts_with("listens on 127.0.0.1:8082 for"),
            "{detail}"
        );
        let unsigned = |name: &str| Condition {
            name: name.to_owned(),
            severity: Severity::Warn,
            cause: "it did not sign".to_owned(),
            fix: String::new(),
            since: Timestamp::from_unix_micros(7),
        };
        let (status, detail) = told(Some(address), true, &[unsigned(SIGNING)]);
        assert_eq!(status, HealthStatus::Warn);
        assert!(detail.ends_with("see pki.signing"), "{detail}");
        // What is wrong elsewhere is told there.
        let (status, _detail) = told(Some(address), true, &[unsigned("pki.crl")]);
        assert_eq!(status, HealthStatus::Pass);
        // Off on purpose is no fault.
        let (status, detail) = told(None, true, &[]);
        assert_eq!(status, HealthStatus::Pass);
        assert!(detail.contains("pki sign-request"), "{detail}");
        let (status, detail) = told(None, false, &[unsigned(SIGNING)]);
        assert_eq!(status, HealthStatus::Pass);
        assert!(detail.contains("neither ca_key_file"), "{detail}");
    }

    #[test]
    fn what_is_not_known_of_files_is_no_number() {
        let told = |open, most| {
            let part = of_files(open, most);
            (part.status, part.detail, part.figures.len())
        };
        let wanted = |status, detail: &str, figures| (status, detail.to_owned(), figures);
        assert_eq!(
            told(Some(90), Some(100)),
            wanted(
                HealthStatus::Warn,
                "90 files and sockets open, 100 may be; raise the hard limit (LimitNOFILE of the unit, ulimit -Hn, nofile \
                 of the container) and restart",
                2
            )
        );
        assert_eq!(
            told(Some(90), None),
            wanted(
                HealthStatus::Pass,
                "90 files and sockets open, there is no limit",
                1
            )
        );
        assert_eq!(
            told(Some(1), None).1,
            "1 file or socket open, there is no limit"
        );
        assert_eq!(
            told(None, Some(100)),
            wanted(
                HealthStatus::Pass,
                "how many files and sockets are open is not known, 100 may be",
                1
            )
        );
    }
}
