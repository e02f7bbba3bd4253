//! What a gateway reports about itself: heartbeats, its catalogue, its pins, and what it noticed.

use std::time::Duration;

use tokio::sync::oneshot;
use tracing::warn;
use viworks_common::code::CloseCode;
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{BackendMessage, Catalogue, Event, Heartbeat, HeartbeatAck};
use viworks_runtime::random;

use super::super::judge::Judged;
use super::live::Live;
use crate::data::{Actor, AuditOutcome, HeartbeatFigures, NewAuditRecord, SessionTouch};

/// Reports of one session that are audited; more are counted only.
const EVENTS_MAX: u32 = 100;

/// How long the offers of a pin set take for each gateway that is connected, and at most for all.
const OFFER_SPREAD: Duration = Duration::from_millis(1);
const OFFER_SPREAD_MAX: Duration = Duration::from_secs(30);

/// A catalogue that is being judged.
pub(super) struct Judging {
    /// As its gateway names it.
    digest: String,
    verdict: oneshot::Receiver<Judged>,
}

impl Judging {
    /// What became of the catalogue that is being judged; none when it took too long.
    pub(super) async fn next(judging: &mut Option<Self>) -> Option<Judged> {
        match judging {
            Some(judging) => (&mut judging.verdict).await.ok(),
            None => std::future::pending().await,
        }
    }
}

impl Live {
    pub(super) fn on_heartbeat(&mut self, heartbeat: &Heartbeat) {
        let inbound = &self.line.inbound;
        let window = inbound.terms.output_window_bytes;
        let output_bytes = self.output_received.saturating_add(window);
        let apart = inbound.clock.is_apart();
        let clock_skew_ms = self.skew.measured(heartbeat.clock_skew_ms, apart);
        self.stream.skew_ms = clock_skew_ms;
        inbound.heartbeats.note(SessionTouch {
            agent_id: self.holder.agent_id,
            epoch: self.holder.epoch,
            figures: HeartbeatFigures {
                round_trip_us: heartbeat.round_trip_us,
                clock_skew_ms,
                spool_records: heartbeat.spool_records,
                spool_bytes: heartbeat.spool_bytes,
                commands_running: heartbeat.commands_running,
            },
        });
        let server_time = inbound.clock.wall();
        self.line.send(BackendMessage::HeartbeatAck(HeartbeatAck {
            sent_at_ms: heartbeat.sent_at_ms,
            server_time,
            output_bytes,
        }));
    }

    /// Has a catalogue judged, while the session goes on: a catalogue can take long, and only its own gateway may
    /// have to wait for it.
    pub(super) fn on_catalogue(&mut self, catalogue: Catalogue) {
        let inbound = &self.line.inbound;
        let Catalogue { digest, commands } = catalogue;
        let (verdict, judged) = oneshot::channel();
        self.judging = Some(Judging {
            digest,
            verdict: judged,
        });
        let task = inbound.judge.clone().run(commands, verdict);
        drop(inbound.lifecycle.spawn("catalogue", task));
    }

    /// Keeps a catalogue that was judged.
    pub(super) async fn on_judged(&mut self, judged: Option<Judged>) {
        let Some(Judging { digest, .. }) = self.judging.take() else {
            return;
        };
        let Some((commands, refused)) = judged else {
            let reason = "the backend could not judge the catalogue in time";
            let now = self.line.now();
            return self.line.session.close(CloseCode::Internal, reason, now);
        };
        let (inbound, peer, holder) = (&self.line.inbound, &self.line.peer, &self.holder);
        for _entry in &refused {
            inbound.metrics.refused("catalogue_entry");
        }
        if let Some(first) = refused.first() {
            // The first says what is wrong; `command show` tells of all.
            warn!(gateway = %peer.name, agent_id = %holder.agent_id, entries = refused.len(), command = %first.name, problem = first.problem, "entries of the gateway's catalogue are refused");
        }
        let saved = inbound
            .store
            .save_catalogue(
                &peer.identity.tenant,
                holder.agent_id,
                holder.epoch,
                &digest,
                commands,
                inbound.clock.line(),
            )
            .await;
        if let Err(error) = saved {
            self.line.fail(&error);
        }
    }

    /// Another pin set is known, or may be. Of many gateways each is offered it at a moment of its own, because each
    /// of them answers.
    pub(super) fn on_pins(&mut self) {
        let (inbound, now) = (&self.line.inbound, self.line.now());
        let gateways = u64::try_from(inbound.manager.len()).unwrap_or(u64::MAX);
        let random = u64::from_ne_bytes(random::bytes());
        let after = OFFER_SPREAD.as_millis();
        let spread = gateways.saturating_mul(u64::try_from(after).unwrap_or(u64::MAX));
        let wait = Duration::from_millis(random % spread.max(1)).min(OFFER_SPREAD_MAX);
        self.offers.plan(now.saturating_add(wait));
        self.offer_pins(now);
    }

    /// Offers a pin set that is due.
    pub(super) fn offer_pins(&mut self, now: Monotonic) {
        if let Some(set) = self.offers.take(now) {
            self.line.send(BackendMessage::PinUpdate(set));
        }
    }

    pub(super) async fn on_pin_report(&mut self, version: u64) {
        if version == self.trusts {
            // As CONFIRM has stored it, or the report before this one.
            return;
        }
        let (store, tenant) = (&self.line.inbound.store, &self.line.peer.identity.tenant);
        let reported = store
            .report_pins(tenant, self.holder.agent_id, self.holder.epoch, version)
            .await;
        match reported {
            Ok(()) => self.trusts = version,
            Err(error) => self.line.fail(&error),
        }
    }

    pub(super) async fn on_gateway_event(&mut self, event: &Event) {
        self.events = self.events.saturating_add(1);
        if self.events > EVENTS_MAX {
            return self.line.inbound.metrics.refused("gateway_events");
        }
        let (kind, detail, agent_id) = (&event.kind, &event.detail, self.holder.agent_id);
        let record = NewAuditRecord {
            actor: Actor::gateway(agent_id),
            action: "gateway.event".to_owned(),
            object: Actor::gateway(agent_id).to_string(),
            outcome: AuditOutcome::Noted,
            detail: serde_json::json!({ "kind": kind, "detail": detail }),
        };
        let (store, tenant) = (&self.line.inbound.store, &self.line.peer.identity.tenant);
        match store
            .note_gateway(tenant, agent_id, record, self.line_now())
            .await
        {
            Ok(true) => {
                warn!(gateway = %self.line.peer.name, %agent_id, kind, detail, "a gateway reports");
            }
            // Kept for good, so bounded over all sessions of a gateway, too.
            Ok(false) => self.line.inbound.metrics.refused("gateway_events"),
            Err(error) => self.line.fail(&error),
        }
    }
}
