//! Tickets, and machines that become gateways by them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::Barrier;
use uuid::Uuid;
use viworks_backend_agent::data::{
    Actor, ChallengeOutcome, GatewayRef, NewCertificate, NewGateway, NewTicket, NotedRefusal, Page,
    RedeemOutcome, Redemption, StoreError, StoredTicket, TicketRefusal,
};
use viworks_common::enrolment::NameRule;
use viworks_common::id::{InstallId, TicketId};

use super::bed::{Bed, agent, at};
use super::instances::two_backends;

/// Machines that enrol at the same moment.
const MACHINES: u64 = 16;

fn ticket_id(n: u64) -> TicketId {
    TicketId::from_uuid(Uuid::from_u128(
        (0x0190_0000_0000_7000_8000 << 48) | u128::from(n),
    ))
}

fn new_ticket(n: u64, uses_max: u32) -> NewTicket {
    NewTicket {
        id: ticket_id(n),
        sha256: [7; 32],
        uses_max,
        labels: BTreeMap::from([("site".to_owned(), "berlin".to_owned())]),
        naming: NameRule::Prefix("gw-".to_owned()),
        networks: vec!["192.0.2.0/24".parse().unwrap()],
        expires_at: at(3_600),
    }
}

fn bytes(n: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    bytes
}

async fn create(bed: &Bed, new: NewTicket) {
    let actor = Actor::local("root");
    let made = bed.store.create_ticket(&bed.tenant, new, &actor, at(0));
    assert!(made.await.unwrap());
}

async fn stored(bed: &Bed, n: u64) -> StoredTicket {
    let found = bed.store.ticket(&bed.tenant, ticket_id(n)).await;
    found.unwrap().unwrap()
}

async fn challenge(bed: &Bed, ticket: u64, n: u64, seconds: i64) -> ChallengeOutcome {
    let (id, until) = (ticket_id(ticket), at(seconds + 60));
    let kept = bed
        .store
        .add_challenge(&bed.tenant, id, bytes(n), until, at(seconds));
    kept.await.unwrap()
}

/// Machine `n` with a key and a challenge of its own.
fn redemption(ticket: u64, n: u64) -> Redemption {
    Redemption {
        ticket: ticket_id(ticket),
        challenge: bytes(n),
        install_id: InstallId::from_uuid(Uuid::from_u128(u128::from(n))),
        peer: "192.0.2.7".parse().unwrap(),
        spki: bytes(n),
        certificate: format!("certificate {n}"),
        gateway: NewGateway {
            agent_id: agent(n),
            name: format!("gw-{n}").parse().unwrap(),
            labels: BTreeMap::new(),
            key_generation: 1,
            certificate: Some(NewCertificate {
                agent_id: agent(n),
                spki: bytes(n),
                serial: "01".to_owned(),
                not_after: at(1_000_000),
                fingerprint: bytes(n),
            }),
        },
    }
}

async fn redeem(bed: &Bed, redemption: Redemption, seconds: i64) -> RedeemOutcome {
    let redeemed = bed
        .store
        .redeem_ticket(&bed.tenant, redemption, at(seconds));
    redeemed.await.unwrap()
}

async fn enrol(bed: &Bed, ticket: u64, n: u64, seconds: i64) -> RedeemOutcome {
    let kept = challenge(bed, ticket, n, seconds).await;
    assert_eq!(kept, ChallengeOutcome::Kept);
    redeem(bed, redemption(ticket, n), seconds).await
}

/// What the audit trail has of redemptions: its outcome and why, latest first.
async fn redemptions(bed: &Bed) -> Vec<(String, String)> {
    let page = bed.store.list_audit(&bed.tenant, Page::first(1_000)).await;
    let records = page.unwrap().items.into_iter().map(|record| record.record);
    let own = records.filter(|record| record.action == "ticket.redeem");
    own.map(|record| {
        let why = record.detail["why"].as_str().unwrap_or_default();
        (record.outcome.name().to_owned(), why.to_owned())
    })
    .collect()
}

fn refused(refusal: TicketRefusal) -> RedeemOutcome {
    RedeemOutcome::Refused(refusal)
}

