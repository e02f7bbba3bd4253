//! The figures as a table for people and as JSON for machines, with the conditions they were measured under.

use std::fmt;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// Milliseconds.
    Milliseconds,
    /// Microseconds.
    Microseconds,
    /// Seconds.
    Seconds,
    /// Something in each second.
    PerSecond,
    /// Bytes.
    Bytes,
    /// 1024 bytes.
    Kib,
    /// 1024 KiB.
    Mib,
}

impl Unit {
    const fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
            Self::Seconds => "s",
            Self::PerSecond => "/s",
            Self::Bytes => "bytes",
            Self::Kib => "KiB",
            Self::Mib => "MiB",
        }
    }
}

/// What a figure has to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// So many times the reference, at the most.
    TimesAtMost(f64),
    /// So many times the reference, at the least.
    TimesAtLeast(f64),
    /// So much by itself, at the most.
    Most(f64),
}

/// One measured number.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    what: String,
    unit: Unit,
    ours: f64,
    /// The same of the reference, where there is one.
    reference: Option<f64>,
    ratio: Option<f64>,
    target: Option<Target>,
    met: Option<bool>,
    /// What a hostile gateway sent while this was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    hostile_messages: Option<u64>,
    /// What every repetition came to, where there were some: of these the median is reported.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    repeated: Vec<f64>,
}

impl Figure {
    /// A figure of ours and of the reference.
    pub(crate) fn new(what: impl Into<String>, unit: Unit, (ours, reference): (f64, f64)) -> Self {
        Self {
            what: what.into(),
            unit,
            ours,
            reference: Some(reference),
            ratio: Some(ours / reference),
            target: None,
            met: None,
            hostile_messages: None,
            repeated: Vec::new(),
        }
    }

    /// A figure of ours that nothing is compared with: what it costs on this machine.
    pub(crate) fn alone(what: impl Into<String>, unit: Unit, ours: f64) -> Self {
        Self {
            reference: None,
            ratio: None,
            ..Self::new(what, unit, (ours, ours))
        }
    }

    /// Of the same figure, measured again and again, the one in the middle: by its ratio, or by ours where that is what
    /// has to reach something or there is no ratio. None of none.
    pub(crate) fn median(mut repetitions: Vec<Self>) -> Option<Self> {
        repetitions.sort_by(|a, b| a.decisive().total_cmp(&b.decisive()));
        let repeated = if repetitions.len() > 1 {
            repetitions.iter().map(Self::decisive).collect()
        } else {
            Vec::new()
        };
        let middle = repetitions.len().saturating_sub(1) / 2;
        let median = repetitions.into_iter().nth(middle)?;
        Some(Self { repeated, ..median })
    }

    /// What repetitions are compared by.
    const fn decisive(&self) -> f64 {
        match self.target {
            Some(Target::Most(_)) => self.ours,
            Some(Target::TimesAtMost(_) | Target::TimesAtLeast(_)) | None => match self.ratio {
                Some(ratio) => ratio,
                None => self.ours,
            },
        }
    }

    /// With what a hostile gateway sent meanwhile.
    pub(crate) const fn beside(mut self, hostile_messages: u64) -> Self {
        self.hostile_messages = Some(hostile_messages);
        self
    }

    /// With what it has to reach.
    pub(crate) fn aiming(mut self, target: Target) -> Self {
        self.target = Some(target);
        self.met = match target {
            Target::TimesAtMost(times) => self.ratio.map(|ratio| ratio <= times),
            Target::TimesAtLeast(times) => self.ratio.map(|ratio| ratio >= times),
            Target::Most(most) => Some(self.ours <= most),
        };
        self
    }

    /// From the least repetition to the greatest; empty where there was one.
    fn span(&self) -> String {
        match (self.repeated.first(), self.repeated.last()) {
            (Some(least), Some(greatest)) => format!("{least:.2}–{greatest:.2}"),
            _ => String::new(),
        }
    }

