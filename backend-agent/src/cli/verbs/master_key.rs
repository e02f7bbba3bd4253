//! `pki rotate-master-key`: moves a site from one master key to another, while both are accepted.

use viworks_common::id::Tenant;
use viworks_common::key::MasterKey;
use viworks_runtime::exit::ExitCode;

use super::super::views::{print, say};
use super::open::{actor, line, open};
use crate::config::Config;
use crate::data::{
    AuditOutcome, Gateway, GatewayFilter, NewAuditRecord, Page, SiteClaim, Store, StoreError,
};
use crate::pki::issue::load_masters;

/// Gateways that are read at once.
const PAGE: usize = 500;
/// Gateways that are named.
const NAMED_MAX: usize = 20;

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Nothing is to be changed.
    pub(super) dry_run: bool,
    /// The overlap is to end.
    pub(super) finish: bool,
    /// Also where gateways are left.
    pub(super) force: bool,
}

pub(super) async fn rotate(config: &Config, wanted: Wanted) -> anyhow::Result<ExitCode> {
    let master = load_masters(&config.keys)?;
    let Some(previous) = master.other() else {
        say(
            "error: there is one master key in [keys]: name the new one in master_key_file and the one so far in \
             previous_master_key_file on every backend, and start each anew; then give this command again",
        );
        return Ok(ExitCode::Config);
    };
    let store = open(config).await?;
    let done = carry_out(&*store, &master, &previous, wanted).await;
    store.close().await;
    done
}

async fn carry_out(
    store: &dyn Store,
    master: &MasterKey,
    previous: &MasterKey,
    wanted: Wanted,
) -> anyhow::Result<ExitCode> {
    let belongs_to = store.site_key_check().await?;
    let moved = belongs_to == Some(master.check());
    let (left, cannot) = left(store, master).await?;
    if wanted.finish {
        return finish(store, moved, &left, wanted).await;
    }
    if moved {
        print("the site belongs to the new master key already")?;
    } else if belongs_to != Some(previous.check()) {
        say("error: the database belongs to neither of the two master keys in [keys]");
        return Ok(ExitCode::Config);
    } else if wanted.dry_run {
        print("the site would belong to the new master key; nothing was changed")?;
    } else {
        store
            .claim_site(&master.check(), SiteClaim::Replaced)
            .await?;
        note(store, "site.rotate_master_key").await?;
        print("the site belongs to the new master key")?;
        say(
            "start each backend anew: gateways are given keys of the new one over the sessions that follow, and the old \
             one is accepted until previous_master_key_file is taken out",
        );
    }
    name("still to move", &left)?;
    name("cannot, before their agents are updated", &cannot)?;
    Ok(ExitCode::Ok)
}

/// Says whether the old key can go.
async fn finish(
    store: &dyn Store,
    moved: bool,
    left: &[Gateway],
    wanted: Wanted,
) -> anyhow::Result<ExitCode> {
    if !moved {
        say(
            "error: the site was not moved to the new master key: give this command without --finish first",
        );
        return Ok(ExitCode::Conflict);
    }
    name("still to move", left)?;
    if !left.is_empty() && !wanted.force {
        say(
            "error: these would be cut off for good, and need new identities then: let them connect, revoke them, or add \
             --force",
        );
        return Ok(ExitCode::Conflict);
    }
    if !wanted.dry_run {
        note(store, "site.finish_master_key").await?;
    }
    print(
        "take previous_master_key_file out of [keys] on every backend, start each anew, and remove the file",
    )?;
    say("tickets that were made with the old master key end with that");
    Ok(ExitCode::Ok)
}

/// Gateways that still depend on the old key, and those of them that cannot be given another one.
async fn left(
    store: &dyn Store,
    master: &MasterKey,
) -> Result<(Vec<Gateway>, Vec<Gateway>), StoreError> {
    let tenant = Tenant::default_tenant();
    let filter = GatewayFilter {
        revoked: Some(false),
        ..GatewayFilter::default()
    };
    let mut left = Vec::new();
    let mut page = Page::first(PAGE);
    loop {
        let listing = store.list_gateways(&tenant, &filter, page).await?;
        let of_old = |gateway: &Gateway| gateway.key_master != Some(master.id());
        left.extend(listing.items.into_iter().filter(of_old));
        let Some(after) = listing.next else {
            break;
        };
        page = Page {
            after: Some(after),
            limit: PAGE,
        };
    }
    let cannot = left
        .iter()
        .filter(|gateway| gateway.takes_keys == Some(false))
        .cloned()
        .collect();
    Ok((left, cannot))
}

fn name(what: &str, gateways: &[Gateway]) -> anyhow::Result<()> {
    let names = gateways.iter().take(NAMED_MAX);
    let names: Vec<String> = names.map(|gateway| gateway.name.to_string()).collect();
    let more = gateways.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    let counted = viworks_common::human::counted(gateways.len(), "gateway", "gateways");
    if gateways.is_empty() {
        // Nobody is a good answer, too.
        return print(&format!("{what}: {counted}"));
    }
    print(&format!("{what}: {counted}: {}{more}", names.join(", ")))
}

async fn note(store: &dyn Store, action: &str) -> Result<(), StoreError> {
    let record = NewAuditRecord {
        actor: actor(),
        action: action.to_owned(),
        object: "site".to_owned(),
        outcome: AuditOutcome::Done,
        detail: serde_json::json!({}),
    };
    let now = line(store).await?;
    store
        .append_audit(&Tenant::default_tenant(), record, now)
        .await
}
