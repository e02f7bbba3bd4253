//! The checks of the agents' side: connection, identity, and what a gateway is there for.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use viworks_api::{GatewayRef, GatewayStatus, RequestedArguments, RunRequest, Targets};
use viworks_common::command::CommandState;
use viworks_common::human;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use super::agent::{Agent, COMMAND, STREAM, Tried, tries};
use super::causes::{LOGS, not_upgraded, unanswered};
use super::papers::Papers;
use super::report::Finding;
use super::wire::{self, Opened, Refused, Shown};
use super::{CheckName, Wanted, api, door, trust};
use crate::client::Client;
use crate::failure::Failure;

/// How long a gateway may take to be online.
const ONLINE_WITHIN: Duration = Duration::from_secs(10);
/// How long a command may take, its way there and back included.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(2);
/// How long a gateway may take until it is connected again after it was told to stop.
const RESTART_MAX: Duration = Duration::from_secs(2);
/// After how long a command that does not end is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(20);
/// How long records may take to be stored.
const STORED_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// The close code of a second holder of an identity.
const IDENTITY_FORK: u16 = 4_410;
/// Of what was said before, and of what cannot be read.
const REPLAY: [u16; 1] = [4_400];

/// An installation and the gateway that it is validated with.
pub(super) struct Site<'s> {
    client: &'s Client,
    wanted: &'s Wanted,
    papers: Papers,
    agent: Option<Agent>,
    begun: Timestamp,
}

impl<'s> Site<'s> {
    pub(super) fn new(client: &'s Client, wanted: &'s Wanted, papers: Papers) -> Self {
        Self {
            client,
            wanted,
            papers,
            agent: None,
            begun: SystemClock
                .wall()
                .saturating_sub(Duration::from_secs(3_600)),
        }
    }

    /// Ends what it started.
    pub(super) async fn close(self) {
        if let Some(agent) = self.agent {
            agent.stop().await;
        }
    }

    /// Whether the gateway is there for this alone. One that works elsewhere would take harm from it, and what is found
    /// with one that has worked says nothing of the installation.
    pub(super) async fn is_unused(&self) -> Result<(), Failure> {
        let known = self.client.gateway(&self.reference()).await;
        let what = match known {
            Ok(gateway) => match gateway.status {
                GatewayStatus::Never => return Ok(()),
                GatewayStatus::Revoked => format!("the gateway {} is revoked", gateway.name),
                GatewayStatus::Online | GatewayStatus::Offline | GatewayStatus::Blocked => {
                    format!("the gateway {} is in use, or was", gateway.name)
                }
            },
            Err(failure) if failure.exit == ExitCode::NotFound && failure.problem.is_some() => {
                format!(
                    "{} does not know the gateway of {}",
                    self.client.server(),
                    self.papers.folder.display()
                )
            }
            Err(failure) if matches!(failure.exit, ExitCode::Login | ExitCode::Forbidden) => {
                return Err(failure);
            }
            // Nobody is there, or nobody that makes sense: that is for the checks to say.
            Err(_unknown) => return Ok(()),
        };
        Err(Failure::new(ExitCode::Config, what).with(
            "fix: issue one for this run alone, viworks-backend-agent pki issue-gateway NAME --out DIR, and revoke it \
             afterwards",
        ))
    }

    pub(super) async fn check(&mut self, name: CheckName) -> Finding {
        match name {
            CheckName::Health => api::health(self.client).await,
            CheckName::Configuration => self.configuration().await,
            CheckName::Upgrade => self.upgrade().await,
            CheckName::Mtls => self.mtls().await,
            CheckName::NoCertificate => self.refused(Shown::Nothing).await,
            CheckName::ForeignCertificate => self.refused(Shown::Foreign).await,
            CheckName::Replay => self.replay().await,
            CheckName::Registration => self.registration().await,
            CheckName::Duplicate => self.duplicate().await,
            CheckName::RoundTrip => self.round_trip().await,
            CheckName::DataFlow => self.data_flow().await,
            CheckName::Restart => self.restart().await,
            CheckName::Limits => api::limits(self.client, &self.papers).await,
            CheckName::Enrolment => {
                door::enrolment(&self.papers, self.wanted.door.as_deref()).await
            }
            CheckName::Renewal => trust::renewal(self.client).await,
            CheckName::Pins => trust::pins(self.client, &self.papers).await,
            CheckName::Revocation => self.revocation().await,
        }
    }

