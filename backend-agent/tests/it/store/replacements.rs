//! A machine takes the place of another one, and ephemeral gateways that stay away.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Barrier;
use viworks_backend_agent::data::{
    Actor, AdmitOutcome, AdmitRequest, ConfirmOutcome, ForkDecision, ForkResolution, GatewayFilter,
    KeyRotation, Letter, NewGateway, NewTicket, Page, RedeemOutcome, Redemption, Replaced,
    StoreError, TicketRefusal,
};
use viworks_common::code::CloseCode;
use viworks_common::command::CommandState;
use viworks_common::enrolment::NameRule;
use viworks_common::id::AgentId;

use super::bed::{Bed, LEASE, Session, agent, at, process};
use super::enrolments::{
    bytes, challenge, create, create_at, enrol, new_ticket, redeem, redemption, refused, stored,
    ticket_id,
};
use super::gateways::{new_certificate, new_gateway};
use super::instances::two_backends;

/// Ticket `n`, by which one machine takes the place of a gateway.
pub(super) fn ticket_for(gateway: u64, n: u64) -> NewTicket {
    NewTicket {
        naming: NameRule::Fixed(format!("gw-{gateway}").parse().unwrap()),
        replaces: Some(agent(gateway)),
        ..new_ticket(n, 1)
    }
}

fn ticket_for_the_place(n: u64) -> NewTicket {
    ticket_for(1, n)
}

/// Machine `n` with a key and a challenge of its own, which is to be that gateway.
pub(super) fn newcomer_for(gateway: u64, ticket: u64, n: u64) -> Redemption {
    let own = redemption(ticket, n);
    let mut certificate = own.gateway.certificate.clone();
    if let Some(certificate) = &mut certificate {
        certificate.agent_id = agent(gateway);
    }
    Redemption {
        replaces: true,
        gateway: NewGateway {
            agent_id: agent(gateway),
            name: format!("gw-{gateway}").parse().unwrap(),
            certificate,
            ..own.gateway.clone()
        },
        ..own
    }
}

fn newcomer(ticket: u64, n: u64) -> Redemption {
    newcomer_for(1, ticket, n)
}

/// Gateway 1 with the certificate 1 and a session.
async fn connected(bed: &Bed) -> Session {
    bed.gateway(1).await;
    let (tenant, actor) = (&bed.tenant, Actor::local("test"));
    let first = new_certificate(1, 1);
    let registered = bed.store.register_certificate(tenant, first, &actor, at(0));
    registered.await.unwrap();
    bed.session(1, 1).await
}

fn replaced(outcome: RedeemOutcome) -> Replaced {
    let RedeemOutcome::Replaced(replaced) = outcome else {
        panic!("{outcome:?}");
    };
    *replaced
}

/// The HELLO of the machine that took the place.
fn first_hello(bed: &Bed, replaced: &Replaced) -> AdmitRequest {
    AdmitRequest {
        key_generation: replaced.key_generation,
        ..bed.hello(1, 9, replaced.epoch)
    }
}

