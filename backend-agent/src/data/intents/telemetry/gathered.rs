//! What a transaction finds and changes of the gateways whose batches it stores: all of them by one statement each,
//! since on a server each statement is a journey, and a batch has few records.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use viworks_common::id::{AgentId, AgentRunId, StreamName};
use viworks_common::ledger::telemetry::{Facts, Intake, Limits, Reached, Usage};
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::params;

use super::rollups;
use crate::data::intents::link::Sql;
use crate::data::intents::row::{Reader, to_json};
use crate::data::intents::sessions::low_water_of;
use crate::data::intents::tx::Tx;
use crate::data::{StoreResult, TelemetryWrite};

/// Gateways, with what they had had stored when that was noted last. The limits have each looked up by its key.
pub(in crate::data::intents) const GATEWAYS: Sql = Sql {
    sqlite: "\
SELECT g.agent_id, g.confirmed, g.revoked_at, g.low_water, g.session_epoch,
       u.day, u.epochs, u.records, u.bytes, u.gaps, u.streams
FROM json_each(:gateways) AS r CROSS JOIN gateways AS g ON g.tenant = :tenant AND g.agent_id = r.value
LEFT JOIN telemetry_usage AS u ON u.tenant = :tenant AND u.agent_id = r.value",
    postgres: "\
SELECT g.agent_id, g.confirmed, g.revoked_at, g.low_water, g.session_epoch,
       u.day, u.epochs, u.records, u.bytes, u.gaps, u.streams
FROM json_array_elements_text(:gateways) AS r (agent_id)
CROSS JOIN LATERAL (
    SELECT agent_id, confirmed, revoked_at, low_water, session_epoch FROM gateways
    WHERE tenant = :tenant AND agent_id = r.agent_id LIMIT 1) AS g
LEFT JOIN LATERAL (
    SELECT day, epochs, records, bytes, gaps, streams FROM telemetry_usage
    WHERE tenant = :tenant AND agent_id = r.agent_id LIMIT 1) AS u ON true",
};

/// How far spool epochs have come, and how far they were refused.
pub(in crate::data::intents) const REACHED: Sql = Sql {
    sqlite: "\
SELECT r.value ->> 'agent_id' AS agent_id, r.value ->> 'spool_epoch' AS spool_epoch,
       p.seq AS committed, f.seq AS refused
FROM json_each(:asked) AS r
LEFT JOIN telemetry_positions AS p ON p.tenant = :tenant AND p.agent_id = r.value ->> 'agent_id'
    AND p.spool_epoch = r.value ->> 'spool_epoch'
LEFT JOIN telemetry_refused_epochs AS f ON f.tenant = :tenant AND f.agent_id = r.value ->> 'agent_id'
    AND f.spool_epoch = r.value ->> 'spool_epoch'",
    postgres: "\
SELECT r.agent_id, r.spool_epoch, p.seq AS committed, f.seq AS refused
FROM json_to_recordset(:asked) AS r (agent_id text, spool_epoch text)
LEFT JOIN LATERAL (
    SELECT seq FROM telemetry_positions
    WHERE tenant = :tenant AND agent_id = r.agent_id AND spool_epoch = r.spool_epoch LIMIT 1) AS p ON true
LEFT JOIN LATERAL (
    SELECT seq FROM telemetry_refused_epochs
    WHERE tenant = :tenant AND agent_id = r.agent_id AND spool_epoch = r.spool_epoch LIMIT 1) AS f ON true",
};

/// Those of some streams that their gateways have.
pub(in crate::data::intents) const STREAMS: Sql = Sql {
    sqlite: "\
SELECT s.agent_id, s.stream FROM json_each(:named) AS r
CROSS JOIN telemetry_streams AS s ON s.tenant = :tenant AND s.agent_id = r.value ->> 'agent_id'
    AND s.stream = r.value ->> 'stream'",
    postgres: "\
SELECT s.agent_id, s.stream FROM json_to_recordset(:named) AS r (agent_id text, stream text)
CROSS JOIN LATERAL (
    SELECT agent_id, stream FROM telemetry_streams
    WHERE tenant = :tenant AND agent_id = r.agent_id AND stream = r.stream LIMIT 1) AS s",
};

