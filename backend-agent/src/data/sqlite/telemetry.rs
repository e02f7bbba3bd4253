//! Telemetry: batches of many gateways in one statement each, with the positions they reach.

use std::collections::BTreeMap;

use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use viworks_common::id::{AgentId, AgentRunId, StreamName, Tenant};
use viworks_common::telemetry::{Batch, Gap, GapReason, MalformedBatch, Position, RecordRefusal};
use viworks_common::time::Timestamp;
use viworks_runtime::fault;

use super::page::{Fetched, rows_wanted};
use super::row::{CHUNK_ROWS, Reader, int, to_json};
use crate::data::{
    GapCursor, Listing, Page, StoreResult, StoredGap, StoredRecord, StreamSummary, TelemetryCommit,
    TelemetryCursor, TelemetryOutcome, TelemetryQuery, TelemetryWrite,
};

/// Which of the named sessions are live, and how far the named spool epochs are committed: a row for each live one.
pub(super) const STANDING: &str = "\
SELECT write.key AS number, p.seq
FROM json_each(?2) AS write
CROSS JOIN gateways AS g ON g.tenant = ?1 AND g.agent_id = write.value ->> 0 AND g.confirmed = write.value ->> 1
     AND g.revoked_at IS NULL
LEFT JOIN telemetry_positions AS p ON p.tenant = ?1 AND p.agent_id = write.value ->> 0
     AND p.spool_epoch = write.value ->> 2";

pub(super) const POSITIONS: &str = "\
SELECT spool_epoch, seq FROM telemetry_positions WHERE tenant = ?1 AND agent_id = ?2 ORDER BY spool_epoch";

/// For each `[agent_id, spool_epoch]` how far it is committed; nothing where nothing is.
pub(super) const POSITIONS_NAMED: &str = "\
SELECT p.agent_id, p.spool_epoch, p.seq
FROM json_each($2) AS e
CROSS JOIN telemetry_positions AS p ON p.tenant = $1 AND p.agent_id = e.value ->> 0 AND p.spool_epoch = e.value ->> 1";

pub(super) const INSERT: &str = "\
INSERT INTO telemetry (tenant, agent_id, spool_epoch, seq, stream, observed_at, stored_at, fields)
SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, ?2, value ->> 5 FROM json_each(?3)
WHERE true ON CONFLICT DO NOTHING";

pub(super) const MOVE_POSITIONS: &str = "\
INSERT INTO telemetry_positions (tenant, agent_id, spool_epoch, seq)
SELECT ?1, value ->> 0, value ->> 1, value ->> 2 FROM json_each(?2)
WHERE true ON CONFLICT DO UPDATE SET seq = max(seq, excluded.seq)";

pub(super) const MOVE_STREAMS: &str = "\
INSERT INTO telemetry_streams (tenant, agent_id, stream, newest)
SELECT ?1, value ->> 0, value ->> 1, value ->> 2 FROM json_each(?2)
WHERE true ON CONFLICT DO UPDATE SET newest = max(newest, excluded.newest)";

pub(super) const INSERT_GAPS: &str = "\
INSERT INTO telemetry_gaps (tenant, agent_id, spool_epoch, from_seq, to_seq, reason, stored_at)
SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, ?2 FROM json_each(?3)";

pub(super) const COUNT_REFUSALS: &str = "\
INSERT INTO telemetry_refusals (tenant, agent_id, spool_epoch, reason, records)
SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?2)
WHERE true ON CONFLICT DO UPDATE SET records = records + excluded.records";

/// The columns that [`read`] reads.
macro_rules! rows {
    () => {
        "SELECT spool_epoch, seq, stream, observed_at, stored_at, fields FROM telemetry \
         WHERE tenant = ?1 AND agent_id = ?2 AND observed_at >= ?3 AND observed_at < ?4 "
    };
}

pub(super) const ALL_FORWARD: &str = concat!(
    rows!(),
    "AND (observed_at, spool_epoch, seq) > (?5, ?6, ?7) ORDER BY observed_at, spool_epoch, seq LIMIT ?8"
);

pub(super) const ALL_BACKWARD: &str = concat!(
    rows!(),
    "AND (observed_at, spool_epoch, seq) < (?5, ?6, ?7) \
     ORDER BY observed_at DESC, spool_epoch DESC, seq DESC LIMIT ?8"
);

pub(super) const STREAM_FORWARD: &str = concat!(
    rows!(),
    "AND (observed_at, spool_epoch, seq) > (?5, ?6, ?7) AND stream = ?9 \
     ORDER BY observed_at, spool_epoch, seq LIMIT ?8"
);

