//! Keeps a connection to Redis as long as it answers, asks it within short limits, and says when what it knew may be
//! gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{
    ErrorKind, FromRedisValue, PushInfo, PushKind, RedisError, RedisResult, ScriptInvocation, Value,
};
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};
use viworks_common::breaker::{BreakerLimits, BreakerState, Link};
use viworks_common::id::InstanceId;
use viworks_runtime::clock::Timeline;
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::lifecycle::Lifecycle;

use super::super::calls::Calls;
use super::error::Error;
use super::message::Message;
use super::metrics::RedisMetrics;
use super::scripts;
use super::wire::{ANSWER_TIME, Pushes, Wire};
use crate::config::queue::QueueAddress;
use crate::protocol::{self, Protocol};

/// When Redis is left alone, and how soon it is tried again.
const BREAKER: BreakerLimits = BreakerLimits {
    failures: 3,
    pause: Duration::from_millis(200),
    pause_max: Duration::from_secs(2),
};

/// How often it is seen whether Redis works and still has what was written.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// How long what is written for that stays.
const BEAT_LASTS: Duration = Duration::from_secs(60);

/// The condition of a Redis that is not asked.
const CONDITION: &str = "queue.redis";

const FIX: &str = "nothing is lost, and nothing has to be restarted: commands are in the database and are found there, \
                   of gateways at other instances somewhat later; see that Redis runs, lets this user in (docs/operations/scaling.md \
                   has the rights it needs) and has room below its maxmemory and on its disk";

/// How often it is seen whether it would throw away what it holds.
const POLICY_EVERY: Duration = Duration::from_secs(30);

/// The condition of a Redis that would.
const POLICY: &str = "queue.policy";

/// What to do about it.
pub const POLICY_FIX: &str = "set maxmemory-policy noeviction there: what is thrown away is found in the database, \
                              somewhat later, and again and again";

/// The connection, the breaker in front of it, and what both told.
pub(super) struct Keeper {
    address: QueueAddress,
    own: InstanceId,
    clock: Arc<Timeline>,
    conditions: Conditions,
    metrics: RedisMetrics,
    /// What is told of it is told while it is held, so that the last word is of its last state.
    link: Mutex<Link<Wire>>,
    /// Somebody's failure opened the breaker.
    opened: Notify,
    calls: Arc<Calls>,
    published: mpsc::Sender<Published>,
    /// Which instance of the database this process is: others know it by that.
    known_as: watch::Receiver<Option<InstanceId>>,
    inbox: Arc<Notify>,
}

/// What was published on a channel that is no instance's own.
pub(super) struct Published {
    pub(super) channel: String,
    pub(super) payload: Vec<u8>,
}

/// What a keeper is made of.
pub(super) struct Parts {
    pub(super) address: QueueAddress,
    pub(super) own: InstanceId,
    pub(super) clock: Arc<Timeline>,
    pub(super) conditions: Conditions,
    pub(super) metrics: RedisMetrics,
    pub(super) calls: Arc<Calls>,
    pub(super) published: mpsc::Sender<Published>,
    pub(super) known_as: watch::Receiver<Option<InstanceId>>,
    pub(super) inbox: Arc<Notify>,
}

/// A connection that was just made.
pub(super) struct Opened {
    wire: Wire,
    pushes: Pushes,
    /// By which name in the database this process hears what is called out to it.
    heard_as: Option<InstanceId>,
}

impl Opened {
    /// Why this server would throw away what it holds, where it would and may be asked.
    pub(super) async fn evicts(&mut self) -> Option<String> {
        evicts(&mut self.wire).await.ok().flatten()
    }
}

