//! The queue in Redis or Valkey: a stream of hints for each gateway, and word by pub/sub to the instance that has its
//! session. Nothing in it is truth: emptied, gone or wrong, it is made up for by a look into the database.

mod error;
mod keeper;
mod message;
mod metrics;
mod relay;
mod replays;
mod scripts;
mod told;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, mpsc, watch};
use tracing::debug;
use viworks_common::id::{CommandId, InstanceId};
use viworks_common::time::Monotonic;
use viworks_runtime::clock::Timeline;
use viworks_runtime::conditions::Conditions;
use viworks_runtime::lifecycle::Lifecycle;

use super::calls::Calls;
use super::{CommandQueue, HintLimits, QueueError, QueueKey, Scope, Told};
use crate::command::bus::RunBus;
use crate::config::queue::QueueAddress;
use crate::data::Hurry;
use keeper::Keeper;
use message::Message;
use relay::Relay;

pub use error::Error;
pub use keeper::POLICY_FIX;
pub use metrics::RedisMetrics;

/// For how long an instance is known to have a session.
const ATTACHED_FOR: Duration = Duration::from_secs(45);

/// Hints that are handed out at once: as many as one script takes as arguments.
const TAKEN_MAX: usize = 256;

/// Changes of runs that were heard and not passed on; beyond, they are lost.
const HEARD_MAX: usize = 1_024;

/// Instances that are to be told of their inbox; what finds no room is found by themselves.
const HURRIED_MAX: usize = 256;

/// What a queue in Redis is made of.
pub struct Parts {
    /// Where it is.
    pub address: QueueAddress,
    /// Which instance asks.
    pub own: InstanceId,
    /// The bounds.
    pub limits: HintLimits,
    /// The time.
    pub clock: Arc<Timeline>,
    /// Where it is said that Redis is away.
    pub conditions: Conditions,
    /// What is counted.
    pub metrics: RedisMetrics,
    /// Where it calls out.
    pub calls: Arc<Calls>,
    /// Which instance of the database this process is, from now on.
    pub known_as: watch::Receiver<Option<InstanceId>>,
    /// Notified when another instance left something in the inbox of this one.
    pub inbox: Arc<Notify>,
    /// Whose changes are told to other instances, and theirs here, while somebody watches.
    pub bus: Arc<RunBus>,
}

/// The queue.
pub struct RedisQueue {
    keeper: Arc<Keeper>,
    limits: HintLimits,
    taken: Mutex<Taken>,
    hurried: mpsc::Sender<InstanceId>,
}

/// What this instance knows of hints that it was handed.
#[derive(Default)]
struct Taken {
    /// By gateway, what was taken and not dealt with.
    open: BTreeMap<QueueKey, Open>,
    /// Gateways of which the next taker gets also what others took and left.
    reclaim: BTreeSet<QueueKey>,
}

struct Open {
    at: Monotonic,
    /// The entries of each hint in the stream; one that was offered twice has two.
    entries: BTreeMap<CommandId, Vec<String>>,
}

impl RedisQueue {
    /// Connects, and keeps connected from there on. That Redis is away is no failure: it is asked again and again.
    ///
    /// # Errors
    /// What somebody has to change here, such as a wrong password.
    pub async fn start(parts: Parts, lifecycle: &Lifecycle) -> Result<Self, Error> {
        let limits = parts.limits;
        let (published, heard) = mpsc::channel(HEARD_MAX);
        let keeper = Keeper::new(keeper::Parts {
            address: parts.address,
            own: parts.own,
            clock: Arc::clone(&parts.clock),
            conditions: parts.conditions,
            metrics: parts.metrics,
            calls: parts.calls,
            published,
            known_as: parts.known_as,
            inbox: parts.inbox,
        });
        let first = match keeper.try_out().await {
            Ok(opened) => {
                keeper.works(&opened);
                Some(opened)
            }
            Err(error) if error.is_lasting() => return Err(error),
            Err(_away) => None,
        };
        let keep = Arc::clone(&keeper).keep(first, lifecycle.clone());
        drop(lifecycle.spawn_critical("redis", keep));
        Relay::start(
            Arc::clone(&keeper),
            parts.bus,
            parts.clock,
            heard,
            lifecycle,
        );
        let (hurried, to_hurry) = mpsc::channel(HURRIED_MAX);
        let hurry = hurry_all(Arc::clone(&keeper), to_hurry, lifecycle.clone());
        drop(lifecycle.spawn_critical("redis: hurry", hurry));
        Ok(Self {
            keeper,
            limits,
            taken: Mutex::default(),
            hurried,
        })
    }

    /// Whether Redis takes us and does what is needed; and what somebody should know of it all the same, for which
    /// [`POLICY_FIX`] helps.
    ///
    /// # Errors
    /// Why not.
    pub async fn try_out(
        address: QueueAddress,
        own: InstanceId,
        clock: Arc<Timeline>,
    ) -> Result<Option<String>, Error> {
        let keeper = Keeper::new(keeper::Parts {
            address,
            own,
            conditions: Conditions::new(Arc::<Timeline>::clone(&clock)),
            clock,
            metrics: RedisMetrics::default(),
            calls: Arc::default(),
            published: mpsc::channel(1).0,
            known_as: watch::channel(None).1,
            inbox: Arc::default(),
        });
        let mut opened = keeper.try_out().await?;
        Ok(opened.evicts().await)
    }