pub(super) const STREAM_BACKWARD: &str = concat!(
    rows!(),
    "AND (observed_at, spool_epoch, seq) < (?5, ?6, ?7) AND stream = ?9 \
     ORDER BY observed_at DESC, spool_epoch DESC, seq DESC LIMIT ?8"
);

pub(super) const STREAMS: &str = "\
SELECT stream, newest FROM telemetry_streams
WHERE tenant = ?1 AND agent_id = ?2 AND stream > ?3 ORDER BY stream LIMIT ?4";

pub(super) const GAPS: &str = "\
SELECT spool_epoch, from_seq, to_seq, reason, stored_at
FROM telemetry_gaps WHERE tenant = ?1 AND agent_id = ?2 AND (spool_epoch, from_seq) > (?3, ?4)
ORDER BY spool_epoch, from_seq LIMIT ?5";

type Origin = (AgentId, AgentRunId);

/// What a whole commit writes, gathered over its batches.
#[derive(Default)]
struct Gathered {
    positions: BTreeMap<Origin, u64>,
    rows: Vec<(AgentId, AgentRunId, u64, StreamName, i64, String)>,
    streams: BTreeMap<(AgentId, StreamName), i64>,
    gaps: Vec<(AgentId, AgentRunId, u64, u64, GapReason)>,
    refusals: BTreeMap<(AgentId, AgentRunId, RecordRefusal), u64>,
}

/// Stores batches of many gateways.
pub(super) async fn commit(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    writes: &[TelemetryWrite],
    now: Timestamp,
) -> StoreResult<Vec<TelemetryOutcome>> {
    let standing = standing(connection, tenant, writes).await?;
    let mut gathered = Gathered::default();
    let mut outcomes = Vec::with_capacity(writes.len());
    for (number, write) in writes.iter().enumerate() {
        let Some(committed) = standing.get(&number) else {
            outcomes.push(TelemetryOutcome::Fenced);
            continue;
        };
        if let Err(malformed) = check(&write.batch) {
            outcomes.push(TelemetryOutcome::Malformed(malformed));
            continue;
        }
        let origin = (write.agent_id, write.batch.spool_epoch);
        let before = *gathered.positions.get(&origin).unwrap_or(committed);
        let added = gathered.add(origin, before, &write.batch, now);
        outcomes.push(TelemetryOutcome::Committed(added));
    }
    gathered.write(connection, tenant, now).await?;
    fault::point("store.telemetry.before_commit");
    Ok(outcomes)
}

/// For each write of a live session, how far its spool epoch is committed; zero when nothing is.
async fn standing(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    writes: &[TelemetryWrite],
) -> StoreResult<BTreeMap<usize, u64>> {
    let named: Vec<_> = writes
        .iter()
        .map(|write| (write.agent_id, int(write.epoch), write.batch.spool_epoch))
        .collect();
    let rows = sqlx::query(STANDING)
        .bind(tenant.as_str())
        .bind(to_json(&named))
        .fetch_all(connection)
        .await?;
    let read = |row: &SqliteRow| {
        let reader = Reader::new("telemetry_positions", row);
        Ok((
            reader.index("number")?,
            reader.count_optional("seq")?.unwrap_or(0),
        ))
    };
    rows.iter().map(read).collect()
}

fn check(batch: &Batch) -> Result<(), MalformedBatch> {
    batch.check_contiguous()?;
    if i64::try_from(batch.to_seq).is_err() {
        return Err(MalformedBatch("the sequence numbers overflow"));
    }
    Ok(())
}

impl Gathered {
    /// Adds what lies beyond `before`.
    fn add(
        &mut self,
        origin: Origin,
        before: u64,
        batch: &Batch,
        now: Timestamp,
    ) -> TelemetryCommit {
        let mut commit = TelemetryCommit {
            position: Position {
                spool_epoch: origin.1,
                seq: before.max(batch.to_seq),
            },
            stored: 0,
            refused: BTreeMap::new(),
            missing: 0,
            rolled_back: batch.from_seq > before + 1,
        };
        self.positions.insert(origin, commit.position.seq);
        let forgotten = commit.rolled_back.then_some(Gap {
            from_seq: before + 1,
            to_seq: batch.from_seq - 1,
            reason: GapReason::BackendRolledBack,
        });
        for gap in forgotten.iter().chain(&batch.gaps) {
            if gap.to_seq > before {
                let from = gap.from_seq.max(before + 1);
                commit.missing += gap.to_seq - from + 1;
                self.gaps
                    .push((origin.0, origin.1, from, gap.to_seq, gap.reason));
            }
        }
        for (seq, record) in batch.records.iter().filter(|(seq, _)| *seq > before) {
            if let Err(refusal) = record.check(now) {
                *commit.refused.entry(refusal).or_default() += 1;
                *self
                    .refusals
                    .entry((origin.0, origin.1, refusal))
                    .or_default() += 1;
                continue;
            }
            commit.stored += 1;
            let at = record.observed_at.unix_micros();
            let newest = self
                .streams
                .entry((origin.0, record.stream.clone()))
                .or_insert(at);
            *newest = at.max(*newest);
            let fields = to_json(&record.fields);
            self.rows
                .push((origin.0, origin.1, *seq, record.stream.clone(), at, fields));
        }
        commit
    }

