//! Takes what other backends left for this one about its sessions, and has it done.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};
use viworks_common::claims::Probed;
use viworks_common::id::{AgentId, Tenant};
use viworks_runtime::clock::Timeline;
use viworks_runtime::lifecycle::Lifecycle;

use super::manager::Manager;
use super::prober::Prober;
use super::shelf::Order;
use crate::data::{Letter, Mail, ProbeAnswer, Store, in_full};

/// How often the inbox is looked into, where nobody says that there is something in it.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What it works with.
pub struct Postman {
    /// Where the inbox is.
    pub store: Arc<dyn Store>,
    /// Whose gateways.
    pub tenant: Tenant,
    /// Who is connected.
    pub manager: Arc<Manager>,
    /// Who waits for answers.
    pub prober: Arc<Prober>,
    /// The time.
    pub clock: Arc<Timeline>,
    /// Notified by whoever knows that there is something in the inbox.
    pub hurry: Arc<Notify>,
}

impl Postman {
    /// Runs until the backend stops and the last session has ended.
    pub async fn run(self, lifecycle: Lifecycle) {
        if self.store.instance().borrow().is_none() {
            // Nobody else is there.
            return;
        }
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probing = FuturesUnordered::new();
        let mut handled = Vec::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.hurry.notified() => {}
                Some(first) = probing.next() => {
                    let mut answers = Vec::from_iter(first);
                    // Whatever else is known by now goes with it: many are asked at once when a backend is gone.
                    while let Some(Some(next)) = probing.next().now_or_never() {
                        answers.extend(next);
                    }
                    self.answer(answers).await;
                    continue;
                }
            }
            if lifecycle.is_stopping() && self.manager.is_empty() {
                return;
            }
            let mail = self
                .store
                .take_inbox(&self.tenant, &handled, self.clock.line());
            let mail = match mail.await {
                Ok(mail) => mail,
                // Health says what is wrong with the store; what is there stays there.
                Err(error) => {
                    debug!(
                        error = in_full(&error),
                        "the inbox could not be looked into"
                    );
                    continue;
                }
            };
            handled.clear();
            for Mail {
                number,
                agent_id,
                letter,
            } in mail
            {
                handled.push(number);
                match letter {
                    Some(Letter::Probe {
                        newcomer,
                        asks,
                        epoch,
                    }) => {
                        let answer = ProbeAnswer {
                            agent_id,
                            to: asks,
                            newcomer,
                            alive: false,
                        };
                        probing.push(self.probe(answer, epoch));
                    }
                    Some(letter) => self.deliver(agent_id, letter),
                    None => {
                        warn!(%agent_id, "another backend, of a later version, left something that this one does not know");
                    }
                }
            }
            if !handled.is_empty() {
                // There may be more than is taken at once, and what was done is to be deleted.
                self.hurry.notify_one();
            }
        }
    }

    fn deliver(&self, agent_id: AgentId, letter: Letter) {
        let manager = &self.manager;
        match letter {
            Letter::Look => {
                manager.nudge(agent_id);
            }
            Letter::Cancel(command_id) => manager.cancel(agent_id, command_id),
            Letter::Revoked => manager.revoked(agent_id),
            Letter::CertificateRevoked { epoch } => manager.certificate_revoked(agent_id, epoch),
            Letter::Superseded { epoch } => manager.superseded(agent_id, epoch),
            Letter::Drain => {
                // A session that cannot take it is stuck, and ends by that.
                let _ordered = manager.order(agent_id, Order::Drain(Duration::ZERO));
            }
            Letter::Rekey { generation } => manager.rekey(agent_id, generation),
            Letter::Answer { newcomer, alive } => self.prober.answered(newcomer, alive),
            // Takes its time.
            Letter::Probe { .. } => {}
        }
    }

    /// Nothing is said of a session that is not here: it may be on its way, and silence would give its identity away.
    async fn probe(&self, answer: ProbeAnswer, epoch: u64) -> Option<ProbeAnswer> {
        let alive = match self.manager.probe(answer.agent_id, epoch).await {
            Some(Probed::Alive) => true,
            Some(Probed::Silent) => false,
            Some(Probed::Unreachable) | None => return None,
        };
        Some(ProbeAnswer { alive, ..answer })
    }

    async fn answer(&self, answers: Vec<ProbeAnswer>) {
        if answers.is_empty() {
            return;
        }
        let (sessions, now) = (answers.len(), self.clock.line());
        let answered = self.store.answer_probes(&self.tenant, answers, now);
        if let Err(error) = answered.await {
            warn!(
                sessions,
                error = in_full(&error),
                "failed to answer other backends about sessions"
            );
        }
    }
}
