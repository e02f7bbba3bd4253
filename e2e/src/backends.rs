//! The backends of a soak: one, or two that share a database server, behind the address that gateways dial.

use std::time::Duration;

use anyhow::bail;
use viworks_testkit::deployment::{Deployment, Start};
use viworks_testkit::proxy::Proxy;

use crate::servers::Servers;

/// How long one may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    First,
    Second,
}

/// All of them.
pub(crate) struct Backends {
    first: Deployment,
    second: Option<Deployment>,
    start: Start,
}

impl Backends {
    /// This one alone, or with another one where they can share a database.
    pub(crate) fn of(first: Deployment, servers: &Servers) -> Self {
        let second = servers.database.is_some();
        let second = second.then(|| first.another("backend-2"));
        let start = match &servers.queue {
            Some(queue) => Start::default().with("VIWORKS__QUEUE__URL", queue.place().url()),
            None => Start::default(),
        };
        Self {
            first,
            second,
            start,
        }
    }

    /// Whether there are two.
    pub(crate) const fn are_two(&self) -> bool {
        self.second.is_some()
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
        self.first.start_backend(self.start.clone()).await;
        if let Some(second) = &mut self.second {
            second.start_backend(self.start.clone()).await;
        }
        address.forward_to(self.first.agents_address());
    }

    /// Has gateways that dial come to one of them, as `number` says.
    pub(crate) fn lead(&self, address: &Proxy, number: u64) {
        let second = self.second.as_ref().filter(|_second| number % 2 == 1);
        address.forward_to(second.unwrap_or(&self.first).agents_address());
    }

    /// kill -9 of one of them, and a fresh process; meanwhile gateways come to the other one, if there is one.
    pub(crate) async fn kill(&mut self, address: &Proxy, which: Which) {
        let killed = match (&mut self.second, which) {
            (Some(second), Which::Second) => {
                address.forward_to(self.first.agents_address());
                second
            }
            (Some(second), Which::First) => {
                address.forward_to(second.agents_address());
                &mut self.first
            }
            (None, Which::First | Which::Second) => &mut self.first,
        };
        killed.kill_backend();
        killed.start_backend(self.start.clone()).await;
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
