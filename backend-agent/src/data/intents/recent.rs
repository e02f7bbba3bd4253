//! What this backend found and wrote last of gateways and commands, so that the next intent about them need not ask.
//!
//! It is a guess and never more: whoever goes by it writes with the versions of the rows that it names, and nothing
//! where the rows are others by now.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use viworks_common::id::{AgentId, CommandId, Tenant};
use viworks_common::ledger::Command;
use viworks_common::time::Timestamp;

use super::row::Reader;
use super::submit::Found;
use crate::data::StoreResult;

/// Gateways, and commands, that are remembered; one more takes the place of the first.
const MOST: usize = 16_384;

/// How long a guess is worth something.
const FOR: Duration = Duration::from_secs(60);

/// How long it is known how many commands are open in all. So many more do not come in that time that a bound which was
/// far is passed.
const COUNTED_FOR: Duration = Duration::from_secs(1);

/// A gateway as its row was in one version.
#[derive(Debug, Clone)]
pub(super) struct Gateway {
    pub(super) found: Found,
    pub(super) confirmed: u64,
    pub(super) version: i64,
    pub(super) at: Timestamp,
}

impl Gateway {
    pub(super) fn read(row: &Reader<'_>, version: i64, at: Timestamp) -> StoreResult<Self> {
        Ok(Self {
            found: Found::read(row)?,
            confirmed: row.get("confirmed")?,
            version,
            at,
        })
    }
}

/// A command as its row was in one version.
#[derive(Debug, Clone)]
struct Written {
    command: Command,
    version: i64,
    at: Timestamp,
}

/// The memory of one store.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    gateways: BTreeMap<(Tenant, AgentId), Gateway>,
    commands: BTreeMap<CommandId, Written>,
    /// How many commands of each tenant were open, and when.
    open: BTreeMap<Tenant, (u64, Timestamp)>,
}

impl Recent {
    /// A gateway.
    pub(super) fn gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        now: Timestamp,
    ) -> Option<Gateway> {
        let inner = self.inner();
        let gateway = inner.gateways.get(&(tenant.clone(), agent_id))?;
        is_about(now, gateway.at, FOR).then(|| gateway.clone())
    }

    /// How many commands of a tenant are open.
    pub(super) fn open(&self, tenant: &Tenant, now: Timestamp) -> Option<u64> {
        let inner = self.inner();
        let (open, counted) = inner.open.get(tenant)?;
        is_about(now, *counted, COUNTED_FOR).then_some(*open)
    }

    /// A command with its version, and its gateway. It is remembered no longer.
    pub(super) fn take(
        &self,
        tenant: &Tenant,
        (agent_id, command_id): (AgentId, CommandId),
        now: Timestamp,
    ) -> Option<(Command, i64, Gateway)> {
        let mut inner = self.inner();
        let written = inner.commands.remove(&command_id)?;
        let gateway = inner.gateways.get(&(tenant.clone(), agent_id))?;
        let holds = is_about(now, written.at, FOR) && is_about(now, gateway.at, FOR);
        let same = written.command.agent_id == agent_id;
        (holds && same).then(|| (written.command, written.version, gateway.clone()))
    }

    /// Whether a command is remembered.
    pub(super) fn has(&self, command_id: CommandId) -> bool {
        self.inner().commands.contains_key(&command_id)
    }

    /// So many commands of a tenant are open.
    pub(super) fn counted(&self, tenant: &Tenant, open: u64, now: Timestamp) {
        self.inner().open.insert(tenant.clone(), (open, now));
    }

    /// A gateway was written.
    pub(super) fn keep(&self, tenant: &Tenant, agent_id: AgentId, gateway: Gateway) {
        let mut inner = self.inner();
        inner.gateways.insert((tenant.clone(), agent_id), gateway);
        if inner.gateways.len() > MOST {
            inner.gateways.pop_first();
        }
    }

    /// A command was written.
    pub(super) fn keep_command(&self, command: Command, version: i64, at: Timestamp) {
        let mut inner = self.inner();
        let written = Written {
            command,
            version,
            at,
        };
        inner.commands.insert(written.command.command_id, written);
        if inner.commands.len() > MOST {
            // By its id, which is of its time: the oldest.
            inner.commands.pop_first();
        }
    }

    /// A guess was wrong.
    pub(super) fn forget(&self, tenant: &Tenant, agent_id: AgentId) {
        self.inner().gateways.remove(&(tenant.clone(), agent_id));
    }

    /// The database may be another one, in which the same versions are of other rows.
    pub(super) fn forget_all(&self) {
        *self.inner() = Inner::default();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a time is no further away than this. Of those that come at the same moment, the one that is dated later may
/// be written first.
fn is_about(now: Timestamp, then: Timestamp, span: Duration) -> bool {
    then <= now.saturating_add(span) && then.saturating_add(span) >= now
}