pub(crate) async fn a_machine_takes_a_place_and_the_one_before_has_nothing_more(bed: &Bed) {
    let old = connected(bed).await;
    let (tenant, epoch) = (&bed.tenant, old.holder.epoch);
    let noted = bed
        .store
        .note_keys(tenant, agent(1), epoch, true, Some([7; 8]));
    noted.await.unwrap();
    let has = Some("1".repeat(64));
    let reported = bed.store.report_bundle(tenant, agent(1), epoch, has, at(1));
    reported.await.unwrap();
    let begun = bed.released(1, &old).await;
    let again = bed.command(1, true).await;
    bed.lease(&old).await;
    let waiting = bed.command(1, false).await;
    create(bed, ticket_for_the_place(1)).await;
    let before = bed.gateway_now(1).await;
    // The ticket alone changes nothing.
    assert_eq!(
        before.session.as_ref().map(|it| it.epoch),
        Some(old.holder.epoch)
    );
    let done = replaced(redeem(bed, newcomer(1, 50), 30).await);
    assert!(done.epoch > old.holder.epoch, "{done:?}");
    assert_eq!(done.key_generation, 2);
    let ended: Vec<_> = done
        .ended
        .iter()
        .map(|it| (it.command_id, it.state))
        .collect();
    assert_eq!(ended, [(begun, CommandState::Indeterminate)]);
    assert_eq!(bed.state(again).await, CommandState::Queued);
    assert_eq!(bed.state(waiting).await, CommandState::Queued);
    let after = bed.gateway_now(1).await;
    assert_eq!((after.agent_id, &after.name), (agent(1), &before.name));
    // Otherwise a master key would be done with that the new machine's secrets may be of.
    let keys = after.keys();
    assert_eq!((keys.takes_one, keys.master), (None, None));
    // Nor has it what the one before was given.
    assert_eq!(after.authorities, None);
    assert_eq!((after.session, after.next_order), (None, before.next_order));
    let known = async |spki: [u8; 32]| {
        let known = bed.store.certificate(&bed.tenant, agent(1), &spki).await;
        known.unwrap().map(|known| (known.retired, known.replaced))
    };
    assert_eq!(known([1; 32]).await, Some((true, true)));
    assert_eq!(known(bytes(50)).await, Some((false, false)));
    // Whatever the machine before does, it is over.
    let fenced = bed
        .store
        .lease_commands(&bed.tenant, &old.holder, LEASE, at(31))
        .await;
    assert!(matches!(fenced, Err(StoreError::Fenced)));
    let hello = bed.hello(1, 1, old.holder.epoch);
    assert_eq!(bed.admit(hello).await, AdmitOutcome::StaleKey);
    let copied = AdmitRequest {
        key_generation: 2,
        confirmed_at_challenge: done.epoch,
        ..bed.hello(1, 2, old.holder.epoch)
    };
    assert_eq!(bed.admit(copied).await, AdmitOutcome::Fork);
    let new = bed.open(first_hello(bed, &done)).await;
    let leased = bed
        .store
        .lease_commands(&bed.tenant, &new.holder, LEASE, at(1_000));
    let leased = leased.await.unwrap().commands;
    assert_eq!(leased.len(), 2, "what waits goes to it");
    let ended = bed
        .store
        .list_sessions(&bed.tenant, agent(1), 9)
        .await
        .unwrap();
    let of_old = ended
        .iter()
        .find(|it| it.epoch == old.holder.epoch)
        .unwrap();
    assert_eq!(of_old.code, Some(CloseCode::Superseded));
    let audited = bed.audited().await;
    assert_eq!(
        audited.iter().filter(|it| *it == "gateway.replace").count(),
        1
    );
}

pub(crate) async fn two_machines_never_take_one_place(bed: &Bed) {
    connected(bed).await;
    create(bed, ticket_for_the_place(1)).await;
    let both = [50, 51].map(|n| redeem(bed, newcomer(1, n), 30));
    let outcomes = join_all(both).await;
    let taken = outcomes
        .iter()
        .filter(|it| matches!(it, RedeemOutcome::Replaced(_)));
    assert_eq!(taken.count(), 1, "{outcomes:?}");
    assert!(
        outcomes.contains(&refused(TicketRefusal::UsedUp)),
        "{outcomes:?}"
    );
    assert_eq!(bed.gateway_now(1).await.key_generation, 2);
    assert_eq!(stored(bed, 1).await.uses, 1);
}

pub(crate) async fn a_hello_of_the_machine_before_never_outlives_it(bed: &Bed) {
    let old = connected(bed).await;
    create(bed, ticket_for_the_place(1)).await;
    let hello = bed.hello(1, 1, old.holder.epoch);
    let (admitted, outcome) =
        tokio::join!(bed.admit(hello.clone()), redeem(bed, newcomer(1, 50), 30));
    let done = replaced(outcome);
    if let AdmitOutcome::Accepted(admitted) = &admitted {
        let confirm = bed.confirm_of(&hello, admitted);
        let confirmed = bed.confirm(confirm).await;
        assert_eq!(confirmed, ConfirmOutcome::Superseded);
    } else {
        assert_eq!(admitted, AdmitOutcome::StaleKey);
    }
    let gateway = bed.gateway_now(1).await;
    assert_eq!((gateway.confirmed, gateway.session), (done.epoch, None));
    bed.open(first_hello(bed, &done)).await;
}

