//! Audit, API keys, counts, and what a restart keeps.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;
use viworks_backend_agent::data::{
    Actor, ActorKind, ApiKey, AuditFilter, AuditOutcome, AuditRecord, Command, CompleteOutcome,
    Gateway, NewApiKey, NewAuditRecord, Page, Run, SiteClaim, StoreError, Submission,
};
use viworks_common::claims::Probed;
use viworks_common::command::{CommandState, OutcomeState};
use viworks_common::id::{ApiKeyId, CommandId};
use viworks_common::limits::PAGE_BYTES_MAX;

use super::bed::{Bed, agent, at, outcome};

pub(crate) fn new_key(n: u8) -> NewApiKey {
    NewApiKey {
        id: ApiKeyId::from_uuid(Uuid::from_u128(u128::from(n))),
        name: "ci".to_owned(),
        sha256: [n; 32],
        scopes: BTreeSet::from(["runs:write".to_owned()]),
        expires_at: Some(at(500)),
    }
}

pub(crate) async fn a_database_belongs_to_the_master_key_that_claims_it_first(bed: &Bed) {
    let (own, other) = ([1; 32], [2; 32]);
    let claim = async |check, how| bed.store.claim_site(check, how).await.unwrap();
    assert_eq!(bed.store.site_key_check().await.unwrap(), None);
    assert!(claim(&own, SiteClaim::First).await);
    assert!(!claim(&other, SiteClaim::First).await);
    assert!(claim(&own, SiteClaim::First).await);
    assert_eq!(bed.store.site_key_check().await.unwrap(), Some(own));
    assert!(claim(&other, SiteClaim::Replaced).await);
    assert!(!claim(&own, SiteClaim::First).await);
    assert_eq!(bed.store.site_key_check().await.unwrap(), Some(other));
}

pub(crate) async fn a_page_of_large_rows_ends_early_and_the_next_one_goes_on(bed: &Bed) {
    for n in 0..40 {
        let record = NewAuditRecord {
            actor: Actor::system(),
            action: "test.large".to_owned(),
            object: "a".to_owned(),
            outcome: AuditOutcome::Noted,
            detail: serde_json::json!({ "text": "x".repeat(100_000) }),
        };
        let stored = bed.store.append_audit(&bed.tenant, record, at(n));
        stored.await.unwrap();
    }
    let (mut page, mut seen) = (Page::first(1_000), Vec::new());
    loop {
        let listing = bed.store.list_audit(&bed.tenant, page).await.unwrap();
        let held = listing.items.len() * 100_000;
        assert!(held <= PAGE_BYTES_MAX + 100_000, "{held} bytes");
        seen.extend(listing.items.iter().map(|record| record.seq));
        match listing.next {
            Some(next) => page = Page::after(next, 1_000),
            None => break,
        }
    }
    let all: Vec<u64> = (1..=40).rev().collect();
    assert_eq!(seen, all);
}

