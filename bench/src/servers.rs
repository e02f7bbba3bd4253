//! The servers of a scaled site, private to one measurement: a PostgreSQL and a Redis, which end with it.

use std::time::Duration;

use anyhow::Context;
use viworks_testkit::postgres;
use viworks_testkit::redis;

use crate::processor;

/// The database of the backend.
const OURS: &str = "ours";

/// The database of the reference.
const REFERENCE: &str = "reference";

/// Both servers, each on the disk that everything else is on.
pub(crate) struct Servers {
    postgres: postgres::Own,
    redis: redis::Own,
}

impl Servers {
    /// Starts them; `None` where one of them is not installed, which was said then.
    pub(crate) fn start() -> Option<Self> {
        let servers = Self {
            postgres: postgres::Own::start()?,
            redis: redis::Own::start()?,
        };
        for database in [OURS, REFERENCE] {
            servers.postgres.server().make_empty(database);
        }
        Some(servers)
    }

    /// What the backend's configuration says of them.
    pub(crate) fn configuration(&self) -> String {
        format!(
            "\n[store]\nurl = \"{}\"\n\n[queue]\nurl = \"{}\"\n",
            self.postgres.server().url(OURS),
            self.redis.place().url()
        )
    }

    /// The database of the reference.
    pub(crate) fn reference(&self) -> String {
        self.postgres.server().url(REFERENCE)
    }

    /// The queue of the reference, beside the backend's.
    pub(crate) fn queue(&self) -> String {
        self.redis.place().url()
    }

    /// How many commands the queue has carried out.
    pub(crate) fn queue_commands(&self) -> anyhow::Result<u64> {
        let said: String = self.redis.place().ask(&["INFO", "stats"])?;
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix("total_commands_processed:"));
        Ok(line.context("no such counter")?.trim().parse()?)
    }

    /// What the queue holds in memory, in bytes.
    pub(crate) fn queue_bytes(&self) -> anyhow::Result<u64> {
        let said: String = self.redis.place().ask(&["INFO", "memory"])?;
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix("used_memory:"));
        Ok(line.context("no such counter")?.trim().parse()?)
    }

    /// Processor time that the database has used so far, its processes that ended among it.
    pub(crate) fn database_time(&self) -> anyhow::Result<Duration> {
        let file = self.ask("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)")?;
        processor::of_family(file.parse().context("no process id")?)
    }

    /// The answer of a query to the backend's database.
    pub(crate) fn ask(&self, query: &str) -> anyhow::Result<String> {
        let answer = self.postgres.server().psql(OURS, query);
        answer.map_err(|said| anyhow::anyhow!("PostgreSQL says: {said}"))
    }
}
