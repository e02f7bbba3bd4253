//! The numbers that stand for gateways, streams and spool epochs in the rows of telemetry: given when they are first
//! needed, and taken back when no row has them any more.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::ops::ControlFlow;

use serde_json::json;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::time::Timestamp;
use viworks_runtime::params;
use viworks_runtime::sqlite::Params;

use super::connection::Connection;
use super::days;
use super::error::Error;
use crate::data::intents::link::{Link as _, LinkError, Record};

/// Numbers that a connection remembers; beyond, it begins anew.
const KNOWN_MAX: usize = 200_000;

const AGENT: &str =
    "SELECT id FROM telemetry_agent_ids WHERE tenant = :tenant AND agent_id = :agent_id";
const NEW_AGENT: &str =
    "INSERT INTO telemetry_agent_ids (tenant, agent_id) VALUES (:tenant, :agent_id) RETURNING id";
const STREAM: &str = "SELECT id FROM telemetry_stream_ids WHERE agent = :agent AND stream = :name";
const NEW_STREAM: &str =
    "INSERT INTO telemetry_stream_ids (agent, stream) VALUES (:agent, :name) RETURNING id";
const EPOCH: &str =
    "SELECT id FROM telemetry_epoch_ids WHERE agent = :agent AND spool_epoch = :name";
const NEW_EPOCH: &str = "\
INSERT INTO telemetry_epoch_ids (agent, spool_epoch, last_day) VALUES (:agent, :name, -1000000) RETURNING id";

/// How many of the numbers that a connection remembered are still given.
const GIVEN: &str = "\
SELECT (SELECT count(*) FROM telemetry_epoch_ids WHERE id IN (SELECT value::int FROM json_array_elements_text(:epochs)))
     + (SELECT count(*) FROM telemetry_stream_ids WHERE id IN (SELECT value::int FROM json_array_elements_text(:streams)))
       AS given";

const TOUCH: &str = "\
UPDATE telemetry_epoch_ids AS e SET last_day = r.day
FROM json_to_recordset(:rows) AS r (id int, day int) WHERE e.id = r.id AND e.last_day < r.day";

/// Whether a gateway has numbers that no row has any more.
const UNUSED: &str = "\
SELECT EXISTS (SELECT FROM telemetry_epoch_ids WHERE agent = :agent AND last_day < :day) OR EXISTS (
    SELECT FROM telemetry_stream_ids AS s WHERE agent = :agent AND NOT EXISTS (
        SELECT FROM telemetry_streams AS t
        WHERE t.tenant = :tenant AND t.agent_id = :agent_id AND t.stream = s.stream)) AS unused";
const FORGET_EPOCHS: &str = "\
WITH gone AS (DELETE FROM telemetry_epoch_ids WHERE agent = :agent AND last_day < :day RETURNING id),
days AS (DELETE FROM telemetry_day_epochs WHERE epoch IN (SELECT id FROM gone))
DELETE FROM telemetry_twice WHERE tenant = :tenant AND agent_id = :agent_id AND epoch IN (SELECT id FROM gone)";
const FORGET_STREAMS: &str = "\
DELETE FROM telemetry_stream_ids AS s WHERE agent = :agent AND NOT EXISTS (
    SELECT FROM telemetry_streams AS t
    WHERE t.tenant = :tenant AND t.agent_id = :agent_id AND t.stream = s.stream)";

/// The numbers that a connection has seen.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    agents: Known<(String, String)>,
    streams: Known<(i64, String)>,
    epochs: Known<(i64, String)>,
    /// The last day of which each spool epoch is known to have a record.
    last_days: Known<i64>,
}

/// Numbers of one kind. Where there are as many as may be, all are forgotten before the next one: what is asked for
/// again is in the database.
#[derive(Debug, Default)]
struct Known<K>(RefCell<HashMap<K, i64>>);

impl<K: Hash + Eq> Known<K> {
    fn get(&self, key: &K) -> Option<i64> {
        self.0.borrow().get(key).copied()
    }

