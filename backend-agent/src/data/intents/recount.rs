//! The counters of open commands, held against what they count: they are changed in the transaction of each command,
//! and nothing else would find out that one is off.

use viworks_runtime::sqlite::params;

use super::link::Sql;
use super::row::column;
use super::tx::{BEGIN_COUNT, COUNT_OPEN, Tx};
use crate::data::{Recounted, StoreResult};

/// By how many the tenant's counter is short. One statement sees one state, in which whatever is under way has changed
/// both or neither.
pub(super) const SHORT: &str = "\
SELECT (SELECT count(*) FROM commands INDEXED BY open_commands_by_deadline WHERE tenant = :tenant AND finished_at IS NULL)
       - (SELECT CAST(coalesce(sum(commands), 0) AS bigint) FROM open_commands WHERE tenant = :tenant) AS short";

/// What each gateway has open, and what it is counted as.
macro_rules! open {
    ($counted:literal) => {
        concat!(
            "FROM (SELECT o.agent_id, coalesce(k.open, 0)",
            $counted,
            " FROM gateways AS o LEFT JOIN (\
                SELECT c.agent_id, count(*) AS open FROM commands AS c INDEXED BY open_commands_by_deadline \
                WHERE c.tenant = :tenant AND c.finished_at IS NULL GROUP BY c.agent_id) AS k ON k.agent_id = o.agent_id \
             WHERE o.tenant = :tenant"
        )
    };
}

/// The same of gateways. On a server the difference is added to what each row has become by then.
pub(super) const GATEWAYS: Sql = Sql {
    sqlite: concat!(
        "UPDATE gateways AS g SET open_commands = c.open ",
        open!(" AS open"),
        ") AS c WHERE g.tenant = :tenant AND g.agent_id = c.agent_id AND g.open_commands <> c.open"
    ),
    postgres: concat!(
        "UPDATE gateways AS g SET open_commands = greatest(0, g.open_commands + c.short) ",
        open!(" - o.open_commands AS short"),
        " OFFSET 0) AS c WHERE g.tenant = :tenant AND g.agent_id = c.agent_id AND c.short <> 0"
    ),
};

/// Sets them right.
pub(super) fn recount(tx: &Tx<'_>) -> StoreResult<Recounted> {
    // Two that find the same difference would both add it.
    tx.lock_name("recount of open commands")?;
    let gateways = tx.execute(GATEWAYS, &[])?;
    let short: i64 = tx.one(SHORT, &[], column("open_commands", "short"))?;
    if short != 0 && tx.execute(COUNT_OPEN, params! { change: short })? == 0 {
        tx.execute(BEGIN_COUNT, params! { change: short })?;
    }
    Ok(Recounted {
        short,
        gateways: u64::try_from(gateways).unwrap_or(u64::MAX),
    })
}
