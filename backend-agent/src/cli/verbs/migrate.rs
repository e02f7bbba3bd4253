//! `migrate`, and what `check-config --connect` tries: whether the database and the queue can be used, and what the
//! database lacks.

use std::sync::Arc;

use viworks_common::id::InstanceId;
use viworks_runtime::checked::Checked;
use viworks_runtime::clock::{SystemClock, Timeline};
use viworks_runtime::config::Problem;
use viworks_runtime::migrations::Standing;
use viworks_runtime::{files, random};

use super::super::flags::{ConfigFlag, Format};
use super::check;
use super::open::load;
use crate::command::queue::redis::{POLICY_FIX, RedisQueue};
use crate::data::postgres::Role;
use crate::database;
use crate::pki::site;
use crate::setup::Setup;
use crate::start_error::StartError;

/// Brings the schema up to date, or says what that would do.
pub(super) async fn execute(
    flag: &ConfigFlag,
    dry_run: bool,
    output: Format,
) -> anyhow::Result<()> {
    let mut checked = Checked::default();
    let ended = migrate(flag, dry_run, &mut checked).await;
    check::show(checked, ended, flag, output)
}

async fn migrate(flag: &ConfigFlag, dry_run: bool, checked: &mut Checked) -> anyhow::Result<()> {
    let mut config = load(flag)?;
    config.store.migrate_at_start = true;
    let config = &config;
    let folder = &config.data.state_folder;
    if dry_run {
        // What would be refused is refused here as well, and the first of it as there.
        if let Some(error) = files::examine_state(folder, &[], &[]).into_iter().next() {
            return Err(StartError::from(error).into());
        }
        database::refuse_another_site(config).await?;
        let standing = match config.store.address().map_err(StartError::from)? {
            Some(address) => database::inspect(address, true).await?.standing,
            None => database::standing(config)?,
        };
        checked.found = list(&standing);
        return Ok(());
    }
    files::create_private_folder(folder).map_err(StartError::from)?;
    database::refuse_another_site(config).await?;
    let store = database::open(config, Role::Beside).await?;
    let health = store.health().await;
    store.close().await;
    let health = health?;
    let now = format!("{} schema {}", health.kind, health.schema_version);
    checked.found.push(now);
    Ok(())
}

/// Lists what would be applied, and says what that means for the programs that use the database now.
fn list(standing: &Standing) -> Vec<String> {
    let missing = &standing.missing;
    if missing.is_empty() {
        return vec![up_to_date(standing)];
    }
    let mut listed = Vec::with_capacity(missing.len() + 1);
    for migration in missing {
        let (version, description) = (migration.version(), migration.description());
        let usable_from = migration.usable_from();
        let whose = match standing.version {
            None => String::new(),
            Some(_) if usable_from < version => {
                format!(", for programs that know schema {usable_from} or later")
            }
            Some(_) => ", for no program that does not know it".to_owned(),
        };
        listed.push(format!("would apply {version:04} {description}{whose}"));
    }
    let Some(version) = standing.version else {
        return listed;
    };
    listed.push(if standing.keeps_programs() && standing.has_notes {
        format!("backends that know schema {version} go on meanwhile, and afterwards")
    } else if standing.keeps_programs() {
        format!(
            "backends that know schema {version} and run go on; none of them starts again afterwards, only this program"
        )
    } else {
        format!("stop all backends first: those that know schema {version} cannot go on afterwards")
    });
    listed
}

/// How a schema is told of that lacks nothing.
fn up_to_date(standing: &Standing) -> String {
    match standing.version {
        Some(version) if standing.is_ahead => format!(
            "a later version has added to the schema, which is {version} now; this program goes on with it"
        ),
        Some(_) | None => "the schema is up to date".to_owned(),
    }
}

/// Tries whether the servers take us, and whether a start would find what it needs there; what is embedded is nothing
/// to connect to.
pub(super) async fn try_connection(
    setup: &Setup,
    flag: &ConfigFlag,
    checked: &mut Checked,
) -> anyhow::Result<()> {
    let found = &mut checked.found;
    let Setup {
        config, material, ..
    } = setup;
    let own = &material.master;
    let is_for_us =
        |is_ours| site::judge(is_ours, &config.keys.master_key_file).map_err(StartError::from);
    match config.store.address().map_err(StartError::from)? {
        Some(address) => {
            let named = address.to_string();
            let seen = database::look(config, address).await?;
            is_for_us(seen.key_check.is_none_or(|check| own.owns(&check)))?;
            let schema = match seen.standing.missing.len() {
                0 => up_to_date(&seen.standing),
                more => format!("migrations that a start applies: {more}"),
            };
            if let Some(lacks) = seen.lacks {
                let lacks = Problem::of_file(&flag.config, lacks, "");
                checked.warnings.push(lacks);
            }
            found.push(format!("{named}: connected, {schema}"));
        }
        None => {
            let other = site::is_of_another(&config.data.sqlite_file, own);
            is_for_us(!other.map_err(StartError::from)?)?;
            found.push("the embedded database needs no connection".to_owned());
        }
    }
    let Some(address) = config.queue.address().map_err(StartError::from)? else {
        found.push("the queue in memory needs no connection".to_owned());
        return Ok(());
    };
    let named = address.to_string();
    let clock = Arc::new(Timeline::unstored(Arc::new(SystemClock)));
    let own = InstanceId::from_uuid(random::uuid_v4());
    let tried = RedisQueue::try_out(address, own, clock).await;
    let evicts = tried.map_err(|source| StartError::Queue {
        address: named.clone(),
        source,
    })?;
    if let Some(evicts) = evicts {
        let told = format!("{named}: {evicts}");
        let told = Problem::of_file(&flag.config, told, POLICY_FIX);
        checked.warnings.push(told);
    }
    found.push(format!("{named}: connected, the queue can be used"));
    Ok(())
}
