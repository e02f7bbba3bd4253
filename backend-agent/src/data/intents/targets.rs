//! The gateways that a run is for, and what each says about its command.

use std::collections::BTreeSet;
use std::sync::Arc;

use viworks_common::id::CommandName;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::link::Sql;
use super::row::Reader;
use super::tx::View;
use crate::data::{GatewayRef, Report, StoreResult, Target, TargetSelection};

/// The columns that [`read`] reads.
macro_rules! rows {
    ($rest:literal) => {
        Sql {
            sqlite: rows!("json_each(c.entries) AS entry", $rest),
            postgres: rows!("json_array_elements(c.entries) AS entry (value)", $rest),
        }
    };
    ($entries:literal, $rest:literal) => {
        concat!(
            "SELECT g.agent_id, g.name, g.revoked_at, c.reported_at, (SELECT entry.value FROM ",
            $entries,
            " WHERE entry.value ->> 'name' = :command LIMIT 1) AS entry \
             FROM gateways AS g LEFT JOIN catalogues AS c ON c.tenant = g.tenant AND c.agent_id = g.agent_id \
             WHERE g.tenant = :tenant ",
            $rest
        )
    };
}

pub(super) const ALL: Sql = rows!("AND g.revoked_at IS NULL ORDER BY g.agent_id");

pub(super) const BY_ID: Sql = rows!("AND g.agent_id = :agent_id");

pub(super) const BY_NAME: Sql = rows!("AND g.name = :name");

/// The gateways of a selection.
pub(super) fn resolve(
    view: &View<'_>,
    selection: &TargetSelection,
    command: &CommandName,
) -> StoreResult<Vec<Target>> {
    match selection {
        TargetSelection::All => view.all(ALL, params! { command }, read),
        TargetSelection::AllExcept(left_out) => {
            let all = view.all(ALL, params! { command }, read)?;
            Ok(without(all, left_out))
        }
        TargetSelection::Gateways(named) => in_the_order_named(view, named, command),
    }
}

/// What is left of `targets`; a gateway that is to be left out and does not exist is unknown, for it is a misspelling.
fn without(targets: Vec<Target>, left_out: &[GatewayRef]) -> Vec<Target> {
    let mut unmet: BTreeSet<&GatewayRef> = left_out.iter().collect();
    let wanted: BTreeSet<&GatewayRef> = unmet.clone();
    let mut kept = Vec::with_capacity(targets.len());
    for target in targets {
        let named = match &target {
            Target::Known { agent_id, name, .. } => {
                let by = [GatewayRef::Id(*agent_id), GatewayRef::Name(name.clone())];
                let named = by.iter().any(|reference| wanted.contains(reference));
                for reference in &by {
                    unmet.remove(reference);
                }
                named
            }
            Target::Unknown(_) => false,
        };
        if !named {
            kept.push(target);
        }
    }
    kept.extend(unmet.into_iter().cloned().map(Target::Unknown));
    kept
}

/// Each gateway once, however often and by whatever it is named.
fn in_the_order_named(
    view: &View<'_>,
    named: &[GatewayRef],
    command: &CommandName,
) -> StoreResult<Vec<Target>> {
    let mut seen = BTreeSet::new();
    let mut targets = Vec::with_capacity(named.len());
    for reference in named {
        let found = match reference {
            GatewayRef::Id(agent_id) => {
                view.optional(BY_ID, params! { command, agent_id }, read)?
            }
            GatewayRef::Name(name) => view.optional(BY_NAME, params! { command, name }, read)?,
        };
        match found {
            Some(Target::Known { agent_id, .. }) if !seen.insert(agent_id) => {}
            Some(target) => targets.push(target),
            None => targets.push(Target::Unknown(reference.clone())),
        }
    }
    Ok(targets)
}

fn read(row: &Row<'_>) -> StoreResult<Target> {
    let row = Reader::new("gateways", row);
    let report = match row.get::<Option<Timestamp>>("reported_at")? {
        Some(reported_at) => Some(Report {
            reported_at,
            entry: row.json_optional("entry")?.map(Arc::new),
        }),
        None => None,
    };
    Ok(Target::Known {
        agent_id: row.get("agent_id")?,
        name: row.get("name")?,
        revoked: row.get::<Option<Timestamp>>("revoked_at")?.is_some(),
        report,
    })
}
