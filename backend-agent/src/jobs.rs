//! Reconcilers: each looks at the store, brings what is behind to where it should be, and can be run at any time.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};
use viworks_common::code::CloseCode;
use viworks_common::command::CommandState;
use viworks_common::human;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::timeline::{APART_MAX, RENEWED_EVERY};
use viworks_runtime::clock::Timeline;
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::lifecycle::{Lifecycle, notify};
use viworks_runtime::probe::Latch;

use crate::agent::given_up::GivenUp;
use crate::agent::manager::Manager;
use crate::agent::strays::Strays;
use crate::command::absent::Removal;
use crate::command::bus::RunBus;
use crate::command::dispatch::Dispatcher;
use crate::command::{dead_letters, told};
use crate::config::JobsConfig;
use crate::data::line::{self, Kept};
use crate::data::{
    EndedInstances, GatewayFilter, Page, Purged, Settled, Store, StoreError, StoreHealth,
    StoreResult, in_full, without_words,
};
use crate::inbound::heartbeats::Heartbeats;
use crate::metrics::BackendMetrics;

mod absent;
mod expiry;
mod retention;
mod room;

/// Rows that one step of a job handles, so that the writer is never held for long.
const STEP: usize = 500;

/// The latest sessions of a gateway among which one is looked for that it has here and not in the database.
const SESSIONS_LOOKED: usize = 10;

/// How often heartbeats are stored.
const HEARTBEATS: Duration = Duration::from_millis(500);

/// How often the store must prove that it works.
const HEALTH: Duration = Duration::from_secs(2);

/// How often the tables of the days to come are looked after. Where they are known to be there, nothing is asked.
const DAYS: Duration = Duration::from_secs(60);

/// The condition of a store that does not commit.
const STORE: &str = "store.commits";

/// What to do about it where it is embedded, and where it is on a server.
const FILE_FIX: &str = "nothing is accepted or acknowledged until it commits again, so nothing is lost by waiting, and \
                        nothing has to be restarted; if its folder was moved, put it back before this backend is \
                        restarted, which would begin with an empty one, and if the disk is full, make room";
const SERVER_FIX: &str = "nothing is accepted or acknowledged until it commits again, so nothing is lost by waiting, and \
                          nothing has to be restarted; see that the server runs, takes connections and has room, or, \
                          if it refuses us, put right what the cause names: the user, the database, or the password in \
                          the file and on the server";

/// The condition of a store whose schema lacks something, or its user the rights.
const SCHEMA: &str = "store.schema";

const SCHEMA_FIX: &str = "nothing has to be restarted: what is put back is found within seconds";

/// The condition of locks that somebody else holds in the store.
const LOCK: &str = "store.lock";

const LOCK_FIX: &str = "let it come to its end, or end it: SELECT pg_terminate_backend(PROCESS); what was refused \
                        meanwhile is not lost: gateways keep what they could not deliver, and callers were told";

/// The condition of a store that works slowly.
const SLOW: &str = "store.slow";

/// How long it may take to show that it works.
const SLOW_AFTER: Duration = Duration::from_secs(3);

const SLOW_FIX: &str = "see what its server or disk is busy with, and how far away it is";

/// The condition of backends of the database that are gone.
const GIVEN_UP: &str = "instances.given_up";

/// What to do about it.
const GIVEN_UP_FIX: &str = "nothing is lost: gateways connect to the backends that are there; see in the log of \
                            that backend and of its machine why it stopped, stood still or was cut off from the \
                            database; this is told for ten minutes, also when it is back";

/// The condition of telemetry that is stored twice.
const TWICE: &str = "telemetry.twice";

/// What to do about it.
const TWICE_FIX: &str = "no record should ever be: please report it as a fault of ViWorkS, with the rows of the table \
                         telemetry_twice, which name gateway, spool epoch, number and day; delete them when that is done";

/// The condition of a wall clock that was set.
const CLOCK: &str = "clock";

