//! What an operator decides about two holders of one identity.

use serde_json::json;
use viworks_common::admission::give;
use viworks_common::code::CloseCode;
use viworks_common::fork::{Apart, Holder, Kept};
use viworks_common::id::{AgentId, AgentRunId, InstallId};
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::inbox::Post;
use super::opening::{self, Identity};
use super::row::Reader;
use super::tx::Tx;
use super::{agents, earlier, forks, sessions};
use crate::data::{
    Actor, Fork, ForkDecision, ForkEnd, ForkParty, ForkResolution, ForkResolved, Letter,
    StoreResult,
};

/// The holder of a session.
pub(super) const HOLDER: &str = "\
SELECT epoch, peer_address, fingerprint, install_id, boot_id, agent_run_id, confirmed_at
FROM sessions WHERE tenant = :tenant AND agent_id = :agent_id AND epoch = :epoch";

/// Leaves everybody behind who held the identity, and lets the one that is kept pass once. See
/// [`viworks_common::fork::Kept`].
pub(super) const GIVE: &str = "\
UPDATE gateways SET issued = :epoch, confirmed = :epoch, last_agent_run_id = NULL, favoured_run = NULL,
       favoured_until = NULL, take_overs = '[]', kept_epoch = :epoch, kept_install_id = :install_id,
       kept_boot_id = :boot_id, kept_agent_run_id = :agent_run_id, kept_by = :told_by
WHERE tenant = :tenant AND agent_id = :agent_id AND revoked_at IS NULL";

/// The key of a holder, by the certificate that it showed: the present one of that, or an earlier one.
macro_rules! key_shown {
    () => {
        concat!(
            "tenant = :tenant AND agent_id = :agent_id AND (fingerprint = :fingerprint OR spki = ",
            earlier::key_of_earlier!(":agent_id", ":fingerprint"),
            ")"
        )
    };
}

/// Whether the certificate of a holder lets nobody in any more, whoever keeps the identity.
pub(super) const IS_OUT: &str = concat!(
    "SELECT replaced_at IS NOT NULL OR revoked_at IS NOT NULL AS is_out FROM certificates WHERE ",
    key_shown!()
);

/// The certificate of the one that is kept may have retired when the other renewed it.
pub(super) const UNRETIRE: &str = concat!(
    "UPDATE certificates SET retired_at = NULL WHERE ",
    key_shown!(),
    " AND retired_at IS NOT NULL AND revoked_at IS NULL AND replaced_at IS NULL"
);

/// One that held the identity and never was refused is remembered as one that is: it will be.
pub(super) const LEAVE_OUT: &str = "\
INSERT INTO forks (tenant, agent_id, refused_agent_run_id, at, times, refused_epoch, refused_peer_address,
    refused_fingerprint, refused_install_id, refused_boot_id, accepted_epoch, accepted_peer_address,
    accepted_fingerprint, accepted_install_id, accepted_boot_id, accepted_agent_run_id, first_at, accepted_since)
VALUES (:tenant, :agent_id, :agent_run_id, :now, 0, :epoch, :peer_address, :fingerprint, :install_id, :boot_id,
    :kept_epoch, :kept_peer_address, :kept_fingerprint, :kept_install_id, :kept_boot_id, :kept_agent_run_id, :since,
    :kept_since)
ON CONFLICT (tenant, agent_id, refused_agent_run_id) DO NOTHING";

/// Every fork of the identity is decided: it has one holder.
pub(super) const DECIDE: &str = "\
UPDATE forks SET resolved_at = :now, told_by = :told_by,
       resolution = CASE WHEN refused_install_id = :install_id AND (CAST(:told_by AS text) = 'install'
           OR refused_boot_id = :boot_id AND (CAST(:told_by AS text) = 'boot' OR refused_agent_run_id = :agent_run_id))
           THEN 'kept' ELSE CAST(:others AS text) END
WHERE tenant = :tenant AND agent_id = :agent_id";

