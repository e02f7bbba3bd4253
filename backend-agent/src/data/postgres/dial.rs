//! The connection of one thread: dialled when there is something to do, and anew once those of its time are given up.

use std::sync::Arc;
use std::time::Duration;

use viworks_common::time::Monotonic;
use viworks_runtime::clock::{Clock as _, SystemClock};

use super::Address;
use super::connection::Connection;
use super::era::Era;
use super::error::Error;
use super::lease::Held;
use crate::data::intents::link::Party;

/// How long nobody tries to connect after that failed: who comes meanwhile is told the same at once.
const RETRY_CONNECT: Duration = Duration::from_millis(500);

/// Where a thread finds the server, and whose work it does there.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    address: Arc<Address>,
    /// None of what works beside the backends.
    lease: Option<Arc<Held>>,
    era: Arc<Era>,
    /// When connecting failed last, and why.
    failed: Option<(Monotonic, Error)>,
}

/// A connection, and the time that it is of.
pub(super) struct Kept {
    pub(super) connection: Connection,
    pub(super) era: u64,
}

impl Dial {
    pub(super) fn new(address: &Arc<Address>, lease: Option<&Arc<Held>>, era: &Arc<Era>) -> Self {
        Self {
            address: Arc::clone(address),
            lease: lease.cloned(),
            era: Arc::clone(era),
            failed: None,
        }
    }

    /// For whom it is.
    pub(super) fn party(&self) -> Party {
        let instance = self.lease.as_ref().and_then(|lease| lease.instance());
        instance.map_or(Party::Beside, Party::Instance)
    }

    /// The lease was found not to hold.
    pub(super) fn doubt(&self) {
        if let Some(lease) = &self.lease {
            lease.doubt();
        }
    }

    /// A connection of the present time: the one that was kept, or a new one on which `first` was said.
    pub(super) fn connection(
        &mut self,
        kept: Option<Kept>,
        first: Option<&'static str>,
    ) -> Result<Kept, Error> {
        let era = self.era.now();
        match kept {
            Some(kept) if kept.era == era => return Ok(kept),
            Some(of_another_time) => of_another_time.connection.close(),
            None => {}
        }
        let now = SystemClock.now();
        if let Some((at, error)) = &self.failed
            && now.saturating_since(*at) < RETRY_CONNECT
        {
            return Err(error.clone());
        }
        let opened = self.open(first);
        let failure = opened.as_ref().err();
        self.failed = failure.map(|error| (SystemClock.now(), error.clone()));
        opened.map(|connection| Kept { connection, era })
    }

    fn open(&self, first: Option<&'static str>) -> Result<Connection, Error> {
        let opened = Connection::open(&self.address)?;
        if let Some(first) = first {
            opened.batch(first)?;
        }
        Ok(opened)
    }

    /// The connection was lost for this reason.
    pub(super) fn judge(&self, kept: &Kept, error: &Error) {
        self.era.judge(kept.era, error);
    }
}
