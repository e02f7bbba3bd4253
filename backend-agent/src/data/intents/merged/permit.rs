//! The start permit of a command that its gateway has journalled.

use std::collections::BTreeMap;

use viworks_common::id::CommandId;
use viworks_common::ledger::Command;
use viworks_common::ledger::permit::{self, Permit};
use viworks_common::rules::Complete;
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::sqlite::params;

use super::super::arrays::{Arrays, Kind, listed, unnested};
use super::super::link::Sql;
use super::super::recent::{Gateway, Recent};
use super::super::reports;
use super::super::row::Reader;
use super::super::sessions;
use super::super::tx::View;
use crate::data::{AcceptOutcome, Accepted, Holder, StoreResult};

/// What is written of each.
macro_rules! columns {
    ($as:ident) => {
        $as!(
            agent_id text, gateway_version bigint, command_id text, command_version bigint,
            state text, idempotent boolean, attempt bigint, available_at bigint, released_to text, released_at bigint,
            started_at bigint, reason text
        )
    };
}

const COLUMNS: &[(&str, Kind)] = columns!(listed);

/// What somebody else has locked is left to the usual way; see [`super::end::END`].
pub(in crate::data::intents) const PERMIT: Sql = Sql::of_server(concat!(
    "WITH held AS MATERIALIZED (\
        SELECT a.*, h.command_place FROM ",
    columns!(unnested),
    " CROSS JOIN LATERAL (\
            SELECT c.ctid AS command_place FROM gateways AS g CROSS JOIN commands AS c \
            WHERE g.tenant = :tenant AND g.agent_id = a.agent_id \
              AND c.tenant = :tenant AND c.command_id = a.command_id AND c.agent_id || '' = a.agent_id AND ",
    version!("g"),
    " = a.gateway_version AND ",
    version!("c"),
    " = a.command_version \
            LIMIT 1 FOR NO KEY UPDATE OF g SKIP LOCKED) AS h \
        WHERE ",
    leased!(),
    ") \
     UPDATE commands AS c SET state = h.state, idempotent = h.idempotent, attempt = h.attempt, \
            available_at = h.available_at, released_to = h.released_to, released_at = h.released_at, \
            started_at = h.started_at, reason = h.reason \
     FROM held AS h WHERE c.ctid = h.command_place AND ",
    version!("c"),
    " = h.command_version RETURNING h.item, ",
    written_version!(),
    " AS version"
));

/// A command whose permit is given.
struct Permitted {
    command: Command,
    command_version: i64,
    gateway: Gateway,
    permit: Permit,
    now: Timestamp,
}

/// Decides about those of the permits for which what is remembered is true, and a decision writes something that is no
/// end.
pub(super) fn accept_all(
    view: &View<'_>,
    recent: &Recent,
    reports: &[(Timestamp, &Holder, Accepted)],
) -> StoreResult<Vec<Option<AcceptOutcome>>> {
    let mut answers: Vec<Option<AcceptOutcome>> = reports.iter().map(|_report| None).collect();
    let (mut places, mut permitted) = (Vec::new(), Vec::new());
    for (place, &(now, holder, accepted)) in reports.iter().enumerate() {
        if let Some(one) = remembered(view, recent, holder, accepted, now) {
            places.push(place);
            permitted.push(one);
        }
    }
    let mut written = write(view, &permitted)?;
    for (number, (place, permitted)) in places.into_iter().zip(permitted).enumerate() {
        let Permitted {
            command,
            permit,
            now,
            ..
        } = permitted;
        match answers.get_mut(place).zip(written.remove(&number)) {
            Some((answer, version)) => {
                recent.keep_command(command, version, now);
                *answer = Some(reports::told(permit));
            }
            None => recent.forget(view.tenant(), command.agent_id),
        }
    }
    Ok(answers)
}

fn remembered(
    view: &View<'_>,
    recent: &Recent,
    holder: &Holder,
    accepted: Accepted,
    now: Timestamp,
) -> Option<Permitted> {
    let whose: (_, CommandId) = (holder.agent_id, accepted.command_id);
    let (command, command_version, gateway) = recent.take(view.tenant(), whose, now)?;
    if !sessions::may_write(&gateway, holder) {
        return None;
    }
    let said = permit::Accepted {
        idempotent: accepted.idempotent,
        awaiting_permit: accepted.awaiting_permit,
    };
    let run = holder.agent_run_id;
    let (permit, change) = permit::accept(Complete, Some(command), run, said, now);
    let change = change.filter(|change| !change.ends() && change.result.is_none())?;
    Some(Permitted {
        command: change.command,
        command_version,
        gateway,
        permit,
        now,
    })
}

/// The versions of those that were written, by their numbers.
fn write(view: &View<'_>, permitted: &[Permitted]) -> StoreResult<BTreeMap<usize, i64>> {
    let mut rows = Arrays::of(COLUMNS);
    for one in permitted {
        push(&mut rows, one)?;
        if matches!(one.permit, Permit::Go(_)) {
            fault::point("store.release.before_commit");
        }
    }
    if permitted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let instance = view.party().instance();
    let others = params! { instance };
    let params = rows.and(others);
    let written = view.all_and_commit(PERMIT, &params, |row| {
        let row = Reader::new("commands", row);
        let item: usize = row.get("item")?;
        Ok((item.saturating_sub(1), row.get("version")?))
    })?;
    Ok(written.unwrap_or_default().into_iter().collect())
}

fn push(rows: &mut Arrays, permitted: &Permitted) -> StoreResult<()> {
    let Permitted {
        command,
        command_version,
        gateway,
        ..
    } = permitted;
    rows.push(params! {
        agent_id: command.agent_id, gateway_version: gateway.version, command_id: command.command_id, command_version,
        state: command.state.name(), idempotent: command.idempotent, attempt: command.attempt,
        available_at: command.available_at, released_to: command.released_to, released_at: command.released_at,
        started_at: command.started_at, reason: command.reason.as_deref(),
    })
}