/// A holder, and since when it was one.
type Since = (ForkParty, Option<Timestamp>);

/// The one that keeps the identity, and the other of the fork that names it.
struct Pair {
    kept: Since,
    /// When the kept one spoke last, where it was refused.
    seen: Option<Timestamp>,
    other: Option<Since>,
    /// Whether it is the one that was accepted.
    was_accepted: bool,
    /// Whether that is what was decided before.
    stands: bool,
}

/// Decides between the holders of an identity. `None` when there is no such gateway. What stands already stays as it
/// is.
pub(super) fn resolve(
    tx: &Tx<'_>,
    agent_id: AgentId,
    decision: ForkDecision,
    actor: &Actor,
) -> StoreResult<Option<ForkResolution>> {
    tx.lock_telemetry([agent_id])?;
    tx.lock([agent_id])?;
    let Some(known) = opening::identity(tx, agent_id, None)? else {
        return Ok(None);
    };
    if known.row.revoked {
        return Ok(Some(ForkResolution::Revoked));
    }
    let recorded = forks::list(tx, agent_id)?;
    let pair = match pair(&recorded, decision) {
        Ok(pair) => pair,
        Err(refused) => return Ok(Some(refused)),
    };
    let undecided = recorded.iter().any(|fork| fork.resolved.is_none());
    if pair.stands && !undecided {
        let fenced = known.kept.map(|kept| kept.epoch.saturating_sub(1));
        let awaited = known
            .kept
            .filter(|kept| kept.is_awaited(known.row.confirmed));
        let told_by = awaited.map(|kept| kept.apart);
        return Ok(Some(resolved(true, pair, told_by, false, fenced)));
    }
    settle(tx, &known, &recorded, pair, (agent_id, decision), actor).map(Some)
}

fn resolved(
    already: bool,
    pair: Pair,
    told_by: Option<Apart>,
    session_ended: bool,
    fenced: Option<u64>,
) -> ForkResolution {
    ForkResolution::Resolved(Box::new(ForkResolved {
        already,
        kept: Some(pair.kept.0),
        seen: pair.seen,
        told_by,
        out: pair.other.map(|(party, _since)| party),
        session_ended,
        fenced,
    }))
}

/// The two that a decision is about: of the latest fork that was not decided, or of the latest.
fn pair(recorded: &[Fork], decision: ForkDecision) -> Result<Pair, ForkResolution> {
    let undecided = recorded.iter().filter(|fork| fork.resolved.is_none());
    let decided = recorded.iter().filter(|fork| fork.resolved.is_some());
    let mut in_turn = undecided.chain(decided);
    let ended = |fork: &Fork, ends: &[ForkEnd]| {
        let end = fork.resolved.map(|(_at, end)| end);
        end.is_some_and(|end| ends.contains(&end))
    };
    let accepted_of = |fork: &Fork| {
        let party = fork.accepted.clone();
        party.map(|party| (party, fork.accepted_since))
    };
    let refused_of = |fork: &Fork| (fork.refused.clone(), fork.first_at);
    let out = [ForkEnd::Out, ForkEnd::Replaced];
    let ForkDecision::Keep(asked) = decision else {
        let fork = in_turn.find(|fork| fork.accepted.is_some());
        let fork = fork.ok_or(ForkResolution::NoFork)?;
        return Ok(Pair {
            kept: accepted_of(fork).ok_or(ForkResolution::NoFork)?,
            seen: None,
            other: Some(refused_of(fork)),
            was_accepted: true,
            stands: ended(fork, &[ForkEnd::Replaced]),
        });
    };
    if recorded.is_empty() {
        return Err(ForkResolution::NoFork);
    }
    for fork in in_turn {
        let is_refused = is(&fork.refused, asked);
        let accepted = accepted_of(fork).filter(|(party, _since)| is(party, asked));
        match (is_refused, accepted) {
            (true, Some(_both)) => return Err(ForkResolution::BothHolders),
            (true, None) => {
                return Ok(Pair {
                    kept: refused_of(fork),
                    seen: Some(fork.at),
                    other: accepted_of(fork),
                    was_accepted: false,
                    stands: ended(fork, &[ForkEnd::Kept]),
                });
            }
            (false, Some(kept)) => {
                return Ok(Pair {
                    kept,
                    seen: None,
                    other: Some(refused_of(fork)),
                    was_accepted: true,
                    stands: ended(fork, &out),
                });
            }
            (false, None) => {}
        }
    }
    Err(ForkResolution::NoSuchHolder)
}