    async fn configuration(&self) -> Finding {
        let overlays = [
            ("VIWORKS__OUTBOUND__URL", "ws://127.0.0.1:1", "plain text"),
            ("VIWORKS__OUTBOUND__PINS", "[]", "no pin"),
            ("VIWORKS__OUTBOUND__NO_SUCH_KEY", "1", "an unknown key"),
        ];
        let (agent, folder) = (&self.wanted.agent, &self.papers.folder);
        // Refused for what is laid over it, and not because it is always refused.
        match tries(agent, folder, "check-config", None).await {
            Ok(Tried { code: Some(0), .. }) => {}
            Ok(tried) => {
                return Finding::fail(
                    tried
                        .code
                        .map_or_else(|| "no end".to_owned(), |code| format!("exit code {code}")),
                    format!(
                        "`check-config` does not take the configuration as it is: {}",
                        crate::output::last_line(&tried.said)
                    ),
                    "viworks-gateway-agent check-config lists every problem of the gateway's folder",
                );
            }
            Err(error) => {
                return Finding::fail("not started", error, "name the agent: --agent FILE");
            }
        }
        let fix = "install the agent of this release";
        let mut tried = 0;
        for (variable, value, what) in overlays {
            for verb in ["check-config", "run"] {
                let start = tries(agent, folder, verb, Some((variable, value))).await;
                match start.map(|start| (start.code, start.said.contains(variable))) {
                    Ok((Some(78), true)) => tried += 1,
                    Ok((Some(code), named)) => {
                        let silent = if named { "" } else { ", and does not name it" };
                        let reason = format!("`{verb}` with {what} ended with {code}{silent}");
                        return Finding::fail(format!("exit code {code}"), reason, fix);
                    }
                    Ok((None, _)) => {
                        let reason = format!("`{verb}` with {what} goes on");
                        return Finding::fail("no end", reason, fix);
                    }
                    Err(error) => return Finding::fail("not started", error, fix),
                }
            }
        }
        Finding::Pass(format!("{tried} of {tried} starts refused with 78"))
    }

    async fn upgrade(&self) -> Finding {
        match wire::upgrade(&self.papers).await {
            Ok(upgraded) => Finding::Pass(format!(
                "101 Switching Protocols in {} ms",
                upgraded.took.as_millis()
            )),
            Err(refused) => not_upgraded(&refused),
        }
    }

    async fn mtls(&self) -> Finding {
        let upgraded = match wire::upgrade(&self.papers).await {
            Ok(upgraded) => upgraded,
            Err(refused) => return not_upgraded(&refused),
        };
        let version = upgraded.version.replace("TLSv1_3", "TLS 1.3");
        let count = self.papers.pins.len();
        let known = upgraded
            .pin
            .is_some_and(|pin| self.papers.pins.contains(&pin));
        if !known {
            let seen = upgraded.pin.map_or_else(String::new, |pin| pin.to_string());
            return Finding::fail(
                format!("{version}, key {seen}"),
                format!("the server shows a key that is none of the {count} pinned ones"),
                "the server's key was changed without staging it: renew with the same key (certbot: --reuse-key), or \
                 issue gateways with the new pins",
            );
        }
        if version != "TLS 1.3" {
            let fix = "whoever ends TLS in front of the backend has to speak TLS 1.3";
            return Finding::fail(version, "older than TLS 1.3", fix);
        }
        Finding::Pass(format!(
            "{version}, certificate taken, one of {} served",
            human::counted(count, "pin", "pins")
        ))
    }

    async fn refused(&self, shown: Shown) -> Finding {
        // Nobody there refuses nobody, and where the gateway itself is not let in, nothing follows from it.
        let took = match wire::upgrade(&self.papers).await {
            Ok(upgraded) => upgraded.took,
            Err(refused) => return not_upgraded(&refused),
        };
        match wire::intrude(&self.papers, shown, took).await {
            Ok(_let_in) => Finding::fail(
                "101 Switching Protocols",
                "whoever has no certificate of the gateways' authority is let in",
                "a proxy in front ends TLS without asking for certificates: pass TLS through, or verify clients there",
            ),
            Err(refused @ (Refused::Certificate(_) | Refused::Http(400 | 401 | 403))) => {
                Finding::Pass(refused.words())
            }
            Err(refused) => Finding::fail(
                refused.words(),
                "it was not let in, and nobody said that it is for its certificate",
                LOGS,
            ),
        }
    }

