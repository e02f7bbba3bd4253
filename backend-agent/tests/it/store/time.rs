//! Several backends on one server go by one time line, whatever the wall clocks of their machines and of the server
//! say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::TempDir;
use viworks_backend_agent::app::App;
use viworks_backend_agent::data::line::{self, Kept};
use viworks_backend_agent::data::postgres::{Address, PostgresStore, Role};
use viworks_backend_agent::data::{Page, Settled};
use viworks_backend_agent::material::ServerMaterial;
use viworks_common::command::CommandState;
use viworks_common::id::CommandId;
use viworks_common::timeline::shared::TOGETHER;
use viworks_runtime::clock::Timeline;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_testkit::postgres::Own;
use viworks_testkit::process::eventually;

use super::bed::{Bed, LEASE};
use super::{database, make};
use crate::clock::Stepped;
use crate::pki;

const HOUR: i64 = 3_600;

/// A backend, as far as time is concerned: a store, the clocks of a machine, and the line.
struct Backend {
    bed: Bed,
    clock: Arc<Stepped>,
    line: Timeline,
}

impl Backend {
    async fn open(url: &str, clock: &Arc<Stepped>) -> Self {
        let address = Address::parse(url, None, None).unwrap().connections_max(8);
        let store = PostgresStore::open(address, Role::Beside, true).await;
        let bed = Bed::new(Arc::new(store.unwrap()));
        let line = line::begin(&*bed.store, Arc::<Stepped>::clone(clock)).await;
        let own = Self {
            bed,
            clock: Arc::clone(clock),
            line: line.unwrap(),
        };
        own.keep().await;
        own
    }

    async fn keep(&self) -> Kept {
        line::keep(&*self.bed.store, &self.line).await.unwrap()
    }

    /// Its job that ends what is past its deadline.
    async fn expire(&self) -> Vec<Settled> {
        let (store, tenant) = (&self.bed.store, &self.bed.tenant);
        let expired = store.expire_commands(tenant, 500, self.line.line()).await;
        expired.unwrap()
    }
}

/// Two backends on one database; the wall clock of each machine is off by so many seconds.
async fn two(folder: &TempDir, off: (i64, i64)) -> Option<(Backend, Backend)> {
    let (server, database) = database(folder)?;
    make(server, &database);
    let url = server.url(&database);
    let clock = |off| {
        let clock = Arc::new(Stepped::default());
        clock.set(off);
        clock
    };
    let one = Backend::open(&url, &clock(off.0)).await;
    Some((one, Backend::open(&url, &clock(off.1)).await))
}

/// Nothing that two read at the same moment is further apart.
fn together(one: &Backend, other: &Backend) {
    let (a, b) = (one.line.line(), other.line.line());
    let apart = Duration::from_micros(a.unix_micros().abs_diff(b.unix_micros()));
    assert!(apart <= 2 * TOGETHER, "{apart:?} apart");
}

async fn finish(folder: &TempDir, one: Backend, other: Backend) {
    one.bed.store.close().await;
    other.bed.store.close().await;
    super::postgres_counts_are_right(folder);
}