    async fn write(
        mut self,
        connection: &mut SqliteConnection,
        tenant: &Tenant,
        now: Timestamp,
    ) -> StoreResult<()> {
        // In the order of the key, so that the pages of the index are visited once each.
        self.rows.sort_unstable_by_key(|row| (row.0, row.1, row.2));
        for chunk in self.rows.chunks(CHUNK_ROWS) {
            sqlx::query(INSERT)
                .bind(tenant.as_str())
                .bind(now.unix_micros())
                .bind(to_json(chunk))
                .execute(&mut *connection)
                .await?;
        }
        let streams: Vec<_> = self
            .streams
            .iter()
            .map(|(key, newest)| (key.0, &key.1, newest))
            .collect();
        let positions: Vec<_> = self
            .positions
            .iter()
            .map(|(key, seq)| (key.0, key.1, seq))
            .collect();
        let refusals: Vec<_> = self
            .refusals
            .iter()
            .map(|((agent, epoch, reason), records)| (agent, epoch, reason.name(), records))
            .collect();
        for (sql, document, any) in [
            (MOVE_STREAMS, to_json(&streams), !streams.is_empty()),
            (MOVE_POSITIONS, to_json(&positions), !positions.is_empty()),
            (COUNT_REFUSALS, to_json(&refusals), !refusals.is_empty()),
        ] {
            if any {
                sqlx::query(sql)
                    .bind(tenant.as_str())
                    .bind(document)
                    .execute(&mut *connection)
                    .await?;
            }
        }
        if !self.gaps.is_empty() {
            sqlx::query(INSERT_GAPS)
                .bind(tenant.as_str())
                .bind(now.unix_micros())
                .bind(to_json(&self.gaps))
                .execute(connection)
                .await?;
        }
        Ok(())
    }
}

/// How far the epochs are committed that a gateway names.
pub(super) struct Settled {
    /// In the order in which they were named.
    pub(super) positions: Vec<Position>,
    /// Records that were committed and are gone: the database was restored to before them.
    pub(super) missing: u64,
}

/// Compares what gateways remember as acknowledged with what is committed. Nothing is acknowledged before it is
/// committed, so whatever lies between the two was forgotten with a restored database: it becomes a gap.
pub(super) async fn settle_positions(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    named: &[(AgentId, &[Position])],
    now: Timestamp,
) -> StoreResult<Vec<Settled>> {
    let known = known_positions(connection, tenant, named).await?;
    let mut gathered = Gathered::default();
    let mut all = Vec::with_capacity(named.len());
    for (agent_id, named) in named {
        let mut settled = Settled {
            positions: Vec::with_capacity(named.len()),
            missing: 0,
        };
        for asked in *named {
            let origin = (*agent_id, asked.spool_epoch);
            let committed = known.get(&origin);
            let before = *gathered.positions.get(&origin).or(committed).unwrap_or(&0);
            // Numbers beyond the store's range would take centuries to reach.
            let told = asked.seq.min(i64::MAX.unsigned_abs());
            if told > before {
                settled.missing += told - before;
                let reason = GapReason::BackendRolledBack;
                gathered
                    .gaps
                    .push((origin.0, origin.1, before + 1, told, reason));
                gathered.positions.insert(origin, told);
            }
            settled.positions.push(Position {
                spool_epoch: asked.spool_epoch,
                seq: before.max(told),
            });
        }
        all.push(settled);
    }
    gathered.write(connection, tenant, now).await?;
    Ok(all)
}

async fn known_positions(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    named: &[(AgentId, &[Position])],
) -> StoreResult<BTreeMap<Origin, u64>> {
    let document: Vec<_> = named
        .iter()
        .flat_map(|(agent_id, named)| named.iter().map(move |asked| (agent_id, asked.spool_epoch)))
        .collect();
    if document.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = sqlx::query(POSITIONS_NAMED)
        .bind(tenant.as_str())
        .bind(to_json(&document))
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            let position = read_position(row)?;
            let agent_id = Reader::new("telemetry_positions", row).parse("agent_id")?;
            Ok(((agent_id, position.spool_epoch), position.seq))
        })
        .collect()
}

