//! The configuration and the database that a subcommand is about.

use std::path::PathBuf;
use std::sync::Arc;

use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::config::{Environment, Explained, Problems, environment};
use viworks_runtime::files;

use super::super::flags::ConfigFlag;
use crate::config::Config;
use crate::data::line::take_up;
use crate::data::postgres::Role;
use crate::data::{Actor, Store, StoreError};
use crate::database;
use crate::setup::Setup;
use crate::start_error::StartError;

/// The configuration, checked.
pub(super) fn load(flag: &ConfigFlag) -> Result<Config, Problems> {
    let (path, environment) = place(flag);
    Config::load(&path, &environment)
}

/// The same for somebody who only asks the running backend: the files that are named are not looked at, which may be
/// the backend's alone.
pub(super) fn load_to_ask(flag: &ConfigFlag) -> Result<Config, Problems> {
    let (path, environment) = place(flag);
    Config::load_to_ask(&path, &environment)
}

/// The same where it cannot be used: what can be read of it, and what is wrong with it.
pub(super) fn read_to_ask(flag: &ConfigFlag) -> (Config, Option<Problems>) {
    let (path, environment) = place(flag);
    Config::read_to_ask(&path, &environment)
}

/// What the start reads, and the check as well.
pub(super) fn load_all(flag: &ConfigFlag) -> Result<Setup, Problems> {
    let (path, environment) = place(flag);
    Setup::load(&path, &environment, SystemClock.wall())
}

/// What the configuration says and where each value comes from, and what is wrong with it.
pub(super) fn explain(flag: &ConfigFlag) -> Result<(Explained, Result<(), Problems>), Problems> {
    let (path, environment) = place(flag);
    Config::explain(&path, &environment)
}

fn place(flag: &ConfigFlag) -> (PathBuf, Environment) {
    let path = std::path::absolute(&flag.config).unwrap_or_else(|_no_folder| flag.config.clone());
    let mut environment = environment();
    if let Some(folder) = &flag.state_folder {
        let folder = std::path::absolute(folder).unwrap_or_else(|_no_folder| folder.clone());
        environment = environment.with("VIWORKS__DATA__STATE_FOLDER", &folder.to_string_lossy());
    }
    (path, environment)
}

/// The database; made when there is none.
pub(super) async fn open(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    files::create_private_folder(&config.data.state_folder)?;
    database::open(config, Role::Beside).await
}

/// What the time line of the store reads; a running backend is on the same.
pub(super) async fn line(store: &dyn Store) -> Result<Timestamp, StoreError> {
    Ok(take_up(store, Arc::new(SystemClock)).await?.line())
}

/// Who is at the keyboard, for the audit log.
pub(super) fn actor() -> Actor {
    Actor::local(&format!("uid {}", rustix::process::getuid().as_raw()))
}
