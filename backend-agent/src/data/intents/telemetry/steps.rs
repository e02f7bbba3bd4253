//! Stored telemetry over time: the numbers of one field, put together step by step.

use viworks_common::id::AgentId;
use viworks_common::limits::PAGE_ROWS_MAX;
use viworks_common::telemetry::steps::{Aggregate, Range, Sums};
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use crate::data::intents::link::Sql;
use crate::data::intents::row::{Reader, column};
use crate::data::intents::telemetry::queries::agent;
use crate::data::intents::tx::View;
use crate::data::{
    Listing, Page, StepCursor, StepQuery, StepValue, Stepped, StoreError, StoreResult,
};

/// The records of a stream in a range.
macro_rules! held_on_sqlite {
    () => {
        " FROM telemetry WHERE tenant = :tenant AND agent_id = :agent_id AND stream = :stream \
         AND observed_at >= :from AND observed_at < :until "
    };
}

macro_rules! held_on_postgres {
    () => {
        concat!(
            " FROM telemetry WHERE agent = ",
            agent!(),
            " AND stream = (SELECT id FROM telemetry_stream_ids WHERE agent = ",
            agent!(),
            " AND stream = :stream) \
             AND observed_at >= :from AND observed_at < :until "
        )
    };
}

/// Of each record the beginning of its step, and the number of the field: null where it is none or not there. What lies
/// before 1970 has its steps as well.
macro_rules! numbers_on_sqlite {
    ($more:literal) => {
        concat!(
            "WITH numbers AS (SELECT observed_at - ((observed_at % :step) + :step) % :step AS step, ", $more,
            "CASE WHEN json_type(fields, '$.\"' || :field || '\"') IN ('integer', 'real') \
             THEN CAST(json_extract(fields, '$.\"' || :field || '\"') AS REAL) END AS number", held_on_sqlite!(), ")"
        )
    };
}

macro_rules! numbers_on_postgres {
    ($more:literal) => {
        concat!(
            "WITH numbers AS (SELECT date_bin(:step::bigint * interval '1 microsecond', observed_at, timestamptz 'epoch') \
             AS step, ", $more,
            "CASE json_typeof(fields -> :field::text) WHEN 'number' THEN (fields ->> :field::text)::float8 END AS number",
            held_on_postgres!(), ")"
        )
    };
}

/// Added up by parts of [`viworks_common::telemetry::steps::SUM_SCALE`], so that no sum is beyond every number. What is
/// too small to be divided adds nothing: a server takes such a quotient for an error.
macro_rules! sums {
    ($numbers:ident, $scale:literal) => {
        concat!(
            $numbers!(""), " SELECT step AS at, count(*) AS records, \
             sum(CASE WHEN abs(number) < 1e-290 THEN 0.0 ELSE number / ", $scale, " END) AS scaled, \
             min(number) AS least, max(number) AS most FROM numbers WHERE number IS NOT NULL GROUP BY step ORDER BY step"
        )
    };
}

macro_rules! last {
    ($numbers:ident, $more:literal) => {
        concat!(
            $numbers!($more),
            ", placed AS (SELECT step, number, count(*) OVER (PARTITION BY step) AS records, \
             row_number() OVER (PARTITION BY step ORDER BY observed_at DESC, spool_epoch DESC, seq DESC) AS place \
             FROM numbers WHERE number IS NOT NULL) \
             SELECT step AS at, records, number FROM placed WHERE place = 1 ORDER BY step"
        )
    };
}

pub(in crate::data::intents) const SUMS: Sql = Sql {
    sqlite: sums!(numbers_on_sqlite, "4294967296.0"),
    postgres: sums!(numbers_on_postgres, "4294967296::float8"),
};

pub(in crate::data::intents) const LAST: Sql = Sql {
    sqlite: last!(numbers_on_sqlite, "observed_at, spool_epoch, seq, "),
    postgres: last!(
        numbers_on_postgres,
        "observed_at, epoch AS spool_epoch, seq, "
    ),
};

pub(in crate::data::intents) const FIRST_TIME: Sql = Sql {
    sqlite: concat!(
        "SELECT observed_at",
        held_on_sqlite!(),
        "ORDER BY observed_at LIMIT 1"
    ),
    postgres: concat!(
        "SELECT observed_at",
        held_on_postgres!(),
        "ORDER BY observed_at LIMIT 1"
    ),
};

pub(in crate::data::intents) const LAST_TIME: Sql = Sql {
    sqlite: concat!(
        "SELECT observed_at",
        held_on_sqlite!(),
        "ORDER BY observed_at DESC LIMIT 1"
    ),
    postgres: concat!(
        "SELECT observed_at",
        held_on_postgres!(),
        "ORDER BY observed_at DESC LIMIT 1"
    ),
};

/// The time of the first record that is one more than a page looks at, by number or by bytes, the way the question
/// goes. It reads no further than there.
macro_rules! reach {
    ($held:ident, $epoch:literal, $size:literal, $order:literal) => {
        concat!(
            "SELECT at FROM (SELECT observed_at AS at, row_number() OVER way AS place, sum(size) OVER way AS bytes FROM \
             (SELECT observed_at, ", $epoch, " AS epoch, seq, ", $size, " AS size", $held!(), ") AS held \
             WINDOW way AS (ORDER BY observed_at ", $order, ", epoch ", $order, ", seq ", $order,
            " ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)) AS placed \
             WHERE place > :rows_max OR bytes > :bytes_max LIMIT 1"
        )
    };
}