/// What to do about it.
const CLOCK_FIX: &str = "nothing starts early or late because of it; until the line has come to the wall clock, 43 s in a \
                         day or all at once when the machine starts again, times of runs are shown as much off, and the \
                         audit log is in wall time; if the clock is wrong now, correct it";

/// The same of clocks beside a server's.
const SHARED_CLOCK_FIX: &str = "nothing starts early or late because of it: backends go by one time line, which leans towards \
                                the database server's clock, 43 s in a day at most; until it is there, times of runs are \
                                shown as much off, and the audit log is in the server's time; if a clock is wrong now, \
                                correct it";

/// What the jobs work with.
pub struct Jobs {
    /// The truth.
    pub store: Arc<dyn Store>,
    /// Whose rows.
    pub tenant: Tenant,
    /// Who is connected.
    pub manager: Arc<Manager>,
    /// Whose hints are swept.
    pub dispatcher: Arc<Dispatcher>,
    /// Heartbeats to be stored.
    pub heartbeats: Heartbeats,
    /// Who listens to commands.
    pub bus: Arc<RunBus>,
    /// The time.
    pub clock: Arc<Timeline>,
    /// What is counted.
    pub metrics: BackendMetrics,
    /// Falls while the store cannot write.
    pub store_latch: Latch,
    /// What is wrong with this process.
    pub conditions: Conditions,
    /// How often.
    pub config: JobsConfig,
    /// Sessions that only the database has.
    pub strays: Mutex<Strays>,
    /// Backends whose sessions this one ended lately.
    pub given_up: Mutex<GivenUp>,
    /// Removes ephemeral gateways that stay away.
    pub removal: Removal,
    /// How often in a row ephemeral gateways were looked for, and the database answered.
    pub looks: AtomicU32,
}

#[derive(Debug, Clone, Copy)]
enum Job {
    Offer,
    Expire,
    Overdue,
    Revoked,
    Absent,
    Dead,
    Strays,
    Heartbeats,
    Health,
    Clock,
    Certificates,
    Days,
    Purge,
    RollUp,
}

impl Job {
    const ALL: [Self; 14] = [
        Self::Offer,
        Self::Expire,
        Self::Overdue,
        Self::Revoked,
        Self::Absent,
        Self::Dead,
        Self::Strays,
        Self::Heartbeats,
        Self::Health,
        Self::Clock,
        Self::Certificates,
        Self::Days,
        Self::Purge,
        Self::RollUp,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Offer => "job: offer",
            Self::Expire => "job: expire",
            Self::Overdue => "job: overdue",
            Self::Revoked => "job: revoked",
            Self::Absent => "job: absent",
            Self::Dead => "job: dead",
            Self::Strays => "job: strays",
            Self::Heartbeats => "job: heartbeats",
            Self::Health => "job: health",
            Self::Clock => "job: clock",
            Self::Certificates => "job: certificates",
            Self::Days => "job: days",
            Self::Purge => "job: purge",
            Self::RollUp => "job: roll up",
        }
    }
}

impl Jobs {
    /// Starts all of them; each runs at once and then at its interval. Telemetry goes after the first interval only.
    pub fn start(self, lifecycle: &Lifecycle) {
        let own = Arc::new(self);
        for job in Job::ALL {
            let task = Arc::clone(&own).repeat(job, lifecycle.clone());
            drop(lifecycle.spawn_critical(job.name(), task));
        }
    }

    async fn repeat(self: Arc<Self>, job: Job, lifecycle: Lifecycle) {
        let mut ticks = interval(self.every(job));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What is deleted does not come back, and a backend that keeps it longer may be about to start as well.
        let mut is_early = matches!(job, Job::Purge) && self.store.instance().borrow().is_some();
        loop {
            tokio::select! {
                () = lifecycle.stopping() => return,
                _ = ticks.tick() => {}
            }
            let done = if std::mem::take(&mut is_early) {
                self.purge_served().await
            } else {
                self.run(job, &lifecycle).await
            };
            if let Err(error) = done {
                self.metrics.job_failures.inc();
                if matches!(error, StoreError::Unknown(_)) {
                    // It may have ended commands that it will not find open again: whoever waits for one looks.
                    self.bus.look_at_all();
                }
                let (job, away) = (job.name(), error.is_outage());
                let error = in_full(&error);
                if away {
                    debug!(job, error, "a job failed; it runs again");
                } else {
                    warn!(job, error, "a job failed; it runs again");
                }
            }
        }
    }

