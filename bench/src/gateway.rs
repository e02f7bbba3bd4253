//! A simulated gateway: the real session over a real connection, with nothing behind it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;
use viworks_backend_agent::pki::issue::Material;
use viworks_common::catalogue::{CatalogueEntry, Risk, catalogue_digest};
use viworks_common::command::{Outcome, OutcomeState, format_digest};
use viworks_common::id::{AgentRunId, BootId, CommandId, InstallId};
use viworks_common::key::{AgentKey, Binding, BindingMode};
use viworks_common::session::{AgentEvent, AgentSession, AgentSessionConfig, SendRefusal};
use viworks_common::telemetry::{Batch, FieldValue, Record};
use viworks_common::wire::message::{
    AgentMessage, Catalogue, CommandAccepted, CommandResult, CommandStarted, Heartbeat, Hello,
    Welcome,
};
use viworks_runtime::clock::{Clock, SystemClock, sleep_until};
use viworks_runtime::{random, tls};

use crate::dial::Socket;

/// A command that may run twice: its permit comes with its offer.
pub(crate) const COMMAND: &str = "bench.echo";

/// A command that must not run twice: it waits for a permit of its own.
pub(crate) const ONCE: &str = "bench.once";

/// One of the gateway agent that ships alone: it runs until its gate is open.
pub(crate) const GATED: &str = "bench.gated";

/// Records in one batch; a body of about 10 KiB.
pub(crate) const BATCH_RECORDS: u64 = 150;

/// What must survive a connection.
pub(crate) struct Gateway {
    run: u128,
    epoch: u64,
    token: String,
}

/// Telemetry to deliver: sequence numbers up to the last one, and how far that got.
pub(crate) struct Feed {
    /// The process that appended it.
    pub(crate) spool_epoch: AgentRunId,
    /// The last sequence number.
    pub(crate) last: u64,
    /// How far it is acknowledged.
    pub(crate) acknowledged: watch::Sender<u64>,
}

fn entries() -> anyhow::Result<Vec<CatalogueEntry>> {
    let entry = |name: &str, idempotent| {
        anyhow::Ok(CatalogueEntry {
            name: name.parse()?,
            title: "answers at once".to_owned(),
            risk: Risk::Read,
            idempotent,
            arguments: Vec::new(),
            timeout_ms: 60_000,
            output_bytes_max: 1_024,
            unavailable: None,
        })
    };
    Ok(vec![entry(COMMAND, true)?, entry(ONCE, false)?])
}

impl Gateway {
    /// One that never connected.
    pub(crate) fn new(material: &Material) -> Self {
        Self {
            run: random::uuid_v4().as_u128(),
            epoch: 0,
            token: material.token.expose_hex(),
        }
    }

    /// Opens a session on `socket`, says so through `up`, and serves it until it ends.
    pub(crate) async fn serve(
        &mut self,
        material: &Material,
        socket: Socket,
        up: impl FnOnce(),
        feed: Option<&Feed>,
    ) -> anyhow::Result<()> {
        let value = tls::exporter(socket.get_ref().get_ref().1)?;
        let config = AgentSessionConfig {
            identity: material.identity.clone(),
            key: AgentKey::new(material.agent_key.clone()),
            key_generation: u8::try_from(material.key_generation)?,
            binding: Binding {
                mode: BindingMode::Exporter,
                value,
            },
            version_floor: 1,
            opening_timeout: Duration::from_secs(30),
        };
        let mut driver = Driver {
            gateway: self,
            session: AgentSession::new(config, SystemClock.now()),
            socket,
            welcome: None,
            up: Some(up),
            next: feed.map(|_| 1),
        };
        driver.drive(feed).await
    }
}

struct Driver<'g, U> {
    gateway: &'g mut Gateway,
    session: AgentSession,
    socket: Socket,
    welcome: Option<Box<Welcome>>,
    up: Option<U>,
    /// The next sequence number of the feed.
    next: Option<u64>,
}