pub(in crate::data::intents) const REACH_FORWARD: Sql = Sql {
    sqlite: reach!(
        held_on_sqlite,
        "spool_epoch",
        "length(CAST(fields AS BLOB))",
        "ASC"
    ),
    postgres: reach!(
        held_on_postgres,
        "epoch",
        "octet_length(fields::text)",
        "ASC"
    ),
};

pub(in crate::data::intents) const REACH_BACKWARD: Sql = Sql {
    sqlite: reach!(
        held_on_sqlite,
        "spool_epoch",
        "length(CAST(fields AS BLOB))",
        "DESC"
    ),
    postgres: reach!(
        held_on_postgres,
        "epoch",
        "octet_length(fields::text)",
        "DESC"
    ),
};

/// One page of steps: those that hold a record with a number in the field. It looks at no more records
/// than it may, and holds whole steps only, so that no record is told of on two pages.
pub(in crate::data::intents) fn steps(
    view: &View<'_>,
    agent_id: AgentId,
    query: &StepQuery,
    page: Page<StepCursor>,
) -> StoreResult<Stepped> {
    let asked = Asked {
        view,
        agent_id,
        query,
    };
    let mut range = query.range;
    match page.after {
        Some(StepCursor(start)) if query.newest_first => range.until = range.until.min(start),
        Some(StepCursor(start)) => range.from = range.from.max(query.step.end_of(start)),
        None => {}
    }
    let Some(edge) = asked.edge(range)? else {
        return Ok(Stepped::Page(Listing {
            items: Vec::new(),
            next: None,
        }));
    };
    let Some(part) = asked.part(range, edge, page.limit)? else {
        return Ok(Stepped::TooManyRecords);
    };
    let mut items = asked.values(part)?;
    let (rest, reached) = if query.newest_first {
        items.reverse();
        let until = part.from;
        (Range { until, ..range }, part.from)
    } else {
        let from = part.until;
        let last = Timestamp::from_unix_micros(from.unix_micros().saturating_sub(1));
        (Range { from, ..range }, query.step.start_of(last))
    };
    let more = asked.edge(rest)?.is_some();
    Ok(Stepped::Page(Listing {
        items,
        next: more.then_some(StepCursor(reached)),
    }))
}

/// What is asked, and of which gateway.
struct Asked<'a> {
    view: &'a View<'a>,
    agent_id: AgentId,
    query: &'a StepQuery,
}

impl Asked<'_> {
    /// The time of the record that comes first, the way the question goes.
    fn edge(&self, range: Range) -> StoreResult<Option<Timestamp>> {
        let Range { from, until } = range;
        let (agent_id, stream) = (self.agent_id, &self.query.stream);
        let sql = if self.query.newest_first {
            LAST_TIME
        } else {
            FIRST_TIME
        };
        let params = params! { agent_id, stream, from, until };
        let read = column("telemetry", "observed_at");
        self.view.optional(sql, params, read)
    }

    /// As many of the wanted steps as hold no more than one page looks at; none when a single one holds more.
    fn part(&self, range: Range, edge: Timestamp, limit: usize) -> StoreResult<Option<Range>> {
        let step = self.query.step;
        let steps = limit.clamp(1, PAGE_ROWS_MAX);
        let mut part = if self.query.newest_first {
            step.backward(range, edge, steps)
        } else {
            step.forward(range, edge, steps)
        };
        if let Some(beyond) = self.reach(part)? {
            let start = step.start_of(beyond);
            if self.query.newest_first {
                part.from = step.end_of(start);
            } else {
                part.until = start;
            }
        }
        Ok((part.from < part.until).then_some(part))
    }

    /// When the first record was observed that is beyond what a page looks at.
    fn reach(&self, range: Range) -> StoreResult<Option<Timestamp>> {
        let Range { from, until } = range;
        let query = self.query;
        let (agent_id, stream) = (self.agent_id, &query.stream);
        let (rows_max, bytes_max) = (query.rows_max, query.bytes_max);
        let sql = if query.newest_first {
            REACH_BACKWARD
        } else {
            REACH_FORWARD
        };
        let params = params! { agent_id, stream, from, until, rows_max, bytes_max };
        self.view.optional(sql, params, column("telemetry", "at"))
    }

    fn values(&self, range: Range) -> StoreResult<Vec<StepValue>> {
        let Range { from, until } = range;
        let (agent_id, stream, field) = (self.agent_id, &self.query.stream, &self.query.field);
        let (step, aggregate) = (self.query.step.micros(), self.query.aggregate);
        let params = params! { agent_id, stream, field, step, from, until };
        match aggregate {
            Aggregate::Last => self.view.all(LAST, params, read_last),
            Aggregate::Avg
            | Aggregate::Min
            | Aggregate::Max
            | Aggregate::Sum
            | Aggregate::Count => self.view.all(SUMS, params, |row| read_sums(row, aggregate)),
        }
    }
}

fn read_last(row: &Row<'_>) -> Result<StepValue, StoreError> {
    let row = Reader::new("telemetry", row);
    Ok(StepValue {
        at: row.get("at")?,
        value: Some(row.get("number")?),
        records: row.get("records")?,
    })
}

fn read_sums(row: &Row<'_>, aggregate: Aggregate) -> Result<StepValue, StoreError> {
    let row = Reader::new("telemetry", row);
    let sums = Sums {
        records: row.get("records")?,
        scaled: row.get("scaled")?,
        least: row.get("least")?,
        most: row.get("most")?,
    };
    Ok(StepValue {
        at: row.get("at")?,
        value: sums.tell(aggregate),
        records: sums.records,
    })
}
