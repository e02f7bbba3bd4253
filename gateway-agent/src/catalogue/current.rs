//! The catalogue in force, which a reload replaces as a whole.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{error, info};
use viworks_runtime::blocking;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::lifecycle::Lifecycle;

use super::{Catalogue, OtherUsers, Owners};
use crate::program;

/// How often commands that could not run are looked at again.
const FRESH_TIME: Duration = Duration::from_secs(60);

/// How many times of that pass at the most before the helper is asked again about what it has refused: each question
/// takes the service manager a service, and a list that is empty is mostly meant to be.
const HELPER_ROUNDS_MAX: u32 = 60;

/// In which rounds the helper is asked again: after one, two, four and so on.
#[derive(Debug)]
struct Rounds {
    left: u32,
    pause: u32,
}

impl Rounds {
    const fn new() -> Self {
        Self { left: 1, pause: 1 }
    }

    /// Whether it is asked in this one.
    fn is_due(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return false;
        }
        self.pause = self.pause.saturating_mul(2).min(HELPER_ROUNDS_MAX);
        self.left = self.pause;
        true
    }
}

/// The catalogue in force. Clones share it.
#[derive(Debug, Clone)]
pub struct Current {
    sender: watch::Sender<Arc<Catalogue>>,
}

impl Current {
    /// Begins with `catalogue`.
    #[must_use]
    pub fn new(catalogue: Catalogue) -> Self {
        Self {
            sender: watch::Sender::new(Arc::new(catalogue)),
        }
    }

    /// The one in force at this moment.
    #[must_use]
    pub fn get(&self) -> Arc<Catalogue> {
        Arc::clone(&self.sender.borrow())
    }

    /// Replaces it.
    pub fn replace(&self, catalogue: Catalogue) {
        self.sender.send_replace(Arc::new(catalogue));
    }

    /// Looks again at commands that could not run when somebody looked last: what they need may have come since. The
    /// helper is asked about what it has refused only when `asks_helper` is true.
    pub async fn look_again(&self, asks_helper: bool) {
        let before = self.get();
        let Some(after) = before.looked_again(asks_helper).await else {
            return;
        };
        let after = Arc::new(after);
        self.sender.send_if_modified(|now| {
            // One that was loaded meanwhile knows better.
            let same = Arc::ptr_eq(now, &before);
            if same {
                *now = after;
            }
            same
        });
    }

    /// Does so now and then, until the agent stops.
    pub async fn keep_fresh(self, clock: Arc<dyn Clock>, lifecycle: Lifecycle) {
        let (mut known, mut rounds) = (self.get(), Rounds::new());
        loop {
            let next = clock.now().saturating_add(FRESH_TIME);
            tokio::select! {
                () = lifecycle.stopping() => return,
                () = sleep_until(&*clock, next) => {}
            }
            // After a reload, or where something else has come, it may have changed its mind.
            let now = self.get();
            if !Arc::ptr_eq(&known, &now) {
                (known, rounds) = (now, Rounds::new());
            }
            self.look_again(rounds.is_due()).await;
        }
    }

    /// Tells when it was replaced.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Catalogue>> {
        self.sender.subscribe()
    }
}

/// The condition while a file that was read again cannot be used.
const RELOAD: &str = "reload";

/// Reads the folder again. A folder with a mistake in it changes nothing: every problem is said, and the catalogue in
/// force stays.
pub async fn reload(
    current: &Current,
    folder: PathBuf,
    owners: Owners,
    others: OtherUsers,
    conditions: &Conditions,
) {
    let (read, own) = (folder.clone(), program::own());
    let load = move || super::load(&read, owners, own, others);
    let loaded = blocking::call("catalogue reload", super::LOAD_TIME, load).await;
    let problems = match loaded {
        Ok(Ok(catalogue)) => {
            info!(commands = catalogue.len(), folder = %folder.display(), "read the catalogue again");
            current.replace(catalogue);
            conditions.clear(RELOAD);
            return;
        }
        Ok(Err(problems)) => problems.in_one_line(),
        Err(error) => error.to_string(),
    };
    error!(%problems, "the catalogue has mistakes; the one in force stays");
    let cause = format!("the catalogue has mistakes; the one in force stays: {problems}");
    let fix = "mend the files and send SIGHUP again; check-config lists every problem";
    conditions.raise(RELOAD, Severity::Warn, &cause, fix);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_is_asked_ever_more_rarely_and_never_given_up() {
        let mut rounds = Rounds::new();
        let asked: Vec<u32> = (1..=300).filter(|_| rounds.is_due()).collect();
        assert_eq!(asked, [1, 3, 7, 15, 31, 63, 123, 183, 243]);
    }
}