    const fn every(&self, job: Job) -> Duration {
        match job {
            Job::Offer | Job::Strays => self.config.offer,
            Job::Expire | Job::Overdue | Job::Revoked | Job::Absent | Job::Dead => {
                self.config.expire
            }
            Job::Heartbeats => HEARTBEATS,
            Job::Health => HEALTH,
            Job::Clock => RENEWED_EVERY,
            Job::Certificates => expiry::EVERY,
            Job::Days => DAYS,
            Job::Purge | Job::RollUp => self.config.purge,
        }
    }

    async fn run(&self, job: Job, lifecycle: &Lifecycle) -> StoreResult<()> {
        match job {
            Job::Offer => self.offer().await,
            Job::Expire => self.expire().await,
            Job::Overdue => self.end_overdue().await,
            Job::Revoked => self.cut_revoked().await,
            Job::Absent => self.remove_absent().await,
            Job::Dead => self.end_dead().await,
            Job::Strays => self.end_strays().await,
            Job::Heartbeats => self.store_heartbeats().await,
            Job::Health => self.check_store().await,
            Job::Clock => self.renew_time_line().await,
            Job::Certificates => self.look_at_certificates().await,
            Job::Days => self.make_days_ahead().await,
            Job::Purge => self.purge(lifecycle).await,
            Job::RollUp => self.roll_up(lifecycle).await,
        }
    }

    /// A backend that cannot write takes nothing in: it says so before anybody finds out by an error.
    async fn check_store(&self) -> StoreResult<()> {
        let begun = self.clock.now();
        let health = self.store.health().await;
        let took = self.clock.now().saturating_since(begun);
        match &health {
            Ok(health) => {
                let problem = room::in_the_way(health);
                self.store_latch
                    .set(problem.is_none(), problem.unwrap_or("open"));
            }
            Err(error) => self.store_latch.set(false, error.without_words()),
        }
        self.tell_store(&health);
        self.tell(
            SLOW,
            (took > SLOW_AFTER && health.is_ok())
                .then(|| format!("the database took {} s to commit one row", took.as_secs())),
            Severity::Warn,
            SLOW_FIX,
        );
        match health.as_ref().ok().and_then(room::lacking) {
            Some((cause, fix)) => {
                self.conditions
                    .raise(room::CONDITION, Severity::Fail, cause, fix);
            }
            None => self.conditions.clear(room::CONDITION),
        }
        let connected = human::counted(self.manager.len(), "gateway", "gateways");
        let connected = format!("{connected} connected");
        notify::status(&connected, &self.conditions);
        health.map(drop)
    }

    /// What stands in the way of the store: one condition each, so that each says when it began.
    fn tell_store(&self, health: &StoreResult<StoreHealth>) {
        let (mut away, mut held) = (None, None);
        match health {
            Ok(found) => {
                held.clone_from(&found.held);
                let severity = match &found.refused {
                    Some(_) => Severity::Fail,
                    None => Severity::Warn,
                };
                let flaw = found.refused.as_ref().or(found.lacks.as_ref());
                self.tell(SCHEMA, flaw.cloned(), severity, SCHEMA_FIX);
            }
            Err(StoreError::Unfit(cause)) => {
                let lacks = without_words(cause);
                self.tell(SCHEMA, Some(lacks), Severity::Fail, SCHEMA_FIX);
            }
            Err(StoreError::Held(cause)) => held = Some(without_words(cause)),
            // What it lacked it may lack yet.
            Err(error) => away = Some(error.without_words()),
        }
        let fix = if self.store.instance().borrow().is_some() {
            SERVER_FIX
        } else {
            FILE_FIX
        };
        self.tell(STORE, away, Severity::Fail, fix);
        self.tell(LOCK, held, Severity::Fail, LOCK_FIX);
    }

