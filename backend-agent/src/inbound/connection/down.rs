//! What goes down a session: commands and their permits, as far as credit goes, and the wish for their end.

use std::time::Duration;

use tracing::warn;
use viworks_common::code::RejectCode;
use viworks_common::command::{CommandState, format_digest};
use viworks_common::id::CommandId;
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{BackendMessage, Command, CommandRef, Go, Refuse};

use super::super::opening::millis;
use super::live::Live;
use super::refusal;
use crate::agent::shelf::Taken;
use crate::data::{Confirmed, LeasedCommand, Rejected};

/// Why a command with a time limit is not offered to an agent that does not announce that it keeps one.
const TIMEOUT_NOT_KEPT: &str = "this gateway's agent is too old to keep a time limit below its catalogue's: submit the \
                                run without one, or update the agent";

/// A gateway that was silent for less is not asked to say something before it is offered a command.
const SILENT_MIN: Duration = Duration::from_secs(1);

/// Nor one whose silence takes less than one part in so many of the command's time.
const LOST_SHARE: u32 = 8;

impl Live {
    /// What this process of the gateway was permitted or told before, it is told again.
    pub(super) fn resume(&mut self, confirmed: &Confirmed) {
        let ended = confirmed.ended.len();
        if ended > 0 {
            warn!(gateway = %self.line.peer.name, agent_id = %self.holder.agent_id, commands = ended, "an earlier process of the gateway is gone without a trace of its commands");
        }
        for settled in &confirmed.ended {
            self.settled(settled, settled.reason.clone());
        }
        for command in &confirmed.released {
            let permit = self.line.permit(command.deadline);
            let command_id = command.command_id;
            self.line
                .send(BackendMessage::Go(Go { command_id, permit }));
        }
        for &command_id in &confirmed.cancel_requested {
            self.cancel(command_id);
        }
    }

    /// Does what others asked for, sends what they put on the shelf, and looks for more where they say so.
    pub(super) async fn on_shelf(&mut self) {
        let Taken {
            ending,
            orders,
            offered,
            cancelled,
            look,
        } = self.shelf.take();
        if let Some(ending) = ending {
            return self.line.refuse(Refuse {
                retry_after_ms: ending.after.map(millis),
                ..refusal(ending.code, ending.reason)
            });
        }
        for order in orders {
            self.on_order(order);
        }
        for command in offered {
            if !self.offer(command) {
                return;
            }
        }
        for command_id in cancelled {
            self.cancel(command_id);
        }
        if look {
            self.offer_commands().await;
        }
    }

    fn cancel(&mut self, command_id: CommandId) {
        // A cancellation that comes before its command would mean nothing.
        let held = self
            .held
            .iter()
            .position(|held| held.command_id == command_id);
        if let Some(held) = held.map(|at| self.held.remove(at)) {
            self.send_offer(held);
        }
        self.line
            .send(BackendMessage::CommandCancel(CommandRef { command_id }));
    }

    /// Offers what waits in the store, as far as credit goes.
    pub(super) async fn offer_commands(&mut self) {
        let Some(mut kept) = self.shelf.keep_all() else {
            return;
        };
        let dispatcher = &self.line.inbound.dispatcher;
        let leased = match dispatcher.take(&self.holder, kept.places()).await {
            Ok(leased) => leased,
            Err(error) => return self.line.fail(&error),
        };
        if leased.commands.len() >= kept.places() {
            self.shelf.want();
        }
        for settled in &leased.dead {
            self.settled(settled, settled.reason.clone());
        }
        for command in leased.commands {
            let sent = if command.timeout_ms.is_some() && !self.announced.keeps_timeout {
                self.withhold(&command).await
            } else {
                kept.sent(command.command_id);
                self.offer(command)
            };
            if !sent {
                return;
            }
        }
    }

    /// Refuses a command on behalf of a gateway that would not keep its time limit: run without it, it could run for
    /// longer than its operator was promised.
    async fn withhold(&mut self, command: &LeasedCommand) -> bool {
        let now = self.line_now();
        let rejected = Rejected {
            command_id: command.command_id,
            code: RejectCode::Unavailable,
            detail: TIMEOUT_NOT_KEPT.to_owned(),
            again_at: now,
        };
        let (store, tenant) = (&self.line.inbound.store, &self.line.peer.identity.tenant);
        match store
            .reject_command(tenant, &self.holder, rejected, now)
            .await
        {
            Ok(Some(settled)) => self.settled(&settled, Some(TIMEOUT_NOT_KEPT.to_owned())),
            Ok(None) => {}
            Err(error) => {
                self.line.fail(&error);
                return false;
            }
        }
        // Its place is free again, and something else may wait.
        self.ask_again(Duration::ZERO);
        true
    }

    /// Offers a command, at once unless too much of its time would be lost: that counts from when the gateway sent what
    /// was heard of it last, which of an idle one may be many seconds ago. Then it is made to say something first.
    fn offer(&mut self, leased: LeasedCommand) -> bool {
        let silent = self.line.now().saturating_since(self.heard_at);
        let left = leased.deadline.saturating_since(self.line_now());
        if silent < SILENT_MIN || silent.saturating_mul(LOST_SHARE) < left {
            return self.send_offer(leased);
        }
        if self.held.is_empty() {
            self.probe_id += 1;
            self.line.session.probe(self.probe_id, self.line.now());
        }
        self.held.push(leased);
        true
    }

    /// Offers what waited until the gateway said something.
    pub(super) fn offer_held(&mut self) {
        for held in std::mem::take(&mut self.held) {
            if !self.send_offer(held) {
                return;
            }
        }
    }

    fn send_offer(&mut self, leased: LeasedCommand) -> bool {
        let state = if leased.permitted {
            CommandState::Released
        } else {
            CommandState::Dispatched
        };
        let deadline = self.line.permit(leased.deadline);
        let command_id = leased.command_id;
        self.pace.offered();
        self.runs
            .remember(command_id, leased.run_id, leased.attempt);
        if leased.permitted {
            self.permitted.insert(command_id);
        }
        self.moved(leased.run_id, command_id, state, Some(leased.attempt));
        self.line.send(BackendMessage::Command(Command {
            command_id,
            order: leased.order,
            name: leased.name,
            arguments: leased.arguments,
            digest: format_digest(&leased.digest),
            attempt: leased.attempt,
            traceparent: leased.traceparent,
            deadline,
            permitted: leased.permitted,
            timeout_ms: leased.timeout_ms,
        }))
    }

    /// A gateway that was busy is asked again by this session, not only by the reconciler.
    pub(super) fn ask_again(&mut self, rest: Duration) {
        let at = self.line.now().saturating_add(rest);
        self.again_at = Some(self.again_at.map_or(at, |known| known.min(at)));
    }

    pub(super) async fn offer_again(&mut self, now: Monotonic) {
        if self.again_at.take_if(|at| *at <= now).is_some() {
            self.offer_commands().await;
        }
    }
}