impl Keeper {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            address: parts.address,
            own: parts.own,
            clock: parts.clock,
            conditions: parts.conditions,
            metrics: parts.metrics,
            link: Mutex::new(Link::new(BREAKER)),
            opened: Notify::new(),
            calls: parts.calls,
            published: parts.published,
            known_as: parts.known_as,
            inbox: parts.inbox,
        })
    }

    /// Which instance it is for.
    pub(super) const fn own(&self) -> InstanceId {
        self.own
    }

    /// What is counted.
    pub(super) const fn metrics(&self) -> &RedisMetrics {
        &self.metrics
    }

    /// Runs a script, or answers at once where Redis is not asked.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, Error> {
        let (mut wire, connection) = self.wire()?;
        let answer = within(script.invoke_async(&mut wire)).await;
        match answer {
            // Somebody else wrote there: the server works.
            Err(error) if error.is_about_what_was_asked() => {
                self.metrics.called("failed");
                Err(error)
            }
            answer => self.judge(connection, answer),
        }
    }

    /// Publishes something; nobody may be there to hear it.
    pub(super) async fn publish(&self, channel: &str, payload: &[u8]) -> Result<(), Error> {
        let (mut wire, connection) = self.wire()?;
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(channel).arg(payload);
        let heard = within(publish.query_async::<i64>(&mut wire)).await;
        self.judge(connection, heard).map(drop)
    }

    /// Hears what is published on a channel, as long as this connection lasts.
    pub(super) async fn subscribe(&self, channel: &str) -> Result<(), Error> {
        let (mut wire, connection) = self.wire()?;
        self.judge(connection, within(wire.subscribe(channel)).await)
    }

    /// Hears it no more.
    pub(super) async fn unsubscribe(&self, channel: &str) -> Result<(), Error> {
        let (mut wire, connection) = self.wire()?;
        self.judge(connection, within(wire.unsubscribe(channel)).await)
    }

    /// The number of the connection that is used, or was last.
    pub(super) fn connection(&self) -> u64 {
        self.link().number()
    }

    /// The connection that is used, and its number.
    fn wire(&self) -> Result<(Wire, u64), Error> {
        let link = self.link();
        let (wire, number) = link.used().ok_or(Error::NotAsked)?;
        Ok((wire.clone(), number))
    }

    /// What an answer, or none, says of the server. That of an earlier connection says nothing of this one.
    fn judge<T>(&self, connection: u64, answer: Result<T, Error>) -> Result<T, Error> {
        self.weigh(connection, answer, Error::is_loss)
    }

    /// The same of a beat, which writes. Much else that is asked writes nothing, and would be answered for ever by a
    /// server that takes no writes.
    fn judge_beat<T>(&self, connection: u64, answer: Result<T, Error>) -> Result<T, Error> {
        let is_of_no_use = |error: &Error| error.is_loss() || error.is_of_the_server();
        self.weigh(connection, answer, is_of_no_use)
    }

    fn weigh<T>(
        &self,
        connection: u64,
        answer: Result<T, Error>,
        is_of_no_use: impl FnOnce(&Error) -> bool,
    ) -> Result<T, Error> {
        match &answer {
            Ok(_) => {
                self.link().answered(connection);
                self.metrics.called("ok");
            }
            Err(error) => {
                self.metrics.called(if matches!(error, Error::Late) {
                    "late"
                } else {
                    "failed"
                });
                let now = self.clock.now();
                let mut link = self.link();
                let opens = if is_of_no_use(error) {
                    link.lost(connection, now)
                } else {
                    link.failed(connection, now)
                };
                if opens {
                    self.left_alone(&link, error);
                }
            }
        }
        answer
    }

    /// Connects once, as a start and `check-config --connect` do, to learn what is wrong with the configuration.
    pub(super) async fn try_out(&self) -> Result<Opened, Error> {
        self.link().begin_trial(self.clock.now());
        let opened = match self.open().await {
            Err(error) if !error.is_lasting() => Err(self.explained(error).await),
            opened => opened,
        };
        match &opened {
            Err(error) if error.is_lasting() => self.link().trial_failed(self.clock.now()),
            Err(error) => self.trial_failed(error),
            Ok(_) => {}
        }
        opened
    }

    /// Why it could not be used: because another kind of server is there, where that is so.
    async fn explained(&self, error: Error) -> Error {
        let expected = if self.address.encrypted {
            Protocol::Tls
        } else {
            Protocol::Redis
        };
        for (host, port) in &self.address.hosts {
            if let Some(found) = protocol::other_than(expected, host, *port).await {
                return Error::of_another(found, &self.address);
            }
        }
        error
    }

    fn trial_failed(&self, error: &Error) {
        let mut link = self.link();
        link.trial_failed(self.clock.now());
        self.left_alone(&link, error);
    }

    /// Connects, hears what is called out to this instance, and writes something: whoever only answers is of no use.
    async fn open(&self) -> Result<Opened, Error> {
        let (mut wire, pushes) = Wire::open(&self.address).await?;
        check_version(&mut wire).await?;
        let channel = scripts::channel(self.own);
        within(wire.subscribe(&channel)).await?;
        within(wire.subscribe(scripts::WATCH_CHANNEL)).await?;
        let heard_as = self.unheard(None);
        if let Some(name) = heard_as {
            within(wire.subscribe(&scripts::channel(name))).await?;
        }
        let _known: i64 = within(self.beat().invoke_async(&mut wire)).await?;
        Ok(Opened {
            wire,
            pushes,
            heard_as,
        })
    }

    /// The name of this process in the database, if it is not heard by that. What it was before is nobody any more.
    fn unheard(&self, heard_as: Option<InstanceId>) -> Option<InstanceId> {
        let known_as = *self.known_as.borrow();
        known_as.filter(|_name| known_as != heard_as)
    }

    /// Hears what is called out to it by that name. What could not be had is had with a later beat.
    async fn hear_as_known(
        &self,
        connection: u64,
        wire: &mut Wire,
        heard_as: &mut Option<InstanceId>,
    ) {
        let Some(name) = self.unheard(*heard_as) else {
            return;
        };
        let heard = within(wire.subscribe(&scripts::channel(name))).await;
        if self.judge(connection, heard).is_ok() {
            *heard_as = Some(name);
        }
    }

    fn beat(&self) -> ScriptInvocation<'static> {
        let mut beat = scripts::BEAT.key(scripts::beat(self.own));
        beat.arg(millis(BEAT_LASTS));
        beat
    }

    /// Keeps a connection until the process stops. `first` was made by the start, and is used already.
    pub(super) async fn keep(self: Arc<Self>, first: Option<Opened>, lifecycle: Lifecycle) {
        let mut first = first;
        loop {
            let connected = match first.take() {
                Some(connected) => connected,
                None => tokio::select! {
                    () = lifecycle.stopping() => return,
                    connected = self.open_again() => connected,
                },
            };
            // What was said while nobody listened is made up for.
            self.look_everywhere();
            tokio::select! {
                () = lifecycle.stopping() => return,
                () = self.listen(connected) => {}
            }
        }
    }

    /// Tries until it is there.
    async fn open_again(&self) -> Opened {
        loop {
            let rest = self.link().rest(self.clock.now());
            tokio::time::sleep(rest).await;
            if !self.link().begin_trial(self.clock.now()) {
                continue;
            }
            self.metrics.state(BreakerState::HalfOpen);
            match self.open().await {
                Ok(opened) => {
                    self.works(&opened);
                    return opened;
                }
                Err(error) => self.trial_failed(&error),
            }
        }
    }

    /// A connection that was made is used from here on.
    pub(super) fn works(&self, opened: &Opened) {
        let mut link = self.link();
        link.opened(opened.wire.clone());
        self.metrics.state(BreakerState::Closed);
        self.conditions.clear(CONDITION);
        drop(link);
        info!(redis = %self.address, "the queue is connected");
    }

    fn left_alone(&self, _held: &MutexGuard<'_, Link<Wire>>, error: &Error) {
        self.metrics.state(BreakerState::Open);
        let cause = format!("Redis at {}: {error}", self.address);
        self.conditions
            .raise(CONDITION, Severity::Warn, &cause, FIX);
        self.opened.notify_one();
    }

    /// Hears what others call, until the connection is of no use any more.
    async fn listen(&self, connected: Opened) {
        let Opened {
            mut wire,
            mut pushes,
            mut heard_as,
        } = connected;
        // Nobody but this task makes another one.
        let connection = self.connection();
        let mut known_as = self.known_as.clone();
        let mut beats = tokio::time::interval(BEAT_EVERY);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut policies, mut may_ask) = (tokio::time::interval(POLICY_EVERY), true);
        policies.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.opened.notified() => {}
                // It goes on as another instance.
                Ok(()) = known_as.changed() => {
                    self.hear_as_known(connection, &mut wire, &mut heard_as).await;
                }
                push = pushes.next() => {
                    let heard = push.is_some_and(|push| self.heard(&push));
                    if !heard {
                        let mut link = self.link();
                        if link.lost(connection, self.clock.now()) {
                            self.left_alone(&link, &Error::Server(closed()));
                        }
                    }
                }
                _ = beats.tick() => {
                    if pushes.were_lost() {
                        self.look_everywhere();
                    }
                    let beat = self.beat();
                    let begun = self.clock.now();
                    let beat = within(beat.invoke_async::<i64>(&mut wire)).await;
                    if beat.is_ok() {
                        let took = self.clock.now().saturating_since(begun);
                        self.metrics.beat_took(took);
                    }
                    // Everything was emptied, or this is another server.
                    if let Ok(0) = self.judge_beat(connection, beat) {
                        warn!(redis = %self.address, "the queue forgot what it had; everything is looked after");
                        self.look_everywhere();
                    }
                    self.hear_as_known(connection, &mut wire, &mut heard_as).await;
                }
                _ = policies.tick(), if may_ask => may_ask = self.tell_policy(&mut wire).await,
            }
            if self.link().state() != BreakerState::Closed {
                return;
            }
        }
    }

    /// Says whether the server would throw away what it holds; `false` when that may not be asked.
    async fn tell_policy(&self, wire: &mut Wire) -> bool {
        match evicts(wire).await {
            Ok(Some(cause)) => {
                let cause = format!("Redis at {}: {cause}", self.address);
                self.conditions
                    .raise(POLICY, Severity::Warn, &cause, POLICY_FIX);
            }
            Ok(None) => self.conditions.clear(POLICY),
            // It is a courtesy: what else such an answer means is found with the next beat.
            Err(error) => {
                let may_ask = !error.is_lasting();
                if !may_ask {
                    self.conditions.clear(POLICY);
                }
                return may_ask;
            }
        }
        true
    }

    /// What a message means; `false` when it says that the connection is gone.
    fn heard(&self, push: &PushInfo) -> bool {
        if push.kind == PushKind::Message
            && let [Value::BulkString(channel), Value::BulkString(payload)] = push.data.as_slice()
        {
            self.heard_on(&String::from_utf8_lossy(channel), payload);
        }
        push.kind != PushKind::Disconnection
    }

    fn heard_on(&self, channel: &str, payload: &[u8]) {
        if !channel.starts_with(scripts::CHANNEL) {
            let published = Published {
                channel: channel.to_owned(),
                payload: payload.to_owned(),
            };
            // It is narration, which may be lost.
            if self.published.try_send(published).is_err() {
                self.metrics.narration_lost.inc();
            }
            return;
        }
        match str::from_utf8(payload).ok().and_then(Message::read) {
            Some(Message::Look(agent_id)) => self.calls.look(agent_id),
            Some(Message::Inbox) => self.inbox.notify_one(),
            None => {}
        }
    }

    fn look_everywhere(&self) {
        self.metrics.sweeps.inc();
        self.calls.look_everywhere();
    }

    fn link(&self) -> MutexGuard<'_, Link<Wire>> {
        // Nothing panics while it is held.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn closed() -> RedisError {
    (ErrorKind::Io, "the connection was closed").into()
}

