//! Which master key the database belongs to.

use viworks_runtime::sqlite::params;

use super::row::column;
use super::tx::View;
use crate::data::{SiteClaim, StoreResult};

pub(super) const LOAD: &str = "SELECT key_check FROM site WHERE one = 1";

pub(super) const CLAIM: &str =
    "INSERT INTO site (one, key_check) VALUES (1, :key_check) ON CONFLICT DO NOTHING";

pub(super) const REPLACE: &str = "\
INSERT INTO site (one, key_check) VALUES (1, :key_check) ON CONFLICT (one) DO UPDATE SET key_check = excluded.key_check";

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
