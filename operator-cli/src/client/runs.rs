//! Runs: submitted, planned, listed, waited for and cancelled.

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use viworks_api::{
    CommandList, CommandView, IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, ProblemCode, Run,
    RunCancelled, RunList, RunPlan, RunRequest, RunWait, SkippedGateway, SkippedList, WAIT_MS_MAX,
};
use viworks_common::id::RunId;
use viworks_runtime::exit::ExitCode;

use super::patience::Patience;
use super::silence::QUIET;
use super::{ALL, Client, REQUEST_TIMEOUT};
use crate::failure::Failure;

/// How many commands' output is fetched for a table, which shows a line of each.
const OUTPUTS_MAX: usize = 50;
/// How often one request is sent again because its key had none left.
const PAUSES_MAX: u32 = 60;
/// How long such a pause is where the backend does not say.
const PAUSE: Duration = Duration::from_secs(1);

/// What became of a run.
#[derive(Debug)]
pub struct Results {
    /// Its commands.
    pub commands: Vec<CommandView>,
    /// Of how many of them the output was not asked for.
    pub without_output: usize,
}

impl Client {
    /// Submits a run; with a key the submission is safe to repeat. Says whether it is the answer to an earlier one.
    pub async fn submit(
        &self,
        request: &RunRequest,
        idempotency_key: Option<&str>,
    ) -> Result<(Run, bool), Failure> {
        let mut builder = self.request(Method::POST, "/v1/runs").json(request);
        if let Some(key) = idempotency_key {
            builder = builder.header(IDEMPOTENCY_KEY, key);
        }
        let unknown = match idempotency_key {
            None => {
                "whether the run was accepted is not known: runs ls shows it; to send it again without running it \
                 twice, give each submission an --idempotency-key"
            }
            Some(_) => {
                "whether the run was accepted is not known: send it again with the same --idempotency-key, and it \
                 is not run twice"
            }
        };
        let submitted = self.submitted(builder).await;
        submitted.map_err(|failure| failure.if_unanswered(unknown))
    }

    pub(super) async fn submitted(&self, builder: RequestBuilder) -> Result<(Run, bool), Failure> {
        self.promptly(builder, async |response| {
            let replayed = response
                .headers()
                .get(IDEMPOTENCY_REPLAYED)
                .is_some_and(|value| value == "true");
            Ok((self.read(response).await?, replayed))
        })
        .await
    }

    /// What a submission would do; nothing is run.
    pub async fn plan(&self, request: &RunRequest) -> Result<RunPlan, Failure> {
        let builder = self.request(Method::POST, "/v1/runs/plan").json(request);
        self.answer(builder).await
    }

    /// The latest runs, at most so many.
    pub async fn runs(&self, limit: usize) -> Result<RunList, Failure> {
        self.list("/v1/runs", &[], limit).await
    }

    /// One run.
    pub async fn run(&self, id: RunId) -> Result<Run, Failure> {
        self.get(&format!("/v1/runs/{id}"), &[]).await
    }

    /// The commands of a run, without their output.
    pub async fn run_commands(&self, id: RunId) -> Result<Vec<CommandView>, Failure> {
        let path = format!("/v1/runs/{id}/commands");
        Ok(self.list::<CommandList>(&path, &[], ALL).await?.items)
    }

    /// The same command with its retained output, if it has any. There may be more of them than the key has requests
    /// at once: then this takes its time.
    pub async fn with_output(
        &self,
        id: RunId,
        command: CommandView,
    ) -> Result<CommandView, Failure> {
        if command.outcome.is_none() {
            return Ok(command);
        }
        let path = format!("/v1/runs/{id}/commands/{}", command.id);
        let mut pauses = 0;
        loop {
            match self.get(&path, &[]).await {
                Err(failure) if failure.is(ProblemCode::RateLimited) && pauses < PAUSES_MAX => {
                    pauses += 1;
                    let told = failure.problem.and_then(|problem| problem.retry_after_ms);
                    tokio::time::sleep(told.map_or(PAUSE, Duration::from_millis)).await;
                }
                answer => return answer,
            }
        }
    }

    /// The commands of a run, with the retained output of each, or of none where there are more than a person reads.
    pub async fn run_results(&self, id: RunId) -> Result<Results, Failure> {
        let mut commands = self.run_commands(id).await?;
        let mut without_output = 0;
        if commands.len() > OUTPUTS_MAX {
            let has_some = |command: &&CommandView| command.outcome.is_some();
            without_output = commands.iter().filter(has_some).count();
        } else {
            for command in &mut commands {
                *command = self.with_output(id, command.clone()).await?;
            }
        }
        Ok(Results {
            commands,
            without_output,
        })
    }

    /// The gateways that a run was meant for and that got no command.
    pub async fn run_skipped(&self, run: &Run) -> Result<Vec<SkippedGateway>, Failure> {
        if run.skipped == 0 {
            return Ok(Vec::new());
        }
        let path = format!("/v1/runs/{}/skipped", run.id);
        Ok(self.list::<SkippedList>(&path, &[], ALL).await?.items)
    }

    /// Asks for a run to be cancelled.
    pub async fn cancel(&self, id: RunId) -> Result<RunCancelled, Failure> {
        let builder = self.request(Method::POST, &format!("/v1/runs/{id}/cancel"));
        let unknown =
            "whether it was cancelled is not known: cancel it again, which changes nothing more";
        let cancelled = self.answer(builder).await;
        cancelled.map_err(|failure: Failure| failure.if_unanswered(unknown))
    }

    /// Waits until a run is finished, at most for `limit`.
    pub async fn wait(&self, id: RunId, limit: Duration) -> Result<RunWait, Failure> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let held = left.min(Duration::from_millis(WAIT_MS_MAX));
            let query = [("timeout_ms", held.as_millis().to_string())];
            let builder = self
                .request(Method::GET, &format!("/v1/runs/{id}/wait"))
                .query(&query);
            let limit = held + REQUEST_TIMEOUT;
            let answer = self.within(held + QUIET, limit, builder, async |response| {
                self.read::<RunWait>(response).await
            });
            let answer = answer.await?;
            if answer.finished || held == left {
                return Ok(answer);
            }
        }
    }

    /// Waits until a run is finished, through what passes.
    pub(super) async fn wait_out(&self, id: RunId) -> Result<(), Failure> {
        let mut patience = Patience::with(id);
        loop {
            match self.wait(id, Duration::from_millis(WAIT_MS_MAX)).await {
                Ok(answer) if answer.finished => return Ok(()),
                Ok(_goes_on) => patience.renew(),
                Err(failure) if failure.exit == ExitCode::Unavailable => {
                    patience.pause(failure).await?;
                }
                Err(failure) => return Err(failure),
            }
        }
    }
}
