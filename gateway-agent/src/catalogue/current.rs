//! The catalogue in force, which a reload replaces as a whole.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::{error, info};
use viworks_runtime::lifecycle::{Hangups, Lifecycle};

use super::{Catalogue, Owners};

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

    /// Tells when it was replaced.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Catalogue>> {
        self.sender.subscribe()
    }
}

/// Reads the folder again at every SIGHUP, until the agent stops. A folder with a mistake in it changes nothing: every
/// problem is logged, and the catalogue in force stays.
pub async fn reload_on_hangup(
    current: Current,
    folder: PathBuf,
    owners: Owners,
    mut hangups: Hangups,
    lifecycle: Lifecycle,
) {
    loop {
        tokio::select! {
            biased;
            () = lifecycle.stopping() => return,
            () = hangups.next() => {}
        }
        let (read, own) = (folder.clone(), super::own_program());
        let loaded = tokio::task::spawn_blocking(move || super::load(&read, owners, own)).await;
        match loaded {
            Ok(Ok(catalogue)) => {
                info!(commands = catalogue.len(), folder = %folder.display(), "read the catalogue again");
                current.replace(catalogue);
            }
            Ok(Err(problems)) => {
                error!(%problems, "the catalogue has mistakes; the one in force stays");
            }
            Err(error) => error!(%error, "the catalogue was not read; the one in force stays"),
        }
    }
}
