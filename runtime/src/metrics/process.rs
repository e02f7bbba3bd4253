//! What this process uses of the machine, read from procfs at each scrape.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Collects the usual `process_*` metrics; one that cannot be read is left out of that scrape.
#[derive(Debug)]
pub(super) struct Usage;

impl Collector for Usage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        if let Some(stat) = Stat::read() {
            let memory = ConstGauge::new(stat.resident_bytes);
            let help = "Physical memory in use";
            memory.encode(encoder.encode_descriptor(
                "process_resident_memory_bytes",
                help,
                None,
                memory.metric_type(),
            )?)?;
            let cpu = ConstCounter::new(stat.cpu_seconds);
            let help = "Processor time used, in the kernel and outside";
            cpu.encode(encoder.encode_descriptor(
                "process_cpu_seconds",
                help,
                None,
                cpu.metric_type(),
            )?)?;
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // One of them is the listing itself.
            let open = entries.count().saturating_sub(1);
            let files = ConstGauge::new(i64::try_from(open).unwrap_or(i64::MAX));
            let help = "Open file descriptors";
            files.encode(encoder.encode_descriptor(
                "process_open_fds",
                help,
                None,
                files.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

struct Stat {
    resident_bytes: i64,
    cpu_seconds: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        Self::parse(
            &text,
            rustix::param::clock_ticks_per_second(),
            rustix::param::page_size(),
        )
    }

    /// The fields after the program's name, which stands in parentheses and may hold spaces itself.
    fn parse(text: &str, ticks_per_second: u64, page_bytes: usize) -> Option<Self> {
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let user_ticks: u32 = fields.get(11)?.parse().ok()?;
        let kernel_ticks: u32 = fields.get(12)?.parse().ok()?;
        let resident_pages: i64 = fields.get(21)?.parse().ok()?;
        let ticks = f64::from(user_ticks) + f64::from(kernel_ticks);
        Some(Self {
            resident_bytes: resident_pages.checked_mul(i64::try_from(page_bytes).ok()?)?,
            cpu_seconds: ticks / f64::from(u32::try_from(ticks_per_second).ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 8 0 900 12345678 77 184 1 1";
        let stat = Stat::parse(text, 100, 4096).unwrap();
        assert_eq!(stat.resident_bytes, 77 * 4096);
        assert!((stat.cpu_seconds - 4.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_short_line_is_no_answer() {
        assert!(Stat::parse("42 (a) S 1", 100, 4096).is_none());
    }
}
