//! Whether a database belongs to the master key that its backend has: with another one every gateway would be told that
//! its own key is wrong.

use std::path::{Path, PathBuf};

use viworks_common::key::MasterKey;

use crate::data::{SiteClaim, Store, StoreError, sqlite};

/// Why a backend cannot serve the site of a database.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// The gateways of the database have keys that follow from another master key.
    #[error(
        "the gateways in this database have keys of another master key than {}: put the right file there, or name the \
         database of this one; if that key is lost, `viworks-backend-agent pki replace-master-key` ties the database to this \
         one, and every gateway has to be issued again",
        file.display()
    )]
    OtherMasterKey {
        /// The file of the key that was refused.
        file: PathBuf,
    },
    /// The database does not answer.
    #[error("failed to look which master key the database belongs to")]
    Store(#[from] StoreError),
}

/// The keys with that one making others to which the database belongs. The first that asks makes a database its own.
///
/// # Errors
///
/// When it belongs to another key, or cannot be asked.
pub async fn settle(
    store: &dyn Store,
    master: MasterKey,
    file: &Path,
) -> Result<MasterKey, SiteError> {
    if store.claim_site(&master.check(), SiteClaim::First).await? {
        return Ok(master);
    }
    if let Some(turned) = master.turned()
        && store.claim_site(&turned.check(), SiteClaim::First).await?
    {
        return Ok(turned);
    }
    judge(false, file).map(|()| master)
}

/// Ties the database to this key, whatever it belonged to.
///
/// # Errors
///
/// When it cannot be asked.
pub async fn replace(store: &dyn Store, master: &MasterKey) -> Result<(), StoreError> {
    let _own = store
        .claim_site(&master.check(), SiteClaim::Replaced)
        .await?;
    Ok(())
}

/// Whether the embedded database in a file belongs to none of these keys.
///
/// # Errors
///
/// As [`sqlite::belongs_to_another`].
pub fn is_of_another(
    file: &Path,
    master: &MasterKey,
) -> Result<bool, viworks_runtime::sqlite::Error> {
    if !sqlite::belongs_to_another(file, master.check())? {
        return Ok(false);
    }
    match master.other() {
        Some(other) => sqlite::belongs_to_another(file, other.check()),
        None => Ok(true),
    }
}

/// Refuses the key in this file where a database is not its own.
///
/// # Errors
///
/// When it is not.
pub fn judge(is_ours: bool, file: &Path) -> Result<(), SiteError> {
    if is_ours {
        return Ok(());
    }
    Err(SiteError::OtherMasterKey {
        file: file.to_owned(),
    })
}
