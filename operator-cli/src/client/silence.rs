//! What a person is told while the backend has not answered yet: that it is waited for, and what it says of itself.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use viworks_api::Standing;

use super::{Client, REQUEST_TIMEOUT};
use crate::output;

/// After how long of silence something is said.
const QUIET: Duration = Duration::from_secs(3);

/// How long the backend may take to say how it is: it looks at nothing but itself for that.
const ASK_TIME: Duration = Duration::from_secs(1);

impl Client {
    /// The answer; whoever waits for it hears why as soon as it takes long.
    pub(super) async fn with_word<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        let told = async {
            sleep(QUIET).await;
            output::note(&self.why_silent().await);
        };
        tokio::select! {
            answer = &mut answer => return answer,
            () = told => {}
        }
        answer.await
    }

    /// Why there is no answer, as far as the backend knows.
    async fn why_silent(&self) -> String {
        let asked = async {
            let ready = format!("{}/readyz", self.server);
            self.http.get(ready).send().await?.json::<Standing>().await
        };
        let standing = timeout(ASK_TIME, asked).await;
        let silent = format!("{} has not answered for {} s", self.server, QUIET.as_secs());
        let waited = format!("it is waited for, up to {} s", REQUEST_TIMEOUT.as_secs());
        let Ok(Ok(Standing { checks, .. })) = standing else {
            return format!("{silent}, nor whether it is ready; {waited}");
        };
        let wrong = checks.iter().filter(|check| !check.ok);
        let wrong: Vec<_> = wrong
            .map(|check| format!("{}: {}", check.name, check.reason))
            .collect();
        if wrong.is_empty() {
            return format!("{silent}, and says that it is ready; {waited}");
        }
        format!("{silent}, and is not ready: {}; {waited}", wrong.join("; "))
    }
}