    fn tell(&self, name: &str, cause: Option<String>, severity: Severity, fix: &str) {
        match cause {
            Some(cause) => self.conditions.raise(name, severity, &cause, fix),
            None => self.conditions.clear(name),
        }
    }

    /// Lets the time line lean towards the wall clock, and says when the two are apart: then somebody has set the
    /// clock.
    async fn renew_time_line(&self) -> StoreResult<()> {
        let kept = line::keep(&*self.store, &self.clock).await?;
        self.metrics.clock_apart.set(kept.wall_ahead / 1_000_000);
        match (what_is_apart(&kept), kept.server_ahead) {
            (None, _) => self.conditions.clear(CLOCK),
            (Some(cause), None) => {
                self.conditions
                    .raise(CLOCK, Severity::Warn, &cause, CLOCK_FIX);
            }
            (Some(cause), Some(_)) => {
                self.conditions
                    .raise(CLOCK, Severity::Warn, &cause, SHARED_CLOCK_FIX);
            }
        }
        Ok(())
    }

    /// Lets every connected gateway for which commands wait look for them; the others look when they connect.
    async fn offer(&self) -> StoreResult<()> {
        self.dispatcher.sweep().await;
        let counts = self.store.counts(&self.tenant, self.clock.line()).await?;
        let doors = self.manager.doors();
        doors.expect(counts.gateways);
        let per_second = doors.house(self.manager.len(), false).per_second;
        self.metrics.openings_per_second.set(i64::from(per_second));
        let waiting = counts.open_commands.get(&CommandState::Queued);
        let waiting = i64::try_from(waiting.copied().unwrap_or(0)).unwrap_or(i64::MAX);
        self.metrics.queue_depth.set(waiting);
        let dead_letters = i64::try_from(counts.dead_letters).unwrap_or(i64::MAX);
        self.metrics.dead_letters.set(dead_letters);
        dead_letters::tell(&self.conditions, counts.dead_letters);
        self.dispatcher.look_everywhere().await
    }

    async fn expire(&self) -> StoreResult<()> {
        loop {
            let now = self.clock.line();
            let settled = self.store.expire_commands(&self.tenant, STEP, now).await?;
            let count = settled.len();
            self.announce(&settled);
            if count < STEP {
                return Ok(());
            }
        }
    }

    async fn end_overdue(&self) -> StoreResult<()> {
        loop {
            let now = self.clock.line();
            let wait = self.config.overdue_wait;
            let settled = self
                .store
                .end_overdue(&self.tenant, wait, STEP, now)
                .await?;
            let count = settled.len();
            self.announce(&settled);
            if count < STEP {
                return Ok(());
            }
        }
    }

    /// Ends the sessions of gateways that another process, such as the command line, has revoked. Their writes fail
    /// already; this closes the socket, and forgets them.
    async fn cut_revoked(&self) -> StoreResult<()> {
        let filter = GatewayFilter {
            revoked: Some(true),
            ..GatewayFilter::default()
        };
        let mut page = Page::first(STEP);
        loop {
            let listing = self
                .store
                .list_gateways(&self.tenant, &filter, page)
                .await?;
            for gateway in &listing.items {
                self.manager.revoked(gateway.agent_id);
            }
            match listing.next {
                Some(next) => page = Page::after(next, STEP),
                None => return Ok(()),
            }
        }
    }

