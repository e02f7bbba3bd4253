//! A database on a server that has not, or not any more, what the backend needs: it says so, by name and with what to do.

use std::time::Duration;

use viworks_backend_agent::data::postgres::{Address, Error, PostgresStore, Role, inspect};
use viworks_backend_agent::data::{StoreError, UpkeepStore as _};
use viworks_testkit::postgres::Server;
use viworks_testkit::process::eventually;

use super::bed::Bed;
use super::database;
use super::postgres_only::open;

/// Longer than a lock is waited for.
const HELD_FOR: u64 = 9;

/// A site of a user that is no more than the owner of its tables.
struct Lodger {
    server: &'static Server,
    database: String,
    name: String,
    url: String,
}

impl Lodger {
    fn new(folder: &tempfile::TempDir) -> Option<Self> {
        let (server, database) = database(folder)?;
        server.make_empty(&database);
        let name = format!("lodger_{database}");
        let url = server.url(&database).replace("viworks@", &format!("{name}@"));
        let own = Self {
            server,
            database,
            name,
            url,
        };
        own.ask(&format!("CREATE ROLE {} LOGIN", own.name));
        own.ask(&format!("GRANT ALL ON SCHEMA public TO {}", own.name));
        Some(own)
    }

    fn ask(&self, statement: &str) -> String {
        self.server.psql(&self.database, statement).unwrap()
    }

    fn address(&self) -> Address {
        Address::parse(&self.url, None, None).unwrap()
    }

    async fn open(&self) -> Result<PostgresStore, Error> {
        open(&self.url, Role::Backend).await
    }

    /// A start is refused, and `check-config --connect` refuses it in the same words; what they are.
    async fn refusal(&self) -> String {
        let error = self.open().await.unwrap_err();
        assert!(matches!(error, Error::Lacks(_)), "{error:?}");
        assert!(error.is_lasting(), "{error:?}");
        let looked = inspect(self.address(), true).await.unwrap_err();
        assert_eq!(looked.to_string(), error.to_string());
        error.to_string()
    }

    fn leave(self) {
        self.server.drop(&self.database);
        let role = format!("DROP ROLE {}", self.name);
        self.server.psql("postgres", &role).unwrap();
    }
}

/// What the health of a running store says is lacking.
async fn lacking(store: &PostgresStore) -> String {
    match store.health().await {
        Err(StoreError::Unfit(cause)) => cause.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_lacks_something_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let Some(lodger) = Lodger::new(&folder) else {
        return;
    };
    let store = lodger.open().await.unwrap();
    let health = store.health().await.unwrap();
    assert_eq!((health.lacks, health.refused, health.held), (None, None, None));

    // What statements need: found when one fails, all of it at once, and a start is refused.
    lodger.ask("ALTER TABLE api_keys DROP COLUMN last_used_at");
    lodger.ask("DROP TABLE dead_letters");
    lodger.ask(&format!("REVOKE INSERT ON audit_log FROM {}", lodger.name));
    let tenant = viworks_common::id::Tenant::default_tenant();
    let page = viworks_backend_agent::data::Page::first(10);
    let failed = store.list_api_keys(&tenant, page).await.unwrap_err();
    assert!(matches!(failed, StoreError::Unfit(_)), "{failed:?}");
    let grant = format!("GRANT INSERT ON audit_log TO {}", lodger.name);
    for said in [lacking(&store).await, lodger.refusal().await] {
        for wanted in [
            "the column api_keys.last_used_at bigint",
            "the table dead_letters",
            "restore the database from a backup",
            "the right INSERT on audit_log",
            &grant,
        ] {
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
    }
    // What is put back is found without a restart.
    lodger.ask("ALTER TABLE api_keys ADD COLUMN last_used_at bigint");
    lodger.ask(&grant);
    let said = lacking(&store).await;
    assert!(!said.contains("api_keys") && !said.contains("audit_log"), "{said}");
    store.close().await;
    lodger.leave();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_is_gone_keeps_nobody_from_working_and_is_told_of_with_its_statement() {
    let folder = tempfile::tempdir().unwrap();
    let Some(lodger) = Lodger::new(&folder) else {
        return;
    };
    lodger.open().await.unwrap().close().await;
    lodger.ask("DROP INDEX commands_by_run");
    lodger.ask("DROP TRIGGER audit_log_is_never_changed ON audit_log");
    let store = lodger.open().await.unwrap();
    let said = store.health().await.unwrap().lacks.unwrap();
    let make = "CREATE INDEX commands_by_run ON commands USING btree (run_id, command_id, tenant)";
    assert!(said.contains(make), "{said}");
    assert!(
        said.contains("the trigger audit_log_is_never_changed of audit_log"),
        "{said}"
    );
    let looked = inspect(lodger.address(), true).await.unwrap();
    assert_eq!(looked.lacks.as_deref(), Some(&*said));
    // It says how to make it.
    lodger.ask(make);
    let looked = inspect(lodger.address(), true).await.unwrap();
    assert!(!looked.lacks.unwrap().contains("commands_by_run"));
    store.close().await;
    lodger.leave();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_a_lock_that_statements_wait_for_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let Some(lodger) = Lodger::new(&folder) else {
        return;
    };
    let bed = Bed::new(std::sync::Arc::new(lodger.open().await.unwrap()));
    bed.gateway(1).await;
    let holder = lodger.server.database(&lodger.database);
    let hold = format!("BEGIN; LOCK TABLE gateways; SELECT pg_sleep({HELD_FOR})");
    let holding = tokio::task::spawn_blocking(move || holder.ask(&hold));
    let locks = "SELECT count(*) FROM pg_locks WHERE relation = 'gateways'::regclass AND granted \
                 AND mode = 'AccessExclusiveLock'";
    eventually("it is held", Duration::from_secs(10), async || {
        (lodger.ask(locks) == "1").then_some(())
    })
    .await;
    let id = viworks_backend_agent::data::GatewayRef::Id(super::bed::agent(1));
    let failed = bed.store.gateway(&bed.tenant, &id).await.unwrap_err();
    assert!(matches!(failed, StoreError::Held(_)), "{failed:?}");
    let said = bed.store.health().await.unwrap().held.unwrap();
    assert!(
        said.contains("(psql, user viworks) has had locks of gateways"),
        "{said}"
    );
    holding.await.unwrap().unwrap();
    assert!(bed.store.gateway(&bed.tenant, &id).await.unwrap().is_some());
    assert_eq!(bed.store.health().await.unwrap().held, None);
    bed.store.close().await;
    lodger.leave();
}