/// Whether a holder is the one of a process, or of an installation.
fn is(party: &ForkParty, asked: AgentRunId) -> bool {
    party.agent_run_id == asked || party.install_id == InstallId::from_uuid(*asked.as_uuid())
}

/// The holder of a fork whom an earlier decision left behind: it knocks as long as nobody removes it, and is as much
/// another one as those that nobody has decided about.
fn put_out(fork: &Fork) -> Option<&ForkParty> {
    match fork.resolved? {
        (_at, ForkEnd::Kept) => fork.accepted.as_ref(),
        (_at, ForkEnd::Out | ForkEnd::Replaced) => Some(&fork.refused),
    }
}

/// Writes a decision that does not stand yet.
fn settle(
    tx: &Tx<'_>,
    known: &Identity,
    recorded: &[Fork],
    pair: Pair,
    (agent_id, decision): (AgentId, ForkDecision),
    actor: &Actor,
) -> StoreResult<ForkResolution> {
    let live = match known.live {
        Some((_session_id, epoch)) => holder_of(tx, agent_id, epoch)?,
        None => None,
    };
    let undecided = recorded.iter().filter(|fork| fork.resolved.is_none());
    let parties = undecided.flat_map(|fork| fork.accepted.iter().chain([&fork.refused]));
    let further = parties.chain(live.iter().map(|(party, _since)| party));
    let further = further.chain(recorded.iter().filter_map(put_out));
    let further = further.map(ForkParty::holder);
    let (holder, other) = (pair.kept.0.holder(), &pair.other);
    let other = other.as_ref().map(|(party, _since)| party.holder());
    let kept = Kept {
        epoch: give(&known.row).confirmed,
        holder,
        apart: Apart::between(&holder, other.as_ref(), further),
    };
    let has_it = live.as_ref().is_some_and(|(party, _since)| {
        let live = party.holder();
        // The one that was accepted may have started anew in its place since the other was refused.
        let anew = pair.was_accepted
            && (live.install_id, live.boot_id) == (holder.install_id, holder.boot_id)
            && other.is_none_or(|other| other.agent_run_id != live.agent_run_id);
        kept.is(&live) || anew
    });
    let others = match decision {
        ForkDecision::Keep(_) => ForkEnd::Out,
        ForkDecision::Replace => ForkEnd::Replaced,
    };
    // Whoever has it goes on undisturbed. To one that is away it is given also where it was the last that was accepted:
    // otherwise a copy of what it held last could come before it.
    let gives = !has_it && decision != ForkDecision::Replace;
    let session_ended = gives && known.live.is_some();
    if gives && is_out(tx, agent_id, &pair.kept.0)? {
        // Both would be out: the one that has it, and the one that cannot take it.
        return Ok(ForkResolution::HolderIsOut);
    }
    if gives {
        give_to(tx, known, &kept, &pair.kept.0, agent_id)?;
        // Who had it a moment ago, or last.
        let had = live.or_else(|| pair.other.clone());
        let had = had.filter(|(party, _since)| !kept.is(&party.holder()));
        if let Some(had) = had {
            leave_out(tx, agent_id, &had, &pair.kept)?;
        }
    }
    let awaited = gives.then_some(kept.apart);
    let (told_by, others) = (kept.apart.name(), others.name());
    let Holder {
        install_id,
        boot_id,
        agent_run_id,
    } = holder;
    let params = params! { agent_id, told_by, others, install_id, boot_id, agent_run_id };
    tx.execute(DECIDE, params)?;
    let word = match decision {
        ForkDecision::Keep(_) => "keep",
        ForkDecision::Replace => "replace",
    };
    let out = other.map(|other| {
        json!({ "install_id": other.install_id, "boot_id": other.boot_id, "agent_run_id": other.agent_run_id })
    });
    let detail = json!({
        "decision": word, "told_by": told_by, "out": out, "session_ended": session_ended,
        "kept": { "install_id": install_id, "boot_id": boot_id, "agent_run_id": agent_run_id },
    });
    agents::note(tx, actor, "identity.resolve", agent_id, &detail)?;
    let fenced = gives.then(|| kept.epoch.saturating_sub(1));
    Ok(resolved(false, pair, awaited, session_ended, fenced))
}

