//! Telemetry: batches of many gateways in one statement each, with the positions they reach.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use viworks_common::id::{AgentId, AgentRunId, StreamName, Tenant};
use viworks_common::telemetry::{
    Batch, Gap, GapReason, MalformedBatch, Position, RecordRefusal, TimeSource, observed,
};
use viworks_common::time::Timestamp;
use viworks_runtime::fault;

use self::usage::Usages;
use super::page::{Fetched, rows_wanted};
use super::row::{CHUNK_ROWS, Reader, int, to_json};
use crate::data::{
    GapCursor, Listing, Page, RefusalCursor, StoreResult, StoredGap, StoredRecord, StoredRefusal,
    StreamSummary, TelemetryCommit, TelemetryCursor, TelemetryLimits, TelemetryOutcome,
    TelemetryQuery, TelemetryWrite,
};

pub(super) mod usage;

/// Refusals of spool epochs that are not known by themselves are counted under this one.
const NO_EPOCH: AgentRunId = AgentRunId::from_uuid(uuid::Uuid::nil());

/// The most records that one count names; beyond that nobody counts.
const COUNT_MAX: u64 = 1 << 53;

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
INSERT INTO telemetry (tenant, agent_id, spool_epoch, seq, stream, observed_at, stored_at, fields, time_source, gateway_time)
SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, ?2, value ->> 5, value ->> 6, value ->> 7
FROM json_each(?3)
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
INSERT INTO telemetry_refusals (tenant, agent_id, spool_epoch, reason, records, first_at, last_at)
SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 4 FROM json_each(?2)
WHERE true ON CONFLICT DO UPDATE SET records = min(records + excluded.records, 9007199254740992), last_at = excluded.last_at";

/// The columns that [`read`] reads.
macro_rules! rows {
    () => {
        "SELECT spool_epoch, seq, stream, observed_at, stored_at, fields, time_source, gateway_time FROM telemetry \
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

pub(super) const REFUSALS: &str = "\
SELECT spool_epoch, reason, records, first_at, last_at
FROM telemetry_refusals WHERE tenant = ?1 AND agent_id = ?2 AND (spool_epoch, reason) > (?3, ?4)
ORDER BY spool_epoch, reason LIMIT ?5";

type Origin = (AgentId, AgentRunId);

/// When batches are stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// By the wall clock: what gateways' clocks are held against.
    pub(super) wall: Timestamp,
    /// On the time line: what is stored, and what days are counted by.
    pub(super) now: Timestamp,
}

/// A row as it is written.
type Row = (
    AgentId,
    AgentRunId,
    u64,
    StreamName,
    i64,
    String,
    &'static str,
    Option<i64>,
);

/// What a whole commit writes, gathered over its batches.
struct Gathered {
    usages: Usages,
    positions: BTreeMap<Origin, u64>,
    rows: Vec<Row>,
    streams: BTreeMap<(AgentId, StreamName), i64>,
    gaps: Vec<(AgentId, AgentRunId, u64, u64, GapReason)>,
    refusals: BTreeMap<(AgentId, AgentRunId, RecordRefusal), u64>,
}

/// Stores batches of many gateways.
pub(super) async fn commit(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    writes: &[TelemetryWrite],
    limits: TelemetryLimits,
    Times { wall, now }: Times,
) -> StoreResult<Vec<TelemetryOutcome>> {
    let standing = standing(connection, tenant, writes).await?;
    // Of those only that may write: whoever is fenced leaves no trace.
    let live = || {
        let live = writes.iter().enumerate();
        live.filter(|(number, _)| standing.contains_key(number))
    };
    let agents = live().map(|(_, write)| write.agent_id).collect();
    let streams = live()
        .flat_map(|(_, write)| {
            let records = write.batch.records.iter();
            records.map(move |(_, record)| (write.agent_id, &record.stream))
        })
        .collect();
    let usages = Usages::load(connection, tenant, &agents, &streams, limits, now).await?;
    let mut gathered = Gathered::new(usages);
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
        let known = gathered.positions.get(&origin).copied().or(*committed);
        let before = known.unwrap_or_else(|| gathered.usages.refused_to(origin.0, origin.1));
        let added = if known.is_some() || gathered.usages.epoch(origin.0) {
            gathered.add(origin, before, write, wall)
        } else {
            gathered.refuse_epoch(origin, before, &write.batch)
        };
        outcomes.push(TelemetryOutcome::Committed(added));
    }
    gathered.write(connection, tenant, now).await?;
    fault::point("store.telemetry.before_commit");
    Ok(outcomes)
}

