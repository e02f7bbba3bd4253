//! What the backend counts about agents, commands and telemetry.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use viworks_common::code::CloseCode;
use viworks_common::command::CommandState;
use viworks_common::telemetry::RecordRefusal;
use viworks_common::time::Timestamp;
use viworks_runtime::metrics::Metrics;

/// One label with a value from a closed set, so that nobody outside can add time series.
type Label = [(&'static str, &'static str); 1];

/// Generations of the agent key that are told apart: a closed set, and the rest.
const GENERATIONS: [&str; 9] = ["1", "2", "3", "4", "5", "6", "7", "8", "more"];

/// The instruments of the agents' side. Clones share them.
#[derive(Debug, Clone)]
pub struct BackendMetrics {
    /// Sockets that are open, whatever their state.
    pub connections: Gauge,
    /// Established sessions.
    pub sessions: Gauge,
    /// Openings under way: from the TLS handshake to CONFIRM.
    pub openings: Gauge,
    /// Sessions that can be opened in each second, as measured.
    pub openings_per_second: Gauge,
    /// Telemetry rows committed.
    pub telemetry_rows: Counter,
    /// Rows of one telemetry commit, over all agents in it.
    pub telemetry_commit_rows: Histogram,
    /// Batches that were not taken in, because the processor was full or the store away.
    pub telemetry_refused: Counter,
    /// Gateways whose telemetry waits, because the database refuses it.
    pub telemetry_withheld: Gauge,
    /// Gateways of whose telemetry nothing could be stored when it was tried last, whoever is to blame.
    pub telemetry_waiting: Gauge,
    /// By how many seconds the wall clock is ahead of the time line.
    pub clock_apart: Gauge,
    /// Records whose time the backend derived.
    pub telemetry_retimed: Counter,
    /// Telemetry rows deleted because they are older than they are kept.
    pub telemetry_purged: Counter,
    /// Commands that wait to be offered.
    pub queue_depth: Gauge,
    /// Commands that ended because their deliveries were used up.
    pub queue_dead: Counter,
    /// Backends that share the database and have their lease of it; none where it has one backend.
    pub instances: Gauge,
    /// How often another backend took this one for dead.
    pub leases_lost: Counter,
    /// Those that nobody has decided about.
    pub dead_letters: Gauge,
    /// Those that went for newer ones before anybody had decided about them.
    pub dead_letters_dropped: Counter,
    /// Counters of open commands that were not right and were set.
    pub counters_corrected: Counter,
    /// Failed background jobs.
    pub job_failures: Counter,
    /// Gateways whose certificate ends soon or has ended.
    pub gateway_certificates_ending: Gauge,
    /// Gateways that do not have an authority of those that they are given.
    pub gateways_lacking_authorities: Gauge,
    certificates: Family<Label, Gauge>,
    gateway_certificates: Family<Label, Gauge>,
    key_generations: Family<Label, Gauge>,
    pin_sets: Family<Label, Gauge>,
    telemetry_records_refused: Family<Label, Counter>,
    handshakes: Family<Label, Counter>,
    refusals: Family<Label, Counter>,
    enrolments: Family<Label, Counter>,
    renewals: Family<Label, Counter>,
    closes: Family<Label, Counter>,
    commands: Family<Label, Counter>,
}

impl BackendMetrics {
    /// Dead letters went for newer ones, because there are more than are kept.
    pub fn dropped_dead_letters(&self, count: u64) {
        if count == 0 {
            return;
        }
        self.dead_letters_dropped.inc_by(count);
        tracing::warn!(
            count,
            "there are more dead letters than are kept: the oldest went before anybody had decided about them; their runs have them still"
        );
    }

    /// Counters of open commands were held against what they count: by how many the tenant's was short, and the
    /// gateways whose own was not right.
    pub fn recounted(&self, short: i64, gateways: u64) {
        let corrected = gateways.saturating_add(u64::from(short != 0));
        if corrected == 0 {
            return;
        }
        self.counters_corrected.inc_by(corrected);
        tracing::warn!(
            short,
            gateways,
            "counters of open commands were not right and were set: somebody changed the tables, or it is a fault of ViWorkS, which please report"
        );
    }

