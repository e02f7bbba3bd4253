//! Tickets, and machines that become gateways by them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::Barrier;
use uuid::Uuid;
use viworks_backend_agent::data::{
    Actor, AnsweredChallenge, GatewayRef, NewCertificate, NewGateway, NewTicket, Page,
    RedeemOutcome, Redemption, RefusedRedemption, StoreError, StoredTicket, TicketBounds,
    TicketOutcome, TicketRefusal,
};
use viworks_common::enrolment::NameRule;
use viworks_common::id::{InstallId, TicketId};

use super::bed::{Bed, agent, at};
use super::instances::two_backends;

pub(super) const BOUNDS: TicketBounds = TicketBounds {
    live: 100,
    of_one: 100,
    ended: 100,
};

/// Machines that enrol at the same moment.
const MACHINES: u64 = 16;

pub(super) fn ticket_id(n: u64) -> TicketId {
    TicketId::from_uuid(Uuid::from_u128(
        (0x0190_0000_0000_7000_8000 << 48) | u128::from(n),
    ))
}

pub(super) fn new_ticket(n: u64, uses_max: u32) -> NewTicket {
    NewTicket {
        id: ticket_id(n),
        sha256: [7; 32],
        uses_max,
        labels: BTreeMap::from([("site".to_owned(), "berlin".to_owned())]),
        naming: NameRule::Prefix("gw-".to_owned()),
        networks: vec!["192.0.2.0/24".parse().unwrap()],
        replaces: None,
        allow_replace: false,
        ephemeral: None,
        expires_at: at(3_600),
    }
}

pub(super) fn bytes(n: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    bytes
}

async fn try_create(bed: &Bed, new: NewTicket, bounds: TicketBounds, by: &Actor) -> TicketOutcome {
    let made = bed.store.create_ticket(&bed.tenant, new, bounds, by, at(0));
    made.await.unwrap()
}

/// At a time of its own.
pub(super) async fn create_at(bed: &Bed, new: NewTicket, seconds: i64) {
    let (by, now) = (Actor::local("root"), at(seconds));
    let made = bed.store.create_ticket(&bed.tenant, new, BOUNDS, &by, now);
    assert_eq!(made.await.unwrap(), TicketOutcome::Made);
}

pub(super) async fn create(bed: &Bed, new: NewTicket) {
    let made = try_create(bed, new, BOUNDS, &Actor::local("root")).await;
    assert_eq!(made, TicketOutcome::Made);
}

pub(super) async fn stored(bed: &Bed, n: u64) -> StoredTicket {
    let found = bed.store.ticket(&bed.tenant, ticket_id(n)).await;
    found.unwrap().unwrap()
}

/// Challenge `n`, which no backend takes any more after ten minutes.
pub(super) fn challenge(n: u64) -> AnsweredChallenge {
    AnsweredChallenge {
        challenge: bytes(n),
        expires_at: at(600),
    }
}

/// A refusal of somebody with the ticket, over challenge `n`.
pub(super) fn refusal(ticket: u64, n: u64, why: &'static str) -> RefusedRedemption {
    RefusedRedemption {
        ticket: ticket_id(ticket),
        challenge: challenge(n),
        peer: "192.0.2.7".parse().unwrap(),
        why,
        told: "told".to_owned(),
    }
}

/// Somebody with the ticket is refused, over challenge `n`.
async fn refuse(bed: &Bed, ticket: u64, n: u64, why: &'static str, seconds: i64) -> bool {
    let refused = refusal(ticket, n, why);
    let fresh = bed
        .store
        .refuse_redemption(&bed.tenant, refused, at(seconds));
    fresh.await.unwrap()
}

/// Machine `n` with a key and a challenge of its own.
pub(super) fn redemption(ticket: u64, n: u64) -> Redemption {
    Redemption {
        ticket: ticket_id(ticket),
        challenge: challenge(n),
        has_other_name: false,
        replaces: false,
        install_id: InstallId::from_uuid(Uuid::from_u128(u128::from(n))),
        peer: "192.0.2.7".parse().unwrap(),
        spki: bytes(n),
        certificate: format!("certificate {n}"),
        gateway: NewGateway {
            agent_id: agent(n),
            name: format!("gw-{n}").parse().unwrap(),
            labels: BTreeMap::new(),
            key_generation: 1,
            pins: None,
            authorities: None,
            certificate: Some(NewCertificate {
                agent_id: agent(n),
                spki: bytes(n),
                serial: "01".to_owned(),
                not_after: at(1_000_000),
                fingerprint: bytes(n),
                issuer: Some([5; 32]),
            }),
        },
    }
}

