//! Renewal of the certificate within one session: when to ask, and when to leave for a session with what was issued.

use std::future::pending;
use std::time::Duration;

use tokio::sync::oneshot;
use viworks_common::renewal::trial;
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::CertIssued;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::random;

use crate::material::Material;
use crate::renewal::{Renewal, RenewalError};
use crate::renewed::Wanted;

/// What a step came to.
pub(super) enum Done {
    /// The certificate request to send.
    Request(Result<String, RenewalError>),
    /// The end of the certificate that was issued and kept, if one was.
    Answered(Option<Timestamp>),
}

/// The renewal as far as one session goes.
pub(super) struct Renewing {
    renewal: Renewal,
    lifecycle: Lifecycle,
    /// What is in use in this session.
    wanted: Wanted,
    /// Whether the backend takes requests, once a session is established.
    offered: bool,
    /// The backend's wall clock, and when it showed that.
    wall: Option<(Timestamp, Monotonic)>,
    /// A step that waits for the disk; one at a time. It comes to its end also when the session has ended.
    step: Option<oneshot::Receiver<Done>>,
    /// A request is on its way.
    asked: bool,
    /// From when and by when a session of its own tries what was issued.
    trial: Option<(Monotonic, Monotonic)>,
}

impl Renewing {
    /// Of a session with the certificate that `material` shows.
    pub(super) fn new(renewal: Renewal, material: &Material, lifecycle: Lifecycle) -> Self {
        Self {
            renewal,
            lifecycle,
            wanted: Wanted {
                name: material.name.clone(),
                trust_domain: material.trust_domain.clone(),
                life: material.shown.life(),
            },
            offered: false,
            wall: None,
            step: None,
            asked: false,
            trial: None,
        }
    }

    /// The session is established.
    pub(super) fn begin(&mut self, offered: bool, server_time: Timestamp, now: Monotonic) {
        self.offered = offered;
        self.renewal.begin(offered, self.wanted.life, server_time);
        self.measured(server_time, now);
    }

    /// The backend's wall clock showed this.
    pub(super) const fn measured(&mut self, server_time: Timestamp, now: Monotonic) {
        self.wall = Some((server_time, now));
    }

    fn wall(&self, now: Monotonic) -> Option<Timestamp> {
        let (shown, at) = self.wall?;
        Some(shown.saturating_add(now.saturating_since(at)))
    }

    /// What is left of the life in use.
    fn left(&self, now: Monotonic) -> Duration {
        let (_, not_after) = self.wanted.life;
        let left = |wall| not_after.saturating_since(wall);
        self.wall(now).map(left).unwrap_or_default()
    }

    /// Begins to ask where it is time.
    pub(super) fn look(&mut self, now: Monotonic) {
        let is_free = self.offered && self.step.is_none() && self.trial.is_none();
        let Some(wall) = self.wall(now).filter(|_| is_free) else {
            return;
        };
        // An answer that was lost is asked for again; one that comes all the same is as good.
        if self.renewal.may_ask(self.wanted.life, wall, now) {
            let (renewal, left) = (self.renewal.clone(), self.left(now));
            self.take_step(async move { Done::Request(renewal.request(left).await) });
        }
    }

    fn take_step(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        let (done, step) = oneshot::channel();
        self.step = Some(step);
        let step = async move { drop(done.send(work.await)) };
        drop(self.lifecycle.spawn("renewal", step));
    }

    /// The next step that came to its end.
    pub(super) async fn next(&mut self) -> Done {
        let done = match &mut self.step {
            Some(step) => step.await.ok(),
            None => pending().await,
        };
        self.step = None;
        // Where it was cut short, nothing came of it.
        done.unwrap_or(Done::Answered(None))
    }

    /// A request went out.
    pub(super) const fn sent(&mut self) {
        self.asked = true;
    }

    /// Takes an answer in. What nobody asked for in this session has no effect.
    pub(super) fn answered(&mut self, answer: CertIssued, now: Monotonic) {
        if !self.asked || self.step.is_some() {
            return;
        }
        self.asked = false;
        let (renewal, wanted) = (self.renewal.clone(), self.wanted.clone());
        let left = self.left(now);
        self.take_step(async move { Done::Answered(renewal.answered(answer, wanted, left).await) });
    }

    /// A certificate was issued and is kept.
    pub(super) fn kept(&mut self, not_after: Timestamp, now: Monotonic) {
        let wall = self.wall(now).unwrap_or(not_after);
        let random = u64::from_ne_bytes(random::bytes());
        self.trial = Some(trial(not_after, wall, now, random));
    }

    /// Whether it is time to leave for a session with what was issued; `quiet` while no command runs.
    pub(super) fn wants_trial(&self, quiet: bool, now: Monotonic) -> bool {
        self.trial
            .is_some_and(|(from, latest)| now >= latest || (quiet && now >= from))
    }
}
