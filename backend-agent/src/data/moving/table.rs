//! A table as it is moved: which columns it has, and the statements about it in both databases.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};
use viworks_common::id::Tenant;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Bind, Column, Row, Value, params};

use crate::data::intents::link::{Link, LinkError, Record};

/// The table that the server has in another form.
const RECORDS: &str = "telemetry";

/// Rows of one statement.
const BATCH: usize = 50;

/// Rows of one transaction, and bytes after which it takes no more.
const PAGE: usize = 2_000;
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// How many rows are asked for where nothing is known of their size, and how many times more than the last time.
pub(super) const FIRST_PAGE: usize = 32;
const GROWTH: usize = 4;

/// Rows of a table, one after the other by its key.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) rows: Vec<Vec<Held>>,
    bytes: usize,
}

impl Rows {
    /// How many to ask for after these, of which `asked` were asked for: as many as make a page if they are alike. A
    /// server hands over all that was asked for, whatever becomes of it.
    pub(super) fn ask_next(&self, asked: usize) -> usize {
        let fit = PAGE_BYTES.saturating_mul(self.rows.len().max(1)) / self.bytes.max(1);
        fit.clamp(1, asked.max(1).saturating_mul(GROWTH)).min(PAGE)
    }
}

/// What a column holds, apart from its row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held(pub(super) Value<'static>);

impl Column for Held {
    fn read(value: Value<'_>) -> Option<Self> {
        Some(Self(match value {
            Value::Null => Value::Null,
            Value::Integer(number) => Value::Integer(number),
            Value::Real(number) => Value::Real(number),
            Value::Text(text) => Value::Text(text.into_owned().into()),
            Value::Blob(bytes) => Value::Blob(bytes.into_owned().into()),
        }))
    }
}

impl Bind for Held {
    fn bind(&self) -> Value<'_> {
        match &self.0 {
            Value::Null => Value::Null,
            Value::Integer(number) => Value::Integer(*number),
            Value::Real(number) => Value::Real(*number),
            Value::Text(text) => Value::Text(text.as_ref().into()),
            Value::Blob(bytes) => Value::Blob(bytes.as_ref().into()),
        }
    }
}

impl Held {
    pub(super) fn digest(&self, into: &mut Sha256) {
        let (kind, bytes): (u8, &[u8]) = match &self.0 {
            Value::Null => (0, &[]),
            Value::Integer(number) => {
                into.update([1]);
                into.update(number.to_be_bytes());
                return;
            }
            Value::Real(number) => {
                into.update([4]);
                into.update(number.to_be_bytes());
                return;
            }
            Value::Text(text) => (2, text.as_bytes()),
            Value::Blob(bytes) => (3, bytes),
        };
        into.update([kind]);
        into.update(bytes.len().to_be_bytes());
        into.update(bytes);
    }

    fn text(&self) -> Option<&str> {
        match &self.0 {
            Value::Text(text) => Some(text.as_ref()),
            Value::Null | Value::Integer(_) | Value::Real(_) | Value::Blob(_) => None,
        }
    }

    const fn number(&self) -> Option<i64> {
        match &self.0 {
            Value::Integer(number) => Some(*number),
            Value::Null | Value::Real(_) | Value::Text(_) | Value::Blob(_) => None,
        }
    }

    /// As it is kept between two runs of a move.
    pub(super) fn note(&self) -> serde_json::Value {
        match &self.0 {
            Value::Null => serde_json::Value::Null,
            Value::Integer(number) => (*number).into(),
            Value::Real(number) => (*number).into(),
            Value::Text(text) => text.as_ref().into(),
            Value::Blob(bytes) => serde_json::json!({ "hex": hex::encode(bytes) }),
        }
    }

    pub(super) fn of_note(note: &serde_json::Value) -> Option<Self> {
        let value = if let Some(number) = note.as_i64() {
            Value::Integer(number)
        } else if let Some(text) = note.as_str() {
            Value::Text(text.to_owned().into())
        } else {
            Value::Blob(hex::decode(note.get("hex")?.as_str()?).ok()?.into())
        };
        Some(Self(value))
    }
}

/// Names of parameters, as many as one statement has.
static NAMES: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let names = (0..BATCH * 40).map(|number| &*format!(":p{number}").leak());
    names.collect()
});

/// A table and the statements about it, which are made once for each and stay.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: Vec<String>,
    /// Which of the columns are its key, in the key's order.
    key: Vec<usize>,
    count: &'static str,
    first: &'static str,
    next: &'static str,
    insert_one: &'static str,
    insert_batch: &'static str,
}