/// Case 10 of the ten.
#[tokio::test]
async fn with_clocks_an_hour_off_nothing_is_early_or_late_and_each_end_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder, (HOUR, -HOUR)).await else {
        return;
    };
    together(&one, &other);
    let kept = one.keep().await;
    assert!(
        (HOUR - 2..=HOUR + 2).contains(&(kept.wall_ahead / 1_000_000)),
        "{kept:?}"
    );
    assert!(kept.server_ahead.unwrap().abs() < 1_000_000, "{kept:?}");
    for n in 1..=3 {
        one.bed.gateway(n).await;
    }
    // Either submits, and the ids are of one bed.
    let (mut short, mut long) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..40 {
        let at = if round % 2 == 0 { &one } else { &other };
        let mut new = one.bed.new_run(&[1, 2, 3], false);
        let (seconds, ids) = if round < 20 {
            (20, &mut short)
        } else {
            (600, &mut long)
        };
        let now = at.line.line();
        new.deadline = now.saturating_add(Duration::from_secs(seconds));
        ids.extend(new.targets.iter().map(|target| target.command_id));
        at.bed
            .store
            .submit_run(&at.bed.tenant, new, now)
            .await
            .unwrap();
    }
    for at in [&one, &other] {
        assert!(at.expire().await.is_empty(), "nothing early");
    }
    // What one has just submitted is there for the other at once.
    let session = other.bed.session(1, 1).await;
    let (tenant, holder) = (&other.bed.tenant, session.holder);
    let store = &other.bed.store;
    let leased = store
        .lease_commands(tenant, &holder, LEASE, other.line.line())
        .await;
    assert_eq!(leased.unwrap().commands.len(), 40);
    let code = viworks_common::code::CloseCode::Internal;
    let ended = store.end_session(
        tenant,
        holder.agent_id,
        holder.epoch,
        code,
        other.line.line(),
    );
    assert!(ended.await.unwrap());

    for passed in [15, 6] {
        for at in [&one, &other] {
            at.clock.pass(passed);
            at.keep().await;
        }
        together(&one, &other);
        let jobs = (0..6).flat_map(|_| [one.expire(), other.expire()]);
        let told: Vec<_> = join_all(jobs).await.into_iter().flatten().collect();
        let ended: BTreeSet<_> = told.iter().map(|settled| settled.command_id).collect();
        assert_eq!(told.len(), ended.len(), "each end is told once");
        assert_eq!(
            ended,
            if passed == 6 {
                short.clone()
            } else {
                BTreeSet::new()
            }
        );
    }
    for id in &long {
        assert_eq!(one.bed.state(*id).await, CommandState::Queued);
    }
    told_once(&one.bed, &short).await;
    finish(&folder, one, other).await;
}

/// The same with two whole backends, whose jobs look at the same rows all the time.
#[tokio::test]
async fn two_backends_hours_apart_end_what_is_late_once_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    make(server, &database);
    let mut running = Vec::new();
    for off in [HOUR, -HOUR] {
        let clock = Arc::new(Stepped::default());
        clock.set(off);
        let place = pki::initialised();
        let mut config = pki::config(&place);
        config.store.url = server.url(&database);
        if let Some((_, _, _, first)) = running.first() {
            config.keys.master_key_file = pki::config(first).keys.master_key_file;
        }
        config.agents.listen.set_port(0);
        config.api.listen.set_port(0);
        config.jobs.expire = Duration::from_millis(50);
        let material = ServerMaterial::load(&config).unwrap();
        let lifecycle = Lifecycle::new();
        let clocks = Arc::<Stepped>::clone(&clock);
        let app = App::start_by(&config, material, &lifecycle, clocks).await;
        running.push((app.unwrap(), lifecycle, clock, place));
    }
    let beside = Backend::open(&server.url(&database), &running[0].2).await;
    let bed = &beside.bed;
    bed.gateway(1).await;
    let submit = async |seconds| {
        let mut new = bed.new_run(&[1], false);
        let (id, now) = (new.targets[0].command_id, beside.line.line());
        new.deadline = now.saturating_add(Duration::from_secs(seconds));
        bed.store.submit_run(&bed.tenant, new, now).await.unwrap();
        id
    };
    let (mut late, mut in_time) = (Vec::new(), Vec::new());
    for _ in 0..30 {
        late.push(submit(20).await);
        in_time.push(submit(600).await);
    }
    for (_, _, clock, _) in &running {
        clock.pass(25);
    }
    for id in &late {
        let expired = async {
            while bed.state(*id).await != CommandState::Expired {
                tokio::task::yield_now().await;
            }
        };
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, expired).await.unwrap();
    }
    for id in &in_time {
        assert_eq!(bed.state(*id).await, CommandState::Queued);
    }
    told_once(bed, &late).await;
    for (app, lifecycle, _, _) in running {
        let outcome = lifecycle.shutdown(Duration::from_secs(20)).await;
        assert!(outcome.aborted.is_empty(), "{outcome:?}");
        app.close().await;
    }
    bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}

