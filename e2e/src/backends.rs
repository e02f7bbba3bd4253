//! The backends of a soak: one, or two that share a database server, behind the address that gateways dial.

use std::time::Duration;

use anyhow::bail;
use viworks_testkit::deployment::{Deployment, Start};
use viworks_testkit::proxy::Proxy;

/// How long one may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// All of them.
pub(crate) struct Backends {
    first: Deployment,
    second: Option<Deployment>,
}

impl Backends {
    /// This one alone, or with another one.
    pub(crate) fn of(first: Deployment, are_two: bool) -> Self {
        let second = are_two.then(|| first.another("backend-2"));
        Self { first, second }
    }

    /// The first, by which the site is known.
    pub(crate) const fn first(&mut self) -> &mut Deployment {
        &mut self.first
    }

    /// Where the API of each is.
    pub(crate) fn apis(&self) -> Vec<String> {
        let all = [Some(&self.first), self.second.as_ref()];
        all.into_iter().flatten().map(Deployment::api_url).collect()
    }

    /// Starts them; gateways come to the first.
    pub(crate) async fn start(&mut self, address: &Proxy) {
        self.first.start_backend(Start::default()).await;
        if let Some(second) = &mut self.second {
            second.start_backend(Start::default()).await;
        }
        address.forward_to(self.first.agents_address());
    }

    /// Has gateways that dial come to one of them, as `number` says.
    pub(crate) fn lead(&self, address: &Proxy, number: u64) {
        let second = self.second.as_ref().filter(|_second| number % 2 == 1);
        address.forward_to(second.unwrap_or(&self.first).agents_address());
    }

    /// kill -9 of one of them in turn, and a fresh process; meanwhile gateways come to the other one, if there is one.
    pub(crate) async fn kill(&mut self, address: &Proxy, number: u64) {
        self.lead(address, number + 1);
        let killed = match &mut self.second {
            Some(second) if number % 2 == 1 => second,
            Some(_) | None => &mut self.first,
        };
        killed.kill_backend();
        killed.start_backend(Start::default()).await;
    }

    /// Stops them.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        let all = [Some(&mut self.first), self.second.as_mut()];
        for backend in all.into_iter().flatten() {
            let process = backend.backend();
            if !process.stop(STOP_WITHIN).await.success() {
                bail!("a backend did not stop cleanly:\n{}", process.log());
            }
        }
        Ok(())
    }
}
