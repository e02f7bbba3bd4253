//! Stored telemetry over time: the numbers of one field, put together step by step.

use viworks_common::id::AgentId;
use viworks_common::limits::PAGE_ROWS_MAX;
use viworks_common::telemetry::rollup::{HOUR_MICROS, Part, Segment, Steps, segments};
use viworks_common::telemetry::steps::{Aggregate, Range, Sums};
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use crate::data::intents::link::Sql;
use crate::data::intents::row::{Reader, column};
use crate::data::intents::telemetry::queries::agent;
use crate::data::intents::telemetry::rollups;
use crate::data::intents::tx::View;
use crate::data::{Listing, Page, StepCursor, StepQuery, StepValue, Stepped, StoreResult};

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

macro_rules! tally {
    ($held:ident, $size:literal) => {
        concat!(
            "SELECT count(*) AS rows, CAST(coalesce(sum(size), 0) AS bigint) AS bytes FROM (SELECT ", $size, " AS size",
            $held!(), ") AS held"
        )
    };
}

/// How much a range that was found to hold little holds.
pub(in crate::data::intents) const TALLY: Sql = Sql {
    sqlite: tally!(held_on_sqlite, "length(CAST(fields AS BLOB))"),
    postgres: tally!(held_on_postgres, "octet_length(fields::text)"),
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
        // Only what begins and ends with an hour can be put together from hours.
        by_hours: query.step.micros() % HOUR_MICROS == 0,
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
    let steps = page.limit.clamp(1, PAGE_ROWS_MAX);
    let part = if query.newest_first {
        query.step.backward(range, edge, steps)
    } else {
        query.step.forward(range, edge, steps)
    };
    let segments = asked.segments(part)?;
    let Some(part) = asked.part(part, &segments)? else {
        return Ok(Stepped::TooManyRecords);
    };
    let mut items = asked.values(part, &segments)?;
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
    /// Whether roll-ups can tell of the steps.
    by_hours: bool,
}