    fn target(&self) -> String {
        match self.target {
            Some(Target::TimesAtMost(times)) => format!("≤ {times} ×"),
            Some(Target::TimesAtLeast(times)) => format!("≥ {times} ×"),
            Some(Target::Most(most)) => format!("≤ {most} {}", self.unit.name()),
            None => String::new(),
        }
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    conditions: Conditions,
    repetitions: usize,
    figures: Vec<Figure>,
}

#[derive(Debug, Serialize)]
struct Conditions {
    version: &'static str,
    optimised: bool,
    processors: usize,
    processor: String,
    kernel: String,
    memory_mib: u64,
}

impl Report {
    /// The report of runs on this machine, each of which measured the same figures in the same order.
    pub(crate) fn new(runs: Vec<Vec<Figure>>) -> Self {
        let repetitions = runs.len();
        let mut runs: Vec<_> = runs.into_iter().map(Vec::into_iter).collect();
        let next = || {
            let each = runs.iter_mut().filter_map(Iterator::next);
            Figure::median(each.collect())
        };
        Self {
            conditions: Conditions::here(),
            repetitions,
            figures: std::iter::from_fn(next).collect(),
        }
    }
}

impl Conditions {
    fn here() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key));
            let value = line.and_then(|line| line.split_once(':'));
            value
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal");
        let kib: u64 = memory
            .split_whitespace()
            .next()
            .and_then(|kib| kib.parse().ok())
            .unwrap_or_default();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            optimised: !cfg!(debug_assertions),
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            processor: value(&read("/proc/cpuinfo"), "model name"),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_mib: kib / 1_024,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header([
            "",
            "ours",
            "reference",
            "",
            "ratio",
            "",
            "target",
            "",
        ]);
        for figure in &self.figures {
            table.add_row([
                figure.what.clone(),
                number(figure.ours),
                figure.reference.map(number).unwrap_or_default(),
                figure.unit.name().to_owned(),
                figure
                    .ratio
                    .map(|ratio| format!("{ratio:.2}"))
                    .unwrap_or_default(),
                figure.span(),
                figure.target(),
                match figure.met {
                    Some(true) => "✓".to_owned(),
                    Some(false) => "missed".to_owned(),
                    None => String::new(),
                },
            ]);
        }
        for column in [1, 2, 4] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let conditions = &self.conditions;
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "ViWorkS {} · {} × {} · Linux {} · {} MiB",
            conditions.version,
            conditions.processors,
            conditions.processor,
            conditions.kernel,
            conditions.memory_mib
        )?;
        if !conditions.optimised {
            writeln!(
                f,
                "This build is not optimised; its figures mean nothing: cargo run --profile dist -p viworks-bench"
            )?;
        }
        if self.repetitions > 1 {
            writeln!(
                f,
                "Medians of {} runs; behind each ratio the least and the greatest (of ours where that has a target, or no reference).",
                self.repetitions
            )?;
        }
        write!(
            f,
            "Server and agents share these processors; loopback; SQLite with synchronous FULL, PostgreSQL with fsync."
        )
    }
}

fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(ours: f64, reference: f64) -> Figure {
        Figure::new("latency", Unit::Milliseconds, (ours, reference))
    }

    #[test]
    fn the_median_is_a_run_that_was_measured() {
        let runs = [(3.0, 1.0), (8.0, 4.0), (9.0, 1.0)].map(|sides| vec![figure(sides.0, sides.1)]);
        let report = Report::new(runs.to_vec());
        let [median] = &report.figures[..] else {
            panic!("one figure: {:?}", report.figures);
        };
        assert_eq!(
            (median.ours, median.reference, median.ratio),
            (3.0, Some(1.0), Some(3.0))
        );
        assert_eq!(median.repeated, [2.0, 3.0, 9.0]);
    }

    #[test]
    fn what_has_a_bound_of_its_own_is_compared_by_it() {
        let bounded = |ours, reference| figure(ours, reference).aiming(Target::Most(24.0));
        let runs = vec![bounded(23.0, 1.0), bounded(20.0, 20.0), bounded(25.0, 24.0)];
        let median = Figure::median(runs).expect("there are some");
        assert_eq!((median.ours, median.met), (23.0, Some(true)));
    }

    #[test]
    fn what_is_compared_with_nothing_is_compared_by_itself() {
        let runs = [3.0, 9.0, 4.0].map(|ours| Figure::alone("cost", Unit::Bytes, ours));
        let median = Figure::median(runs.to_vec()).expect("there are some");
        assert_eq!((median.ours, median.ratio), (4.0, None));
        assert_eq!(median.repeated, [3.0, 4.0, 9.0]);
    }

    #[test]
    fn one_run_is_reported_as_it_is() {
        let only = Figure::median(vec![figure(2.0, 1.0)]).expect("there is one");
        assert!(only.repeated.is_empty());
        assert_eq!(only.span(), "");
    }
}