/// How far every spool epoch is committed.
pub(super) async fn positions(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
) -> StoreResult<Vec<Position>> {
    let rows = sqlx::query(POSITIONS)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .fetch_all(connection)
        .await?;
    rows.iter().map(read_position).collect()
}

fn read_position(row: &SqliteRow) -> StoreResult<Position> {
    let reader = Reader::new("telemetry_positions", row);
    Ok(Position {
        spool_epoch: reader.parse("spool_epoch")?,
        seq: reader.count("seq")?,
    })
}

/// Records by time.
pub(super) async fn query(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    query: &TelemetryQuery,
    agent_id: AgentId,
    page: Page<TelemetryCursor>,
) -> StoreResult<Listing<StoredRecord, TelemetryCursor>> {
    let sql = match (&query.stream, query.newest_first) {
        (None, false) => ALL_FORWARD,
        (None, true) => ALL_BACKWARD,
        (Some(_), false) => STREAM_FORWARD,
        (Some(_), true) => STREAM_BACKWARD,
    };
    let (at, spool_epoch, seq) = match page.after {
        Some(after) => (
            after.observed_at.unix_micros(),
            after.spool_epoch.to_string(),
            int(after.seq),
        ),
        // Before the first id, or behind the last one.
        None if query.newest_first => (i64::MAX, "~".to_owned(), i64::MAX),
        None => (i64::MIN, String::new(), 0),
    };
    let mut statement = sqlx::query(sql)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(query.from.unix_micros())
        .bind(query.until.unix_micros())
        .bind(at)
        .bind(spool_epoch)
        .bind(seq)
        .bind(rows_wanted(page.limit));
    if let Some(stream) = &query.stream {
        statement = statement.bind(stream.as_str());
    }
    let rows = statement.fetch_all(connection).await?;
    Fetched::new(rows, page.limit).listing(read, |record| TelemetryCursor {
        observed_at: record.observed_at,
        spool_epoch: record.spool_epoch,
        seq: record.seq,
    })
}

fn read(row: &SqliteRow) -> StoreResult<StoredRecord> {
    let reader = Reader::new("telemetry", row);
    Ok(StoredRecord {
        spool_epoch: reader.parse("spool_epoch")?,
        seq: reader.count("seq")?,
        stream: reader.parse("stream")?,
        observed_at: reader.time("observed_at")?,
        stored_at: reader.time("stored_at")?,
        fields: reader.json("fields")?,
    })
}

/// The streams of a gateway.
pub(super) async fn streams(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
    page: Page<StreamName>,
) -> StoreResult<Listing<StreamSummary, StreamName>> {
    let rows = sqlx::query(STREAMS)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(page.after.as_ref().map_or("", StreamName::as_str))
        .bind(rows_wanted(page.limit))
        .fetch_all(connection)
        .await?;
    let read = |row: &SqliteRow| {
        let reader = Reader::new("telemetry_streams", row);
        Ok(StreamSummary {
            stream: reader.parse("stream")?,
            newest: reader.time("newest")?,
        })
    };
    Fetched::new(rows, page.limit).listing(read, |summary| summary.stream.clone())
}

/// What will never arrive.
pub(super) async fn gaps(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
    page: Page<GapCursor>,
) -> StoreResult<Listing<StoredGap, GapCursor>> {
    // Every epoch begins with a hexadecimal digit, which sorts behind nothing at all.
    let (epoch, seq) = page.after.map_or_else(
        || (String::new(), 0),
        |after| (after.spool_epoch.to_string(), after.from_seq),
    );
    let rows = sqlx::query(GAPS)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(epoch)
        .bind(i64::try_from(seq).unwrap_or(i64::MAX))
        .bind(rows_wanted(page.limit))
        .fetch_all(connection)
        .await?;
    let read = |row: &SqliteRow| {
        let reader = Reader::new("telemetry_gaps", row);
        Ok(StoredGap {
            spool_epoch: reader.parse("spool_epoch")?,
            gap: Gap {
                from_seq: reader.count("from_seq")?,
                to_seq: reader.count("to_seq")?,
                reason: reader.word("reason", GapReason::from_name)?,
            },
            stored_at: reader.time("stored_at")?,
        })
    };
    Fetched::new(rows, page.limit).listing(read, |stored| GapCursor {
        spool_epoch: stored.spool_epoch,
        from_seq: stored.gap.from_seq,
    })
}
