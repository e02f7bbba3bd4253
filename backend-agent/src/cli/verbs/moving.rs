//! `migrate-store`: moves a stopped site from the embedded database to PostgreSQL, and compares both.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use tokio::runtime::Handle;
use viworks_common::human;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_runtime::files;
use viworks_runtime::lifecycle::Signals;
use viworks_runtime::sqlite::Options;

use super::super::views::{print, say};
use crate::config::Config;
use crate::data::UpkeepStore as _;
use crate::data::moving::marker::{self, Moved};
use crate::data::moving::{Move, MoveError, Progress, look_for_site};
use crate::data::postgres::Address;
use crate::data::sqlite::SqliteStore;
use crate::start_error::StartError;

/// How often it is said how far the move is.
const TELL_EVERY: std::time::Duration = std::time::Duration::from_secs(2);

/// Moves, unless it is only to compare, and compares.
pub(super) async fn execute(config: &Config, address: Address, verify: bool) -> anyhow::Result<()> {
    let configured = config.store.address().map_err(StartError::from)?;
    let elsewhere = configured.map(|it| it.to_string());
    if let Some(elsewhere) = elsewhere.filter(|it| !verify && *it != address.to_string()) {
        return Err(MoveError::Elsewhere(elsewhere).into());
    }
    let file = config.data.sqlite_file.clone();
    look_for_site(&file)?;
    let mut signals = Signals::listen().context("failed to listen for signals")?;
    let lock = files::lock_folder(&config.data.state_folder);
    let _lock = lock.map_err(StartError::from)?;
    let source = SqliteStore::open(Options::new(&file)).await;
    let source = source.map_err(StartError::from)?;
    let (runtime, stop) = (Handle::current(), Arc::new(AtomicBool::new(false)));
    let (named, stops, moved) = (address.to_string(), Arc::clone(&stop), source.clone());
    let from = file.clone();
    let work = tokio::task::spawn_blocking(move || {
        let to = Move::open(runtime, moved, &from, &address)?;
        if !verify {
            to.run(teller("moved", &stops))?;
        }
        to.verify(teller("compared", &stops))
    });
    let mut work = std::pin::pin!(work);
    let compared = tokio::select! {
        done = &mut work => done,
        _told = signals.next() => {
            stop.store(true, Ordering::Relaxed);
            work.await
        }
    };
    source.close().await;
    let compared = compared.context("the move broke off")?;
    let compared: Vec<(&str, u64)> = compared.map_err(anyhow::Error::from)?;
    let moved = Moved {
        to: named.clone(),
        at: SystemClock.wall(),
    };
    let left = marker::leave(&file, &moved);
    left.context("everything is there, and beside the old file that could not be noted")?;
    for (table, rows) in &compared {
        let rows = human::counted_all(*rows, "row", "rows");
        print(&format!("{table:26} {rows:>20}, equal"))?;
    }
    print(&format!("everything is in {named}"))?;
    if !verify {
        say(&format!(
            "now name it as `url` in [store]; no backend starts on the old file while {} says that it has moved",
            marker::path(&file).display()
        ));
    }
    Ok(())
}

/// Says every few seconds how far it is, and when to stop.
fn teller(what: &'static str, stop: &AtomicBool) -> impl FnMut(Progress) -> ControlFlow<()> {
    let mut told = SystemClock.now();
    move |progress| {
        let now = SystemClock.now();
        if now.saturating_since(told) >= TELL_EVERY {
            told = now;
            let Progress { table, rows, total } = progress;
            let (rows, total) = (human::count(rows), human::counted_all(total, "row", "rows"));
            say(&format!("{table}: {rows} of {total} {what}"));
        }
        if stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}