impl Asked<'_> {
    /// A time before which there is nothing to tell of, the way the question goes; none where there is nothing at all.
    fn edge(&self, range: Range) -> StoreResult<Option<Timestamp>> {
        if range.from >= range.until {
            return Ok(None);
        }
        let live = self.live_edge(range)?;
        if !self.by_hours {
            return Ok(live);
        }
        let (stream, newest_first) = (&self.query.stream, self.query.newest_first);
        let day = rollups::edge(self.view, self.agent_id, stream, range, newest_first)?;
        let rolled = day.map(|day| {
            if newest_first {
                let end = rollups::beginning(day.saturating_add(1)).min(range.until);
                Timestamp::from_unix_micros(end.unix_micros().saturating_sub(1))
            } else {
                rollups::beginning(day).max(range.from)
            }
        });
        Ok(match (live, rolled) {
            (Some(live), Some(rolled)) if newest_first => Some(live.max(rolled)),
            (Some(live), Some(rolled)) => Some(live.min(rolled)),
            (live, rolled) => live.or(rolled),
        })
    }

    /// The time of the record that comes first.
    fn live_edge(&self, range: Range) -> StoreResult<Option<Timestamp>> {
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

    /// What of a range is told of by roll-ups, and what record by record.
    fn segments(&self, range: Range) -> StoreResult<Vec<Segment>> {
        let days = if self.by_hours {
            rollups::rolled(self.view, self.agent_id, range)?
        } else {
            Vec::new()
        };
        Ok(segments(range, &days))
    }

    /// As many steps of a range as hold no more records than one page looks at; none when the first one holds more.
    fn part(&self, mut part: Range, segments: &[Segment]) -> StoreResult<Option<Range>> {
        let (step, newest_first) = (self.query.step, self.query.newest_first);
        let (mut rows, mut bytes) = (self.query.rows_max, self.query.bytes_max);
        let live = segments.iter().filter(|segment| !segment.rolled);
        let mut live: Vec<Range> = live.map(|segment| segment.range).collect();
        if newest_first {
            live.reverse();
        }
        let several = live.len() > 1;
        for range in live {
            // Most of what lies between is empty.
            if several && self.live_edge(range)?.is_none() {
                continue;
            }
            if let Some(beyond) = self.reach(range, rows, bytes)? {
                let start = step.start_of(beyond);
                if newest_first {
                    part.from = step.end_of(start);
                } else {
                    part.until = start;
                }
                break;
            }
            if several {
                let (held, size) = self.tally(range)?;
                (rows, bytes) = (rows.saturating_sub(held), bytes.saturating_sub(size));
            }
        }
        Ok((part.from < part.until).then_some(part))
    }

    fn tally(&self, range: Range) -> StoreResult<(usize, usize)> {
        let Range { from, until } = range;
        let (agent_id, stream) = (self.agent_id, &self.query.stream);
        let params = params! { agent_id, stream, from, until };
        self.view.one(TALLY, params, |row| {
            let row = Reader::new("telemetry", row);
            Ok((row.get("rows")?, row.get("bytes")?))
        })
    }

    /// When the first record was observed that is beyond what a page looks at.
    fn reach(
        &self,
        range: Range,
        rows_max: usize,
        bytes_max: usize,
    ) -> StoreResult<Option<Timestamp>> {
        let Range { from, until } = range;
        let (agent_id, stream) = (self.agent_id, &self.query.stream);
        let sql = if self.query.newest_first {
            REACH_BACKWARD
        } else {
            REACH_FORWARD
        };
        let params = params! { agent_id, stream, from, until, rows_max, bytes_max };
        self.view.optional(sql, params, column("telemetry", "at"))
    }

    /// What is told of the steps of a range, the oldest first.
    fn values(&self, range: Range, segments: &[Segment]) -> StoreResult<Vec<StepValue>> {
        let mut steps = Steps::new(self.query.step);
        for segment in segments {
            let from = segment.range.from.max(range.from);
            let until = segment.range.until.min(range.until);
            if from >= until {
                continue;
            }
            let part = Range { from, until };
            let told = if segment.rolled {
                let of = (&self.query.stream, &self.query.field);
                rollups::hours(self.view, self.agent_id, of, part)?
            } else {
                self.live(part)?
            };
            for (at, part) in told {
                steps.add(at, part);
            }
        }
        let aggregate = self.query.aggregate;
        let value = |(at, part): (Timestamp, Part)| StepValue {
            at,
            value: part.tell(aggregate),
            records: part.sums.records,
        };
        Ok(steps.finish().map(value).collect())
    }

    /// What the records of a range came to, step by step.
    fn live(&self, range: Range) -> StoreResult<Vec<(Timestamp, Part)>> {
        let Range { from, until } = range;
        let (agent_id, stream, field) = (self.agent_id, &self.query.stream, &self.query.field);
        let step = self.query.step.micros();
        let params = params! { agent_id, stream, field, step, from, until };
        match self.query.aggregate {
            Aggregate::Last => self.view.all(LAST, params, read_last),
            Aggregate::Avg
            | Aggregate::Min
            | Aggregate::Max
            | Aggregate::Sum
            | Aggregate::Count => self.view.all(SUMS, params, read_sums),
        }
    }
}

/// What nobody asks for when the last number is asked for.
const NO_SUMS: Sums = Sums {
    records: 0,
    scaled: 0.0,
    least: 0.0,
    most: 0.0,
};

fn read_last(row: &Row<'_>) -> StoreResult<(Timestamp, Part)> {
    let row = Reader::new("telemetry", row);
    let part = Part {
        sums: Sums {
            records: row.get("records")?,
            ..NO_SUMS
        },
        last: row.get("number")?,
    };
    Ok((row.get("at")?, part))
}

fn read_sums(row: &Row<'_>) -> StoreResult<(Timestamp, Part)> {
    let row = Reader::new("telemetry", row);
    let sums = Sums {
        records: row.get("records")?,
        scaled: row.get("scaled")?,
        least: row.get("least")?,
        most: row.get("most")?,
    };
    // Nobody asks for the last number here.
    Ok((row.get("at")?, Part { sums, last: 0.0 }))
}