macro_rules! move_positions {
    ($rows:literal) => {
        concat!(
            "INSERT INTO telemetry_positions (tenant, agent_id, spool_epoch, seq, moved_at) SELECT :tenant, ",
            $rows,
            " WHERE true ON CONFLICT (tenant, agent_id, spool_epoch) DO UPDATE SET seq = excluded.seq, \
             moved_at = excluded.moved_at WHERE excluded.seq > telemetry_positions.seq"
        )
    };
}

pub(in crate::data::intents) const MOVE_POSITIONS: Sql = Sql {
    sqlite: move_positions!(
        "value ->> 'agent_id', value ->> 'spool_epoch', value ->> 'seq', :now FROM json_each(:positions)"
    ),
    postgres: move_positions!(
        "agent_id, spool_epoch, seq, :now \
         FROM json_to_recordset(:positions) AS r (agent_id text, spool_epoch text, seq bigint)"
    ),
};

macro_rules! move_streams {
    ($rows:literal) => {
        concat!(
            "INSERT INTO telemetry_streams (tenant, agent_id, stream, newest) SELECT :tenant, ",
            $rows,
            " WHERE true ON CONFLICT (tenant, agent_id, stream) DO UPDATE SET newest = excluded.newest \
             WHERE excluded.newest > telemetry_streams.newest"
        )
    };
}

/// Each stream with the time of its newest record.
pub(in crate::data::intents) const MOVE_STREAMS: Sql = Sql {
    sqlite: move_streams!(
        "value ->> 'agent_id', value ->> 'stream', value ->> 'newest' FROM json_each(:streams)"
    ),
    postgres: move_streams!(
        "agent_id, stream, newest \
         FROM json_to_recordset(:streams) AS r (agent_id text, stream text, newest bigint)"
    ),
};

macro_rules! save_usage {
    ($rows:literal) => {
        concat!(
            "INSERT INTO telemetry_usage (tenant, agent_id, day, epochs, records, bytes, gaps, streams) SELECT :tenant, ",
            $rows,
            " WHERE true ON CONFLICT (tenant, agent_id) DO UPDATE SET day = excluded.day, epochs = excluded.epochs, \
             records = excluded.records, bytes = excluded.bytes, gaps = excluded.gaps, streams = excluded.streams"
        )
    };
}

pub(in crate::data::intents) const SAVE_USAGE: Sql = Sql {
    sqlite: save_usage!(
        "value ->> 'agent_id', value ->> 'day', value ->> 'epochs', value ->> 'records', value ->> 'bytes', \
         value ->> 'gaps', value ->> 'streams' FROM json_each(:usage)"
    ),
    postgres: save_usage!(
        "agent_id, day, epochs, records, bytes, gaps, streams \
         FROM json_to_recordset(:usage) AS r (agent_id text, day bigint, epochs bigint, records bigint, bytes bigint, \
                                              gaps bigint, streams bigint)"
    ),
};

/// What is known of one gateway.
#[derive(Debug, Default)]
struct Gateway<'b> {
    /// What it has had stored; the day may be over.
    usage: Usage,
    /// Its usage is not what is in the database.
    used: bool,
    /// Those streams that it has and that were asked for.
    streams: BTreeSet<StreamName>,
    /// The newest record of each stream that got some.
    newest: BTreeMap<&'b StreamName, Timestamp>,
    /// Days to be rolled up again.
    days: BTreeSet<i64>,
}

/// How far a spool epoch has come.
#[derive(Debug, Clone, Copy, Default)]
struct Epoch {
    reached: Reached,
    moved: bool,
}

/// What is known of the gateways of a transaction, whose telemetry is locked; what it changes is written at its end.
#[derive(Debug, Default)]
pub(super) struct Gathered<'b> {
    /// The sessions that may write.
    held: BTreeSet<(AgentId, u64)>,
    gateways: BTreeMap<AgentId, Gateway<'b>>,
    epochs: BTreeMap<(AgentId, AgentRunId), Epoch>,
}

