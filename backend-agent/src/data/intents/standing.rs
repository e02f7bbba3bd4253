//! Who of two processes keeps an identity, over all backends: the favour and the take-overs that its row remembers.

use std::time::Duration;

use viworks_common::claims::{Probed, Standing, Verdict};
use viworks_common::id::AgentId;
use viworks_common::rules::Complete;
use viworks_common::time::{Monotonic, Timestamp};
use viworks_runtime::sqlite::params;

use super::row::{Reader, to_json};
use super::tx::Tx;
use super::{forks, opening};
use crate::data::{AdmitRequest, StoreError, StoreResult};

pub(super) const SAVE: &str = "\
UPDATE gateways SET favoured_run = :favoured_run, favoured_until = :favoured_until, take_overs = :take_overs
WHERE tenant = :tenant AND agent_id = :agent_id";

/// The time line as the clock that decisions about an identity are made by.
pub(super) fn clock(at: Timestamp) -> Monotonic {
    let micros = u64::try_from(at.unix_micros()).unwrap_or_default();
    Monotonic::from_duration(Duration::from_micros(micros))
}

fn micros(at: Monotonic) -> i64 {
    i64::try_from(at.as_duration().as_micros()).unwrap_or(i64::MAX)
}

/// What is kept of an identity.
pub(super) fn read(row: &Reader<'_>) -> StoreResult<Standing> {
    let favoured = match row.get("favoured_run")? {
        Some(run) => Some((run, clock(row.get("favoured_until")?))),
        None => None,
    };
    let take_overs = row.json::<Vec<i64>>("take_overs")?.into_iter();
    Ok(Standing {
        favoured,
        take_overs: take_overs
            .map(|at| clock(Timestamp::from_unix_micros(at)))
            .collect(),
    })
}

fn save(tx: &Tx<'_>, agent_id: AgentId, standing: &Standing) -> StoreResult<()> {
    let (favoured_run, until) = standing.favoured.unzip();
    let favoured_until = until.map(micros);
    let take_overs = standing.take_overs.iter().map(|at| micros(*at));
    let take_overs = to_json(&take_overs.collect::<Vec<_>>());
    let params = params! { agent_id, favoured_run, favoured_until, take_overs };
    tx.execute(SAVE, params).map(drop)
}

/// Decides between the confirmed session, of which the one of the epoch `asked` was probed, and the process that asks.
pub(super) fn settle(
    tx: &Tx<'_>,
    request: &AdmitRequest,
    (asked, probed): (u64, Probed),
) -> StoreResult<Verdict> {
    let agent_id = request.agent_id;
    tx.lock([agent_id])?;
    let known = opening::identity(tx, agent_id, None)?;
    let known = known.ok_or_else(|| StoreError::Missing {
        what: format!("gateway {agent_id}"),
    })?;
    let mut standing = known.standing.clone();
    let newcomer = request.agent_run_id;
    let now = clock(tx.now);
    let probed = probed.by_now(asked, known.live.map(|(_, epoch)| epoch));
    let verdict = standing.on_probed(Complete, known.live_run, newcomer, probed, now);
    if standing != known.standing {
        save(tx, agent_id, &standing)?;
    }
    if verdict == Verdict::Fork {
        forks::record_probed(tx, request)?;
    }
    Ok(verdict)
}
