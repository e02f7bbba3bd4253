//! Agent keys of later generations: who is to get one, and who can.

use serde_json::json;
use viworks_common::id::AgentId;
use viworks_common::key::MASTER_ID_BYTES;
use viworks_common::rotation;
use viworks_runtime::sqlite::params;

use super::agents;
use super::inbox::Post;
use super::sessions::fence;
use super::tx::{Tx, View};
use crate::data::{Actor, GatewayRef, KeyRotation, Letter, StoreResult};

pub(super) const WANT: &str =
    "UPDATE gateways SET key_wanted = :wanted WHERE tenant = :tenant AND agent_id = :agent_id";

pub(super) const TAKES: &str = "\
UPDATE gateways SET takes_keys = :takes, key_master = :master WHERE tenant = :tenant AND agent_id = :agent_id";

/// Has a gateway given the key of the next generation. One that was asked for and that no session was opened with stays
/// the next one: asking again tells its session again, and changes nothing.
pub(super) fn rotate(
    tx: &Tx<'_>,
    agent_id: AgentId,
    actor: &Actor,
) -> StoreResult<Option<KeyRotation>> {
    tx.lock([agent_id])?;
    let Some(gateway) = agents::load(tx, &GatewayRef::Id(agent_id))? else {
        return Ok(None);
    };
    if gateway.revoked_at.is_some() {
        return Ok(Some(KeyRotation::Revoked));
    }
    let keys = gateway.keys();
    let Some(wanted) = rotation::next(keys.generation, keys.wanted) else {
        return Ok(Some(KeyRotation::Exhausted));
    };
    if keys.pending().is_none() {
        tx.execute(WANT, params! { agent_id, wanted })?;
        let detail = json!({ "generation": wanted, "before": keys.generation });
        agents::note(tx, actor, "gateway.rotate_key", agent_id, &detail)?;
    }
    let owner = gateway.session.and_then(|session| session.instance);
    if owner.is_some() {
        tx.post(Post {
            to: owner,
            agent_id,
            letter: Letter::Rekey { generation: wanted },
        });
    }
    Ok(Some(KeyRotation::Wanted(wanted)))
}

/// Notes whether the agent of a session can take a key over it, and of which master key those are that it has.
pub(super) fn note(
    view: &View<'_>,
    agent_id: AgentId,
    epoch: u64,
    takes: bool,
    master: Option<[u8; MASTER_ID_BYTES]>,
) -> StoreResult<()> {
    fence(view, agent_id, epoch)?;
    view.execute(TAKES, params! { agent_id, takes, master })
        .map(drop)
}
