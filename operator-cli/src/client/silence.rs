//! What a person is told while the backend has not answered yet: that it is waited for, and what it says of itself.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use viworks_api::NotReady;

use super::Client;
use crate::output;

/// After how long of silence something is said.
pub(super) const QUIET: Duration = Duration::from_secs(3);

/// How long the backend may take to say how it is: it looks at nothing but itself for that.
const ASK_TIME: Duration = Duration::from_secs(1);

impl Client {
    /// The answer, which is waited for up to `limit`; whoever waits hears why once it takes longer than `expected`.
    pub(super) async fn with_word<T>(
        &self,
        expected: Duration,
        limit: Duration,
        answer: impl Future<Output = T>,
    ) -> T {
        let mut answer = pin!(answer);
        let told = async {
            sleep(expected).await;
            output::note(&self.why_silent(expected, limit).await);
        };
        tokio::select! {
            answer = &mut answer => return answer,
            () = told => {}
        }
        answer.await
    }

    /// Why there is no answer, as far as the backend knows.
    async fn why_silent(&self, silent: Duration, limit: Duration) -> String {
        let asked = async {
            let ready = format!("{}/readyz", self.server);
            let answer = self.http.get(ready).send().await?;
            if answer.status().is_success() {
                return Ok(None);
            }
            answer.json::<NotReady>().await.map(Some)
        };
        let standing = timeout(ASK_TIME, asked).await;
        let silent = format!(
            "{} has not answered for {} s",
            self.server,
            silent.as_secs()
        );
        let waited = format!("it is waited for, up to {} s", limit.as_secs());
        match standing {
            Ok(Ok(None)) => format!("{silent}, and says that it is ready; {waited}"),
            Ok(Ok(Some(NotReady { reasons, .. }))) => {
                let reasons = reasons.join(", ");
                format!("{silent}, and is not ready ({reasons}; viworks health says more); {waited}")
            }
            Ok(Err(_)) | Err(_) => format!("{silent}, nor whether it is ready; {waited}"),
        }
    }
}