    /// Ends what other backends left behind that are gone. A backend that is alone has nothing to do here.
    async fn end_dead(&self) -> StoreResult<()> {
        if self.store.instance().borrow().is_none() {
            return Ok(());
        }
        loop {
            let now = self.clock.line();
            let ended = self.store.end_dead_instances(&self.tenant, now).await;
            if matches!(ended, Err(StoreError::Unknown(_))) {
                self.given_up().lost();
            }
            let ended = ended?;
            if ended.instances > 0 || ended.sessions > 0 {
                info!(
                    instances = ended.instances,
                    sessions = ended.sessions,
                    "ended what another backend left behind, whose lease of the database ran out"
                );
            }
            self.tell_given_up(&ended);
            if !ended.more {
                return Ok(());
            }
        }
    }

    /// A backend that is gone has left nothing a moment later that would tell of it.
    fn tell_given_up(&self, ended: &EndedInstances) {
        let (wall, now) = (self.clock.wall(), self.clock.now());
        let told = self.given_up().look(ended, wall, now);
        self.tell(GIVEN_UP, told, Severity::Warn, GIVEN_UP_FIX);
    }

    fn given_up(&self) -> MutexGuard<'_, GivenUp> {
        // Nothing panics while it is held.
        let given_up = self.given_up.lock();
        given_up.unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends sessions that the database says this backend has, and that it has not. Their gateways would look connected
    /// for as long as it lives.
    async fn end_strays(&self) -> StoreResult<()> {
        // In this order: what is entered after the database was asked is not missing, neither here nor there.
        let held = self.manager.held();
        let stored = self.store.open_sessions(&self.tenant).await?;
        self.cut_ended(&held, &stored).await?;
        let missing = self.manager.missing(stored);
        let stays = {
            // Nothing panics while it is held.
            let strays = self.strays.lock();
            let mut strays = strays.unwrap_or_else(PoisonError::into_inner);
            strays.look(missing)
        };
        for (agent_id, epoch) in stays {
            let (code, now) = (CloseCode::Internal, self.clock.line());
            let ended = self
                .store
                .end_session(&self.tenant, agent_id, epoch, code, now);
            if ended.await? {
                let gateway = self.manager.name_of(agent_id);
                info!(%gateway, %agent_id, epoch, "ended a session that only the database had");
            }
        }
        // Last: whatever fails of it, strays are ended.
        self.tell_retention().await
    }

    /// Cuts sessions that ended with their certificates and that nobody has told, such as those that were being
    /// confirmed at that moment. What ended otherwise is told where it was ended.
    async fn cut_ended(
        &self,
        held: &[(AgentId, u64)],
        stored: &[(AgentId, u64)],
    ) -> StoreResult<()> {
        let stored: BTreeSet<_> = stored.iter().collect();
        for (agent_id, epoch) in held.iter().filter(|session| !stored.contains(session)) {
            let latest = self
                .store
                .list_sessions(&self.tenant, *agent_id, SESSIONS_LOOKED)
                .await?;
            let own = latest.iter().find(|session| session.epoch == *epoch);
            if own.is_some_and(|session| session.code == Some(CloseCode::Revoked)) {
                self.manager.certificate_revoked(*agent_id, *epoch);
            }
        }
        Ok(())
    }

    async fn store_heartbeats(&self) -> StoreResult<()> {
        let touches = self.heartbeats.take();
        if touches.is_empty() {
            return Ok(());
        }
        let now = self.clock.line();
        self.store.touch_sessions(&self.tenant, touches, now).await
    }

    /// By itself, and soon again: what fails of it keeps nothing from being deleted, and telemetry that comes meanwhile
    /// makes its own day.
    async fn make_days_ahead(&self) -> StoreResult<()> {
        let now = self.clock.line();
        self.store.make_days_ahead(&self.tenant, now).await
    }

    async fn purge(&self, lifecycle: &Lifecycle) -> StoreResult<()> {
        self.purge_served().await?;
        self.purge_telemetry(lifecycle).await
    }

