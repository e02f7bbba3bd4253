//! The registry of metrics, and its `OpenMetrics` text.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use viworks_common::time::Timestamp;

mod process;

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of one process. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// A registry with what every process shows: `viworks_build_info`, `process_start_time_seconds`, and its use of
    /// memory, processor and file descriptors.
    #[must_use]
    pub fn new(binary: &'static str, version: &'static str, started: Timestamp) -> Self {
        let mut registry = Registry::default();
        registry.register(
            "viworks_build",
            "The program and its version",
            Info::new(vec![("binary", binary), ("version", version)]),
        );
        registry.register(
            "process_start_time_seconds",
            "When the process started, in seconds since 1970",
            ConstGauge::new(started.unix_micros() / 1_000_000),
        );
        registry.register_collector(Box::new(process::Usage));
        Self {
            registry: Arc::new(Mutex::new(registry)),
        }
    }

    /// Lets a feature register its metrics. Names are `viworks_<noun>_<unit>`; counters get `_total` by themselves.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.lock())
    }

    /// All metrics as `OpenMetrics` text.
    ///
    /// # Errors
    ///
    /// When a collector cannot write its metrics.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.lock())?;
        Ok(text)
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // A panic while registering leaves at worst one metric out.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(
            "viworks-test",
            "1.2.3",
            Timestamp::from_unix_micros(1_767_225_600_999_999),
        )
    }

    #[test]
    fn build_and_start_time_are_shown() {
        let text = metrics().encode().unwrap();
        assert!(
            text.contains("viworks_build_info{binary=\"viworks-test\",version=\"1.2.3\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("process_start_time_seconds 1767225600\n"),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn the_process_shows_what_it_uses() {
        let text = metrics().encode().unwrap();
        for name in [
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_cpu_seconds_total",
        ] {
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("{name} ")))
                .unwrap();
            let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
            assert!(
                value >= 0.0 && (name == "process_cpu_seconds_total" || value > 0.0),
                "{line}"
            );
        }
    }

    #[test]
    fn a_registered_counter_is_shown() {
        let metrics = metrics();
        let counter = metrics.register(|registry| {
            let counter = Counter::<u64>::default();
            registry.register("viworks_frames", "Frames received", counter.clone());
            counter
        });
        counter.inc_by(3);
        assert!(
            metrics
                .encode()
                .unwrap()
                .contains("viworks_frames_total 3\n")
        );
    }
}