pub(crate) async fn the_audit_log_counts_up_and_is_paged_newest_first(bed: &Bed) {
    for n in 0..5 {
        let record = NewAuditRecord {
            actor: Actor::system().on_request("r"),
            action: format!("test.{n}"),
            object: "a\u{1}b".to_owned(),
            outcome: AuditOutcome::Noted,
            detail: serde_json::json!({ "n": n }),
        };
        bed.store
            .append_audit(&bed.tenant, record, at(n))
            .await
            .unwrap();
    }
    let first = bed
        .store
        .list_audit(&bed.tenant, Page::first(2))
        .await
        .unwrap();
    let read = |records: &[AuditRecord]| {
        records
            .iter()
            .map(|record| (record.seq, record.record.action.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        read(&first.items),
        [(5, "test.4".to_owned()), (4, "test.3".to_owned())]
    );
    assert!(
        first.items[0].record.object == "a\u{1}b"
            && first.items[0].record.actor.request_id.as_deref() == Some("r")
    );
    let rest = bed
        .store
        .list_audit(&bed.tenant, Page::after(first.next.unwrap(), 9))
        .await
        .unwrap();
    assert!(rest.items.len() == 3 && rest.next.is_none() && rest.items[2].seq == 1);
    let other = "other".parse().unwrap();
    assert!(
        bed.store
            .list_audit(&other, Page::first(9))
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

/// Everything that is found, page by page, and over how many pages.
async fn found(bed: &Bed, filter: &AuditFilter, looked: u64, rows: usize) -> (Vec<u64>, usize) {
    let (mut page, mut found, mut pages) = (Page::first(rows), Vec::new(), 0);
    loop {
        let listing = bed
            .store
            .find_audit(&bed.tenant, filter.clone(), looked, page);
        let listing = listing.await.unwrap();
        pages += 1;
        assert!(pages <= 20, "{filter:?} goes on for ever");
        found.extend(listing.items.iter().map(|record| record.seq));
        match listing.next {
            Some(next) => page = Page::after(next, rows),
            None => return (found, pages),
        }
    }
}

/// Makes a key, which is called `ci`; whoever does something by it.
pub(crate) async fn bearer(bed: &Bed) -> Actor {
    let root = Actor::local("root");
    let made = bed
        .store
        .create_api_key(&bed.tenant, new_key(1), &root, at(1));
    made.await.unwrap();
    Actor {
        kind: ActorKind::ApiKey,
        id: new_key(1).id.to_string(),
        ..Actor::system()
    }
}

/// Six records: gateway 1, a key, what the key did to the gateway, what the gateway did, and two more.
async fn log_of_six(bed: &Bed) -> Actor {
    let gateway = Actor::gateway(bed.gateway(1).await);
    let key = bearer(bed).await;
    let (object, other) = (gateway.to_string(), |text: &str| text.to_owned());
    let (done, noted, refused) = (
        AuditOutcome::Done,
        AuditOutcome::Noted,
        AuditOutcome::Refused,
    );
    for (n, actor, action, object, outcome) in [
        (2, key.clone(), "gateway.revoke", object, done),
        (3, gateway, "gateway.skew", other("clock"), noted),
        (4, key.clone(), "gatewaying", other("run:1"), refused),
        (5, Actor::system(), "run.submit", other("run:2"), done),
    ] {
        let record = NewAuditRecord {
            actor,
            action: action.to_owned(),
            object,
            outcome,
            detail: serde_json::json!({}),
        };
        let stored = bed.store.append_audit(&bed.tenant, record, at(n));
        stored.await.unwrap();
    }
    key
}

pub(crate) async fn the_audit_log_is_searched_a_bounded_part_at_a_time(bed: &Bed) {
    let key = log_of_six(bed).await.to_string();
    let all = AuditFilter::default;
    let text = |text: &str| Some(text.to_owned());
    let of = |n| AuditFilter {
        agent_id: Some(agent(n)),
        ..all()
    };
    let by = |actor: &str| AuditFilter {
        actor: text(actor),
        ..all()
    };
    let on = |object: &str| AuditFilter {
        object: text(object),
        ..all()
    };
    let doing = |action: &str| AuditFilter {
        action: text(action),
        ..all()
    };
    let ended = |outcome| AuditFilter {
        outcome: Some(outcome),
        ..all()
    };
    let since = |seconds, more: AuditFilter| AuditFilter {
        since: Some(at(seconds)),
        ..more
    };
    for (filter, looked, expected) in [
        (all(), 100, vec![6, 5, 4, 3, 2, 1]),
        (of(1), 100, vec![4, 3, 1]),
        (of(1), 2, vec![4, 3, 1]),
        (of(2), 2, vec![]),
        (by("ci"), 100, vec![5, 3]),
        (by(&key), 1, vec![5, 3]),
        (by("nobody"), 1, vec![]),
        (on("run:2"), 100, vec![6]),
        (on("ci"), 100, vec![2]),
        (on("gw-1"), 100, vec![3, 1]),
        (doing("gateway"), 100, vec![4, 3, 1]),
        (doing("gateway.skew"), 3, vec![4]),
        (ended(AuditOutcome::Refused), 2, vec![5]),
        (since(4, all()), 100, vec![6, 5]),
        (since(4, all()), 1, vec![6, 5]),
        (since(3, doing("run")), 1, vec![6]),
    ] {
        for rows in [1, 100] {
            let (seen, pages) = found(bed, &filter, looked, rows).await;
            assert_eq!(
                seen, expected,
                "{filter:?}, {looked} at a time, {rows} rows"
            );
            // What is before the time that is meant is not gone through to the beginning.
            let is_short = filter.since.is_none() || pages <= 4;
            assert!(is_short, "{filter:?} took {pages} pages");
        }
    }
    let other = "other".parse().unwrap();
    let listing = bed.store.find_audit(&other, all(), 100, Page::first(9));
    assert!(listing.await.unwrap().items.is_empty());
}

pub(crate) async fn an_api_key_is_found_by_its_digest_only(bed: &Bed) {
    let (tenant, actor) = (&bed.tenant, Actor::local("root"));
    bed.store
        .create_api_key(tenant, new_key(1), &actor, at(0))
        .await
        .unwrap();
    assert_eq!(
        bed.store.api_key_by_hash(tenant, &[2; 32]).await.unwrap(),
        None
    );
    bed.store
        .touch_api_key(tenant, new_key(1).id, at(7))
        .await
        .unwrap();
    assert_eq!(
        bed.store
            .revoke_api_key(tenant, new_key(1).id, &actor, at(8))
            .await
            .unwrap(),
        Some(())
    );
    assert_eq!(
        bed.store
            .revoke_api_key(tenant, new_key(2).id, &actor, at(8))
            .await
            .unwrap(),
        None
    );
    let NewApiKey {
        id,
        name,
        sha256,
        scopes,
        expires_at,
    } = new_key(1);
    let expected = ApiKey {
        id,
        name,
        sha256,
        scopes,
        expires_at,
        created_at: at(0),
        revoked_at: Some(at(8)),
        last_used_at: Some(at(7)),
    };
    assert_eq!(
        bed.store.api_key_by_hash(tenant, &[1; 32]).await.unwrap(),
        Some(expected.clone())
    );
    assert_eq!(
        bed.store
            .list_api_keys(tenant, Page::first(1_000))
            .await
            .unwrap()
            .items,
        std::slice::from_ref(&expected)
    );
    let one = bed.store.api_key(tenant, expected.id).await.unwrap();
    assert_eq!(one, Some(expected));
    let none = bed.store.api_key(tenant, new_key(2).id).await.unwrap();
    assert_eq!(none, None);
}

pub(crate) async fn what_principals_do_is_audited(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.released(1, &session).await;
    bed.complete(&session, command_id, OutcomeState::Failed)
        .await;
    let actor = Actor::local("test").on_request("request-2");
    bed.store
        .revoke_gateway(&bed.tenant, agent(1), None, &actor, at(40))
        .await
        .unwrap();
    assert_eq!(
        bed.audited().await,
        [
            "gateway.create",
            "run.submit",
            "command.end",
            "gateway.revoke"
        ]
    );
    let records = bed
        .store
        .list_audit(&bed.tenant, Page::first(9))
        .await
        .unwrap()
        .items;
    assert!(
        records[0].record.actor == actor
            && records[0].record.object == format!("gateway:{}", agent(1))
    );
    assert_eq!(records[1].record.actor, Actor::gateway(agent(1)));
    assert_eq!(records[1].record.detail["state"], "failed");
    assert_eq!(
        records[2].record.actor.request_id.as_deref(),
        Some("request-1")
    );
}

pub(crate) async fn counts_follow_the_rows(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    let session = bed.session(1, 1).await;
    bed.submit(bed.new_run(&[1, 2], false)).await;
    bed.lease(&session).await;
    let counts = bed.store.counts(&bed.tenant, at(40)).await.unwrap();
    assert!(counts.gateways == 2 && counts.connected == 1 && counts.open_runs == 1);
    let states = BTreeMap::from([(CommandState::Queued, 1), (CommandState::Dispatched, 1)]);
    assert_eq!(counts.open_commands, states);
}

pub(crate) async fn health_speaks_of_gateways_that_are_not_revoked_and_of_a_day(bed: &Bed) {
    let counted = async |seconds| {
        let counts = bed.store.counts(&bed.tenant, at(seconds)).await.unwrap();
        (counts.orphans, counts.forks)
    };
    for n in [1, 2] {
        bed.gateway(n).await;
        let session = bed.session(n, n).await;
        let unknown = bed.command_id();
        bed.complete(&session, unknown, OutcomeState::Succeeded)
            .await;
        bed.store
            .settle_probed(&bed.tenant, &bed.hello(n, 8, 1), 1, Probed::Alive, at(30))
            .await
            .unwrap();
    }
    assert_eq!(counted(40).await, (2, 2));
    bed.store
        .revoke_gateway(&bed.tenant, agent(1), None, &Actor::local("test"), at(41))
        .await
        .unwrap();
    assert_eq!(counted(42).await, (1, 1));
    assert_eq!(counted(30 + 24 * 3_600).await, (0, 0));
}

pub(crate) async fn health_knows_since_when_the_oldest_queued_command_waits(bed: &Bed) {
    let waits = async || {
        let counts = bed.store.counts(&bed.tenant, at(40)).await.unwrap();
        let queued = counts.open_commands.get(&CommandState::Queued).copied();
        (queued, counts.oldest_queued_at)
    };
    bed.gateway(1).await;
    assert_eq!(waits().await, (None, None));
    let first = bed.submit(bed.new_run(&[1], false)).await;
    let later = bed.new_run(&[1], false);
    let later = bed.store.submit_run(&bed.tenant, later, at(30)).await;
    assert!(matches!(later, Ok(Submission::Submitted { .. })));
    assert_eq!(waits().await, (Some(2), Some(at(10))));
    bed.store
        .cancel_run(&bed.tenant, first.run_id, &Actor::local("test"), at(31))
        .await
        .unwrap();
    assert_eq!(waits().await, (Some(1), Some(at(30))));
}

pub(crate) async fn a_closed_store_is_unavailable(bed: &Bed) {
    let health = bed.store.health().await.unwrap();
    assert!(health.problem.is_none() && health.schema_version >= 1);
    bed.store.close().await;
    let refused = bed
        .store
        .end_abandoned_sessions(&bed.tenant, None, at(1))
        .await
        .unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
    let refused = bed.store.counts(&bed.tenant, at(40)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
}

/// What a restart must keep.
pub(crate) type Before = (Gateway, Run, Command, Vec<AuditRecord>);

/// Puts something into most tables.
pub(crate) async fn fill(bed: &Bed) -> Before {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.released(1, &session).await;
    bed.complete(&session, command_id, OutcomeState::Succeeded)
        .await;
    bed.store
        .create_api_key(&bed.tenant, new_key(1), &Actor::local("root"), at(0))
        .await
        .unwrap();
    now(bed, command_id).await
}

async fn now(bed: &Bed, command_id: CommandId) -> Before {
    let command = bed.command_now(command_id).await;
    let run = bed
        .store
        .run(&bed.tenant, command.run_id)
        .await
        .unwrap()
        .unwrap();
    let audit = bed
        .store
        .list_audit(&bed.tenant, Page::first(100))
        .await
        .unwrap()
        .items;
    (bed.gateway_now(1).await, run, command, audit)
}

/// Compares after the restart.
pub(crate) async fn everything_is_there(bed: &Bed, before: Before) {
    assert_eq!(now(bed, before.2.command_id).await, before);
    assert!(
        bed.store
            .api_key_by_hash(&bed.tenant, &[1; 32])
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        bed.store
            .command_output(&bed.tenant, before.2.command_id)
            .await
            .unwrap()
            .is_some()
    );
}

/// What stands behind many others is not found, and that it may be there is said. Only on the embedded store, where the
/// log can be made so long by one record.
#[tokio::test]
async fn that_older_records_were_not_looked_through_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    bed.gateway(1).await;
    bed.session(1, 1).await;
    bed.admit(bed.hello(1, 9, 0)).await;
    let looked = async |bed: &Bed| bed.store.last_refusal(&bed.tenant, agent(1)).await.unwrap();
    let found = looked(&bed).await;
    assert!(found.last.is_some() && found.among.is_none(), "{found:?}");
    bed.store.close().await;
    let database = rusqlite::Connection::open(folder.path().join("backend.db")).unwrap();
    let far = "INSERT INTO audit_log SELECT tenant, seq + 60000, at, 'system', '', 'test', 'a', 'noted', '{}', NULL \
               FROM audit_log ORDER BY seq DESC LIMIT 1";
    assert_eq!(database.execute(far, []).unwrap(), 1);
    drop(database);
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    let found = looked(&bed).await;
    assert!(
        found.last.is_none() && found.among == Some(50_000),
        "{found:?}"
    );
    bed.store.close().await;
}

pub(crate) async fn results_that_were_not_kept_are_told_of_by_the_next_one_that_is_recorded(
    bed: &Bed,
) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    // Of nobody's command; how many of so many are kept.
    let report = async |results: u32, seconds| {
        let mut all_kept = 0;
        for _ in 0..results {
            let (command_id, outcome) = (bed.command_id(), outcome(OutcomeState::Succeeded));
            let completed = bed.store.complete_command(
                &bed.tenant,
                &session.holder,
                command_id,
                outcome,
                at(seconds),
            );
            let CompleteOutcome::Orphan { kept, .. } = completed.await.unwrap() else {
                panic!("nobody asked for it");
            };
            all_kept += u32::from(kept);
        }
        all_kept
    };
    let recorded = async || {
        let page = Page::first(1_000);
        let listed = bed.store.list_audit(&bed.tenant, page).await.unwrap();
        let records = listed.items.into_iter().map(|stored| stored.record);
        let orphans = records.filter(|record| record.action == "command.orphan");
        orphans.map(|record| record.detail).collect::<Vec<_>>()
    };
    assert_eq!(report(256, 100).await, 256);
    assert_eq!(recorded().await.len(), 200);
    // Half a minute after the log has all its room again, when there is none for a part of a result.
    assert_eq!(
        report(201, 100 + 200 * 60 + 30).await,
        200,
        "one is left out"
    );
    assert_eq!(recorded().await.len(), 400);
    // There is room for a result before there is some for a record of it.
    assert_eq!(report(1, 100 + 201 * 60 + 5).await, 1);
    assert_eq!(
        recorded().await.len(),
        400,
        "nothing tells of the one left out"
    );
    assert_eq!(report(1, 100 + 202 * 60 + 5).await, 1);
    let found = recorded().await;
    assert_eq!(found.len(), 401);
    assert_eq!(found[0]["results_not_kept_before"], 1, "{}", found[0]);
}