impl Table {
    /// By what the embedded database says of it.
    pub(super) fn look(link: &dyn Link, name: &'static str) -> Result<Self, LinkError> {
        const COLUMNS: &str = "SELECT name, pk FROM pragma_table_info(:name) ORDER BY cid";
        let (mut columns, mut key) = (Vec::new(), BTreeMap::new());
        link.query(COLUMNS.into(), params! { name }, &[], &mut |row| {
            let column: String = row.get("name").unwrap_or_default();
            let place: i64 = row.get("pk").unwrap_or_default();
            if place > 0 {
                key.insert(place, columns.len());
            }
            columns.push(column);
            ControlFlow::Continue(())
        })?;
        let key: Vec<usize> = key.into_values().collect();
        let list = columns.join(", ");
        let (first, next) = pages(name, &columns, &key);
        let insert = |rows: usize| {
            let width = columns.len();
            let marks = |row: usize| NAMES[row * width..(row + 1) * width].join(", ");
            let rows = (0..rows).map(|row| format!("({})", marks(row)));
            let rows: Vec<String> = rows.collect();
            let rows = rows.join(", ");
            &*format!("INSERT INTO {name} ({list}) OVERRIDING SYSTEM VALUE VALUES {rows}").leak()
        };
        Ok(Self {
            name,
            count: format!("SELECT count(*) AS rows FROM {name}").leak(),
            first,
            next,
            insert_one: insert(1),
            insert_batch: insert(BATCH),
            columns,
            key,
        })
    }

    /// The same on the server, where that has it in another form, or its key in another order.
    pub(super) fn on_server(&self) -> Option<Self> {
        if self.name == RECORDS {
            return Some(self.records_on_server());
        }
        // There the tenant comes last.
        let (tenant, rest) = self.key.split_first()?;
        if self.columns[*tenant] != "tenant" || rest.is_empty() {
            return None;
        }
        let key = [rest, &[*tenant]].concat();
        let (first, next) = pages(self.name, &self.columns, &key);
        Some(Self {
            name: self.name,
            columns: self.columns.clone(),
            key,
            count: self.count,
            first,
            next,
            insert_one: self.insert_one,
            insert_batch: self.insert_batch,
        })
    }

    /// What is compared comes first, then the key there.
    fn records_on_server(&self) -> Self {
        const KEY: [&str; 5] = ["t.agent", "t.stream", "t.observed_at", "t.epoch", "t.seq"];
        const ROWS: &str = "\
            JOIN telemetry_agent_ids AS a ON a.id = t.agent JOIN telemetry_stream_ids AS s ON s.id = t.stream \
            JOIN telemetry_epoch_ids AS e ON e.id = t.epoch ORDER BY t.agent, t.stream, t.observed_at, t.epoch, t.seq";
        let words = self.columns.iter().map(|column| match column.as_str() {
            "tenant" | "agent_id" => format!("a.{column}"),
            "stream" => "s.stream".to_owned(),
            "spool_epoch" => "e.spool_epoch".to_owned(),
            "time_source" => "coalesce(t.time_source, 'gateway') AS time_source".to_owned(),
            other => format!("t.{other}"),
        });
        let words: Vec<String> = words.collect();
        let numbers = (0..).zip(KEY).map(|(at, key)| format!("{key} AS key_{at}"));
        let numbers: Vec<String> = numbers.collect();
        let list = [words, numbers].concat().join(", ");
        let width = self.columns.len();
        let added = (0..KEY.len()).map(|at| format!("key_{at}"));
        let page = |range: &str| -> &'static str {
            format!(
                "SELECT {list} FROM (SELECT * FROM telemetry {range} \
                 ORDER BY agent, stream, observed_at, epoch, seq LIMIT :limit) AS t {ROWS}"
            )
            .leak()
        };
        let after = NAMES[..KEY.len()].join(", ");
        Self {
            name: self.name,
            columns: self.columns.iter().cloned().chain(added).collect(),
            key: (width..width + KEY.len()).collect(),
            count: self.count,
            first: page(""),
            next: page(&format!(
                "WHERE (agent, stream, observed_at, epoch, seq) > ({after})"
            )),
            insert_one: self.insert_one,
            insert_batch: self.insert_batch,
        }
    }

    pub(super) fn count(&self, link: &dyn Link) -> Result<u64, LinkError> {
        let mut rows = 0;
        link.query(self.count.into(), &[], &[], &mut |row| {
            rows = row.get("rows").unwrap_or_default();
            ControlFlow::Break(())
        })?;
        Ok(rows)
    }

    /// Some of the rows that follow a key, `limit` at most, and none only where there are no more.
    pub(super) fn page(
        &self,
        link: &dyn Link,
        after: Option<&[Held]>,
        limit: usize,
    ) -> Result<Rows, LinkError> {
        let mut page = Rows::default();
        let mut take = |row: &Row<'_>| {
            let held = self.columns.iter().map(|column| row.get::<Held>(column));
            let held = held.map(|held| held.unwrap_or(Held(Value::Null)));
            page.rows.push(held.collect());
            page.bytes += row.bytes();
            if page.bytes >= PAGE_BYTES {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let mut params = bound(after.unwrap_or_default());
        params.push((":limit", &limit));
        let statement = after.map_or(self.first, |_key| self.next);
        link.query(statement.into(), &params, &[], &mut take)?;
        Ok(page)
    }

    pub(super) fn key_of(&self, row: &[Held]) -> Vec<Held> {
        self.key.iter().map(|at| row[*at].clone()).collect()
    }

    pub(super) fn insert(&self, link: &dyn Link, rows: &[Vec<Held>]) -> Result<(), LinkError> {
        if self.name == RECORDS {
            return self.append(link, rows);
        }
        let (batches, rest) = rows.as_chunks::<BATCH>();
        for batch in batches {
            let values: Vec<&Held> = batch.iter().flatten().collect();
            link.execute(self.insert_batch.into(), &bound_each(&values), &[])?;
        }
        for row in rest {
            link.execute(self.insert_one.into(), &bound(row), &[])?;
        }
        Ok(())
    }
}