/// Gives the identity to a holder that has no session: whoever has one loses it, on whichever backend that is.
fn give_to(
    tx: &Tx<'_>,
    known: &Identity,
    kept: &Kept,
    party: &ForkParty,
    agent_id: AgentId,
) -> StoreResult<()> {
    if let Some((_session_id, epoch)) = known.live {
        if known.live_instance.is_some() {
            tx.post(Post {
                to: known.live_instance,
                agent_id,
                letter: Letter::Superseded { epoch },
            });
        }
        sessions::end(tx, agent_id, epoch, CloseCode::IdentityFork)?;
    }
    let Holder {
        install_id,
        boot_id,
        agent_run_id,
    } = kept.holder;
    let (epoch, told_by) = (kept.epoch, kept.apart.name());
    let params = params! { agent_id, epoch, install_id, boot_id, agent_run_id, told_by };
    tx.execute(GIVE, params)?;
    let fingerprint = party.fingerprint;
    tx.execute(UNRETIRE, params! { agent_id, fingerprint })
        .map(drop)
}

fn leave_out(
    tx: &Tx<'_>,
    agent_id: AgentId,
    (out, since): &Since,
    (kept, kept_since): &Since,
) -> StoreResult<()> {
    let params = params! {
        agent_id, agent_run_id: out.agent_run_id, epoch: out.epoch, peer_address: out.peer_address,
        fingerprint: out.fingerprint, install_id: out.install_id, boot_id: out.boot_id, since,
        kept_epoch: kept.epoch, kept_peer_address: kept.peer_address, kept_fingerprint: kept.fingerprint,
        kept_install_id: kept.install_id, kept_boot_id: kept.boot_id, kept_agent_run_id: kept.agent_run_id,
        kept_since,
    };
    tx.execute(LEAVE_OUT, params)?;
    let kept = forks::KEPT_MAX;
    tx.execute(forks::KEEP_NEWEST, params! { agent_id, kept })
        .map(drop)
}

fn is_out(tx: &Tx<'_>, agent_id: AgentId, party: &ForkParty) -> StoreResult<bool> {
    let fingerprint = party.fingerprint;
    let found = tx.optional(IS_OUT, params! { agent_id, fingerprint }, |row| {
        Reader::new("certificates", row).get("is_out")
    })?;
    Ok(found.unwrap_or(false))
}

fn holder_of(tx: &Tx<'_>, agent_id: AgentId, epoch: u64) -> StoreResult<Option<Since>> {
    tx.optional(HOLDER, params! { agent_id, epoch }, read)
}

fn read(row: &Row<'_>) -> StoreResult<Since> {
    let row = Reader::new("sessions", row);
    let party = ForkParty {
        epoch: row.get("epoch")?,
        peer_address: row.get("peer_address")?,
        fingerprint: row.get("fingerprint")?,
        install_id: row.get("install_id")?,
        boot_id: row.get("boot_id")?,
        agent_run_id: row.get("agent_run_id")?,
        certificate: None,
        reissued: None,
    };
    Ok((party, row.get("confirmed_at")?))
}
