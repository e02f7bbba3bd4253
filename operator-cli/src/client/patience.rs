//! How long a run is waited for while its backend does not answer: a restart is no reason to give up.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use viworks_common::id::RunId;

use crate::failure::Failure;
use crate::output;
use crate::program;

/// How long nobody may answer.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// After how long it is said that nobody does.
const QUIET: Duration = Duration::from_secs(3);

/// The longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// The attempts since somebody answered last.
#[derive(Debug)]
pub(super) struct Patience {
    id: RunId,
    since: Option<Instant>,
    pause: Duration,
    told: bool,
}

impl Patience {
    pub(super) const fn with(id: RunId) -> Self {
        Self {
            id,
            since: None,
            pause: Duration::from_millis(200),
            told: false,
        }
    }

    /// Somebody answered.
    pub(super) fn renew(&mut self) {
        *self = Self::with(self.id);
    }

    /// Somebody is there, without a word that brings anything on: attempts stay as rare as they have become.
    pub(super) fn heard(&mut self) {
        self.since = None;
    }

    /// Pauses before the next attempt.
    ///
    /// # Errors
    ///
    /// `failure`, with how to go on, when nobody has answered for too long.
    pub(super) async fn pause(&mut self, failure: Failure) -> Result<(), Failure> {
        let silent = self.since.get_or_insert_with(Instant::now).elapsed();
        if silent >= SILENCE_MAX {
            let follow = format!(
                "the run goes on; follow it: {} runs wait {}",
                program::name(),
                self.id
            );
            return Err(failure.with(follow));
        }
        if silent >= QUIET && !self.told {
            self.told = true;
            output::note(&format!(
                "{}; the run goes on, and it is asked for again",
                failure.what
            ));
        }
        sleep(self.pause).await;
        self.pause = self.pause.saturating_mul(2).min(PAUSE_MAX);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use viworks_runtime::exit::ExitCode;

    use super::*;

    fn silence() -> Failure {
        Failure::new(ExitCode::Unavailable, "nobody answers")
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_of_silence_is_waited_out_and_then_it_is_said_how_to_go_on() {
        let id: RunId = "01900000-0000-7000-8000-000000000001".parse().unwrap();
        let (began, mut patience) = (Instant::now(), Patience::with(id));
        let mut attempts = 0;
        let given_up = loop {
            if let Err(failure) = patience.pause(silence()).await {
                break failure;
            }
            attempts += 1;
        };
        assert!(began.elapsed() >= SILENCE_MAX, "{:?}", began.elapsed());
        assert!(began.elapsed() < SILENCE_MAX + PAUSE_MAX + PAUSE_MAX);
        assert!((10..40).contains(&attempts), "{attempts} attempts");
        assert_eq!(given_up.exit, ExitCode::Unavailable);
        let told = given_up.details.join(" ");
        assert!(told.contains(&format!("runs wait {id}")), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_of_life_renews_it_without_more_attempts() {
        let id = "01900000-0000-7000-8000-000000000001".parse().unwrap();
        let (began, mut patience) = (Instant::now(), Patience::with(id));
        for _ in 0..100 {
            patience.pause(silence()).await.unwrap();
            patience.heard();
        }
        assert!(began.elapsed() > PAUSE_MAX * 90, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_renews_it() {
        let id = "01900000-0000-7000-8000-000000000001".parse().unwrap();
        let mut patience = Patience::with(id);
        for _ in 0..200 {
            patience.pause(silence()).await.unwrap();
            patience.renew();
        }
    }
}
