//! The servers of a soak: where the backends keep their data, and what stands between them.

use anyhow::bail;
use viworks_testkit::{postgres, redis};

/// Those that the soak has.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) database: Option<postgres::Own>,
    pub(crate) queue: Option<redis::Own>,
}

impl Servers {
    /// Starts those that are wanted.
    pub(crate) fn start(with_database: bool, with_queue: bool) -> anyhow::Result<Self> {
        let database = with_database.then(postgres::Own::start).flatten();
        if database.is_none() && with_database {
            bail!("PostgreSQL is not installed");
        }
        let queue = with_queue.then(redis::Own::start).flatten();
        if queue.is_none() && with_queue {
            bail!("Redis is not installed");
        }
        Ok(Self { database, queue })
    }
}