    async fn replay(&self) -> Finding {
        let fix = "this backend is not safe to use: report it";
        let (said, opened) = match wire::hello(&self.papers).await {
            Ok(first) => first,
            Err(refused) => return not_upgraded(&refused),
        };
        if let Opened::Refused(refused) = &opened
            && *refused != Refused::Closed(IDENTITY_FORK)
        {
            return Finding::fail(
                refused.words(),
                "the first opening, which is to be replayed, was refused",
                "issue a gateway for this validation alone",
            );
        }
        match wire::say_again(&self.papers, said).await {
            Ok(Opened::Refused(refused @ Refused::Closed(code))) if REPLAY.contains(&code) => {
                Finding::Pass(format!("{} replay", refused.words()))
            }
            Ok(Opened::Refused(refused)) => Finding::fail(
                refused.words(),
                "it did not come to an end as a replay does",
                fix,
            ),
            Ok(Opened::Welcomed) => {
                Finding::fail("answered", "a recorded opening was taken again", fix)
            }
            Err(refused) => not_upgraded(&refused),
        }
    }

    fn reference(&self) -> String {
        self.papers.identity.agent_id.to_string()
    }

    async fn registration(&mut self) -> Finding {
        let begun = Instant::now();
        let started = Agent::start(&self.wanted.agent, &self.papers.folder);
        let agent = match started {
            Ok(agent) => self.agent.insert(agent),
            Err(why) => {
                return Finding::fail("not started", why, "name the agent: --agent FILE");
            }
        };
        let id = self.papers.identity.agent_id;
        loop {
            if let Some(status) = agent.ended() {
                let reason = format!("the agent ended ({status}): {}", agent.last_line());
                return Finding::fail("offline", reason, "what the agent says names the cause");
            }
            let known = self.client.gateway(&id.to_string()).await;
            // Its catalogue is known as well: it can be given commands.
            if let Ok(gateway) = &known
                && gateway.status == GatewayStatus::Online
                && gateway.catalogue_digest.is_some()
            {
                let took = begun.elapsed();
                let all = self.client.gateways().await;
                let same = all.map(|list| list.items.iter().filter(|it| it.id == id).count());
                return match same {
                    Ok(1) => {
                        Finding::Pass(format!("online after {} ms, stored once", took.as_millis()))
                    }
                    Ok(count) => Finding::fail(
                        human::counted(count, "row", "rows"),
                        "one gateway is there more than once",
                        "this database is damaged: restore it",
                    ),
                    Err(failure) => unanswered("not listed", failure),
                };
            }
            if begun.elapsed() >= ONLINE_WITHIN {
                return match known {
                    Ok(_offline) => {
                        let reason = format!("the agent says: {}", agent.last_line());
                        Finding::fail("offline", reason, LOGS)
                    }
                    Err(failure) => unanswered("not known", failure),
                };
            }
            sleep(PAUSE).await;
        }
    }

    async fn restart(&mut self) -> Finding {
        if let Some(finding) = self.needs_the_gateway() {
            return finding;
        }
        let fix =
            "compare `viworks-gateway-agent doctor` on the gateway's side, which times each step";
        let Some(agent) = self.agent.as_mut() else {
            return Finding::fail("not tried", "there is no agent", fix);
        };
        let begun = Instant::now();
        if let Err(why) = agent.restart().await {
            return Finding::fail("not restarted", why, fix);
        }
        let started = begun.elapsed();
        while !agent.is_connected().await {
            if begun.elapsed() >= ONLINE_WITHIN {
                return Finding::fail("not connected", agent.last_line(), fix);
            }
            sleep(PAUSE).await;
        }
        let took = begun.elapsed();
        let measured = format!(
            "connected after {} ms, {} ms of which to stop",
            took.as_millis(),
            started.as_millis()
        );
        if took < RESTART_MAX {
            return Finding::Pass(measured);
        }
        Finding::fail(measured, "it took as long as the limit, or longer", fix)
    }

    async fn revocation(&mut self) -> Finding {
        if let Some(finding) = self.needs_the_gateway() {
            return finding;
        }
        let reference = self.reference();
        let Some(agent) = self.agent.as_mut() else {
            return Finding::fail("not tried", "there is no agent", LOGS);
        };
        trust::revocation(self.client, &self.papers, &reference, agent).await
    }

    fn needs_the_gateway(&self) -> Option<Finding> {
        self.agent.is_none().then(|| {
            Finding::fail(
                "not tried",
                "it needs the gateway of `registration`, which is not there",
                "mend that first, and leave it in --only",
            )
        })
    }

    async fn duplicate(&self) -> Finding {
        if let Some(finding) = self.needs_the_gateway() {
            return finding;
        }
        match wire::hello(&self.papers).await {
            Ok((_said, Opened::Refused(Refused::Closed(IDENTITY_FORK)))) => {
                match self.client.gateway(&self.reference()).await {
                    Ok(gateway) if gateway.status == GatewayStatus::Online => Finding::Pass(
                        "refused (4410 identity_fork), the first one goes on".to_owned(),
                    ),
                    Ok(_offline) => Finding::fail(
                        "the first one is offline",
                        "a second machine drove out the live one",
                        LOGS,
                    ),
                    Err(failure) => unanswered("not known", failure),
                }
            }
            Ok((_said, Opened::Refused(refused))) => Finding::fail(
                refused.words(),
                "a second machine with the same identity is refused with 4410, and nothing else",
                LOGS,
            ),
            Ok((_said, Opened::Welcomed)) => Finding::fail(
                "let in",
                "a second machine with the same identity was welcomed",
                "this backend is not safe to use: report it",
            ),
            Err(refused) => not_upgraded(&refused),
        }
    }