pub(super) async fn redeem(bed: &Bed, redemption: Redemption, seconds: i64) -> RedeemOutcome {
    let redeemed = bed
        .store
        .redeem_ticket(&bed.tenant, redemption, at(seconds));
    redeemed.await.unwrap()
}

pub(super) async fn enrol(bed: &Bed, ticket: u64, n: u64, seconds: i64) -> RedeemOutcome {
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

pub(super) fn refused(refusal: TicketRefusal) -> RedeemOutcome {
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
    let taken = bed
        .store
        .create_ticket(&bed.tenant, other, BOUNDS, &actor, at(0));
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
        .create_ticket(&bed.tenant, later, BOUNDS, &actor, at(31 * 24 * 3_600));
    assert_eq!(made.await.unwrap(), TicketOutcome::Made);
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

pub(crate) async fn tickets_that_can_be_used_are_bounded_and_ended_ones_make_room(bed: &Bed) {
    let bounds = TicketBounds {
        live: 4,
        of_one: 3,
        ended: 2,
    };
    let (one, other) = (Actor::local("one"), Actor::local("other"));
    for n in 1..=3 {
        let made = try_create(bed, new_ticket(n, 1), bounds, &one).await;
        assert_eq!(made, TicketOutcome::Made);
    }
    let made = try_create(bed, new_ticket(4, 1), bounds, &one).await;
    assert_eq!(made, TicketOutcome::FullOfOne);
    let made = try_create(bed, new_ticket(4, 1), bounds, &other).await;
    assert_eq!(made, TicketOutcome::Made);
    let made = try_create(bed, new_ticket(5, 1), bounds, &other).await;
    assert_eq!(made, TicketOutcome::Full);
    // One that was used up, one that was revoked, and another one.
    assert_eq!(enrol(bed, 1, 1, 1).await, RedeemOutcome::Enrolled);
    for n in [2, 3] {
        let revoked = bed
            .store
            .revoke_ticket(&bed.tenant, ticket_id(n), &one, at(0));
        revoked.await.unwrap();
    }
    let made = try_create(bed, new_ticket(5, 1), bounds, &one).await;
    assert_eq!(made, TicketOutcome::Made);
    let page = bed.store.list_tickets(&bed.tenant, Page::first(9)).await;
    let ids: Vec<TicketId> = page.unwrap().items.iter().map(|ticket| ticket.id).collect();
    // The oldest that ended is gone.
    assert_eq!(ids, [5, 4, 3, 2].map(ticket_id));
}

pub(crate) async fn an_answer_that_was_lost_is_given_again(bed: &Bed) {
    create(bed, new_ticket(1, 1)).await;
    let mut first = redemption(1, 1);
    first.gateway.labels = BTreeMap::from([("site".to_owned(), "berlin".to_owned())]);
    assert_eq!(redeem(bed, first, 1).await, RedeemOutcome::Enrolled);
    let again = |n: u64| Redemption {
        challenge: challenge(n),
        gateway: NewGateway {
            agent_id: agent(n),
            ..redemption(1, 1).gateway
        },
        ..redemption(1, 1)
    };
    // With a new challenge, and even when the ticket's time is over.
    for n in 50..60 {
        let RedeemOutcome::Before(before) = redeem(bed, again(n), 4_000).await else {
            panic!("it was enrolled before");
        };
        assert_eq!(
            (before.agent_id, before.certificate.as_str()),
            (agent(1), "certificate 1")
        );
        assert_eq!(before.labels["site"], "berlin");
    }
    assert_eq!(stored(bed, 1).await.uses, 1);
    // The audit trail has the first time, and one of an hour.
    let done = ("done".to_owned(), String::new());
    assert_eq!(redemptions(bed).await, [done.clone(), done.clone()]);
    redeem(bed, again(60), 8_000).await;
    assert_eq!(redemptions(bed).await.len(), 3);
    // Not elsewhere, not for another installation, nor once it was connected.
    let elsewhere = Redemption {
        peer: "198.51.100.1".parse().unwrap(),
        ..again(61)
    };
    assert_eq!(
        redeem(bed, elsewhere, 1).await,
        refused(TicketRefusal::OtherNetwork)
    );
    let other = Redemption {
        install_id: InstallId::from_uuid(Uuid::from_u128(99)),
        ..again(62)
    };
    assert_eq!(
        redeem(bed, other, 1).await,
        refused(TicketRefusal::KeyInUse)
    );
    bed.session(1, 1).await;
    assert_eq!(
        redeem(bed, again(63), 1).await,
        refused(TicketRefusal::KeyInUse)
    );
}

pub(crate) async fn a_challenge_is_good_for_one_redemption(bed: &Bed) {
    create(bed, new_ticket(1, 9)).await;
    create(bed, new_ticket(2, 9)).await;
    assert_eq!(enrol(bed, 1, 1, 1).await, RedeemOutcome::Enrolled);
    let replayed = |ticket: u64, n: u64| Redemption {
        spki: bytes(70 + n),
        ..redemption(ticket, n)
    };
    let none = refused(TicketRefusal::Challenge);
    for ticket in [1, 2] {
        assert_eq!(redeem(bed, replayed(ticket, 1), 2).await, none, "consumed");
    }
    assert!(!refuse(bed, 1, 1, "csr_key", 2).await, "consumed");
    // A refusal consumes it as well, of whatever kind.
    assert!(refuse(bed, 1, 2, "csr_key", 2).await);
    assert_eq!(redeem(bed, redemption(1, 2), 2).await, none);
    let elsewhere = Redemption {
        peer: "198.51.100.1".parse().unwrap(),
        ..redemption(1, 3)
    };
    let other_network = refused(TicketRefusal::OtherNetwork);
    assert_eq!(redeem(bed, elsewhere, 2).await, other_network);
    assert_eq!(redeem(bed, redemption(1, 3), 2).await, none);
    let (one, other) = (stored(bed, 1).await, stored(bed, 2).await);
    assert_eq!((one.uses, one.refusals), (1, 6));
    assert_eq!((other.uses, other.refusals), (0, 1));
    // It is forgotten once no backend takes it any more.
    let late = || Redemption {
        challenge: AnsweredChallenge {
            expires_at: at(9_000),
            ..challenge(1)
        },
        ..redemption(1, 8)
    };
    assert_eq!(redeem(bed, late(), 599).await, none);
    assert_eq!(redeem(bed, late(), 600).await, RedeemOutcome::Enrolled);
}

pub(crate) async fn a_taken_name_is_refused_or_changes_nothing_where_there_is_another(bed: &Bed) {
    create(bed, new_ticket(1, 1)).await;
    bed.gateway(1).await;
    let named = |name: &str, n: u64, has_other_name: bool| {
        let mut named = redemption(1, 2);
        named.challenge = challenge(n);
        named.has_other_name = has_other_name;
        named.gateway.name = name.parse().unwrap();
        named
    };
    let taken = named("gw-1", 2, true);
    let redeemed = bed.store.redeem_ticket(&bed.tenant, taken, at(1));
    assert!(matches!(redeemed.await, Err(StoreError::Conflict { .. })));
    let found = stored(bed, 1).await;
    assert_eq!((found.uses, found.refusals), (0, 0));
    // Not even the challenge is gone; without another name it is, and that is on record.
    let name_taken = refused(TicketRefusal::NameTaken);
    assert_eq!(redeem(bed, named("gw-1", 2, false), 1).await, name_taken);
    let probed = redeem(bed, named("gw-2", 2, false), 1).await;
    assert_eq!(probed, refused(TicketRefusal::Challenge));
    let found = stored(bed, 1).await;
    assert_eq!((found.uses, found.refusals), (0, 2));
    let why = redemptions(bed).await.into_iter().map(|(_, why)| why);
    assert_eq!(why.collect::<Vec<_>>(), ["challenge", "name_taken"]);
    let free = redeem(bed, named("gw-2", 3, false), 1).await;
    assert_eq!(free, RedeemOutcome::Enrolled);
}

pub(crate) async fn the_name_of_a_revoked_gateway_is_for_a_ticket_that_is_for_it(bed: &Bed) {
    create(bed, new_ticket(1, 9)).await;
    let fixed = NewTicket {
        naming: NameRule::Fixed("gw-1".parse().unwrap()),
        ..new_ticket(2, 1)
    };
    create(bed, fixed).await;
    assert_eq!(enrol(bed, 1, 1, 1).await, RedeemOutcome::Enrolled);
    let id = agent(1).to_string();
    let end_of_id = id.rsplit('-').next().unwrap();
    // The name that it would have afterwards is taken in advance.
    let mut squat = redemption(1, 2);
    squat.gateway.name = format!("gw-1-revoked-{end_of_id}").parse().unwrap();
    assert_eq!(redeem(bed, squat, 1).await, RedeemOutcome::Enrolled);
    let actor = Actor::local("root");
    let revoked = bed
        .store
        .revoke_gateway(&bed.tenant, agent(1), None, &actor, at(1));
    revoked.await.unwrap();
    // Its machine has the old ticket and a new key.
    let back = |ticket: u64, n: u64| {
        let mut back = redemption(ticket, n);
        back.gateway.name = "gw-1".parse().unwrap();
        back
    };
    let no = refused(TicketRefusal::NameOfRevoked);
    assert_eq!(redeem(bed, back(1, 3), 1).await, no);
    assert_eq!(redeem(bed, back(2, 4), 1).await, RedeemOutcome::Enrolled);
    assert_eq!(bed.gateway_now(4).await.name.as_str(), "gw-1");
    let retired = bed.gateway_now(1).await.name;
    assert_eq!(retired.as_str(), format!("gw-1-revoked-{end_of_id}-2"));
}

pub(crate) async fn a_ticket_that_is_no_good_is_refused_and_recorded(bed: &Bed) {
    create(bed, new_ticket(1, 9)).await;
    assert_eq!(
        enrol(bed, 1, 1, 3_600).await,
        refused(TicketRefusal::Expired)
    );
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
    let why = async || {
        let all = redemptions(bed).await.into_iter();
        all.map(|(_, why)| why).collect::<Vec<String>>()
    };
    assert_eq!(
        why().await,
        [
            "ticket_revoked",
            "key_in_use",
            "other_network",
            "ticket_expired"
        ]
    );
    // Without end, and the audit trail has an end of it; yet whatever is new about it is told.
    for n in 100..220 {
        assert!(refuse(bed, 1, n, "csr_key", 1).await);
    }
    assert_eq!(stored(bed, 1).await.refusals, 124);
    let told = why().await;
    assert_eq!((told.len(), told[0].as_str()), (101, "csr_key"));
    assert!(refuse(bed, 1, 300, "name_taken", 1).await);
    assert!(refuse(bed, 1, 301, "name_taken", 1).await);
    assert!(refuse(bed, 1, 302, "csr_key", 3_602).await);
    let told = why().await;
    assert_eq!(
        (told.len(), &told[..2]),
        (103, &["csr_key".to_owned(), "name_taken".to_owned()][..])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_backends_one_alone_takes_a_key_whatever_it_comes_with() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, database)) = two_backends(&folder).await else {
        return;
    };
    for round in 0..20 {
        // By two tickets, each of another gateway.
        create(&one, new_ticket(2 * round, 1)).await;
        create(&one, new_ticket(2 * round + 1, 1)).await;
        let barrier = Arc::new(Barrier::new(2));
        let racing = [(&one, 0), (&other, 1)];
        let racing = racing.map(|(bed, n)| {
            let barrier = Arc::clone(&barrier);
            let mut wanted = redemption(2 * round + n, 1_000 * (n + 1) + round);
            wanted.spki = bytes(5_000 + round);
            if let Some(first) = &mut wanted.gateway.certificate {
                first.spki = wanted.spki;
            }
            async move {
                barrier.wait().await;
                redeem(bed, wanted, 1).await
            }
        });
        let outcomes = join_all(racing).await;
        let enrolled = outcomes.iter().filter(|it| **it == RedeemOutcome::Enrolled);
        assert_eq!(enrolled.count(), 1, "{outcomes:?}");
        assert!(
            outcomes.contains(&refused(TicketRefusal::KeyInUse)),
            "{outcomes:?}"
        );
    }
    one.store.close().await;
    other.store.close().await;
    drop(database);
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
