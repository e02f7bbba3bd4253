//! The account at the end of a soak: every command and every record, from what the system stored and what really ran.

use std::collections::BTreeMap;
use std::fmt;

use viworks_testkit::deployment::{Deployment, StoredTelemetry};
use viworks_testkit::gateway::{Fed, ONCE, started};

use crate::faults::Faults;
use crate::fleet::{Fleet, STREAM};
use crate::memory::Verdict;

/// Findings that are listed; more are counted.
const LISTED_MAX: usize = 20;

/// Everything that was asked for and what became of it.
#[derive(Debug)]
pub(crate) struct Account {
    faults: Faults,
    commands: BTreeMap<String, usize>,
    starts: usize,
    fed: Fed,
    stored: StoredTelemetry,
    memory: Verdict,
    findings: Vec<String>,
}

impl Account {
    /// Reads the stopped backend's database and the gateways' marks.
    pub(crate) fn take(
        system: &Deployment,
        fleet: &Fleet,
        runs: usize,
        fed: Fed,
        faults: Faults,
        memory: Verdict,
    ) -> Self {
        let mut marks: BTreeMap<String, usize> = BTreeMap::new();
        for folder in fleet.folders() {
            for (id, times) in started(&folder) {
                *marks.entry(id).or_default() += times;
            }
        }
        let mut account = Self {
            faults,
            commands: BTreeMap::new(),
            starts: marks.values().sum(),
            fed,
            stored: system.stored_telemetry(STREAM),
            memory,
            findings: Vec::new(),
        };
        let mut known = 0;
        for command in system.stored_commands() {
            known += 1;
            let starts = marks.remove(&command.id).unwrap_or(0);
            account.check(&command.id, &command.name, &command.state, starts);
            *account
                .commands
                .entry(format!("{} {}", command.name, command.state))
                .or_default() += 1;
        }
        let expected = runs * fleet.size();
        account.expect(known == expected, || {
            format!("{known} commands are stored and {expected} were accepted")
        });
        account.expect(marks.is_empty(), || {
            format!(
                "{} commands ran that the database does not have",
                marks.len()
            )
        });
        account.check_telemetry();
        let grew = account.memory.grew();
        account.expect(!grew, || "memory grew".to_owned());
        account
    }

    fn check(&mut self, id: &str, name: &str, state: &str, starts: usize) {
        self.expect(name != ONCE || starts <= 1, || {
            format!("{id} must not run twice and started {starts} times")
        });
        let right = match state {
            "succeeded" => starts >= 1,
            // Nobody can know; it may be so only for what must not run twice.
            "indeterminate" => name == ONCE,
            // Frozen beyond its time limit.
            "timed_out" | "failed" => starts <= 1,
            _ => false,
        };
        self.expect(right, || {
            format!("{id} ({name}) is {state} and started {starts} times")
        });
    }

    fn check_telemetry(&mut self) {
        let (stored, fed) = (self.stored, self.fed);
        self.expect(stored.records == stored.keys, || {
            format!("{} records have {} keys", stored.records, stored.keys)
        });
        let accounted = stored.records + stored.in_gaps;
        let possible = fed.answered..=fed.answered + fed.unanswered;
        self.expect(possible.contains(&accounted), || {
            format!("{accounted} records are accounted for, which is outside {possible:?}")
        });
    }

    fn expect(&mut self, holds: bool, finding: impl FnOnce() -> String) {
        if !holds {
            self.findings.push(finding());
        }
    }

    /// Whether everything is as it must be.
    pub(crate) const fn holds(&self) -> bool {
        self.findings.is_empty()
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "faults      {}", self.faults)?;
        for (what, count) in &self.commands {
            writeln!(f, "commands    {count} {what}")?;
        }
        writeln!(f, "started     {} processes", self.starts)?;
        writeln!(
            f,
            "telemetry   {} records handed over and answered, {} unanswered; {} stored, {} in gaps",
            self.fed.answered, self.fed.unanswered, self.stored.records, self.stored.in_gaps
        )?;
        writeln!(f, "memory      {}", self.memory)?;
        for finding in self.findings.iter().take(LISTED_MAX) {
            writeln!(f, "WRONG       {finding}")?;
        }
        match self.findings.len() {
            0 => write!(f, "everything is accounted for"),
            count => write!(f, "{count} findings"),
        }
    }
}
