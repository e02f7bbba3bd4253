//! `apikey`: makes, lists and revokes keys for the operators' API.

use viworks_common::id::{ApiKeyId, Tenant};
use viworks_common::limits::PAGE_ROWS_MAX;
use viworks_common::time::Timestamp;
use viworks_runtime::exit::ExitCode;

use super::super::flags::{ApikeyCommand, days};
use super::super::views::{self, print, say};
use super::open::{actor, line, load, open};
use crate::auth::apikey::{self, CreateKey};
use crate::data::{Page, Store, StoreError};

pub(super) async fn execute(command: ApikeyCommand) -> anyhow::Result<ExitCode> {
    let tenant = Tenant::default_tenant();
    match command {
        ApikeyCommand::Create {
            config,
            scopes,
            name,
            expires_days,
            out,
        } => {
            let store = open(&load(&config)?).await?;
            let request = CreateKey {
                name,
                scopes: scopes.0,
                expires_in: expires_days.map(days),
            };
            let created = apikey::create(
                &*store,
                &tenant,
                request,
                &actor(),
                &out,
                line(&*store).await?,
            )
            .await;
            store.close().await;
            print(&format!("{}  {}", created?.id, out.display()))?;
            say(&format!(
                "the API key is in {out}; for the command line: viworks --token-file {out}",
                out = out.display()
            ));
        }
        ApikeyCommand::Ls(config) => {
            let store = open(&load(&config)?).await?;
            let listed = list_keys(&*store, &tenant).await;
            store.close().await;
            listed?;
        }
        ApikeyCommand::Revoke { config, id } => {
            let store = open(&load(&config)?).await?;
            let revoked = revoke_key(&*store, &tenant, id).await;
            store.close().await;
            match revoked? {
                Some((None, _now)) => print(&format!("revoked {id}"))?,
                Some((since, now)) => print(&format!(
                    "{id} was revoked already{}",
                    views::since_when(since, now)
                ))?,
                None => {
                    say(&format!("error: there is no API key {id}"));
                    return Ok(ExitCode::NotFound);
                }
            }
        }
    }
    Ok(ExitCode::Ok)
}

/// Revokes a key, and says since when it had been, and what time it is; `None` when there is no such key.
async fn revoke_key(
    store: &dyn Store,
    tenant: &Tenant,
    id: ApiKeyId,
) -> Result<Option<(Option<Timestamp>, Timestamp)>, StoreError> {
    let now = line(store).await?;
    let before = store.api_key(tenant, id).await?;
    let since = before.and_then(|key| key.revoked_at);
    let revoked = apikey::revoke(store, tenant, id, &actor(), now).await?;
    Ok(revoked.map(|()| (since, now)))
}

/// Prints every key.
async fn list_keys(store: &dyn Store, tenant: &Tenant) -> anyhow::Result<()> {
    let now = line(store).await?;
    let (mut keys, mut page) = (Vec::new(), Page::first(PAGE_ROWS_MAX));
    loop {
        let listing = apikey::list(store, tenant, page, now).await?;
        keys.extend(listing.items);
        match listing.next {
            Some(next) => page = Page::after(next, PAGE_ROWS_MAX),
            None => return print(&views::keys(&keys, now)),
        }
    }
}
