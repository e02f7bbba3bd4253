//! What each gateway has had stored, held against what it may.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::SqliteConnection;
use viworks_common::id::{AgentId, AgentRunId, StreamName, Tenant};
use viworks_common::telemetry::RecordRefusal;
use viworks_common::time::Timestamp;

use crate::data::sqlite::row::{Reader, int, to_json};
use crate::data::{StoreResult, TelemetryLimits};

const DAY_MICROS: i64 = 24 * 3_600 * 1_000_000;

/// What a row takes beside its fields and its stream: its key, and both again in two indexes.
const ROW_BYTES: usize = 300;

pub(in crate::data::sqlite) const USAGE: &str = "\
SELECT u.agent_id, u.day, u.epochs, u.records, u.bytes, u.gaps, u.streams, u.refused_epoch, u.refused_seq
FROM json_each(?2) AS e
CROSS JOIN telemetry_usage AS u ON u.tenant = ?1 AND u.agent_id = e.value ->> 0";

pub(in crate::data::sqlite) const KNOWN_STREAMS: &str = "\
SELECT t.agent_id, t.stream
FROM json_each(?2) AS e
CROSS JOIN telemetry_streams AS t ON t.tenant = ?1 AND t.agent_id = e.value ->> 0 AND t.stream = e.value ->> 1";

pub(in crate::data::sqlite) const SAVE_USAGE: &str = "\
INSERT INTO telemetry_usage (tenant, agent_id, day, epochs, records, bytes, gaps, streams, refused_epoch, refused_seq)
SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
       value ->> 8
FROM json_each(?2)
WHERE true ON CONFLICT DO UPDATE SET day = excluded.day, epochs = excluded.epochs, records = excluded.records,
    bytes = excluded.bytes, gaps = excluded.gaps, streams = excluded.streams,
    refused_epoch = excluded.refused_epoch, refused_seq = excluded.refused_seq";

#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    /// The day that the counts are of.
    day: i64,
    epochs: u64,
    records: u64,
    bytes: u64,
    gaps: u64,
    streams: u64,
    /// The spool epoch that was refused last, and up to which record.
    refused: Option<(AgentRunId, u64)>,
}

/// What some gateways use, and what they may.
#[derive(Debug)]
pub(super) struct Usages {
    limits: TelemetryLimits,
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
        let day = now.unix_micros().div_euclid(DAY_MICROS);
        let fresh = Usage {
            day,
            ..Usage::default()
        };
        let mut own = Self {
            limits,
            usages: agents.iter().map(|it| (*it, fresh)).collect(),
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
                refused: reader
                    .parse_optional("refused_epoch")?
                    .zip(Some(reader.count("refused_seq")?)),
                ..fresh
            };
            // Only a later day begins anew.
            let known = reader.get::<i64>("day")?;
            if known >= day {
                usage.day = known;
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
            usages: BTreeMap::new(),
            streams: BTreeSet::new(),
        }
    }

    /// Whether one more spool epoch may be known.
    pub(super) fn epoch(&mut self, agent_id: AgentId) -> bool {
        let limit = self.limits.epochs_per_day;
        take(&mut self.usage(agent_id).epochs, 1, limit)
    }

    /// Up to which record a spool epoch that is not known was refused already, as far as that is remembered.
    pub(super) fn refused_to(&self, agent_id: AgentId, spool_epoch: AgentRunId) -> u64 {
        let refused = self.usages.get(&agent_id).and_then(|usage| usage.refused);
        refused.map_or(0, |(epoch, seq)| if epoch == spool_epoch { seq } else { 0 })
    }

    /// Remembers up to which record a spool epoch is refused. One for each gateway: it sends one after the other.
    pub(super) fn refuse_epoch(&mut self, agent_id: AgentId, spool_epoch: AgentRunId, seq: u64) {
        self.usage(agent_id).refused = Some((spool_epoch, seq));
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
                let (refused_epoch, refused_seq) = usage.refused.unzip();
                let refused_seq = int(refused_seq.unwrap_or(0));
                (
                    agent_id,
                    usage.day,
                    epochs,
                    records,
                    bytes,
                    gaps,
                    streams,
                    refused_epoch,
                    refused_seq,
                )
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
