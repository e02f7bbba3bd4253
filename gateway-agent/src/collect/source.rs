//! The sources of host metrics: what each reads, and the records it makes of that.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;

use sysinfo::{Components, MemoryRefreshKind, RefreshKind, System};
use viworks_common::telemetry::{FieldValue, Fields, Record};
use viworks_common::time::Timestamp;
use viworks_runtime::blocking::Worker;

use super::{Source, fix_of_a_start};
use crate::host::disks::{Answer, Disks, Prober};
use crate::host::interfaces::{self, Counters, Ranks};
use crate::host::mounts::{self, LeftOut};
use crate::host::printable;
use crate::host::processor::Ticks;

/// Mounts, interfaces and sensors of which each kind is reported at most this many; the rest is counted.
const ITEMS_MAX: usize = 64;

/// What a source says at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// What it found.
    pub records: Vec<Record>,
    /// What it could not find out.
    pub trouble: Option<Trouble>,
}

/// Why a source does not say all that it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What was found, in one sentence.
    pub cause: String,
    /// What to do about it.
    pub fix: String,
}

/// One source each.
pub(super) fn all(prober: &Prober) -> Vec<Source> {
    let source = |name, worker| Source { name, worker };
    let prober = prober.clone();
    vec![
        source(
            "cpu",
            Worker::new("cpu", || {
                let mut earlier = None;
                move |now| read_processor(now, &mut earlier)
            }),
        ),
        source("memory", Worker::new("memory", memory)),
        source("load", Worker::new("load", || read_load)),
        source(
            "disks",
            Worker::new("disks", move || {
                let mut disks = Disks::new(prober.clone());
                move |now| read_disks(now, &mut disks)
            }),
        ),
        source("network", Worker::new("network", networks)),
        source("temperatures", Worker::new("temperatures", temperatures)),
    ]
}

/// Collects the records of one reading.
struct Records {
    now: Timestamp,
    reading: Reading,
}

impl Records {
    fn at(now: Timestamp) -> Self {
        Self {
            now,
            reading: Reading::default(),
        }
    }

    fn add(&mut self, stream: &str, fields: Vec<(&str, FieldValue)>) {
        let record = record(stream, self.now, fields);
        self.reading.records.extend(record);
    }

    fn trouble(&mut self, cause: impl Into<String>, fix: &str) {
        self.reading.trouble = Some(Trouble {
            cause: cause.into(),
            fix: fix.to_owned(),
        });
    }

    /// Says how many of a kind are not among the records, if any.
    fn left_out(&mut self, kind: &str, counts: &[(&str, usize)]) {
        let mut fields = vec![("kind", text(kind))];
        for (name, count) in counts.iter().filter(|(_name, count)| *count > 0) {
            fields.push((name, integer(u64::try_from(*count).unwrap_or(u64::MAX))));
        }
        if fields.len() > 1 {
            self.add("host.left_out", fields);
        }
    }
}

fn read_processor(now: Timestamp, earlier: &mut Option<Ticks>) -> Reading {
    let mut records = Records::at(now);
    let ticks = fs::read_to_string("/proc/stat")
        .ok()
        .and_then(|stat| Ticks::parse(&stat));
    let Some(ticks) = ticks else {
        records.trouble("/proc/stat cannot be read", "see whether /proc is mounted");
        return records.reading;
    };
    // The first reading alone would be the average since boot.
    if let Some(used) = earlier.and_then(|earlier| ticks.used_percent_since(&earlier)) {
        records.add(
            "host.cpu",
            vec![
                ("used_percent", FieldValue::Number(used)),
                ("cores", integer(ticks.cores)),
            ],
        );
    }
    *earlier = Some(ticks);
    records.reading
}

fn memory() -> impl FnMut(Timestamp) -> Reading {
    let kinds = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
    let mut system = System::new_with_specifics(kinds);
    move |now| {
        let mut records = Records::at(now);
        match &mut system {
            Ok(system) => {
                system.refresh_memory();
                let (total, available) = (system.total_memory(), system.available_memory());
                records.add(
                    "host.memory",
                    vec![
                        ("total_bytes", integer(total)),
                        ("available_bytes", integer(available)),
                        ("used_bytes", integer(total.saturating_sub(available))),
                        ("swap_total_bytes", integer(system.total_swap())),
                        ("swap_used_bytes", integer(system.used_swap())),
                    ],
                );
            }
            Err(error) => records.trouble(
                format!("memory cannot be read: {error}"),
                "see whether /proc is mounted",
            ),
        }
        records.reading
    }
}