async fn within<T>(answer: impl Future<Output = RedisResult<T>>) -> Result<T, Error> {
    let answer = tokio::time::timeout(ANSWER_TIME, answer).await;
    Ok(answer.map_err(|_elapsed| Error::Late)??)
}

/// The oldest version that has all of what the scripts use.
const OLDEST: (u32, u32) = (6, 2);

async fn check_version(wire: &mut Wire) -> Result<(), Error> {
    let hello = redis::cmd("HELLO");
    let said: HashMap<String, Value> = within(hello.query_async(wire)).await?;
    let version = match said.get("version") {
        Some(Value::BulkString(version)) => String::from_utf8_lossy(version).into_owned(),
        Some(Value::SimpleString(version)) => version.clone(),
        Some(_) | None => String::new(),
    };
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < OLDEST {
        return Err(Error::TooOld(version));
    }
    Ok(())
}

/// Whether a server, or one of several, throws away what it holds when its memory is full.
async fn evicts(wire: &mut Wire) -> Result<Option<String>, Error> {
    let mut info = redis::cmd("INFO");
    info.arg("memory");
    let texts: Vec<String> = if matches!(wire, Wire::Cluster(_)) {
        let of_nodes = within(info.query_async::<HashMap<String, String>>(wire)).await?;
        of_nodes.into_values().collect()
    } else {
        vec![within(info.query_async::<String>(wire)).await?]
    };
    let policy = texts.iter().find_map(|text| evicting(text));
    Ok(policy.map(|policy| {
        format!("its maxmemory-policy is {policy}, which throws away what it holds when its memory is full")
    }))
}

/// The policy that a server tells, unless it is the one that throws nothing away. Some tell none.
fn evicting(memory: &str) -> Option<&str> {
    let mut lines = memory.lines();
    let policy = lines.find_map(|line| line.strip_prefix("maxmemory_policy:"));
    policy
        .map(str::trim)
        .filter(|policy| *policy != "noeviction")
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_but_one_throws_something_away() {
        let told = |policy: &str| {
            let memory =
                format!("# Memory\r\nmaxmemory:0\r\n{policy}\r\nallocator_frag_ratio:1\r\n");
            evicting(&memory).map(str::to_owned)
        };
        assert_eq!(told("maxmemory_policy:noeviction"), None);
        assert_eq!(told("maxmemory_human:0B"), None);
        for policy in ["allkeys-lru", "volatile-ttl"] {
            let line = format!("maxmemory_policy:{policy}");
            assert_eq!(told(&line).as_deref(), Some(policy));
        }
    }
}