    /// Forgets hints, and answers which entries they had.
    fn dealt_with(&self, key: &QueueKey, commands: &[CommandId]) -> Vec<String> {
        let mut entries = Vec::new();
        let mut taken = self.taken();
        if let Some(open) = taken.open.get_mut(key) {
            for command in commands {
                entries.extend(open.entries.remove(command).unwrap_or_default());
            }
            if open.entries.is_empty() {
                taken.open.remove(key);
            }
        }
        entries
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells instances that there is something in their inbox, each once however often it was said meanwhile.
async fn hurry_all(
    keeper: Arc<Keeper>,
    mut hurried: mpsc::Receiver<InstanceId>,
    lifecycle: Lifecycle,
) {
    loop {
        let mut instances = Vec::new();
        let count = tokio::select! {
            () = lifecycle.stopping() => return,
            count = hurried.recv_many(&mut instances, HURRIED_MAX) => count,
        };
        if count == 0 {
            return;
        }
        for instance in instances.into_iter().collect::<BTreeSet<_>>() {
            let (channel, text) = (scripts::channel(instance), Message::Inbox.to_string());
            if let Err(error) = keeper.publish(&channel, text.as_bytes()).await {
                debug!(%error, %instance, "an instance was not told of its inbox; it looks by itself");
            }
        }
    }
}

impl Hurry for RedisQueue {
    fn hurry(&self, instance: InstanceId) {
        let _full = self.hurried.try_send(instance);
    }
}

impl From<Error> for QueueError {
    fn from(error: Error) -> Self {
        Self::Unavailable {
            reason: error.to_string(),
        }
    }
}

#[async_trait]
impl CommandQueue for RedisQueue {
    async fn offer(&self, key: &QueueKey, commands: &[CommandId]) -> Result<Told, QueueError> {
        let mut offer = scripts::OFFER.key(scripts::stream(key));
        offer
            .key(scripts::route(key))
            .arg(self.limits.per_agent)
            .arg(self.keeper.own().to_string())
            .arg(scripts::CHANNEL)
            .arg(Message::Look(key.agent_id).to_string())
            .arg(scripts::HINTS_LAST_SECONDS);
        for command in commands {
            offer.arg(command.to_string());
        }
        match self.keeper.run::<i64>(&offer).await? {
            0 => Ok(Told::Nobody),
            1 => Ok(Told::Another),
            2 => Ok(Told::Own),
            _refused => {
                self.keeper.metrics().refused.inc();
                Err(QueueError::Full {
                    scope: Scope::Agent,
                    limit: self.limits.per_agent,
                })
            }
        }
    }

    async fn take(
        &self,
        key: &QueueKey,
        limit: usize,
        now: Monotonic,
    ) -> Result<Vec<CommandId>, QueueError> {
        let reclaim = self.taken().reclaim.remove(key);
        let left_for = if reclaim {
            Duration::ZERO
        } else {
            self.limits.lease
        };
        let mut take = scripts::TAKE.key(scripts::stream(key));
        take.arg(self.keeper.own().to_string())
            .arg(limit.min(TAKEN_MAX))
            .arg(u64::try_from(left_for.as_millis()).unwrap_or(u64::MAX));
        // Bytes: nobody knows what others write there.
        let found = match self.keeper.run::<Vec<Vec<u8>>>(&take).await {
            Ok(found) => found,
            Err(error) => {
                if reclaim {
                    self.taken().reclaim.insert(key.clone());
                }
                return Err(error.into());
            }
        };
        let mut commands = Vec::new();
        let mut taken = self.taken();
        for pair in found.chunks_exact(2) {
            let [entry, command] = [&pair[0], &pair[1]].map(|bytes| String::from_utf8_lossy(bytes));
            // What is no id was not written by us. It is kept out of the way like one that was dealt with.
            let command = command
                .parse()
                .unwrap_or_else(|_foreign| CommandId::from_uuid(uuid::Uuid::nil()));
            let open = taken.open.entry(key.clone()).or_insert_with(|| Open {
                at: now,
                entries: BTreeMap::new(),
            });
            let entries = open.entries.entry(command).or_default();
            entries.push(entry.into_owned());
            if !commands.contains(&command) {
                commands.push(command);
            }
        }
        Ok(commands)
    }

    async fn done(&self, key: &QueueKey, commands: &[CommandId]) -> Result<(), QueueError> {
        let entries = self.dealt_with(key, commands);
        if entries.is_empty() {
            return Ok(());
        }
        let mut done = scripts::DONE.key(scripts::stream(key));
        for entry in &entries {
            done.arg(entry);
        }
        // What stays there because this failed is handed out again after its time, and is dealt with by a look.
        let _removed: i64 = self.keeper.run(&done).await?;
        Ok(())
    }

    async fn sweep(&self, now: Monotonic) -> Result<Vec<QueueKey>, QueueError> {
        let mut taken = self.taken();
        let lease = self.limits.lease;
        let overdue: Vec<_> = taken
            .open
            .iter()
            .filter(|(_key, open)| open.at.saturating_add(lease) <= now)
            .map(|(key, _open)| key.clone())
            .collect();
        for key in &overdue {
            taken.open.remove(key);
            taken.reclaim.insert(key.clone());
        }
        Ok(overdue)
    }

    async fn attach(&self, key: &QueueKey, epoch: u64) -> Result<bool, QueueError> {
        let mut attach = scripts::ATTACH.key(scripts::route(key));
        attach
            .arg(self.keeper.own().to_string())
            .arg(epoch)
            .arg(u64::try_from(ATTACHED_FOR.as_millis()).unwrap_or(u64::MAX));
        let attached = self.keeper.run::<i64>(&attach).await? == 1;
        if attached {
            self.taken().reclaim.insert(key.clone());
        }
        Ok(attached)
    }

    fn attached_for(&self) -> Option<Duration> {
        Some(ATTACHED_FOR)
    }
}
