//! Whether a database belongs to the master key that its backend has: with another one every gateway would be told that
//! its own key is wrong.

use std::path::{Path, PathBuf};

use viworks_common::key::MasterKey;

use crate::data::{SiteClaim, Store, StoreError};

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

/// Refuses a key that the database does not belong to. The first that asks makes a database its own.
///
/// # Errors
///
/// When it belongs to another key, or cannot be asked.
pub async fn claim(store: &dyn Store, master: &MasterKey, file: &Path) -> Result<(), SiteError> {
    let is_ours = store.claim_site(&master.check(), SiteClaim::First).await?;
    judge(is_ours, file)
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