impl<U: FnOnce()> Driver<'_, U> {
    async fn drive(&mut self, feed: Option<&Feed>) -> anyhow::Result<()> {
        loop {
            self.session.handle_timeout(SystemClock.now());
            while let Some(event) = self.session.poll_event() {
                self.event(event, feed)?;
            }
            self.feed(feed)?;
            while let Some(bytes) = self.session.poll_transmit(SystemClock.now()) {
                self.socket.feed(Message::binary(bytes)).await?;
            }
            self.socket.flush().await?;
            if let Some(closed) = self.session.closed() {
                bail!("the session ended: {closed:?}");
            }
            let due = self.session.poll_timeout().map(|(due, _)| due);
            tokio::select! {
                message = self.socket.next() => match message.context("the connection ended")?? {
                    Message::Binary(bytes) => self.session.handle_frame(&bytes, SystemClock.now()),
                    Message::Close(frame) => bail!("closed: {frame:?}"),
                    Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Frame(_) => {}
                },
                () = sleep_until(&SystemClock, due.unwrap_or_default()), if due.is_some() => {}
            }
        }
    }

    fn event(&mut self, event: AgentEvent, feed: Option<&Feed>) -> anyhow::Result<()> {
        match event {
            AgentEvent::Challenged { .. } => self.hello()?,
            AgentEvent::Welcomed(welcome) => {
                self.gateway.epoch = welcome.epoch;
                self.gateway.token.clone_from(&welcome.token);
                self.welcome = Some(welcome);
                self.session.confirm(SystemClock.now());
            }
            AgentEvent::Established => {
                let known = self.welcome.take().is_some_and(|it| it.catalogue_known);
                if !known {
                    let commands = entries()?;
                    let digest = format_digest(&catalogue_digest(&commands));
                    self.send(AgentMessage::Catalogue(Catalogue { digest, commands }))?;
                }
                // Its answer proves that the backend committed the session.
                self.heartbeat()?;
            }
            AgentEvent::HeartbeatDue => self.heartbeat()?,
            AgentEvent::RoundTrip { .. } => {
                if let Some(up) = self.up.take() {
                    up();
                }
            }
            AgentEvent::TelemetryAcknowledged(position) => {
                if let Some(feed) = feed {
                    feed.acknowledged.send_replace(position.seq);
                }
            }
            AgentEvent::Command(command) => {
                self.send(AgentMessage::CommandAccepted(CommandAccepted {
                    command_id: command.command_id,
                    idempotent: command.name.as_str() == COMMAND,
                    awaiting_permit: !command.permitted,
                }))?;
                if command.permitted {
                    self.finish(command.command_id)?;
                }
            }
            AgentEvent::Go(go) => self.finish(go.command_id)?,
            AgentEvent::Refused { code, reason, .. } => bail!("refused: {code:?} {reason}"),
            AgentEvent::Draining { .. } => bail!("asked to reconnect"),
            AgentEvent::Drop(_)
            | AgentEvent::TelemetryRefused(_)
            | AgentEvent::CertificateAnswered(_)
            | AgentEvent::PinsOffered(_)
            | AgentEvent::KeyOffered { .. }
            | AgentEvent::AuthoritiesOffered(_)
            | AgentEvent::Cancel(_)
            | AgentEvent::ResultAcknowledged { .. }
            | AgentEvent::Closed(_) => {}
        }
        Ok(())
    }

    fn hello(&mut self) -> anyhow::Result<()> {
        let run = Uuid::from_u128(self.gateway.run);
        let hello = Hello {
            install_id: InstallId::from_uuid(run),
            boot_id: BootId::from_uuid(run),
            agent_run_id: AgentRunId::from_uuid(run),
            epoch: self.gateway.epoch,
            token: self.gateway.token.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            version: 1,
            capabilities: Vec::new(),
            catalogue_digest: format_digest(&catalogue_digest(&entries()?)),
            labels: BTreeMap::new(),
            unreported: Vec::new(),
            highest_order: 0,
            low_water: 0,
            pin_set_version: u64::MAX >> 11,
            telemetry: Vec::new(),
        };
        self.session
            .hello(hello, random::bytes(), SystemClock.now());
        Ok(())
    }

    fn heartbeat(&mut self) -> anyhow::Result<()> {
        let heartbeat = Heartbeat {
            sent_at_ms: 1,
            round_trip_us: None,
            clock_skew_ms: None,
            spool_records: 0,
            spool_bytes: 0,
            commands_running: 0,
        };
        self.send(AgentMessage::Heartbeat(heartbeat))
    }

    fn finish(&mut self, command_id: CommandId) -> anyhow::Result<()> {
        let started_at = SystemClock.wall();
        self.send(AgentMessage::CommandStarted(CommandStarted {
            command_id,
            started_at,
        }))?;
        let outcome = Outcome {
            exit_code: Some(0),
            started_at: Some(started_at),
            reason: None,
            ..Outcome::without_run(OutcomeState::Succeeded, "")
        };
        self.send(AgentMessage::CommandResult(CommandResult {
            command_id,
            outcome,
        }))
    }

    fn send(&mut self, message: AgentMessage) -> anyhow::Result<()> {
        Ok(self.session.send(message, SystemClock.now())?)
    }

    /// Sends as much telemetry as credit allows.
    fn feed(&mut self, feed: Option<&Feed>) -> anyhow::Result<()> {
        let (Some(feed), Some(mut next)) = (feed, self.next) else {
            return Ok(());
        };
        if self.up.is_some() {
            return Ok(());
        }
        while next <= feed.last && self.session.telemetry_credit() > 12 * 1024 {
            let to = (next + BATCH_RECORDS - 1).min(feed.last);
            let batch = Batch {
                spool_epoch: feed.spool_epoch,
                from_seq: next,
                to_seq: to,
                gaps: Vec::new(),
                records: (next..=to)
                    .map(|seq| Ok((seq, record(seq)?)))
                    .collect::<anyhow::Result<_>>()?,
            };
            match self
                .session
                .send(AgentMessage::Telemetry(batch.into()), SystemClock.now())
            {
                Ok(()) => next = to + 1,
                Err(SendRefusal::Full | SendRefusal::NoCredit) => break,
                Err(refused) => return Err(refused.into()),
            }
        }
        self.next = Some(next);
        Ok(())
    }
}

/// A record as the host metrics look.
pub(crate) fn record(seq: u64) -> anyhow::Result<Record> {
    let value = |n: u64| FieldValue::Number(f64::from(u32::try_from(n % 1_000).unwrap_or(0)) / 7.0);
    Ok(Record {
        stream: ["host.cpu", "host.memory", "host.disk", "host.network"]
            [usize::try_from(seq % 4).unwrap_or(0)]
        .parse()?,
        observed_at: SystemClock.wall(),
        fields: [
            ("used".parse()?, value(seq)),
            ("free".parse()?, value(seq * 3)),
            ("rate".parse()?, value(seq * 7)),
        ]
        .into(),
    })
}
