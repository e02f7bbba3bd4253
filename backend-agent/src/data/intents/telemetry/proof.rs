//! The proof that no record of telemetry is there twice, day by day: the key on a server holds the time of a record as
//! well, so it does not catch one that came again with another.

use serde_json::json;
use viworks_common::id::AgentId;
use viworks_common::telemetry::steps::Range;
use viworks_runtime::sqlite::params;

use super::queries::agent;
use super::rollups::{beginning, day_of};
use crate::data::StoreResult;
use crate::data::intents::link::Sql;
use crate::data::intents::row::{Reader, column};
use crate::data::intents::tx::{Tx, View};

/// Other days that one proof looks into for the numbers that it has in common with them; a spool epoch has few records
/// around each midnight that are not in their order, and none otherwise.
const OTHERS_MAX: usize = 100;

/// For how long it is kept which numbers a day holds.
const KEPT_DAYS: i64 = 800;

/// Of each spool epoch the numbers of its records in a day: the first, the last, and one that is there twice.
pub(in crate::data::intents) const NUMBERS: Sql = Sql::of_server(concat!(
    "SELECT epoch, min(seq) AS low, max(seq) AS high, min(seq) FILTER (WHERE times > 1) AS twice FROM \
     (SELECT epoch, seq, count(*) AS times FROM telemetry WHERE agent = ",
    agent!(),
    " AND observed_at >= :from AND observed_at < :until GROUP BY epoch, seq) AS numbers GROUP BY epoch ORDER BY epoch"
));

/// The other days in which a spool epoch has numbers of the same range.
pub(in crate::data::intents) const OTHERS: Sql = Sql::of_server(
    "SELECT day, greatest(low, :low) AS low, least(high, :high) AS high FROM telemetry_day_epochs \
     WHERE epoch = :epoch AND day <> :day AND low <= :high AND high >= :low ORDER BY day LIMIT :most",
);

/// A number that two days have in common.
pub(in crate::data::intents) const COMMON: Sql = Sql::of_server(concat!(
    "SELECT seq FROM (SELECT seq FROM telemetry WHERE agent = ",
    agent!(),
    " AND epoch = :epoch AND seq >= :low AND seq <= :high AND observed_at >= :from AND observed_at < :until \
     UNION ALL SELECT seq FROM telemetry WHERE agent = ",
    agent!(),
    " AND epoch = :epoch AND seq >= :low AND seq <= :high AND observed_at >= :other_from AND observed_at < :other_until) \
     AS numbers GROUP BY seq HAVING count(*) > 1 LIMIT 1"
));

pub(in crate::data::intents) const KEEP: Sql = Sql::of_server(
    "INSERT INTO telemetry_day_epochs (epoch, day, low, high) \
     SELECT epoch, :day, low, high FROM json_to_recordset(:epochs) AS r (epoch int, low bigint, high bigint) \
     ON CONFLICT (epoch, day) DO UPDATE SET low = excluded.low, high = excluded.high",
);

pub(in crate::data::intents) const FORGET: Sql = Sql::of_server(
    "DELETE FROM telemetry_day_epochs AS d USING json_to_recordset(:epochs) AS r (epoch int) \
                    WHERE d.epoch = r.epoch AND d.day < :before",
);

pub(in crate::data::intents) const NOTE: Sql = Sql::of_server(
    "INSERT INTO telemetry_twice (tenant, agent_id, epoch, seq, day, found_at) \
     SELECT :tenant, :agent_id, epoch, seq, :day, :now FROM json_to_recordset(:found) AS r (epoch int, seq bigint) \
     ON CONFLICT (tenant, agent_id, epoch) DO NOTHING",
);

pub(in crate::data::intents) const COUNT: Sql =
    Sql::of_server("SELECT count(*) AS found FROM telemetry_twice WHERE tenant = :tenant");

/// What a day was found to hold.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// Of each spool epoch the first and the last number.
    epochs: Vec<(i64, i64, i64)>,
    /// Spool epochs, each with a number that is there twice.
    found: Vec<(i64, i64)>,
}

/// Looks for records of a gateway's day that are there twice, in this day or in another one that was looked at before.
pub(super) fn prove(view: &View<'_>, agent_id: AgentId, day: i64) -> StoreResult<Proof> {
    let (from, until) = (beginning(day), beginning(day + 1));
    if view.telemetry_tables(from, until)?.is_none() {
        // The key of the embedded database is the record's identity.
        return Ok(Proof::default());
    }
    let mut proof = Proof::default();
    let numbers = view.all(NUMBERS, params! { agent_id, from, until }, |row| {
        let row = Reader::new("telemetry", row);
        let (low, high): (i64, i64) = (row.get("low")?, row.get("high")?);
        let twice: Option<i64> = row.get("twice")?;
        Ok((row.get::<i64>("epoch")?, low, high, twice))
    })?;
    let this = Range { from, until };
    for (epoch, low, high, twice) in numbers {
        let found = match twice {
            Some(seq) => Some(seq),
            None => in_common(view, agent_id, (epoch, low, high), (day, this))?,
        };
        proof.epochs.push((epoch, low, high));
        proof.found.extend(found.map(|seq| (epoch, seq)));
    }
    Ok(proof)
}

fn in_common(
    view: &View<'_>,
    agent_id: AgentId,
    (epoch, low, high): (i64, i64, i64),
    (day, Range { from, until }): (i64, Range),
) -> StoreResult<Option<i64>> {
    let most = OTHERS_MAX;
    let others = view.all(OTHERS, params! { epoch, day, low, high, most }, |row| {
        let row = Reader::new("telemetry_day_epochs", row);
        let (low, high): (i64, i64) = (row.get("low")?, row.get("high")?);
        Ok((row.get::<i64>("day")?, low, high))
    })?;
    for (other, low, high) in others {
        let (other_from, other_until) = (beginning(other), beginning(other + 1));
        let params = params! { agent_id, epoch, low, high, from, until, other_from, other_until };
        let found = view.optional(COMMON, params, column("telemetry", "seq"))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Keeps what a day was found to hold.
pub(super) fn keep(tx: &Tx<'_>, agent_id: AgentId, day: i64, proof: &Proof) -> StoreResult<()> {
    if proof.epochs.is_empty() {
        return Ok(());
    }
    let epochs = proof.epochs.iter();
    let epochs =
        epochs.map(|(epoch, low, high)| json!({ "epoch": epoch, "low": low, "high": high }));
    let epochs = serde_json::Value::from_iter(epochs).to_string();
    let before = day_of(tx.now).saturating_sub(KEPT_DAYS);
    tx.execute(FORGET, params! { epochs, before })?;
    tx.execute(KEEP, params! { epochs, day })?;
    if !proof.found.is_empty() {
        let found = proof.found.iter();
        let found = found.map(|(epoch, seq)| json!({ "epoch": epoch, "seq": seq }));
        let found = serde_json::Value::from_iter(found).to_string();
        tx.execute(NOTE, params! { agent_id, day, found })?;
    }
    Ok(())
}

/// How many spool epochs were found to have a record twice.
pub(super) fn found(tx: &Tx<'_>) -> StoreResult<u64> {
    if tx.telemetry_tables(tx.now, tx.now)?.is_none() {
        return Ok(0);
    }
    tx.one(COUNT, params! {}, column("telemetry_twice", "found"))
}