impl<'b> Gathered<'b> {
    /// Asks for all that these batches are held against.
    pub(super) fn find(tx: &Tx<'_>, writes: &'b [TelemetryWrite]) -> StoreResult<Self> {
        let (mut sessions, mut epochs, mut named) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for write in writes {
            let agent_id = write.agent_id;
            sessions.insert((agent_id, write.epoch));
            epochs.insert((agent_id, write.batch.spool_epoch));
            let records = write.batch.records.iter();
            named.extend(records.map(|(_, record)| (agent_id, &record.stream)));
        }
        let mut gathered = Self::default();
        if sessions.is_empty() {
            return Ok(gathered);
        }
        gathered.find_gateways(tx, &sessions)?;
        gathered.find_reached(tx, &epochs)?;
        gathered.find_streams(tx, &named)?;
        Ok(gathered)
    }

    fn find_gateways(
        &mut self,
        tx: &Tx<'_>,
        sessions: &BTreeSet<(AgentId, u64)>,
    ) -> StoreResult<()> {
        let gateways: BTreeSet<AgentId> = sessions.iter().map(|(agent_id, _)| *agent_id).collect();
        let gateways = to_json(&gateways);
        let found = tx.all(GATEWAYS, params! { gateways }, |row| {
            let row = Reader::new("gateways", row);
            let agent_id: AgentId = row.get("agent_id")?;
            let mut held = Vec::new();
            for (_, epoch) in sessions.range((agent_id, 0)..=(agent_id, u64::MAX)) {
                if low_water_of(&row, *epoch)?.is_some() {
                    held.push((agent_id, *epoch));
                }
            }
            Ok((agent_id, held, read_usage(&row)?))
        })?;
        for (agent_id, held, usage) in found {
            self.held.extend(held);
            let usage = usage.unwrap_or_default();
            let gateway = Gateway {
                usage,
                ..Gateway::default()
            };
            self.gateways.insert(agent_id, gateway);
        }
        Ok(())
    }

    fn find_reached(
        &mut self,
        tx: &Tx<'_>,
        epochs: &BTreeSet<(AgentId, AgentRunId)>,
    ) -> StoreResult<()> {
        let asked = epochs.iter();
        let asked = asked.map(
            |(agent_id, spool_epoch)| json!({ "agent_id": agent_id, "spool_epoch": spool_epoch }),
        );
        let asked = to_json(&asked.collect::<Vec<_>>());
        let found = tx.all(REACHED, params! { asked }, |row| {
            let row = Reader::new("telemetry_positions", row);
            let reached = Reached {
                committed: row.get("committed")?,
                refused: row.get::<Option<u64>>("refused")?.unwrap_or(0),
            };
            Ok(((row.get("agent_id")?, row.get("spool_epoch")?), reached))
        })?;
        let found = found.into_iter();
        self.epochs.extend(found.map(|(epoch, reached)| {
            (
                epoch,
                Epoch {
                    reached,
                    moved: false,
                },
            )
        }));
        Ok(())
    }

    fn find_streams(
        &mut self,
        tx: &Tx<'_>,
        named: &BTreeSet<(AgentId, &StreamName)>,
    ) -> StoreResult<()> {
        if named.is_empty() {
            return Ok(());
        }
        let named = named.iter();
        let named =
            named.map(|(agent_id, stream)| json!({ "agent_id": agent_id, "stream": stream }));
        let named = to_json(&named.collect::<Vec<_>>());
        let found = tx.all(STREAMS, params! { named }, |row| {
            let row = Reader::new("telemetry_streams", row);
            Ok((row.get::<AgentId>("agent_id")?, row.get("stream")?))
        })?;
        for (agent_id, stream) in found {
            self.gateways
                .entry(agent_id)
                .or_default()
                .streams
                .insert(stream);
        }
        Ok(())
    }

    /// Whether a session may write.
    pub(super) fn holds(&self, agent_id: AgentId, epoch: u64) -> bool {
        self.held.contains(&(agent_id, epoch))
    }

    /// What a batch is held against, the batches before it included.
    pub(super) fn facts(
        &self,
        agent_id: AgentId,
        spool_epoch: AgentRunId,
        limits: Limits,
        now: Timestamp,
    ) -> Facts {
        let gateway = self.gateways.get(&agent_id);
        let reached = self.epochs.get(&(agent_id, spool_epoch));
        Facts {
            reached: reached.map_or_else(Reached::default, |epoch| epoch.reached),
            usage: gateway
                .map_or_else(Usage::default, |known| known.usage)
                .today(now),
            streams: gateway.map_or_else(BTreeSet::new, |known| known.streams.clone()),
            limits,
            now,
        }
    }