    async fn round_trip(&self) -> Finding {
        if let Some(finding) = self.needs_the_gateway() {
            return finding;
        }
        let Ok(command) = COMMAND.parse() else {
            return Finding::fail("–", "the command has no valid name", "report it");
        };
        let request = RunRequest {
            command,
            arguments: RequestedArguments::default(),
            targets: Targets::Gateways(vec![GatewayRef::Id(self.papers.identity.agent_id)]),
            deadline_ms: None,
            timeout_ms: None,
            skip_unable: false,
            expect_targets: Some(1),
            reason: Some("production validation".to_owned()),
        };
        let mut times = Vec::new();
        for _number in 0..self.wanted.commands {
            match self.once(&request).await {
                Ok(took) => times.push(took),
                Err(finding) => return finding,
            }
        }
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(index).copied().unwrap_or_default()
        };
        let measured = format!(
            "p50 {} ms  p95 {} ms  max {} ms  (n={})",
            at(50).as_millis(),
            at(95).as_millis(),
            at(100).as_millis(),
            times.len()
        );
        if at(100) < ROUND_TRIP_MAX {
            return Finding::Pass(measured);
        }
        let reason = "the slowest took as long as the limit, or longer";
        let fix = "compare `viworks gateway show` (its round trip) with the backend's metrics of its database";
        Finding::fail(measured, reason, fix)
    }

    /// One command, there and back; otherwise why that is not it.
    async fn once(&self, request: &RunRequest) -> Result<Duration, Finding> {
        let refused = |failure: Failure| unanswered("not run", failure);
        let begun = Instant::now();
        let submitted = self.client.submit(request, None).await;
        let (run, _replayed) = submitted.map_err(refused)?;
        let waited = self.client.wait(run.id, GIVEN_UP_AFTER).await;
        let waited = waited.map_err(refused)?;
        let took = begun.elapsed();
        if !waited.finished {
            let measured = format!("no end within {} s", GIVEN_UP_AFTER.as_secs());
            let reason = format!("run {} goes on", run.id);
            return Err(Finding::fail(measured, reason, LOGS));
        }
        let counts = waited.run.counts;
        if counts.get(&CommandState::Succeeded) == Some(&1) {
            return Ok(took);
        }
        let reason = format!("run {} did not succeed: {counts:?}", run.id);
        Err(Finding::fail("failed", reason, LOGS))
    }

    async fn data_flow(&self) -> Finding {
        let Some(agent) = &self.agent else {
            return self
                .needs_the_gateway()
                .unwrap_or_else(|| Finding::Skipped(String::new()));
        };
        let sent = match agent.hand_in(self.wanted.records).await {
            Ok(sent) => usize::try_from(sent).unwrap_or(usize::MAX),
            Err(why) => return Finding::fail("not handed in", why, LOGS),
        };
        let begun = Instant::now();
        let reference = self.reference();
        loop {
            let stored =
                self.client
                    .telemetry(&reference, STREAM, self.begun, sent.saturating_mul(2));
            let items = match stored.await {
                Ok(list) => list.items,
                Err(failure) => return unanswered("not read", failure),
            };
            let number = |fields: &viworks_common::telemetry::Fields| {
                serde_json::to_value(fields).ok()?.get("n")?.as_u64()
            };
            let distinct: BTreeSet<u64> =
                items.iter().filter_map(|it| number(&it.fields)).collect();
            let double = items.len() - distinct.len();
            let measured = format!("{sent} sent, {} stored, {double} double", items.len());
            if items.len() == sent && double == 0 {
                return Finding::Pass(measured);
            }
            let refusals = self.client.telemetry_refusals(&reference).await;
            let refused = refusals.map_or(0, |list| {
                list.items.iter().map(|it| it.records).sum::<u64>()
            });
            let is_late = begun.elapsed() >= STORED_WITHIN;
            if refused > 0 || items.len() > sent || double > 0 || is_late {
                return Finding::fail(
                    measured,
                    format!(
                        "not what was sent; {}",
                        human::counted_all(refused, "record was refused", "records were refused")
                    ),
                    "viworks telemetry shows gaps and refusals with their reasons",
                );
            }
            sleep(PAUSE).await;
        }
    }
}