    /// Registers all of them.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        let own = Self {
            connections: Gauge::default(),
            sessions: Gauge::default(),
            openings: Gauge::default(),
            openings_per_second: Gauge::default(),
            telemetry_rows: Counter::default(),
            telemetry_commit_rows: Histogram::new([
                1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0,
            ]),
            telemetry_refused: Counter::default(),
            telemetry_withheld: Gauge::default(),
            telemetry_waiting: Gauge::default(),
            telemetry_retimed: Counter::default(),
            telemetry_purged: Counter::default(),
            telemetry_records_refused: Family::default(),
            queue_depth: Gauge::default(),
            queue_dead: Counter::default(),
            dead_letters: Gauge::default(),
            dead_letters_dropped: Counter::default(),
            clock_apart: Gauge::default(),
            instances: Gauge::default(),
            leases_lost: Counter::default(),
            counters_corrected: Counter::default(),
            job_failures: Counter::default(),
            gateway_certificates_ending: Gauge::default(),
            gateways_lacking_authorities: Gauge::default(),
            certificates: Family::default(),
            gateway_certificates: Family::default(),
            key_generations: Family::default(),
            pin_sets: Family::default(),
            handshakes: Family::default(),
            refusals: Family::default(),
            enrolments: Family::default(),
            renewals: Family::default(),
            closes: Family::default(),
            commands: Family::default(),
        };
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("viworks");
            registry.register(
                "agent_connections",
                "Open sockets of agents",
                own.connections.clone(),
            );
            registry.register(
                "agent_sessions",
                "Established sessions",
                own.sessions.clone(),
            );
            registry.register(
                "agent_openings",
                "Sessions being opened",
                own.openings.clone(),
            );
            registry.register(
                "agent_openings_per_second",
                "Sessions that can be opened in each second, as measured",
                own.openings_per_second.clone(),
            );
            registry.register(
                "agent_handshakes",
                "Finished handshakes by result",
                own.handshakes.clone(),
            );
            registry.register(
                "agent_refusals",
                "Refused agents by reason",
                own.refusals.clone(),
            );
            registry.register(
                "enrolments",
                "What requests at the door for new gateways came to",
                own.enrolments.clone(),
            );
            registry.register(
                "certificate_renewals",
                "What gateways that asked for another certificate were answered",
                own.renewals.clone(),
            );
            registry.register(
                "agent_closes",
                "Ended sessions by close code",
                own.closes.clone(),
            );
            registry.register(
                "commands_final",
                "Commands that became final, by state",
                own.commands.clone(),
            );
            registry.register(
                "clock_apart_seconds",
                "By how much the wall clock is ahead of the time line",
                own.clock_apart.clone(),
            );
            registry.register(
                "instances",
                "Backends that share the database and have their lease of it",
                own.instances.clone(),
            );
            registry.register(
                "leases_lost",
                "How often another backend ended this one's lease of the database",
                own.leases_lost.clone(),
            );
            registry.register(
                "queue_depth",
                "Commands that wait to be offered, as of the last look",
                own.queue_depth.clone(),
            );
            registry.register(
                "queue_dead_letters",
                "Commands that could not be delivered",
                own.queue_dead.clone(),
            );
            registry.register(
                "dead_letters",
                "Dead letters that nobody has decided about, as of the last look",
                own.dead_letters.clone(),
            );
            registry.register(
                "dead_letters_dropped",
                "Dead letters that went for newer ones before anybody had decided about them",
                own.dead_letters_dropped.clone(),
            );
            registry.register(
                "telemetry_rows",
                "Committed telemetry rows",
                own.telemetry_rows.clone(),
            );
            registry.register(
                "telemetry_commit_rows",
                "Rows of one telemetry commit",
                own.telemetry_commit_rows.clone(),
            );
            registry.register(
                "telemetry_refused_batches",
                "Batches not taken in",
                own.telemetry_refused.clone(),
            );
            registry.register(
                "telemetry_withheld_gateways",
                "Gateways whose telemetry waits, because the database refuses it",
                own.telemetry_withheld.clone(),
            );
            registry.register(
                "telemetry_waiting_gateways",
                "Gateways whose telemetry waits, because storing it for itself failed, by whatever",
                own.telemetry_waiting.clone(),
            );
            registry.register(
                "certificate_not_after_seconds",
                "When the backend's own certificates end, in seconds since 1970",
                own.certificates.clone(),
            );
            registry.register(
                "gateway_certificates_ending",
                "Gateways seen by this process whose certificate ends soon or has ended",
                own.gateway_certificates_ending.clone(),
            );
            registry.register(
                "gateway_certificates",
                "Gateways that are not revoked by the time that their certificate has left",
                own.gateway_certificates.clone(),
            );
            registry.register(
                "gateway_key_generations",
                "Gateways that are not revoked by the generation of their agent key",
                own.key_generations.clone(),
            );
            registry.register(
                "gateway_pin_sets",
                "Gateways by the pin set that they trust, as of the last look",
                own.pin_sets.clone(),
            );
            registry.register(
                "gateways_lacking_authorities",
                "Gateways that are not revoked and do not have an authority of those that they are given, as of the last look",
                own.gateways_lacking_authorities.clone(),
            );
            registry.register(
                "telemetry_purged_rows",
                "Telemetry rows deleted because they are older than they are kept",
                own.telemetry_purged.clone(),
            );
            registry.register(
                "telemetry_refused_records",
                "Telemetry records that were not stored, by reason",
                own.telemetry_records_refused.clone(),
            );
            registry.register(
                "telemetry_retimed_records",
                "Stored records whose time the backend derived, because the gateway's clock is wrong",
                own.telemetry_retimed.clone(),
            );
            registry.register(
                "counters_corrected",
                "Counters of open commands that were not right and were set",
                own.counters_corrected.clone(),
            );
            registry.register(
                "job_failures",
                "Failed runs of background jobs",
                own.job_failures.clone(),
            );
        });
        own
    }

    /// A handshake came to its end.
    pub fn handshake(&self, result: &'static str) {
        self.handshakes.get_or_create(&[("result", result)]).inc();
    }

    /// A request at the door for new gateways came to this.
    pub fn enrolment(&self, outcome: &'static str) {
        self.enrolments.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// A gateway that asked for another certificate was answered this.
    pub fn renewal(&self, outcome: &'static str) {
        self.renewals.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// An agent was turned away for a reason that has no close code.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&[("reason", reason)]).inc();
    }

    /// When a certificate of the backend's own ends.
    pub fn certificate_ends(&self, name: &'static str, not_after: Timestamp) {
        self.certificates
            .get_or_create(&[("certificate", name)])
            .set(not_after.unix_millis() / 1_000);
    }

    /// Notes how many gateways have how much time left, by its word, and which generation of the agent key.
    pub fn gateways_end(
        &self,
        left: impl IntoIterator<Item = (&'static str, u64)>,
        generations: &[(u32, u64)],
    ) {
        for (name, gateways) in left {
            self.gateway_certificates
                .get_or_create(&[("left", name)])
                .set(i64::try_from(gateways).unwrap_or(i64::MAX));
        }
        let mut counts = [0_u64; GENERATIONS.len()];
        for (generation, gateways) in generations {
            let place = usize::try_from(*generation).unwrap_or(usize::MAX);
            let place = place.saturating_sub(1).min(GENERATIONS.len() - 1);
            if let Some(count) = counts.get_mut(place) {
                *count = count.saturating_add(*gateways);
            }
        }
        for (name, gateways) in GENERATIONS.into_iter().zip(counts) {
            self.key_generations
                .get_or_create(&[("generation", name)])
                .set(i64::try_from(gateways).unwrap_or(i64::MAX));
        }
    }

    /// So many gateways trust each version of the pin set, of which `current` is the latest.
    pub fn pin_trust(&self, trust: &BTreeMap<u64, u64>, current: u64) {
        let (mut same, mut earlier, mut unknown) = (0_u64, 0_u64, 0_u64);
        for (version, gateways) in trust {
            let sum = match version.cmp(&current) {
                Ordering::Less => &mut earlier,
                Ordering::Equal => &mut same,
                Ordering::Greater => &mut unknown,
            };
            *sum = sum.saturating_add(*gateways);
        }
        for (set, gateways) in [
            ("current", same),
            ("earlier", earlier),
            ("unknown", unknown),
        ] {
            self.pin_sets
                .get_or_create(&[("set", set)])
                .set(i64::try_from(gateways).unwrap_or(i64::MAX));
        }
    }

    /// When each certificate of the backend's own ends, in seconds since 1970, as far as it was looked at.
    #[must_use]
    pub fn certificate_ends_at(&self) -> Vec<(&'static str, i64)> {
        let known = |name| {
            let gauge = self.certificates.get(&[("certificate", name)])?;
            Some((name, gauge.get()))
        };
        ["server", "ca"].into_iter().filter_map(known).collect()
    }

    /// Records that were refused, for whatever reason.
    #[must_use]
    pub fn records_refused(&self) -> u64 {
        let refused = |reason: &RecordRefusal| {
            let counter = self
                .telemetry_records_refused
                .get(&[("reason", reason.name())]);
            counter.map_or(0, |counter| counter.get())
        };
        RecordRefusal::ALL.iter().map(refused).sum()
    }

    /// Records were refused.
    pub fn telemetry_records_refused(&self, reason: RecordRefusal, records: u64) {
        self.telemetry_records_refused
            .get_or_create(&[("reason", reason.name())])
            .inc_by(records);
    }

    /// A session ended.
    pub fn closed(&self, code: CloseCode) {
        self.closes.get_or_create(&[("code", code.name())]).inc();
    }

    /// Commands became final.
    pub fn commands_final(&self, state: CommandState, count: u64) {
        self.commands
            .get_or_create(&[("state", state.name())])
            .inc_by(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_reason() {
        let metrics = Metrics::new("test", "0", Timestamp::from_unix_micros(0));
        let own = BackendMetrics::register(&metrics);
        own.refused("foreign_certificate");
        own.refused("foreign_certificate");
        own.closed(CloseCode::Superseded);
        own.commands_final(CommandState::Expired, 3);
        own.gateways_lacking_authorities.set(7);
        own.pin_trust(&[(0, 1), (1, 2), (2, 4), (9, 8)].into(), 2);
        let text = metrics.encode().unwrap();
        for line in [
            "viworks_agent_refusals_total{reason=\"foreign_certificate\"} 2",
            "viworks_agent_closes_total{code=\"superseded\"} 1",
            "viworks_commands_final_total{state=\"expired\"} 3",
            "viworks_gateways_lacking_authorities 7",
            "viworks_gateway_pin_sets{set=\"current\"} 4",
            "viworks_gateway_pin_sets{set=\"earlier\"} 3",
            "viworks_gateway_pin_sets{set=\"unknown\"} 8",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
