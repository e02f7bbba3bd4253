//! Which master key the database belongs to.

use viworks_runtime::sqlite::params;

use super::link::Sql;
use super::row::column;
use super::tx::View;
use crate::data::{MasterIds, SiteClaim, StoreResult};

pub(super) const LOAD: &str = "SELECT key_check FROM site WHERE one = 1";

pub(super) const CLAIM: &str =
    "INSERT INTO site (one, key_check) VALUES (1, :key_check) ON CONFLICT DO NOTHING";

pub(super) const REPLACE: &str = "\
INSERT INTO site (one, key_check) VALUES (1, :key_check) ON CONFLICT (one) DO UPDATE SET key_check = excluded.key_check";

pub(super) const MASTERS: Sql = Sql::of_file("SELECT masters FROM told_masters WHERE one = 1");

pub(super) const NOTE_MASTERS: Sql = Sql::of_file(
    "\
INSERT INTO told_masters (one, masters) VALUES (1, :masters) ON CONFLICT (one) DO UPDATE SET masters = excluded.masters",
);

/// What the database remembers; `None` before anybody claimed it.
pub(super) fn load(view: &View<'_>) -> StoreResult<Option<[u8; 32]>> {
    view.optional(LOAD, &[], column("site", "key_check"))
}

/// Makes the database that of the key with this check, where it is nobody's or that was asked for; `false` when it is
/// another one's.
pub(super) fn claim(view: &View<'_>, key_check: [u8; 32], claim: SiteClaim) -> StoreResult<bool> {
    let statement = match claim {
        SiteClaim::First => CLAIM,
        SiteClaim::Replaced => REPLACE,
    };
    view.execute(statement, params! { key_check })?;
    Ok(load(view)? == Some(key_check))
}

/// Says which master keys the only backend has.
pub(in crate::data) fn note_masters(view: &View<'_>, masters: MasterIds) -> StoreResult<()> {
    let masters = masters.to_bytes();
    view.execute(NOTE_MASTERS, params! { masters }).map(drop)
}

/// What the only backend said when it started last.
pub(super) fn masters(view: &View<'_>) -> StoreResult<Option<MasterIds>> {
    let told: Option<Vec<u8>> = view.optional(MASTERS, &[], column("told_masters", "masters"))?;
    Ok(told.and_then(|told| MasterIds::of_bytes(&told)))
}