pub(crate) async fn a_ticket_is_made_once_listed_and_revoked(bed: &Bed) {
    for n in 1..=3 {
        create(bed, new_ticket(n, 2)).await;
    }
    // The answer was lost.
    create(bed, new_ticket(1, 2)).await;
    let other = NewTicket {
        sha256: [8; 32],
        ..new_ticket(1, 2)
    };
    let actor = Actor::local("root");
    let taken = bed.store.create_ticket(&bed.tenant, other, &actor, at(0));
    assert!(matches!(taken.await, Err(StoreError::Conflict { .. })));
    let found = stored(bed, 1).await;
    let new = new_ticket(1, 2);
    assert_eq!((found.uses, found.uses_max, found.refusals), (0, 2, 0));
    assert_eq!(
        (found.labels, found.naming, found.networks),
        (new.labels, new.naming, new.networks)
    );
    assert_eq!(found.created_by, "local:root");
    let page = bed.store.list_tickets(&bed.tenant, Page::first(2)).await;
    let page = page.unwrap();
    let ids: Vec<TicketId> = page.items.iter().map(|ticket| ticket.id).collect();
    assert_eq!(
        (ids, page.next),
        (vec![ticket_id(3), ticket_id(2)], Some(ticket_id(2)))
    );
    let revoke = async |n, seconds| {
        let revoked = bed
            .store
            .revoke_ticket(&bed.tenant, ticket_id(n), &actor, at(seconds));
        revoked.await.unwrap()
    };
    assert_eq!(revoke(1, 5).await, Some(()));
    assert_eq!(revoke(1, 6).await, Some(()));
    assert_eq!(stored(bed, 1).await.revoked_at, Some(at(5)));
    assert_eq!(revoke(9, 5).await, None);
    // A month after its end.
    let later = NewTicket {
        expires_at: at(40 * 24 * 3_600),
        ..new_ticket(4, 1)
    };
    let made = bed
        .store
        .create_ticket(&bed.tenant, later, &actor, at(31 * 24 * 3_600));
    assert!(made.await.unwrap());
    let page = bed.store.list_tickets(&bed.tenant, Page::first(9)).await;
    assert_eq!(page.unwrap().items.len(), 1);
}

pub(crate) async fn a_ticket_makes_as_many_gateways_as_it_is_for(bed: &Bed) {
    create(bed, new_ticket(1, 2)).await;
    assert_eq!(enrol(bed, 1, 1, 1).await, RedeemOutcome::Enrolled);
    assert_eq!(enrol(bed, 1, 2, 1).await, RedeemOutcome::Enrolled);
    assert_eq!(enrol(bed, 1, 3, 1).await, refused(TicketRefusal::UsedUp));
    let found = stored(bed, 1).await;
    assert_eq!((found.uses, found.refusals), (2, 1));
    let gateway = bed.gateway_now(1).await;
    assert_eq!(gateway.name.as_str(), "gw-1");
    let known = bed
        .store
        .certificate(&bed.tenant, agent(1), &bytes(1))
        .await;
    assert!(known.unwrap().is_some(), "its key is registered");
    let gone = bed
        .store
        .gateway(&bed.tenant, &GatewayRef::Id(agent(3)))
        .await;
    assert_eq!(gone.unwrap(), None);
    let done = ("done".to_owned(), String::new());
    let used_up = ("refused".to_owned(), "ticket_used_up".to_owned());
    assert_eq!(redemptions(bed).await, [used_up, done.clone(), done]);
}

pub(crate) async fn the_last_uses_of_a_ticket_go_to_so_many(bed: &Bed) {
    create(bed, new_ticket(1, 3)).await;
    let all = (1..=MACHINES).map(|n| enrol(bed, 1, n, 1));
    let outcomes = join_all(all).await;
    let enrolled = outcomes.iter().filter(|it| **it == RedeemOutcome::Enrolled);
    assert_eq!(enrolled.count(), 3, "{outcomes:?}");
    assert_eq!(stored(bed, 1).await.uses, 3);
}

pub(crate) async fn an_answer_that_was_lost_is_given_again(bed: &Bed) {
    create(bed, new_ticket(1, 1)).await;
    assert_eq!(enrol(bed, 1, 1, 1).await, RedeemOutcome::Enrolled);
    let again = |n: u64| Redemption {
        challenge: bytes(n),
        gateway: NewGateway {
            agent_id: agent(n),
            ..redemption(1, 1).gateway
        },
        ..redemption(1, 1)
    };
    // With a new challenge, and even when the ticket's time is over.
    challenge(bed, 1, 50, 4_000).await;
    let RedeemOutcome::Before(before) = redeem(bed, again(50), 4_000).await else {
        panic!("it was enrolled before");
    };
    assert_eq!(
        (before.agent_id, before.certificate.as_str()),
        (agent(1), "certificate 1")
    );
    assert_eq!(stored(bed, 1).await.uses, 1);
    // Not for another installation, nor once it was connected.
    challenge(bed, 1, 51, 1).await;
    let other = Redemption {
        install_id: InstallId::from_uuid(Uuid::from_u128(99)),
        ..again(51)
    };
    assert_eq!(
        redeem(bed, other, 1).await,
        refused(TicketRefusal::KeyInUse)
    );
    bed.session(1, 1).await;
    challenge(bed, 1, 52, 1).await;
    assert_eq!(
        redeem(bed, again(52), 1).await,
        refused(TicketRefusal::KeyInUse)
    );
}