    /// Takes in what a batch changes.
    pub(super) fn take(
        &mut self,
        agent_id: AgentId,
        spool_epoch: AgentRunId,
        taken: &Intake<'b>,
        now: Timestamp,
    ) {
        let gateway = self.gateways.entry(agent_id).or_default();
        // Today is noted once. A day that is over, or to come, is each time: somebody may have rolled it up.
        let today = rollups::day_of(now);
        let days = taken
            .rows
            .iter()
            .map(|row| rollups::day_of(row.observed_at));
        gateway.days.extend(days.filter(|day| *day != today));
        if taken.usage != gateway.usage.today(now) {
            // Of two backends one may be in the next day already.
            let first = (gateway.usage.day != today).then_some(today);
            gateway.days.extend(first);
            gateway.usage = taken.usage;
            gateway.used = true;
        }
        for (stream, at) in &taken.newest {
            gateway.streams.insert((*stream).clone());
            let newest = gateway.newest.entry(*stream).or_insert(*at);
            *newest = (*newest).max(*at);
        }
        let epoch = self.epochs.entry((agent_id, spool_epoch)).or_default();
        if let Some(seq) = taken.position {
            epoch.reached.committed = Some(seq);
            epoch.moved = true;
        }
        let refused = taken.refused_to.unwrap_or(0);
        epoch.reached.refused = epoch.reached.refused.max(refused);
    }

    /// Writes what changed.
    pub(super) fn write(self, tx: &Tx<'_>) -> StoreResult<()> {
        let (mut streams, mut usage) = (Vec::new(), Vec::new());
        for (agent_id, gateway) in &self.gateways {
            let newest = gateway.newest.iter();
            streams.extend(newest.map(|(stream, at)| {
                json!({ "agent_id": agent_id, "stream": stream, "newest": at.unix_micros() })
            }));
            usage.extend(gateway.used.then_some((*agent_id, gateway.usage)));
            rollups::mark(tx, *agent_id, &gateway.days)?;
        }
        if !streams.is_empty() {
            let streams = to_json(&streams);
            tx.execute(MOVE_STREAMS, params! { streams })?;
        }
        let moved = self.epochs.iter().filter(|(_, epoch)| epoch.moved);
        let moved = moved.filter_map(|((agent_id, spool_epoch), epoch)| {
            Some((*agent_id, *spool_epoch, epoch.reached.committed?))
        });
        move_positions(tx, &moved.collect::<Vec<_>>())?;
        save_usage(tx, &usage)
    }
}

/// Moves spool epochs forward; none ever goes back.
pub(super) fn move_positions(tx: &Tx<'_>, moved: &[(AgentId, AgentRunId, u64)]) -> StoreResult<()> {
    if moved.is_empty() {
        return Ok(());
    }
    let positions = moved.iter();
    let positions = positions.map(|(agent_id, spool_epoch, seq)| {
        json!({ "agent_id": agent_id, "spool_epoch": spool_epoch, "seq": seq })
    });
    let positions = to_json(&positions.collect::<Vec<_>>());
    tx.execute(MOVE_POSITIONS, params! { positions }).map(drop)
}

/// Notes what gateways have had stored.
pub(super) fn save_usage(tx: &Tx<'_>, used: &[(AgentId, Usage)]) -> StoreResult<()> {
    if used.is_empty() {
        return Ok(());
    }
    let usage = used.iter().map(|(agent_id, usage)| {
        let Usage {
            day,
            epochs,
            records,
            bytes,
            gaps,
            streams,
        } = usage;
        json!({
            "agent_id": agent_id, "day": day, "epochs": epochs, "records": records, "bytes": bytes, "gaps": gaps,
            "streams": streams,
        })
    });
    let usage = to_json(&usage.collect::<Vec<_>>());
    tx.execute(SAVE_USAGE, params! { usage }).map(drop)
}

/// What a gateway has had stored; none where nothing is noted.
pub(super) fn read_usage(row: &Reader<'_>) -> StoreResult<Option<Usage>> {
    let Some(day) = row.get::<Option<i64>>("day")? else {
        return Ok(None);
    };
    Ok(Some(Usage {
        day,
        epochs: row.get("epochs")?,
        records: row.get("records")?,
        bytes: row.get("bytes")?,
        gaps: row.get("gaps")?,
        streams: row.get("streams")?,
    }))
}