pub(crate) async fn whoever_held_the_identity_before_is_no_choice_any_more(bed: &Bed) {
    connected(bed).await;
    assert_eq!(bed.admit(bed.hello(1, 2, 0)).await, AdmitOutcome::Fork);
    let forks = async || bed.store.list_forks(&bed.tenant, agent(1)).await.unwrap();
    assert_eq!(forks().await.len(), 1);
    create(bed, ticket_for_the_place(1)).await;
    let done = replaced(redeem(bed, newcomer(1, 50), 30).await);
    assert!(forks().await.is_empty());
    let (actor, keep) = (Actor::local("test"), ForkDecision::Keep(process(2)));
    let decided = bed
        .store
        .resolve_fork(&bed.tenant, agent(1), keep, &actor, at(31));
    let decided = decided.await.unwrap();
    assert!(
        matches!(decided, Some(ForkResolution::NoFork)),
        "{decided:?}"
    );
    bed.open(first_hello(bed, &done)).await;
}

pub(crate) async fn a_place_whose_answer_was_lost_is_given_again(bed: &Bed) {
    connected(bed).await;
    create(bed, ticket_for_the_place(1)).await;
    let first = newcomer(1, 50);
    let done = replaced(redeem(bed, first.clone(), 30).await);
    // The answer of the database.
    let same = replaced(redeem(bed, first.clone(), 31).await);
    assert_eq!((same.epoch, same.key_generation), (done.epoch, 2));
    // Somebody else with the same challenge gets nothing.
    let stranger = Redemption {
        spki: bytes(70),
        ..newcomer(1, 50)
    };
    let none = refused(TicketRefusal::Challenge);
    assert_eq!(redeem(bed, stranger, 32).await, none);
    // That of the backend: another challenge, and a certificate that nobody ever gets.
    let again = |n: u64| Redemption {
        challenge: challenge(n),
        certificate: "another".to_owned(),
        ..newcomer(1, 50)
    };
    let RedeemOutcome::Before(before) = redeem(bed, again(60), 4_000).await else {
        panic!("it was enrolled before");
    };
    assert_eq!(before.certificate, "certificate 50");
    assert_eq!((before.epoch, before.key_generation), (done.epoch, 2));
    let foreseen = async || {
        let (tenant, peer) = (&bed.tenant, "192.0.2.7".parse().unwrap());
        let look = bed
            .store
            .foresee_redemption(tenant, ticket_id(1), bytes(50), peer, at(33));
        look.await.unwrap().unwrap().refusal
    };
    assert_eq!(foreseen().await, None);
    bed.open(first_hello(bed, &done)).await;
    assert_eq!(foreseen().await, Some(TicketRefusal::KeyInUse));
    let in_use = refused(TicketRefusal::KeyInUse);
    assert_eq!(redeem(bed, again(61), 33).await, in_use);
    assert_eq!(stored(bed, 1).await.uses, 1);
}

pub(crate) async fn a_revoked_gateway_comes_back_by_a_ticket_for_its_place_alone(bed: &Bed) {
    connected(bed).await;
    create(bed, ticket_for_the_place(1)).await;
    let any = NewTicket {
        allow_replace: true,
        ..new_ticket(2, 9)
    };
    create(bed, any).await;
    let actor = Actor::local("root");
    let revoked = bed
        .store
        .revoke_gateway(&bed.tenant, agent(1), Some("stolen"), &actor, at(20));
    revoked.await.unwrap();
    let why = async || bed.store.revocation(&bed.tenant, agent(1)).await.unwrap();
    assert_eq!(why().await.unwrap().reason.as_deref(), Some("stolen"));
    let no = refused(TicketRefusal::NameOfRevoked);
    assert_eq!(redeem(bed, newcomer(2, 51), 3_000).await, no);
    // A ticket that is for another place takes none.
    let other = NewTicket {
        replaces: Some(agent(7)),
        ..ticket_for_the_place(3)
    };
    create(bed, other).await;
    let unknown = refused(TicketRefusal::Unknown);
    assert_eq!(redeem(bed, newcomer(3, 52), 30).await, unknown);
    // Neither does one of before the revocation bring it back.
    assert_eq!(redeem(bed, newcomer(1, 50), 30).await, no);
    create_at(bed, ticket_for_the_place(4), 31).await;
    let done = replaced(redeem(bed, newcomer(4, 53), 32).await);
    let back = bed.gateway_now(1).await;
    assert_eq!((back.revoked_at, why().await), (None, None));
    bed.open(first_hello(bed, &done)).await;
}