pub(crate) async fn a_challenge_is_good_for_one_redemption_of_its_ticket(bed: &Bed) {
    create(bed, new_ticket(1, 9)).await;
    create(bed, new_ticket(2, 9)).await;
    assert_eq!(challenge(bed, 3, 1, 1).await, ChallengeOutcome::Unknown);
    let none = refused(TicketRefusal::Challenge);
    assert_eq!(redeem(bed, redemption(1, 1), 1).await, none, "never given");
    challenge(bed, 1, 1, 1).await;
    assert_eq!(
        redeem(bed, redemption(2, 1), 1).await,
        none,
        "of another ticket"
    );
    assert_eq!(redeem(bed, redemption(1, 1), 61).await, none, "too old");
    assert_eq!(
        redeem(bed, redemption(1, 1), 60).await,
        RedeemOutcome::Enrolled
    );
    let replayed = Redemption {
        spki: bytes(70),
        ..redemption(1, 1)
    };
    assert_eq!(redeem(bed, replayed, 2).await, none, "consumed");
    // They are bounded, and go by themselves.
    for n in 0..1_000 {
        assert_eq!(
            challenge(bed, 1, 1_000 + n, 1).await,
            ChallengeOutcome::Kept
        );
    }
    assert_eq!(challenge(bed, 1, 9_000, 1).await, ChallengeOutcome::Full);
    assert_eq!(challenge(bed, 2, 9_001, 1).await, ChallengeOutcome::Kept);
    assert_eq!(challenge(bed, 1, 9_000, 100).await, ChallengeOutcome::Kept);
}

pub(crate) async fn a_taken_name_changes_nothing(bed: &Bed) {
    create(bed, new_ticket(1, 1)).await;
    bed.gateway(1).await;
    challenge(bed, 1, 2, 1).await;
    let named = |name: &str| {
        let mut named = redemption(1, 2);
        named.gateway.name = name.parse().unwrap();
        named
    };
    let redeemed = bed.store.redeem_ticket(&bed.tenant, named("gw-1"), at(1));
    assert!(matches!(redeemed.await, Err(StoreError::Conflict { .. })));
    assert_eq!(stored(bed, 1).await.uses, 0);
    // Not even the challenge.
    assert_eq!(redeem(bed, named("gw-2"), 1).await, RedeemOutcome::Enrolled);
}

pub(crate) async fn a_ticket_that_is_no_good_is_refused_and_recorded(bed: &Bed) {
    create(bed, new_ticket(1, 9)).await;
    assert_eq!(
        enrol(bed, 1, 1, 3_600).await,
        refused(TicketRefusal::Expired)
    );
    challenge(bed, 1, 2, 1).await;
    let elsewhere = Redemption {
        peer: "198.51.100.1".parse().unwrap(),
        ..redemption(1, 2)
    };
    assert_eq!(
        redeem(bed, elsewhere, 1).await,
        refused(TicketRefusal::OtherNetwork)
    );
    // A key of a gateway that came another way.
    let mut issued = redemption(1, 3).gateway;
    issued.name = "other".parse().unwrap();
    let actor = Actor::local("root");
    let made = bed.store.create_gateway(&bed.tenant, issued, &actor, at(0));
    made.await.unwrap();
    let mut taken = redemption(1, 3);
    taken.gateway.agent_id = agent(4);
    challenge(bed, 1, 3, 1).await;
    assert_eq!(
        redeem(bed, taken, 1).await,
        refused(TicketRefusal::KeyInUse)
    );
    let revoked = bed
        .store
        .revoke_ticket(&bed.tenant, ticket_id(1), &actor, at(1));
    revoked.await.unwrap();
    assert_eq!(enrol(bed, 1, 5, 1).await, refused(TicketRefusal::Revoked));
    let found = stored(bed, 1).await;
    assert_eq!((found.uses, found.refusals), (0, 4));
    let why: Vec<String> = redemptions(bed)
        .await
        .into_iter()
        .map(|(_, why)| why)
        .collect();
    assert_eq!(
        why,
        [
            "ticket_revoked",
            "key_in_use",
            "other_network",
            "ticket_expired"
        ]
    );
    // Without end, and the audit trail has an end of it.
    for _ in 0..120 {
        let refusal = NotedRefusal {
            why: "bad_proof",
            told: "the secret is another one".to_owned(),
        };
        let noted =
            bed.store
                .note_refused_ticket(&bed.tenant, ticket_id(1), refusal, &actor, at(1));
        noted.await.unwrap();
    }
    assert_eq!(stored(bed, 1).await.refusals, 124);
    assert_eq!(redemptions(bed).await.len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_backends_one_alone_gives_a_ticket_s_only_use() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, database)) = two_backends(&folder).await else {
        return;
    };
    for round in 0..20 {
        create(&one, new_ticket(round, 1)).await;
        let barrier = Arc::new(Barrier::new(2));
        let racing = [(&one, 1_000 + round), (&other, 2_000 + round)];
        let racing = racing.map(|(bed, n)| {
            let barrier = Arc::clone(&barrier);
            async move {
                challenge(bed, round, n, 1).await;
                barrier.wait().await;
                redeem(bed, redemption(round, n), 1).await
            }
        });
        let outcomes = join_all(racing).await;
        let enrolled = outcomes.iter().filter(|it| **it == RedeemOutcome::Enrolled);
        assert_eq!(enrolled.count(), 1, "{outcomes:?}");
        assert!(
            outcomes.contains(&refused(TicketRefusal::UsedUp)),
            "{outcomes:?}"
        );
    }
    one.store.close().await;
    other.store.close().await;
    drop(database);
}