/// The end of each command has one record in the audit log.
async fn told_once(bed: &Bed, ended: impl IntoIterator<Item = &CommandId>) {
    let audit = bed.store.list_audit(&bed.tenant, Page::first(1_000)).await;
    let audit = audit.unwrap().items;
    for id in ended {
        let id = id.to_string();
        let about = audit.iter().filter(|it| it.record.object.ends_with(&id));
        assert_eq!(about.count(), 1, "{id}");
    }
}

#[tokio::test]
async fn the_clock_of_the_server_is_set_and_the_line_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder, (0, 0)).await else {
        return;
    };
    let (server, database) = database(&folder).unwrap();
    // A fresh point a few seconds further on would be what another process knows better; that a clock was set forwards
    // by so little, only the clock itself shows, and the rule has tests of its own for it.
    for set in [HOUR, -2 * HOUR, -5] {
        let before = one.line.line();
        // The point that is stored now is of a clock that somebody has put right since.
        let moved = format!("UPDATE server_time SET shows = shows - ({set}::bigint * 1000000)");
        server.psql(&database, &moved).unwrap();
        // Both look at once: one of them stores what it has seen, and the other looks again.
        let kept = tokio::join!(one.keep(), other.keep());
        for (kept, at) in [(kept.0, &one), (kept.1, &other)] {
            assert!(kept.server_ahead.unwrap().abs() < 1_000_000, "{kept:?}");
            let passed = at.line.line().saturating_since(before);
            assert!(passed < Duration::from_secs(20), "{passed:?}");
        }
        together(&one, &other);
        // Whoever comes then is on the same line.
        let newcomer = Backend::open(&server.url(&database), &one.clock).await;
        together(&one, &newcomer);
        newcomer.bed.store.close().await;
    }
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn a_machine_that_stood_still_takes_the_line_of_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder, (0, 0)).await else {
        return;
    };
    // Ten minutes pass for one of them, and for the server.
    one.clock.pass(600);
    let (server, database) = database(&folder).unwrap();
    let moved = "UPDATE server_time SET shows = shows - 600000000";
    server.psql(&database, moved).unwrap();
    one.keep().await;
    let before = other.line.line();
    other.keep().await;
    let missed = other.line.line().saturating_since(before);
    assert!((599..660).contains(&missed.as_secs()), "{missed:?}");
    together(&one, &other);
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn while_the_server_is_gone_the_line_goes_on_by_the_machine_s_own_clock() {
    let Some(mut own) = Own::start() else {
        return;
    };
    own.server().make_empty("line");
    let clock = Arc::new(Stepped::default());
    let url = own.server().url("line");
    let backend = Backend::open(&url, &clock).await;
    let before = backend.line.line();
    own.kill();
    assert!(
        line::keep(&*backend.bed.store, &backend.line)
            .await
            .is_err()
    );
    // Nobody's wall clock is of any interest meanwhile.
    clock.set(-HOUR);
    let passed = backend.line.line().saturating_since(before);
    assert!(passed < Duration::from_secs(60), "{passed:?}");
    own.start_again();
    let patience = Duration::from_secs(60);
    let kept = eventually("the line is kept again", patience, async || {
        line::keep(&*backend.bed.store, &backend.line).await.ok()
    })
    .await;
    assert!(kept.server_ahead.unwrap().abs() < 1_000_000, "{kept:?}");
    assert_eq!(kept.blurred, None);
    let again = Backend::open(&url, &clock).await;
    together(&backend, &again);
    for backend in [backend, again] {
        backend.bed.store.close().await;
    }
}
