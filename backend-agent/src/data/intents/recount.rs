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

/// The same of gateways. On a server the difference is added to what each row has become by then.
pub(super) const GATEWAYS: Sql = Sql {
    sqlite: "\
UPDATE gateways AS g SET open_commands = c.open
FROM (SELECT o.agent_id, (SELECT count(*) FROM commands AS k INDEXED BY open_commands_by_gateway
                          WHERE k.tenant = :tenant AND k.agent_id = o.agent_id AND k.finished_at IS NULL) AS open
      FROM gateways AS o WHERE o.tenant = :tenant) AS c
WHERE g.tenant = :tenant AND g.agent_id = c.agent_id AND g.open_commands <> c.open",
    postgres: "\
UPDATE gateways AS g SET open_commands = greatest(0, g.open_commands + c.short)
FROM (SELECT o.agent_id, (SELECT count(*) FROM commands AS k
                          WHERE k.tenant = :tenant AND k.agent_id = o.agent_id AND k.finished_at IS NULL)
             - o.open_commands AS short
      FROM gateways AS o WHERE o.tenant = :tenant OFFSET 0) AS c
WHERE g.tenant = :tenant AND g.agent_id = c.agent_id AND c.short <> 0",
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
