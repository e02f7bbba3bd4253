//! What each gateway has had stored, held against what it may.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::SqliteConnection;
use viworks_common::id::{AgentId, StreamName, Tenant};
use viworks_common::telemetry::RecordRefusal;
use viworks_common::time::Timestamp;

use crate::data::sqlite::row::{Reader, int, to_json};
use crate::data::{StoreResult, TelemetryLimits};

const DAY_MICROS: i64 = 24 * 3_600 * 1_000_000;

/// What a row takes beside its fields and its stream: its key, and both again in two indexes.
const ROW_BYTES: usize = 300;

pub(in crate::data::sqlite) const USAGE: &str = "\
SELECT u.agent_id, u.day, u.epochs, u.records, u.bytes, u.gaps, u.streams
FROM json_each(?2) AS e
CROSS JOIN telemetry_usage AS u ON u.tenant = ?1 AND u.agent_id = e.value ->> 0";

pub(in crate::data::sqlite) const KNOWN_STREAMS: &str = "\
SELECT t.agent_id, t.stream
FROM json_each(?2) AS e
CROSS JOIN telemetry_streams AS t ON t.tenant = ?1 AND t.agent_id = e.value ->> 0 AND t.stream = e.value ->> 1";

pub(in crate::data::sqlite) const SAVE_USAGE: &str = "\
INSERT INTO telemetry_usage (tenant, agent_id, day, epochs, records, bytes, gaps, streams)
SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6 FROM json_each(?2)
WHERE true ON CONFLICT DO UPDATE SET day = excluded.day, epochs = excluded.epochs, records = excluded.records,
    bytes = excluded.bytes, gaps = excluded.gaps, streams = excluded.streams";

#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    epochs: u64,
    records: u64,
    bytes: u64,
    gaps: u64,
    streams: u64,
}

/// What some gateways use, and what they may.
#[derive(Debug)]
pub(super) struct Usages {
    limits: TelemetryLimits,
    day: i64,
    usages: BTreeMap<AgentId, Usage>,
    streams: BTreeSet<(AgentId, StreamName)>,
}

impl Usages {
    /// Reads what is known of these gateways, and which of these streams they have.
    pub(super) async fn load(
        connection: &mut SqliteConnection,
        tenant: &Tenant,
        agents: &BTreeSet<AgentId>,
        streams: &BTreeSet<(AgentId, &StreamName)>,
        limits: TelemetryLimits,
        now: Timestamp,
    ) -> StoreResult<Self> {
        let mut own = Self {
            limits,
            day: now.unix_micros().div_euclid(DAY_MICROS),
            usages: agents.iter().map(|it| (*it, Usage::default())).collect(),
            streams: BTreeSet::new(),
        };
        let agents: Vec<_> = agents.iter().map(|agent_id| [agent_id]).collect();
        let rows = sqlx::query(USAGE)
            .bind(tenant.as_str())
            .bind(to_json(&agents))
            .fetch_all(&mut *connection)
            .await?;
        for row in &rows {
            let reader = Reader::new("telemetry_usage", row);
            let mut usage = Usage {
                streams: reader.count("streams")?,
                ..Usage::default()
            };
            // Another day, whichever way the clock went, begins anew.
            if reader.get::<i64>("day")? == own.day {
                usage.epochs = reader.count("epochs")?;
                usage.records = reader.count("records")?;
                usage.bytes = reader.count("bytes")?;
                usage.gaps = reader.count("gaps")?;
            }
            own.usages.insert(reader.parse("agent_id")?, usage);
        }
        if streams.is_empty() {
            return Ok(own);
        }
        let rows = sqlx::query(KNOWN_STREAMS)
            .bind(tenant.as_str())
            .bind(to_json(streams))
            .fetch_all(connection)
            .await?;
        for row in &rows {
            let reader = Reader::new("telemetry_streams", row);
            let stream = (reader.parse("agent_id")?, reader.parse("stream")?);
            own.streams.insert(stream);
        }
        Ok(own)
    }

    /// Of no gateway.
    pub(super) const fn none(limits: TelemetryLimits) -> Self {
        Self {
            limits,
            day: 0,
            usages: BTreeMap::new(),
            streams: BTreeSet::new(),
        }
    }

    /// Whether one more spool epoch may be known.
    pub(super) fn epoch(&mut self, agent_id: AgentId) -> bool {
        let limit = self.limits.epochs_per_day;
        take(&mut self.usage(agent_id).epochs, 1, limit)
    }

    /// Whether one more gap may be kept.
    pub(super) fn gap(&mut self, agent_id: AgentId) -> bool {
        let limit = self.limits.gaps_per_day;
        take(&mut self.usage(agent_id).gaps, 1, limit)
    }

    /// Takes a record into account, if all of it is within the bounds.
    pub(super) fn record(
        &mut self,
        agent_id: AgentId,
        stream: &StreamName,
        fields: &str,
    ) -> Result<(), RecordRefusal> {
        let limits = self.limits;
        let known = self.streams.contains(&(agent_id, stream.clone()));
        let bytes = ROW_BYTES + fields.len() + stream.as_str().len() * 2;
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let usage = self.usage(agent_id);
        if usage.records >= limits.records_per_day {
            return Err(RecordRefusal::RecordLimit);
        }
        if usage.bytes.saturating_add(bytes) > limits.bytes_per_day {
            return Err(RecordRefusal::ByteLimit);
        }
        if !known && !take(&mut usage.streams, 1, limits.streams) {
            return Err(RecordRefusal::StreamLimit);
        }
        usage.records += 1;
        usage.bytes += bytes;
        if !known {
            self.streams.insert((agent_id, stream.clone()));
        }
        Ok(())
    }

    pub(super) async fn save(
        &self,
        connection: &mut SqliteConnection,
        tenant: &Tenant,
    ) -> StoreResult<()> {
        let rows: Vec<_> = self
            .usages
            .iter()
            .map(|(agent_id, usage)| {
                let [epochs, records, bytes, gaps, streams] = [
                    usage.epochs,
                    usage.records,
                    usage.bytes,
                    usage.gaps,
                    usage.streams,
                ]
                .map(int);
                (agent_id, self.day, epochs, records, bytes, gaps, streams)
            })
            .collect();
        sqlx::query(SAVE_USAGE)
            .bind(tenant.as_str())
            .bind(to_json(&rows))
            .execute(connection)
            .await?;
        Ok(())
    }

    fn usage(&mut self, agent_id: AgentId) -> &mut Usage {
        self.usages.entry(agent_id).or_default()
    }
}

const fn take(used: &mut u64, more: u64, limit: u64) -> bool {
    if used.saturating_add(more) > limit {
        return false;
    }
    *used += more;
    true
}
