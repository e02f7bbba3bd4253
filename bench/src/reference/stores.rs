//! What a relay keeps of its commands: one commit in SQLite, or two in PostgreSQL with a journey through a stream of
//! Redis between them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use redis::aio::MultiplexedConnection;
use redis::streams::StreamReadReply;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;
use viworks_runtime::config::Environment;
use viworks_runtime::sqlite::{Database, Migration, Options, migration, params};

use super::lock;
use crate::server::RELAY;

const MIGRATIONS: &[Migration] = &[migration!(
    "../../migrations/reference",
    "0001_create_reference.sql"
)];

/// Connections to PostgreSQL: as many as the backend has by default.
const CONNECTIONS: u32 = 16;

/// The group of a stream's readers, and the reader in it.
const GROUP: &str = "relay";

const SCHEMA: &str = "\
CREATE TABLE IF NOT EXISTS command (id text PRIMARY KEY, agent text NOT NULL, done boolean NOT NULL DEFAULT false)";

/// Where commands are kept.
#[derive(Clone)]
pub(super) enum Stores {
    /// In one file.
    Embedded(Database),
    /// On servers.
    Servers(Arc<Servers>),
}

/// A database and a queue.
pub(super) struct Servers {
    pool: PgPool,
    queue: MultiplexedConnection,
    /// The entries of streams that were read and are not done.
    entries: Mutex<BTreeMap<Uuid, String>>,
}

impl Stores {
    /// Opens them: on servers where the environment names some, in the state folder otherwise.
    pub(super) async fn open(environment: &Environment) -> anyhow::Result<Self> {
        let [database, queue] = RELAY.map(|name| environment.get(name));
        let Some((database, queue)) = database.zip(queue) else {
            let folder = environment.get("VIWORKS__DATA__STATE_FOLDER");
            let folder = Path::new(folder.context("no state folder")?);
            let options = Options::new(folder.join("reference.db"));
            return Ok(Self::Embedded(Database::open(options, MIGRATIONS).await?));
        };
        let pool = PgPoolOptions::new()
            .min_connections(CONNECTIONS)
            .max_connections(CONNECTIONS)
            .test_before_acquire(false)
            .connect(database)
            .await?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        let queue = redis::Client::open(queue)?
            .get_multiplexed_async_connection()
            .await?;
        Ok(Self::Servers(Arc::new(Servers {
            pool,
            queue,
            entries: Mutex::default(),
        })))
    }

    /// An agent is there.
    pub(super) async fn attach(&self, agent: &str) -> anyhow::Result<()> {
        let Self::Servers(servers) = self else {
            return Ok(());
        };
        let made: Result<(), redis::RedisError> = redis::cmd("XGROUP")
            .arg(&["CREATE", &stream(agent), GROUP, "0", "MKSTREAM"])
            .query_async(&mut servers.queue.clone())
            .await;
        match made {
            Err(error) if error.code() == Some("BUSYGROUP") => Ok(()),
            other => Ok(other?),
        }
    }

    /// Keeps a command; answers the next one that is to be sent to its agent.
    pub(super) async fn accept(&self, agent: &str, id: Uuid) -> anyhow::Result<Uuid> {
        match self {
            Self::Embedded(database) => {
                let stored = agent.to_owned();
                let insert = move |connection: &viworks_runtime::sqlite::Connection| {
                    let sql = "INSERT INTO command (id, agent) VALUES (:id, :agent)";
                    connection.execute(sql, params! { id: id.to_string(), agent: stored })
                };
                database.write(insert).await?;
                Ok(id)
            }
            Self::Servers(servers) => servers.accept(agent, id).await,
        }
    }

    /// Keeps that a command was answered.
    pub(super) async fn finish(&self, agent: &str, id: Uuid) -> anyhow::Result<()> {
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Servers(servers) => servers.finish(agent, id).await,
        }
    }
}

impl Servers {
    async fn accept(&self, agent: &str, id: Uuid) -> anyhow::Result<Uuid> {
        sqlx::query("INSERT INTO command (id, agent) VALUES ($1, $2)")
            .bind(id.to_string())
            .bind(agent)
            .execute(&self.pool)
            .await?;
        let (mut queue, stream) = (self.queue.clone(), stream(agent));
        let _entry: String = redis::cmd("XADD")
            .arg(&[&stream, "*", "id", &id.to_string()])
            .query_async(&mut queue)
            .await?;
        let read: StreamReadReply = redis::cmd("XREADGROUP")
            .arg(&["GROUP", GROUP, "one", "COUNT", "1", "STREAMS", &stream, ">"])
            .query_async(&mut queue)
            .await?;
        // Each that was added is read by one, though not always by the one who added it.
        let entry = read.keys.iter().flat_map(|key| &key.ids).next();
        let entry = entry.context("the stream is empty")?;
        let next: String = entry.get("id").context("an entry without an id")?;
        let next = next.parse()?;
        lock(&self.entries).insert(next, entry.id.clone());
        Ok(next)
    }

    async fn finish(&self, agent: &str, id: Uuid) -> anyhow::Result<()> {
        sqlx::query("UPDATE command SET done = true WHERE id = $1")
            .bind(id.to_string())
            .execute(&self.pool)
            .await?;
        let entry = lock(&self.entries).remove(&id);
        let entry = entry.context("an answer to nothing")?;
        let _count: u64 = redis::cmd("XACK")
            .arg(&[&stream(agent), GROUP, &entry])
            .query_async(&mut self.queue.clone())
            .await?;
        Ok(())
    }
}

fn stream(agent: &str) -> String {
    format!("relay:{agent}")
}