    /// In steps: after a long pause there may be more than one statement may take.
    async fn purge_served(&self) -> StoreResult<()> {
        let recounted = self.store.recount(&self.tenant, self.clock.line());
        let recounted = recounted.await?;
        self.metrics.recounted(recounted.short, recounted.gateways);
        loop {
            let now = self.clock.line();
            let purged = self.store.purge(&self.tenant, STEP, now).await?;
            if purged != Purged::default() {
                info!(?purged, "deleted what has served");
            }
            let dropped = purged.dead_letters_dropped;
            self.metrics.dropped_dead_letters(dropped);
            if !purged.has_reached(STEP) {
                return Ok(());
            }
        }
    }

    /// Deletes telemetry that is older than it is kept. The first time that may be very much.
    async fn purge_telemetry(&self, lifecycle: &Lifecycle) -> StoreResult<()> {
        let (mut days, mut records, mut streams, mut losses) = (0_u64, 0_u64, 0_u64, 0_u64);
        let mut after = None;
        while !lifecycle.is_stopping() {
            let now = self.clock.line();
            let purged = self.store.purge_telemetry(&self.tenant, after, STEP, now);
            let purged = purged.await?;
            days = days.saturating_add(purged.days);
            records = records.saturating_add(purged.records);
            streams = streams.saturating_add(purged.streams);
            losses = losses.saturating_add(purged.losses);
            after = purged.after;
            if !purged.more {
                break;
            }
        }
        if days > 0 || records > 0 || streams > 0 || losses > 0 {
            self.metrics.telemetry_purged.inc_by(records);
            info!(
                days,
                records, streams, losses, "deleted telemetry that is older than it is kept"
            );
        }
        Ok(())
    }

    /// Rolls up days of telemetry that are over, one of a gateway after another; several backends share them.
    async fn roll_up(&self, lifecycle: &Lifecycle) -> StoreResult<()> {
        let (mut days, mut forgotten) = (0_u64, 0_u64);
        while !lifecycle.is_stopping() {
            let now = self.clock.line();
            let rolled = self.store.roll_up_telemetry(&self.tenant, now).await?;
            days = days.saturating_add(rolled.days);
            forgotten = forgotten.saturating_add(rolled.forgotten);
            if !rolled.more {
                self.tell_twice(rolled.twice);
                break;
            }
        }
        if days > 0 || forgotten > 0 {
            info!(days, forgotten, "rolled up days of telemetry");
        }
        Ok(())
    }

    /// What positions rule out, and what each day is held against when it is over.
    fn tell_twice(&self, spool_epochs: u64) {
        if spool_epochs == 0 {
            self.conditions.clear(TWICE);
            return;
        }
        let cause = format!(
            "{} with a record that is stored twice",
            human::counted_all(
                spool_epochs,
                "spool epoch was found",
                "spool epochs were found"
            )
        );
        self.conditions
            .raise(TWICE, Severity::Warn, &cause, TWICE_FIX);
    }

    fn announce(&self, settled: &[Settled]) {
        for settled in settled {
            told::tell(&self.bus, &self.metrics, settled, self.clock.line());
        }
    }
}

/// What somebody should know about the clocks that the time line goes by.
fn what_is_apart(kept: &Kept) -> Option<String> {
    let apart = |micros: i64| {
        let side = if micros < 0 { "behind" } else { "ahead of" };
        let far = Duration::from_micros(micros.unsigned_abs());
        (far > APART_MAX).then(|| format!("{} s {side}", far.as_secs()))
    };
    let line = "the time line that deadlines and times of runs are on";
    if let Some(error) = kept.blurred {
        return Some(format!(
            "the database server answers so slowly that its clock can only be read to {} ms: {line} goes on by this machine's",
            error.as_millis()
        ));
    }
    if let Some(off) = kept.server_ahead.and_then(apart) {
        return Some(format!(
            "the clock of the database server was set: it is {off} {line}"
        ));
    }
    let off = apart(kept.wall_ahead)?;
    Some(match kept.server_ahead {
        Some(_) => format!(
            "the wall clock of this machine is {off} {line}, which goes by the database server's"
        ),
        None => format!("the wall clock was set: it is {off} {line}"),
    })
}