fn read_load(now: Timestamp) -> Reading {
    let mut records = Records::at(now);
    match System::uptime() {
        Ok(seconds) => records.add("host.uptime", vec![("seconds", integer(seconds))]),
        Err(error) => records.trouble(
            format!("the uptime cannot be read: {error}"),
            "see whether /proc is mounted",
        ),
    }
    match System::load_average() {
        Ok(load) => records.add(
            "host.load",
            vec![
                ("one", FieldValue::Number(load.one)),
                ("five", FieldValue::Number(load.five)),
                ("fifteen", FieldValue::Number(load.fifteen)),
            ],
        ),
        Err(error) => records.trouble(
            format!("the load cannot be read: {error}"),
            "see whether /proc is mounted",
        ),
    }
    records.reading
}

fn read_disks(now: Timestamp, disks: &mut Disks) -> Reading {
    let mut records = Records::at(now);
    let chosen = match mounts::read(ITEMS_MAX) {
        Ok(chosen) => chosen,
        Err(error) => {
            records.trouble(
                format!("the mounts cannot be read: {error}"),
                "see whether /proc is mounted",
            );
            return records.reading;
        }
    };
    let answers = match disks.ask(&chosen) {
        Ok(answers) => answers,
        Err(error) => {
            records.trouble(
                format!(
                    "disks cannot be read: the process that asks them cannot be started: {error}"
                ),
                fix_of_a_start(&error),
            );
            return records.reading;
        }
    };
    let mut silent = Vec::new();
    for (mount, answer) in answers {
        let point = printable(mount.point.as_os_str());
        let mut fields = vec![("mount", text(&point)), ("file_system", text(&mount.kind))];
        match answer {
            Answer::Usage(usage) => {
                fields.extend([
                    ("total_bytes", integer(usage.total)),
                    ("free_bytes", integer(usage.available)),
                    ("used_bytes", integer(usage.used)),
                ]);
                if let Some(percent) = usage.percent() {
                    fields.push(("used_percent", integer(percent)));
                }
            }
            Answer::Silent => {
                fields.push(("silent", FieldValue::Flag(true)));
                silent.push(point);
            }
            Answer::Refused(reason) => fields.push(("refused", text(&reason))),
            Answer::Nothing => continue,
        }
        records.add("host.disk", fields);
    }
    let LeftOut {
        same_device,
        covered,
        images,
        unreadable,
        beyond,
    } = chosen.left_out;
    records.left_out(
        "mounts",
        &[
            ("same_device", same_device),
            ("covered", covered),
            ("images", images),
            ("unreadable", unreadable),
            ("beyond_limit", beyond),
        ],
    );
    if !silent.is_empty() {
        records.trouble(
            format!("no answer from {}", silent.join(", ")),
            "look at the server or program behind the mount, or unmount it with umount -l",
        );
    }
    records.reading
}

fn networks() -> impl FnMut(Timestamp) -> Reading {
    move |now| {
        let mut records = Records::at(now);
        match interfaces::counters() {
            Ok(counters) => read_networks(&counters, &mut records),
            Err(error) => records.trouble(
                format!("the network interfaces cannot be read: {error}"),
                "see whether /proc is mounted",
            ),
        }
        records.reading
    }
}

fn read_networks(counters: &BTreeMap<OsString, Counters>, records: &mut Records) {
    let ranks = Ranks::read();
    let mut interfaces: Vec<_> = counters
        .iter()
        .map(|(name, counted)| (ranks.of(name), name, counted))
        .collect();
    interfaces.sort_by_key(|(rank, name, _counted)| (*rank, *name));
    let beyond = interfaces.len().saturating_sub(ITEMS_MAX);
    for (_rank, name, counted) in interfaces.into_iter().take(ITEMS_MAX) {
        records.add(
            "host.network",
            vec![
                ("interface", text(&printable(name))),
                ("received_bytes_total", integer(counted.received_bytes)),
                ("sent_bytes_total", integer(counted.sent_bytes)),
                ("received_packets_total", integer(counted.received_packets)),
                ("sent_packets_total", integer(counted.sent_packets)),
                ("receive_errors_total", integer(counted.receive_errors)),
                ("send_errors_total", integer(counted.send_errors)),
            ],
        );
    }
    records.left_out("interfaces", &[("beyond_limit", beyond)]);
}

