//! Commands on their way out: taken in order for a session, and ended when they cannot start in time.

use std::time::Duration;

use viworks_common::command::{Arguments, CommandState, digest};
use viworks_common::id::{AgentId, CommandName};
use viworks_common::ledger::{end, lease as decide};
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::sqlite::{Row, params};

use super::arrays::{Arrays, Kind, listed, unnested};
use super::link::{Party, Sql};
use super::page::{following, listing, rows_wanted};
use super::row::{Reader, column};
use super::sessions::fence;
use super::settle;
use super::tx::{Tx, View};
use crate::data::{
    Actor, Holder, LeaseLimits, Leased, LeasedCommand, Listing, Page, Settled, StoreResult,
};

/// The first of what waits for a gateway, with what is sent of their runs.
pub(super) const QUEUED: &str = concat!(
    "SELECT ",
    settle::columns!(),
    ", c.order_no, r.name, r.arguments, r.traceparent, r.timeout_ms \
     FROM commands AS c INDEXED BY queued_commands_by_gateway \
     CROSS JOIN runs AS r WHERE r.tenant = c.tenant AND r.run_id = c.run_id \
     AND c.tenant = :tenant AND c.agent_id = :agent_id AND c.state = 'queued' AND c.order_no <= :order \
     AND c.available_at <= :now AND c.deadline > :now \
     ORDER BY c.order_no LIMIT :limit"
);

pub(super) const QUEUED_AGENTS: &str = "\
SELECT DISTINCT agent_id FROM commands
WHERE tenant = :tenant AND agent_id > :after AND state = 'queued' AND available_at <= :now AND deadline > :now
ORDER BY agent_id LIMIT :limit";

/// Those of some gateways that have a queued command; SQLite is asked for each. Each is looked up by its key, as in
/// [`super::merged::identities::FOUND`].
pub(super) const QUEUED_AMONG: Sql = Sql {
    sqlite: "SELECT c.agent_id FROM commands AS c INDEXED BY queued_commands_by_gateway \
             WHERE c.tenant = :tenant AND c.agent_id = :agent_id AND c.state = 'queued' LIMIT 1",
    postgres: concat!(
        "SELECT a.agent_id FROM ",
        unnested!(agent_id text,),
        " WHERE (SELECT min(o.order_no) FROM commands AS o \
                 WHERE o.tenant = :tenant AND o.agent_id = a.agent_id AND o.state = 'queued') IS NOT NULL"
    ),
};

const AMONG: &[(&str, Kind)] = listed!(agent_id text);

/// Takes the next commands of a gateway in order.
pub(super) fn lease(tx: &Tx<'_>, holder: &Holder, limits: LeaseLimits) -> StoreResult<Leased> {
    let agent_id = holder.agent_id;
    let low_water = fence(tx, agent_id, holder.epoch)?;
    let order = decide::window(low_water);
    let limit = limits.commands;
    let waiting = tx.all(QUEUED, params! { agent_id, order, limit }, |row| {
        Ok((settle::read(row)?, offer(row)?))
    })?;
    let mut leased = Leased::default();
    for (standing, mut offer) in waiting {
        let (run, attempts_max) = (holder.agent_run_id, limits.attempts_max);
        let Some(change) = decide::take(standing, run, attempts_max, tx.now) else {
            continue;
        };
        let written = settle::write(tx, [&change], &Actor::system())?;
        leased.dead_letters_dropped += written.dead_letters_dropped;
        if change.ends() {
            let dead = settle::settled(&change.command, written.run_finished);
            leased.dead.push(dead);
            continue;
        }
        offer.attempt = change.command.attempt;
        offer.permitted = change.command.state == CommandState::Released;
        leased.commands.push(offer);
    }
    if leased.commands.iter().any(|command| command.permitted) {
        fault::point("store.release.before_commit");
    }
    Ok(leased)
}

fn offer(row: &Row<'_>) -> StoreResult<LeasedCommand> {
    let row = Reader::new("commands", row);
    let name: CommandName = row.get("name")?;
    let arguments: Arguments = row.json("arguments")?;
    Ok(LeasedCommand {
        command_id: row.get("command_id")?,
        run_id: row.get("run_id")?,
        order: row.get("order_no")?,
        digest: digest(&name, &arguments),
        name,
        arguments,
        attempt: row.get("attempt")?,
        traceparent: row.get("traceparent")?,
        deadline: row.get("deadline")?,
        permitted: false,
        timeout_ms: row.get("timeout_ms")?,
    })
}

/// Gateways with commands to lease.
pub(super) fn queued_agents(
    view: &View<'_>,
    page: Page<AgentId>,
    now: Timestamp,
) -> StoreResult<Listing<AgentId, AgentId>> {
    let (after, limit) = (following(page.after), rows_wanted(page.limit));
    let read = column("commands", "agent_id");
    let rows = view.page(QUEUED_AGENTS, params! { after, now, limit }, read)?;
    Ok(listing(rows, page.limit, |agent_id| *agent_id))
}

/// Those of some gateways with commands to lease, or that cannot be leased yet or any more.
pub(super) fn queued_among(view: &View<'_>, agents: &[AgentId]) -> StoreResult<Vec<AgentId>> {
    let read = |row: &Row<'_>| Reader::new("commands", row).get("agent_id");
    let mut queued = Vec::new();
    if view.party() == Party::Alone {
        for agent_id in agents {
            queued.extend(view.optional(QUEUED_AMONG, params! { agent_id }, read)?);
        }
        return Ok(queued);
    }
    let mut rows = Arrays::of(AMONG);
    for agent_id in agents {
        rows.push(params! { agent_id })?;
    }
    view.all(QUEUED_AMONG, &rows.and(&[]), read)
}

/// Ends what could not start in time.
pub(super) fn expire(tx: &Tx<'_>, limit: usize) -> StoreResult<Vec<Settled>> {
    let (sql, past) = (settle::LOAD_UNSTARTED_PAST_DEADLINE, tx.now);
    settle::each(tx, sql, params! { past, limit }, |standing| {
        end::expire(standing, tx.now)
    })
}

/// Ends what was permitted and never heard of again.
pub(super) fn end_overdue(tx: &Tx<'_>, wait: Duration, limit: usize) -> StoreResult<Vec<Settled>> {
    let (sql, past) = (settle::LOAD_OVERDUE, tx.now.saturating_sub(wait));
    settle::each(tx, sql, params! { past, limit }, |standing| {
        end::give_up(standing, wait, tx.now)
    })
}