/// For each write of a live session, how far its spool epoch is committed, when it is known.
async fn standing(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    writes: &[TelemetryWrite],
) -> StoreResult<BTreeMap<usize, Option<u64>>> {
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
        Ok((reader.index("number")?, reader.count_optional("seq")?))
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
    const fn new(usages: Usages) -> Self {
        Self {
            usages,
            positions: BTreeMap::new(),
            rows: Vec::new(),
            streams: BTreeMap::new(),
            gaps: Vec::new(),
            refusals: BTreeMap::new(),
        }
    }

    /// Counts what lies beyond `before` in a batch of a spool epoch that is one too many: nothing of it is kept but the
    /// count.
    fn refuse_epoch(&mut self, origin: Origin, before: u64, batch: &Batch) -> TelemetryCommit {
        let records = batch.to_seq.saturating_sub(before.max(batch.from_seq - 1));
        let mut commit = TelemetryCommit {
            position: Position {
                spool_epoch: origin.1,
                seq: batch.to_seq,
            },
            stored: 0,
            retimed: 0,
            refused: BTreeMap::new(),
            missing: 0,
            rolled_back: false,
        };
        if records > 0 {
            let counted = (origin.0, NO_EPOCH);
            let reason = RecordRefusal::EpochLimit;
            self.refuse(counted, reason, records, &mut commit.refused);
            self.usages.refuse_epoch(origin.0, origin.1, batch.to_seq);
        }
        commit
    }

    fn refuse(
        &mut self,
        origin: Origin,
        reason: RecordRefusal,
        records: u64,
        refused: &mut BTreeMap<RecordRefusal, u64>,
    ) {
        let own = refused.entry(reason).or_default();
        *own = own.saturating_add(records).min(COUNT_MAX);
        let sum = self
            .refusals
            .entry((origin.0, origin.1, reason))
            .or_default();
        *sum = sum.saturating_add(records).min(COUNT_MAX);
    }

    /// Adds what lies beyond `before`.
    fn add(
        &mut self,
        origin: Origin,
        before: u64,
        write: &TelemetryWrite,
        wall: Timestamp,
    ) -> TelemetryCommit {
        let batch = &write.batch;
        let mut commit = TelemetryCommit {
            position: Position {
                spool_epoch: origin.1,
                seq: before.max(batch.to_seq),
            },
            stored: 0,
            retimed: 0,
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
                let records = (gap.to_seq - from).saturating_add(1);
                if self.usages.gap(origin.0) {
                    commit.missing = commit.missing.saturating_add(records);
                    self.gaps
                        .push((origin.0, origin.1, from, gap.to_seq, gap.reason));
                } else {
                    let reason = RecordRefusal::GapLimit;
                    self.refuse(origin, reason, records, &mut commit.refused);
                }
            }
        }
        for (seq, record) in batch.records.iter().filter(|(seq, _)| *seq > before) {
            let fields = record.check().and_then(|()| {
                let fields = to_json(&record.fields);
                let taken = self.usages.record(origin.0, &record.stream, &fields);
                taken.map(|()| fields)
            });
            let fields = match fields {
                Ok(fields) => fields,
                Err(reason) => {
                    self.refuse(origin, reason, 1, &mut commit.refused);
                    continue;
                }
            };
            commit.stored += 1;
            let said = record.observed_at.unix_micros();
            let (at, source) = observed(record.observed_at, write.skew_ms, wall);
            let at = at.unix_micros();
            let gateway_time = (source != TimeSource::Gateway).then_some(said);
            commit.retimed += u64::from(gateway_time.is_some());
            let newest = self
                .streams
                .entry((origin.0, record.stream.clone()))
                .or_insert(at);
            *newest = at.max(*newest);
            self.rows.push((
                origin.0,
                origin.1,
                *seq,
                record.stream.clone(),
                at,
                fields,
                source.name(),
                gateway_time,
            ));
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
            .map(|((agent, epoch, reason), records)| {
                (agent, epoch, reason.name(), records, now.unix_micros())
            })
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
        self.usages.save(connection, tenant).await?;
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
    /// Such records that are beyond what may be kept of their gateway, by reason.
    pub(super) refused: BTreeMap<RecordRefusal, u64>,
}

/// Compares what gateways remember as acknowledged with what is committed. Nothing is acknowledged before it is
/// committed, so whatever lies between the two was forgotten with a restored database: it becomes a gap, or is counted as
/// refused where its gateway has had as many gaps or spool epochs as it may.
pub(super) async fn settle_positions(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    named: &[(AgentId, &[Position])],
    limits: TelemetryLimits,
    now: Timestamp,
) -> StoreResult<Vec<Settled>> {
    let known = known_positions(connection, tenant, named).await?;
    let is_news = |agent_id: &AgentId, asked: &Position| {
        let origin = (*agent_id, asked.spool_epoch);
        asked.seq > known.get(&origin).copied().unwrap_or(0)
    };
    let agents: BTreeSet<_> = named
        .iter()
        .filter(|(agent_id, named)| named.iter().any(|asked| is_news(agent_id, asked)))
        .map(|(agent_id, _)| *agent_id)
        .collect();
    let streams = BTreeSet::new();
    let anything = !agents.is_empty();
    let usages = if anything {
        Usages::load(connection, tenant, &agents, &streams, limits, now).await?
    } else {
        Usages::none(limits)
    };
    let mut gathered = Gathered::new(usages);
    let mut all = Vec::with_capacity(named.len());
    for (agent_id, named) in named {
        let mut settled = Settled {
            positions: Vec::with_capacity(named.len()),
            missing: 0,
            refused: BTreeMap::new(),
        };
        for asked in *named {
            let origin = (*agent_id, asked.spool_epoch);
            let committed = known.get(&origin);
            let known = gathered.positions.get(&origin).or(committed).copied();
            let before = known.unwrap_or_else(|| gathered.usages.refused_to(origin.0, origin.1));
            // Numbers beyond the store's range would take centuries to reach.
            let told = asked.seq.min(i64::MAX.unsigned_abs());
            if told > before {
                let forgotten = told - before;
                if known.is_none() && !gathered.usages.epoch(origin.0) {
                    // One more than it may have is answered as it asks, and only counted.
                    let counted = (origin.0, NO_EPOCH);
                    let reason = RecordRefusal::EpochLimit;
                    gathered.refuse(counted, reason, forgotten, &mut settled.refused);
                    gathered.usages.refuse_epoch(origin.0, origin.1, told);
                } else {
                    if gathered.usages.gap(origin.0) {
                        settled.missing = settled.missing.saturating_add(forgotten);
                        let reason = GapReason::BackendRolledBack;
                        gathered
                            .gaps
                            .push((origin.0, origin.1, before + 1, told, reason));
                    } else {
                        let reason = RecordRefusal::GapLimit;
                        gathered.refuse(origin, reason, forgotten, &mut settled.refused);
                    }
                    gathered.positions.insert(origin, told);
                }
            }
            settled.positions.push(Position {
                spool_epoch: asked.spool_epoch,
                seq: before.max(told),
            });
        }
        all.push(settled);
    }
    if anything {
        gathered.write(connection, tenant, now).await?;
    }
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
        time_source: reader.word("time_source", TimeSource::from_name)?,
        gateway_time: reader.time_optional("gateway_time")?,
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

/// What was refused.
pub(super) async fn refusals(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
    page: Page<RefusalCursor>,
) -> StoreResult<Listing<StoredRefusal, RefusalCursor>> {
    let (epoch, reason) = page.after.map_or_else(
        || (String::new(), ""),
        |after| {
            let epoch = after.spool_epoch.unwrap_or(NO_EPOCH);
            (epoch.to_string(), after.reason.name())
        },
    );
    let rows = sqlx::query(REFUSALS)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(epoch)
        .bind(reason)
        .bind(rows_wanted(page.limit))
        .fetch_all(connection)
        .await?;
    let read = |row: &SqliteRow| {
        let reader = Reader::new("telemetry_refusals", row);
        let spool_epoch = reader.parse("spool_epoch")?;
        Ok(StoredRefusal {
            spool_epoch: (spool_epoch != NO_EPOCH).then_some(spool_epoch),
            reason: reader.word("reason", RecordRefusal::from_name)?,
            records: reader.count("records")?,
            first_at: reader.time_optional("first_at")?,
            last_at: reader.time_optional("last_at")?,
        })
    };
    Fetched::new(rows, page.limit).listing(read, |stored| RefusalCursor {
        spool_epoch: stored.spool_epoch,
        reason: stored.reason,
    })
}