fn temperatures() -> impl FnMut(Timestamp) -> Reading {
    // A host without sensors is no trouble.
    let mut components = Components::new().ok();
    move |now| {
        let mut records = Records::at(now);
        if let Some(components) = &mut components {
            components.refresh(true);
            let beyond = components.iter().count().saturating_sub(ITEMS_MAX);
            for component in components.iter().take(ITEMS_MAX) {
                // A sensor that is there and reads nothing is not a temperature.
                if let Some(celsius) = component.temperature().filter(|value| value.is_finite()) {
                    records.add(
                        "host.temperature",
                        vec![
                            ("sensor", text(component.label())),
                            ("celsius", FieldValue::Number(f64::from(celsius))),
                        ],
                    );
                }
            }
            records.left_out("sensors", &[("beyond_limit", beyond)]);
        }
        records.reading
    }
}

fn record(stream: &str, observed_at: Timestamp, fields: Vec<(&str, FieldValue)>) -> Option<Record> {
    let fields = fields
        .into_iter()
        .map(|(name, value)| Some((name.parse().ok()?, value)))
        .collect::<Option<Fields>>()?;
    Some(Record {
        stream: stream.parse().ok()?,
        observed_at,
        fields,
    })
}

fn integer(value: u64) -> FieldValue {
    FieldValue::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

fn text(value: &str) -> FieldValue {
    FieldValue::Text(
        value
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::process::Command;
    use std::time::Duration;

    use viworks_runtime::clock::{Clock, SystemClock};

    use super::*;

    /// What every source says, once each has been asked twice.
    async fn read_all() -> Vec<Record> {
        let now = SystemClock.wall();
        let mut records = Vec::new();
        for mut source in all(&Prober::Myself) {
            let patience = Duration::from_secs(60);
            let mut reading = source.worker.ask(now, patience).await.unwrap();
            let begun = SystemClock.now();
            while source.name == "cpu" && reading.records.is_empty() {
                // Until a tick has passed; the first reading says nothing.
                let waited = SystemClock.now().saturating_since(begun);
                assert!(waited < patience, "no tick has passed in {waited:?}");
                reading = source.worker.ask(now, patience).await.unwrap();
            }
            assert_eq!(reading.trouble, None, "{}", source.name);
            records.extend(reading.records);
        }
        records
    }

    fn number(record: &Record, field: &str) -> i64 {
        match record.fields.get(&field.parse().unwrap()) {
            Some(FieldValue::Integer(number)) => *number,
            other => panic!("{field} is {other:?} in {record:?}"),
        }
    }

    fn word(record: &Record, field: &str) -> String {
        match record.fields.get(&field.parse().unwrap()) {
            Some(FieldValue::Text(text)) => text.clone(),
            other => panic!("{field} is {other:?} in {record:?}"),
        }
    }

    /// What a tool of the system says; `None` when this system has no such tool.
    fn said_by(program: &str, arguments: &[&str]) -> Option<String> {
        let output = Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .output()
            .ok()?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[tokio::test]
    async fn this_machine_yields_sound_records_of_every_stream_it_must_have() {
        let records = read_all().await;
        for record in &records {
            assert_eq!(crate::spool::check(record), Ok(()), "{record:?}");
        }
        let streams: BTreeSet<&str> = records.iter().map(|r| r.stream.as_str()).collect();
        for stream in [
            "host.cpu",
            "host.disk",
            "host.load",
            "host.memory",
            "host.network",
            "host.uptime",
        ] {
            assert!(
                streams.contains(stream),
                "{stream} is missing from {streams:?}"
            );
        }
    }

    #[test]
    fn the_first_reading_of_the_processors_is_no_average_since_boot() {
        let mut earlier = None;
        let first = read_processor(SystemClock.wall(), &mut earlier);
        assert_eq!(first, Reading::default());
        assert!(earlier.is_some());
    }

    #[tokio::test]
    async fn disks_are_what_df_says() {
        let records = read_all().await;
        let mut compared = 0;
        for record in records.iter().filter(|r| r.stream.as_str() == "host.disk") {
            let mount = word(record, "mount");
            let columns = "--output=size,used,avail,pcent,target";
            let Some(said) = said_by("df", &["--block-size=1", columns, &mount]) else {
                return;
            };
            let Some(line) = said.lines().nth(1) else {
                continue;
            };
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(4) != Some(&mount.as_str()) {
                continue;
            }
            let near = |field: &str, place: usize| {
                let theirs: i64 = fields[place].trim_end_matches('%').parse().unwrap();
                let (ours, slack) = match field {
                    "used_percent" => (number(record, field), 1),
                    // The machine goes on between the two looks.
                    _ => (number(record, field), 512 * 1024 * 1024),
                };
                assert!((ours - theirs).abs() <= slack, "{field} {ours}: {said}");
            };
            near("total_bytes", 0);
            near("used_bytes", 1);
            near("free_bytes", 2);
            if fields[3] != "-" {
                near("used_percent", 3);
            }
            compared += 1;
        }
        assert!(compared > 0, "{records:?}");
    }

    #[tokio::test]
    async fn interfaces_and_their_counters_are_those_of_the_kernel() {
        let counters = || {
            let table = fs::read_to_string("/proc/net/dev").unwrap();
            let line = |line: &str| {
                let (name, rest) = line.split_once(':')?;
                let numbers = rest.split_whitespace().map(|n| n.parse::<i64>().unwrap());
                Some((name.trim().to_owned(), numbers.collect::<Vec<_>>()))
            };
            table.lines().filter_map(line).collect::<BTreeMap<_, _>>()
        };
        let before = counters();
        let records = read_all().await;
        let after = counters();
        let ours: Vec<&Record> = records
            .iter()
            .filter(|r| r.stream.as_str() == "host.network")
            .collect();
        assert_eq!(ours.len(), before.len().min(ITEMS_MAX));
        for record in ours {
            let name = word(record, "interface");
            for (field, place) in [
                ("received_bytes_total", 0),
                ("received_packets_total", 1),
                ("receive_errors_total", 2),
                ("sent_bytes_total", 8),
                ("sent_packets_total", 9),
                ("send_errors_total", 10),
            ] {
                let (low, high) = (before[&name][place], after[&name][place]);
                let value = number(record, field);
                assert!(
                    (low..=high).contains(&value),
                    "{name} {field}: {low} {value} {high}"
                );
            }
        }
    }

    #[tokio::test]
    async fn memory_uptime_and_load_are_what_the_kernel_says() {
        let meminfo = || {
            let text = fs::read_to_string("/proc/meminfo").unwrap();
            move |name: &str| {
                let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
                let number = line.trim_matches([':', ' ']).trim_end_matches(" kB");
                number.parse::<i64>().unwrap() * 1024
            }
        };
        let records = read_all().await;
        let of = |stream: &str| {
            records
                .iter()
                .find(|r| r.stream.as_str() == stream)
                .unwrap()
        };
        let theirs = meminfo();
        let memory = of("host.memory");
        assert_eq!(number(memory, "total_bytes"), theirs("MemTotal"));
        assert_eq!(number(memory, "swap_total_bytes"), theirs("SwapTotal"));
        let swapped = theirs("SwapTotal") - theirs("SwapFree");
        let slack = theirs("MemTotal") / 4;
        assert!((number(memory, "swap_used_bytes") - swapped).abs() <= slack);
        let available = number(memory, "available_bytes") - theirs("MemAvailable");
        assert!(available.abs() <= slack, "{available}");
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let ours = u32::try_from(number(of("host.uptime"), "seconds")).unwrap();
        assert!((f64::from(ours) - seconds).abs() <= 60.0);
        let cores = number(of("host.cpu"), "cores");
        if let Some(said) = said_by("getconf", &["_NPROCESSORS_ONLN"]) {
            assert_eq!(said.trim(), cores.to_string());
        }
    }
}