pub(crate) async fn a_name_that_is_taken_is_taken_over_once_nothing_is_heard_of_it(bed: &Bed) {
    let old = connected(bed).await;
    create(bed, new_ticket(1, 9)).await;
    let any = NewTicket {
        allow_replace: true,
        ..new_ticket(2, 9)
    };
    create(bed, any).await;
    let taken = refused(TicketRefusal::NameTaken);
    assert_eq!(redeem(bed, newcomer(1, 50), 30).await, taken);
    let connected = refused(TicketRefusal::Connected);
    assert_eq!(redeem(bed, newcomer(2, 51), 30).await, connected);
    let ended = bed.store.end_session(
        &bed.tenant,
        agent(1),
        old.holder.epoch,
        CloseCode::HeartbeatTimeout,
        at(100),
    );
    assert!(ended.await.unwrap());
    // It may be on its way back.
    assert_eq!(redeem(bed, newcomer(2, 52), 159).await, connected);
    let done = replaced(redeem(bed, newcomer(2, 53), 160).await);
    assert_eq!((stored(bed, 2).await.uses, done.key_generation), (1, 2));
    // So is the one that has just come.
    assert_eq!(redeem(bed, newcomer(2, 54), 161).await, connected);
}

pub(crate) async fn a_gateway_has_as_many_keys_as_a_hello_can_name(bed: &Bed) {
    let new = NewGateway {
        key_generation: 252,
        ..new_gateway(1, "gw-1")
    };
    let actor = Actor::local("test");
    let made = bed.store.create_gateway(&bed.tenant, new, &actor, at(0));
    made.await.unwrap();
    for n in 1..=3 {
        create(bed, ticket_for_the_place(n)).await;
    }
    // The machine before may have the next key already, and has shown it to nobody.
    let rotated = bed.store.rotate_key(&bed.tenant, agent(1), &actor, at(1));
    assert_eq!(rotated.await.unwrap(), Some(KeyRotation::Wanted(253)));
    let next = replaced(redeem(bed, newcomer(1, 50), 30).await);
    assert_eq!(next.key_generation, 254);
    let last = replaced(redeem(bed, newcomer(2, 51), 31).await);
    assert_eq!(last.key_generation, 255);
    let no = refused(TicketRefusal::KeysUsedUp);
    assert_eq!(redeem(bed, newcomer(3, 52), 32).await, no);
    assert_eq!(stored(bed, 3).await.uses, 0);
    bed.open(first_hello(bed, &last)).await;
}

/// The gateways that the store removes at this time.
async fn removed(bed: &Bed, seconds: i64) -> Vec<AgentId> {
    let removed = bed
        .store
        .remove_absent_gateways(&bed.tenant, 10, at(seconds));
    let removed = removed.await.unwrap().into_iter();
    removed.map(|(agent_id, _revoked)| agent_id).collect()
}

pub(crate) async fn an_ephemeral_gateway_that_stays_away_is_removed_and_its_name_is_free(
    bed: &Bed,
) {
    let ephemeral = NewTicket {
        ephemeral: Some(Duration::from_secs(600)),
        ..new_ticket(1, 9)
    };
    create(bed, ephemeral).await;
    create(bed, new_ticket(2, 9)).await;
    for (ticket, n) in [(1, 1), (1, 2), (2, 3)] {
        assert_eq!(enrol(bed, ticket, n, 0).await, RedeemOutcome::Enrolled);
    }
    let session = bed.session(2, 1).await;
    let waiting = bed.command(1, false).await;
    assert_eq!(removed(bed, 599).await, []);
    let counts = bed.store.counts(&bed.tenant, at(599)).await.unwrap();
    assert_eq!(counts.gateways, 2, "nobody waits for one that is ephemeral");
    assert_eq!(removed(bed, 600).await, [agent(1)]);
    assert_eq!(bed.state(waiting).await, CommandState::Cancelled);
    assert_eq!(removed(bed, 601).await, [], "once");
    let gone = bed.gateway_now(1).await;
    assert!(gone.revoked_at.is_some() && gone.name.as_str() != "gw-1");
    let why = bed.store.revocation(&bed.tenant, agent(1)).await.unwrap();
    assert!(why.unwrap().reason.unwrap().contains("ephemeral"));
    let mut next = redemption(2, 4);
    next.gateway.name = "gw-1".parse().unwrap();
    assert_eq!(redeem(bed, next, 602).await, RedeemOutcome::Enrolled);
    // From the end of its session on; one that is connected is never away.
    assert_eq!(removed(bed, 5_000).await, []);
    let code = CloseCode::HeartbeatTimeout;
    let epoch = session.holder.epoch;
    let ended = bed
        .store
        .end_session(&bed.tenant, agent(2), epoch, code, at(5_000));
    assert!(ended.await.unwrap());
    assert_eq!(removed(bed, 5_599).await, []);
    assert_eq!(removed(bed, 5_600).await, [agent(2)]);
    assert_eq!(removed(bed, 1_000_000).await, []);
}