    fn insert(&self, key: K, number: i64) {
        let mut known = self.0.borrow_mut();
        if known.len() >= KNOWN_MAX && !known.contains_key(&key) {
            known.clear();
        }
        known.insert(key, number);
    }

    fn forget(&self) {
        self.0.borrow_mut().clear();
    }
}

impl Numbers {
    /// What was given in a transaction that came to nothing is not there.
    pub(super) fn forget(&self) {
        self.agents.forget();
        self.streams.forget();
        self.epochs.forget();
        self.last_days.forget();
    }
}

/// A record with the numbers of what it refers to.
pub(super) struct Numbered<'r> {
    pub(super) agent: i64,
    pub(super) stream: i64,
    pub(super) epoch: i64,
    pub(super) record: &'r Record<'r>,
}

impl Connection {
    /// The numbers of all records. Those of one gateway follow each other, and its telemetry is locked: nobody else
    /// gives it a number, or takes one back, until this transaction ends.
    pub(super) fn number_all<'r>(
        &self,
        tenant: &Tenant,
        records: &'r [Record<'r>],
    ) -> Result<Vec<Numbered<'r>>, LinkError> {
        let mut numbered = self.number(tenant, records)?;
        if !self.are_given(&numbered)? {
            self.known.numbers.forget();
            numbered = self.number(tenant, records)?;
        }
        self.note_days(&numbered)?;
        Ok(numbered)
    }

    fn number<'r>(
        &self,
        tenant: &Tenant,
        records: &'r [Record<'r>],
    ) -> Result<Vec<Numbered<'r>>, LinkError> {
        let mut numbered = Vec::with_capacity(records.len());
        let mut streams: HashMap<(i64, &str), i64> = HashMap::new();
        let mut of: Option<(&Record<'_>, i64, i64)> = None;
        for record in records {
            let same = of.filter(|(last, _agent, _epoch)| {
                (last.agent_id, last.spool_epoch) == (record.agent_id, record.spool_epoch)
            });
            let (_, agent, epoch) = match same {
                Some(same) => same,
                None => *of.insert(self.of_epoch(tenant, record)?),
            };
            let stream = match streams.get(&(agent, record.stream)) {
                Some(stream) => *stream,
                None => {
                    let stream = self.of_stream(agent, record.stream)?;
                    streams.insert((agent, record.stream), stream);
                    stream
                }
            };
            numbered.push(Numbered {
                agent,
                stream,
                epoch,
                record,
            });
        }
        Ok(numbered)
    }

    fn of_epoch<'r>(
        &self,
        tenant: &Tenant,
        record: &'r Record<'r>,
    ) -> Result<(&'r Record<'r>, i64, i64), LinkError> {
        let numbers = &self.known.numbers;
        let key = (tenant.as_str().to_owned(), record.agent_id.to_owned());
        let (tenant, agent_id, name) = (tenant.as_str(), record.agent_id, record.spool_epoch);
        let params = params! { tenant, agent_id };
        let agent = self.numbered(&numbers.agents, key, (AGENT, NEW_AGENT), params)?;
        let key = (agent, name.to_owned());
        let params = params! { agent, name };
        let epoch = self.numbered(&numbers.epochs, key, (EPOCH, NEW_EPOCH), params)?;
        Ok((record, agent, epoch))
    }

    fn of_stream(&self, agent: i64, name: &str) -> Result<i64, LinkError> {
        let key = (agent, name.to_owned());
        let params = params! { agent, name };
        self.numbered(
            &self.known.numbers.streams,
            key,
            (STREAM, NEW_STREAM),
            params,
        )
    }

    /// The number of something, which is given one where it has none.
    fn numbered<K: Hash + Eq>(
        &self,
        known: &Known<K>,
        key: K,
        (find, give): (&'static str, &'static str),
        params: Params<'_>,
    ) -> Result<i64, LinkError> {
        if let Some(id) = known.get(&key) {
            return Ok(id);
        }
        let id = match self.number_of(find, params)? {
            Some(id) => id,
            None => {
                let given = self.number_of(give, params)?;
                given.ok_or_else(|| LinkError::Postgres(Error::Closed))?
            }
        };
        known.insert(key, id);
        Ok(id)
    }

    /// Whether all of these are still given: what a connection remembers may have been taken back.
    fn are_given(&self, numbered: &[Numbered<'_>]) -> Result<bool, LinkError> {
        let epochs: BTreeSet<i64> = numbered.iter().map(|it| it.epoch).collect();
        let streams: BTreeSet<i64> = numbered.iter().map(|it| it.stream).collect();
        let all = epochs.len() + streams.len();
        let (epochs, streams) = (json!(epochs).to_string(), json!(streams).to_string());
        let given = self.first(GIVEN, params! { epochs, streams }, "given")?;
        Ok(given.and_then(|given| usize::try_from(given).ok()) == Some(all))
    }

    /// Notes the last day of each spool epoch, so that it is known when nothing of it is left.
    fn note_days(&self, numbered: &[Numbered<'_>]) -> Result<(), LinkError> {
        let mut later: BTreeMap<i64, i64> = BTreeMap::new();
        let known = &self.known.numbers.last_days;
        for it in numbered {
            let day = days::of(it.record.observed_at);
            if known.get(&it.epoch).is_none_or(|known| known < day) {
                let last = later.entry(it.epoch).or_insert(day);
                *last = day.max(*last);
            }
        }
        if later.is_empty() {
            return Ok(());
        }
        let rows = later
            .iter()
            .map(|(id, day)| json!({ "id": id, "day": day }));
        let rows = serde_json::Value::from_iter(rows).to_string();
        self.execute(TOUCH.into(), params! { rows }, &[])?;
        for (epoch, day) in later {
            known.insert(epoch, day);
        }
        Ok(())
    }

    /// Takes back the numbers of a gateway that no row has any more, where nothing is left of before a time.
    pub(super) fn take_back_numbers(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        emptied_to: Timestamp,
    ) -> Result<(), LinkError> {
        let day = days::of(emptied_to);
        let of = tenant;
        let tenant = tenant.as_str();
        let Some(agent) = self.number_of(AGENT, params! { tenant, agent_id })? else {
            return Ok(());
        };
        let params = params! { tenant, agent_id, agent, day };
        if self.first(UNUSED, params, "unused")? != Some(1) {
            return Ok(());
        }
        // Whoever appends something is done before, or comes after.
        self.lock_names(of, &[format!("telemetry {agent_id}")])?;
        let params = params! { tenant, agent_id, agent, day };
        self.execute(FORGET_EPOCHS.into(), params, &[])?;
        let params = params! { tenant, agent_id, agent };
        self.execute(FORGET_STREAMS.into(), params, &[]).map(drop)
    }

    fn number_of(&self, sql: &'static str, params: Params<'_>) -> Result<Option<i64>, LinkError> {
        self.first(sql, params, "id")
    }

    /// The number in the first row.
    fn first(
        &self,
        sql: &'static str,
        params: Params<'_>,
        column: &str,
    ) -> Result<Option<i64>, LinkError> {
        let mut first = None;
        self.query(sql.into(), params, &[], &mut |row| {
            first = row.get::<i64>(column);
            ControlFlow::Break(())
        })?;
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_remembers_as_many_numbers_as_may_be_begins_anew() {
        let known = Known::default();
        let most = i64::try_from(KNOWN_MAX).unwrap();
        for key in 0..most {
            known.insert(key, -key);
        }
        assert_eq!(known.0.borrow().len(), KNOWN_MAX);
        known.insert(1, 1);
        assert_eq!(known.0.borrow().len(), KNOWN_MAX);
        known.insert(most, -most);
        assert_eq!(known.0.borrow().len(), 1);
        assert_eq!((known.get(&1), known.get(&most)), (None, Some(-most)));
    }
}
