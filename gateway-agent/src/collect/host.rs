//! One reading of the host as records.

use sysinfo::{
    Components, CpuRefreshKind, Disks, MemoryRefreshKind, Networks, RefreshKind, System,
};
use tracing::debug;
use viworks_common::telemetry::{FieldValue, Fields, Record};
use viworks_common::time::Timestamp;

/// Mounts, interfaces and sensors of which each kind is reported at most this many.
const ITEMS_MAX: usize = 64;

/// What is kept between two readings: CPU use is the difference between them.
pub struct Host {
    system: Option<System>,
    disks: Option<Disks>,
    networks: Option<Networks>,
    components: Option<Components>,
}

impl Host {
    /// Opens the sources; one that this host does not have is left out.
    #[must_use]
    pub fn new() -> Self {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::everything());
        Self {
            system: available("system", System::new_with_specifics(kinds)),
            disks: available("disks", Disks::new()),
            networks: available("networks", Networks::new()),
            components: available("temperatures", Components::new()),
        }
    }

    /// Reads everything. Blocks.
    pub fn read(&mut self, now: Timestamp) -> Vec<Record> {
        let mut records = Vec::new();
        let mut add = |stream: &str, fields: Vec<(&str, FieldValue)>| {
            records.extend(record(stream, now, fields));
        };
        if let Some(system) = &mut self.system {
            read_system(system, &mut add);
        }
        if let Ok(seconds) = System::uptime() {
            add("host.uptime", vec![("seconds", integer(seconds))]);
        }
        if let Ok(load) = System::load_average() {
            add(
                "host.load",
                vec![
                    ("one", FieldValue::Number(load.one)),
                    ("five", FieldValue::Number(load.five)),
                    ("fifteen", FieldValue::Number(load.fifteen)),
                ],
            );
        }
        if let Some(disks) = &mut self.disks {
            read_disks(disks, &mut add);
        }
        if let Some(networks) = &mut self.networks {
            read_networks(networks, &mut add);
        }
        if let Some(components) = &mut self.components {
            read_temperatures(components, &mut add);
        }
        records
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

type Add<'a> = &'a mut dyn FnMut(&str, Vec<(&str, FieldValue)>);

fn read_system(system: &mut System, add: Add<'_>) {
    system.refresh_cpu_usage();
    system.refresh_memory();
    let cores = u64::try_from(system.cpus().len()).unwrap_or_default();
    add(
        "host.cpu",
        vec![
            ("used_percent", percent(system.global_cpu_usage())),
            ("cores", integer(cores)),
        ],
    );
    let (total, available) = (system.total_memory(), system.available_memory());
    add(
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

fn read_disks(disks: &mut Disks, add: Add<'_>) {
    disks.refresh(true);
    for disk in disks.iter().take(ITEMS_MAX) {
        let (total, free) = (disk.total_space(), disk.available_space());
        add(
            "host.disk",
            vec![
                ("mount", text(&disk.mount_point().to_string_lossy())),
                ("file_system", text(&disk.file_system().to_string_lossy())),
                ("total_bytes", integer(total)),
                ("free_bytes", integer(free)),
                ("used_bytes", integer(total.saturating_sub(free))),
            ],
        );
    }
}

fn read_networks(networks: &mut Networks, add: Add<'_>) {
    networks.refresh(true);
    let mut interfaces: Vec<_> = networks.iter().collect();
    interfaces.sort_by_key(|(name, _)| (*name).clone());
    for (name, data) in interfaces.into_iter().take(ITEMS_MAX) {
        add(
            "host.network",
            vec![
                ("interface", text(&name.to_string_lossy())),
                ("received_bytes_total", integer(data.total_received())),
                ("sent_bytes_total", integer(data.total_transmitted())),
                (
                    "received_packets_total",
                    integer(data.total_packets_received()),
                ),
                (
                    "sent_packets_total",
                    integer(data.total_packets_transmitted()),
                ),
                (
                    "receive_errors_total",
                    integer(data.total_errors_on_received()),
                ),
                (
                    "send_errors_total",
                    integer(data.total_errors_on_transmitted()),
                ),
            ],
        );
    }
}

fn read_temperatures(components: &mut Components, add: Add<'_>) {
    components.refresh(true);
    for component in components.iter().take(ITEMS_MAX) {
        // A sensor that is there and reads nothing is not a temperature.
        if let Some(celsius) = component.temperature().filter(|value| value.is_finite()) {
            add(
                "host.temperature",
                vec![
                    ("sensor", text(component.label())),
                    ("celsius", FieldValue::Number(f64::from(celsius))),
                ],
            );
        }
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

fn available<T>(what: &'static str, opened: Result<T, sysinfo::Error>) -> Option<T> {
    match opened {
        Ok(source) => Some(source),
        Err(error) => {
            debug!(%error, what, "this host has no such source of metrics");
            None
        }
    }
}

fn integer(value: u64) -> FieldValue {
    FieldValue::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

fn percent(value: f32) -> FieldValue {
    FieldValue::Number(if value.is_finite() {
        f64::from(value)
    } else {
        0.0
    })
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

    use viworks_runtime::clock::{Clock, SystemClock};

    use super::*;

    #[test]
    fn this_machine_yields_sound_records_of_every_stream_it_must_have() {
        let now = SystemClock.wall();
        let records = Host::new().read(now);
        for record in &records {
            assert_eq!(crate::spool::check(record, now), Ok(()), "{record:?}");
        }
        let streams: BTreeSet<&str> = records.iter().map(|r| r.stream.as_str()).collect();
        for stream in [
            "host.cpu",
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
}
