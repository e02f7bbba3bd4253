//! How much a gateway may add to what is kept for good, over all its sessions and across restarts.

use viworks_common::id::AgentId;
use viworks_common::limits::COMMANDS_UNREPORTED_MAX;
use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_runtime::sqlite::params;

use super::row::Reader;
use super::tx::Tx;
use crate::data::StoreResult;

/// What is counted, and how much of it is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    kind: &'static str,
    quota: Quota,
    /// How much of the quota one takes.
    each: u32,
}

/// Records of the audit log that a gateway causes by what it reports.
const NOTES: Quota = Quota {
    per_minute: 1,
    burst: 200,
};

/// Records that an auditor looks for: fewer of each kind, and none of another kind uses them up.
const WARNINGS: Quota = Quota {
    per_minute: 1,
    burst: 60,
};

/// How much of a quota one of what is expected takes: an hour's of one in a minute.
const EXPECTED: u32 = 60;

/// Records of what an operator's own action makes a gateway do, such as to knock after it was revoked: ten at once, and
/// one in an hour. That action is to end what the gateway can add for good, and nobody has to learn more often of it.
const KNOCKS: Quota = Quota {
    per_minute: 1,
    burst: 10 * EXPECTED,
};

/// The records of one action that a gateway causes.
pub(super) fn notes(action: &str) -> Budget {
    let each = match action {
        "gateway.replaced_certificate" | "gateway.revoked_certificate" => EXPECTED,
        _ => 1,
    };
    let (kind, quota) = match action {
        "session.open" => ("note:session.open", WARNINGS),
        "identity.fork" => ("note:identity.fork", WARNINGS),
        "command.start_denied" => ("note:command.start_denied", WARNINGS),
        "database.rolled_back" => ("note:database.rolled_back", WARNINGS),
        "telemetry.rolled_back" => ("note:telemetry.rolled_back", WARNINGS),
        "gateway.hello_replayed" => ("note:gateway.hello_replayed", WARNINGS),
        "gateway.frame_foreign" => ("note:gateway.frame_foreign", WARNINGS),
        "gateway.frame_replayed" => ("note:gateway.frame_replayed", WARNINGS),
        "gateway.wrong_agent_key" => ("note:gateway.wrong_agent_key", WARNINGS),
        "gateway.unproved_renewal" => ("note:gateway.unproved_renewal", WARNINGS),
        "certificate.renew_at_door" => ("note:certificate.renew_at_door", WARNINGS),
        "gateway.retired_certificate" => ("note:gateway.retired_certificate", WARNINGS),
        "gateway.unregistered_certificate" => ("note:gateway.unregistered_certificate", WARNINGS),
        "gateway.replaced_certificate" => ("note:gateway.replaced_certificate", KNOCKS),
        "gateway.revoked_certificate" => ("note:gateway.revoked_certificate", KNOCKS),
        "command.orphan" => ("note:command.orphan", NOTES),
        "command.late_outcome" => ("note:command.late_outcome", NOTES),
        // What it reports by itself, in words that it chooses.
        _ => ("note", NOTES),
    };
    Budget { kind, quota, each }
}

/// Results of commands that nobody knows: at once as many as a journal holds, so that none is lost with a database that
/// was restored.
pub(super) const ORPHANS: Budget = Budget {
    kind: "orphan",
    quota: Quota {
        per_minute: 1,
        burst: 256,
    },
    each: 1,
};
const _: () = assert!(ORPHANS.quota.burst as usize == COMMANDS_UNREPORTED_MAX);

pub(super) const LOAD: &str = "\
SELECT full_at, left_out FROM gateway_budgets WHERE tenant = :tenant AND agent_id = :agent_id AND kind = :kind";

pub(super) const SAVE: &str = "\
INSERT INTO gateway_budgets (tenant, agent_id, kind, full_at, left_out)
VALUES (:tenant, :agent_id, :kind, :full_at, :left_out)
ON CONFLICT (tenant, agent_id, kind) DO UPDATE SET full_at = excluded.full_at, left_out = excluded.left_out";

pub(super) const UNTOLD: &str = "\
UPDATE gateway_budgets SET left_out = left_out + :left_out
WHERE tenant = :tenant AND agent_id = :agent_id AND kind = :kind";

/// Takes one from what a gateway has left, and says how many were left out since the last that was kept. `None` when
/// this one is left out, too, and only counted, with those `before` it that were left out on their way here.
pub(super) fn take(
    tx: &Tx<'_>,
    agent_id: AgentId,
    budget: Budget,
    before: u64,
) -> StoreResult<Option<u64>> {
    let kind = budget.kind;
    let known = tx.optional(LOAD, params! { agent_id, kind }, |row| {
        let row = Reader::new("gateway_budgets", row);
        let full_at = on_line(row.get("full_at")?);
        Ok((Bucket::full_at(full_at), row.get::<u64>("left_out")?))
    })?;
    let (mut bucket, left_out) = known.unwrap_or_default();
    let kept = match bucket.take_many(budget.quota, budget.each, on_line(tx.now)) {
        Taken::Allowed { .. } => Some(left_out),
        Taken::Refused { .. } => None,
    };
    let now_left_out = left_out.saturating_add(1).saturating_add(before);
    let left_out = kept.map_or(now_left_out, |_told| 0);
    let full_at = bucket.is_full_at().as_duration().as_micros();
    let full_at = u64::try_from(full_at).unwrap_or(u64::MAX);
    tx.execute(SAVE, params! { agent_id, kind, full_at, left_out })?;
    Ok(kept)
}

/// Counts those again that [`take`] said were left out, where nobody came to be told of them.
pub(super) fn untold(
    tx: &Tx<'_>,
    agent_id: AgentId,
    budget: Budget,
    left_out: u64,
) -> StoreResult<()> {
    let kind = budget.kind;
    tx.execute(UNTOLD, params! { agent_id, kind, left_out })
        .map(drop)
}

/// The time line never steps, so a quota can be measured on it.
fn on_line(at: Timestamp) -> Monotonic {
    let micros = u64::try_from(at.unix_micros()).unwrap_or(0);
    Monotonic::from_duration(std::time::Duration::from_micros(micros))
}