impl Table {
    /// Records of telemetry, as they are appended anywhere.
    fn append(&self, link: &dyn Link, rows: &[Vec<Held>]) -> Result<(), LinkError> {
        let place = |name: &str| self.columns.iter().position(|column| column == name);
        let (agent_id, spool_epoch, seq) = (place("agent_id"), place("spool_epoch"), place("seq"));
        let (stream, observed_at, stored_at) =
            (place("stream"), place("observed_at"), place("stored_at"));
        let (fields, source, gateway) =
            (place("fields"), place("time_source"), place("gateway_time"));
        let tenant_of = |row: &Vec<Held>| text(row, place("tenant")).to_owned();
        for rows in rows.chunk_by(|one, other| tenant_of(one) == tenant_of(other)) {
            let Some(tenant) = rows
                .first()
                .and_then(|row| tenant_of(row).parse::<Tenant>().ok())
            else {
                continue;
            };
            let records = rows.iter().map(|row| Record {
                agent_id: text(row, agent_id),
                spool_epoch: text(row, spool_epoch),
                seq: u64::try_from(number(row, seq).unwrap_or_default()).unwrap_or_default(),
                stream: text(row, stream),
                observed_at: Timestamp::from_unix_micros(
                    number(row, observed_at).unwrap_or_default(),
                ),
                stored_at: Timestamp::from_unix_micros(number(row, stored_at).unwrap_or_default()),
                fields: text(row, fields),
                time_source: text(row, source),
                gateway_time: number(row, gateway).map(Timestamp::from_unix_micros),
            });
            link.append_telemetry(&tenant, &records.collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// The statements for the first rows in the order of a key, and for those that follow one.
fn pages(name: &str, columns: &[String], key: &[usize]) -> (&'static str, &'static str) {
    let list = columns.join(", ");
    let keys: Vec<&str> = key.iter().map(|at| columns[*at].as_str()).collect();
    let keys = keys.join(", ");
    let after = NAMES[..key.len()].join(", ");
    let page = |range: &str| -> &'static str {
        format!("SELECT {list} FROM {name}{range} ORDER BY {keys} LIMIT :limit").leak()
    };
    (page(""), page(&format!(" WHERE ({keys}) > ({after})")))
}

/// The text in a column; none where there is none, which is noticed when both databases are compared.
fn text(row: &[Held], at: Option<usize>) -> &str {
    at.and_then(|at| row.get(at)?.text()).unwrap_or_default()
}

fn number(row: &[Held], at: Option<usize>) -> Option<i64> {
    at.and_then(|at| row.get(at)?.number())
}

fn bound(values: &[Held]) -> Vec<(&'static str, &dyn Bind)> {
    let values = values.iter().map(|value| value as &dyn Bind);
    NAMES.iter().copied().zip(values).collect()
}

fn bound_each<'v>(values: &[&'v Held]) -> Vec<(&'static str, &'v dyn Bind)> {
    let values = values.iter().map(|value| *value as &dyn Bind);
    NAMES.iter().copied().zip(values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(rows: usize, bytes: usize) -> Rows {
        let rows = vec![Vec::new(); rows];
        Rows { rows, bytes }
    }

    #[test]
    fn as_many_rows_are_asked_for_as_make_a_page() {
        assert_eq!(page(32, 32 * 100).ask_next(32), 128);
        assert_eq!(page(1_000, 0).ask_next(1_000), PAGE);
        assert_eq!(page(32, PAGE_BYTES).ask_next(32), 32);
        assert_eq!(page(4, 2 * PAGE_BYTES).ask_next(32), 2);
        assert_eq!(page(1, 9 * PAGE_BYTES).ask_next(2), 1);
        assert_eq!(page(0, 0).ask_next(1), GROWTH);
    }
}