pub(crate) async fn an_ephemeral_gateway_without_a_free_name_does_not_hold_up_the_others(
    bed: &Bed,
) {
    let ephemeral = NewTicket {
        ephemeral: Some(Duration::from_secs(600)),
        ..new_ticket(1, 9)
    };
    create(bed, ephemeral).await;
    for n in [1, 2] {
        assert_eq!(enrol(bed, 1, n, 0).await, RedeemOutcome::Enrolled);
    }
    let id = agent(1).to_string();
    let end_of_id = id.rsplit('-').next().unwrap();
    let numbers: Vec<u64> = (1..=1_000).collect();
    let actor = Actor::local("test");
    for some in numbers.chunks(100) {
        let made = some.iter().map(|number| {
            let name = match number {
                1 => format!("gw-1-revoked-{end_of_id}"),
                more => format!("gw-1-revoked-{end_of_id}-{more}"),
            };
            let new = new_gateway(10_000 + number, &name);
            bed.store.create_gateway(&bed.tenant, new, &actor, at(0))
        });
        for made in join_all(made).await {
            made.unwrap();
        }
    }
    assert_eq!(removed(bed, 600).await, [agent(1), agent(2)]);
    let (kept, freed) = (bed.gateway_now(1).await, bed.gateway_now(2).await);
    assert!(kept.revoked_at.is_some() && freed.revoked_at.is_some());
    assert_eq!(kept.name.as_str(), "gw-1", "every other name is taken");
    assert_ne!(freed.name.as_str(), "gw-2");
    assert_eq!(removed(bed, 601).await, [], "once");
}

pub(crate) async fn gateways_are_listed_by_the_ticket_that_they_came_of(bed: &Bed) {
    create(bed, new_ticket(1, 9)).await;
    create(bed, new_ticket(2, 9)).await;
    for (ticket, n) in [(1, 1), (2, 2), (1, 3)] {
        assert_eq!(enrol(bed, ticket, n, 0).await, RedeemOutcome::Enrolled);
    }
    let of = async |n| {
        let filter = GatewayFilter {
            ticket: Some(ticket_id(n)),
            ..GatewayFilter::default()
        };
        let page = bed
            .store
            .list_gateways(&bed.tenant, &filter, Page::first(9));
        let items = page.await.unwrap().items.into_iter();
        items.map(|gateway| gateway.agent_id).collect::<Vec<_>>()
    };
    assert_eq!(of(1).await, [agent(1), agent(3)]);
    assert_eq!(of(2).await, [agent(2)]);
    assert_eq!(of(3).await, []);
    // Whoever takes a place for an operator leaves it the gateway that it was.
    create(bed, ticket_for_the_place(4)).await;
    replaced(redeem(bed, newcomer(4, 50), 30).await);
    assert_eq!(of(1).await, [agent(1), agent(3)]);
    assert_eq!(of(4).await, [agent(1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_backends_one_alone_gives_a_place_away_and_the_other_ends_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, database)) = two_backends(&folder).await else {
        return;
    };
    let session = connected(&one).await;
    create(&one, ticket_for_the_place(1)).await;
    let barrier = Arc::new(Barrier::new(2));
    let racing = [(&one, 50), (&other, 51)].map(|(bed, n)| {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
            redeem(bed, newcomer(1, n), 30).await
        }
    });
    let outcomes = join_all(racing).await;
    let taken = outcomes
        .iter()
        .position(|it| matches!(it, RedeemOutcome::Replaced(_)));
    assert!(
        outcomes.contains(&refused(TicketRefusal::UsedUp)),
        "{outcomes:?}"
    );
    let mail = one
        .store
        .take_inbox(&one.tenant, &[], at(31))
        .await
        .unwrap();
    let letters: Vec<_> = mail.into_iter().map(|mail| mail.letter).collect();
    // Its own backend does it by itself.
    let epoch = session.holder.epoch;
    let expected = match taken.unwrap() {
        0 => vec![],
        _ => vec![Some(Letter::Superseded { epoch })],
    };
    assert_eq!(letters, expected);
    one.store.close().await;
    other.store.close().await;
    drop(database);
}
