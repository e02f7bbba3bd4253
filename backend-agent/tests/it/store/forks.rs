//! What an operator decides about two holders of one identity.

use uuid::Uuid;
use viworks_backend_agent::data::{
    Actor, AdmitOutcome, AdmitRequest, CertificateRef, CertificateRevocation, Fork, ForkDecision,
    ForkEnd, ForkResolution, ForkResolved, Gateway, Letter, NewCertificate, Page, RenewalOutcome,
};
use viworks_common::command::{CommandState, Outcome, OutcomeState};
use viworks_common::fork::Apart;
use viworks_common::id::{AgentRunId, BootId, InstallId};

use super::bed::{Bed, agent, at, outcome, process};
use super::gateways::new_certificate;
use super::instances::{instance, only, two_backends};
use super::postgres_only::finish;
use super::renewals::renewal;

/// A HELLO of a copy on another machine: the installation is the original's.
pub(super) fn copied(bed: &Bed, run: u64, epoch: u64) -> AdmitRequest {
    on_boot(bed, run, epoch, 99)
}

fn on_boot(bed: &Bed, run: u64, epoch: u64, boot: u128) -> AdmitRequest {
    AdmitRequest {
        boot_id: BootId::from_uuid(Uuid::from_u128(boot)),
        ..bed.hello(1, run, epoch)
    }
}

pub(super) async fn decide(bed: &Bed, decision: ForkDecision) -> ForkResolution {
    let actor = Actor::local("test");
    let decided = bed
        .store
        .resolve_fork(&bed.tenant, agent(1), decision, &actor, at(5));
    decided.await.unwrap().unwrap()
}

pub(super) async fn keep(bed: &Bed, run: AgentRunId) -> ForkResolved {
    let decided = decide(bed, ForkDecision::Keep(run)).await;
    let ForkResolution::Resolved(resolved) = decided else {
        panic!("{decided:?}");
    };
    *resolved
}

pub(super) async fn forks(bed: &Bed) -> Vec<Fork> {
    bed.store.list_forks(&bed.tenant, agent(1)).await.unwrap()
}

/// What was decided about a process that was refused.
async fn end_of(bed: &Bed, run: u64) -> Option<ForkEnd> {
    let all = forks(bed).await;
    let fork = all
        .iter()
        .find(|fork| fork.refused.agent_run_id == process(run));
    fork.unwrap().resolved.map(|(_at, end)| end)
}

/// The copy, process 9, spoke first and has the session of epoch 2; the original, process 1, is at epoch 1.
async fn overtaken(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    bed.open(copied(bed, 9, 1)).await;
    assert_eq!(bed.admit(bed.hello(1, 1, 1)).await, AdmitOutcome::Fork);
}

pub(crate) async fn an_original_that_is_kept_comes_back_and_its_copy_stays_out(bed: &Bed) {
    overtaken(bed).await;
    let spoke = forks(bed).await[0].at;
    let kept = keep(bed, process(1)).await;
    assert!(!kept.already && kept.session_ended, "{kept:?}");
    assert_eq!(kept.fenced, Some(2));
    assert_eq!(kept.out.unwrap().agent_run_id, process(9));
    // It is away: whoever decided is told when it spoke last, and what it has to be when it comes back.
    assert_eq!(kept.seen, Some(spoke));
    assert_eq!(kept.told_by, Some(Apart::Boot));
    assert!(bed.gateway_now(1).await.session.is_none());
    // The answer was lost: the same again changes nothing, and still says which sessions are to be cut.
    let again = keep(bed, process(1)).await;
    assert!(again.already && !again.session_ended, "{again:?}");
    assert_eq!(again.fenced, Some(2));

    // Whatever the copy holds is left behind, and nobody is told of it anew, also once it has started anew.
    assert_eq!(bed.admit(copied(bed, 9, 2)).await, AdmitOutcome::Fork);
    assert_eq!(bed.admit(copied(bed, 10, 2)).await, AdmitOutcome::Fork);
    assert_eq!(end_of(bed, 9).await, Some(ForkEnd::Out));
    assert_eq!(end_of(bed, 10).await, Some(ForkEnd::Out));

    // The original passes with what it held last, also started anew, until a session of it is confirmed.
    bed.admitted(bed.hello(1, 1, 1)).await;
    let session = bed.open(bed.hello(1, 2, 1)).await;
    assert!(session.holder.epoch > 3, "{session:?}");
    assert!(bed.gateway_now(1).await.session.is_some());
    assert_eq!(bed.admit(bed.hello(1, 3, 1)).await, AdmitOutcome::Fork);
    // That is a second holder again, of which somebody is to be told.
    assert_eq!(end_of(bed, 3).await, None);
    let audited = bed.audited().await;
    let resolved = audited.iter().filter(|it| *it == "identity.resolve");
    assert_eq!(resolved.count(), 1);
}

pub(crate) async fn what_was_permitted_to_a_copy_is_not_told_by_the_journal_of_the_original(
    bed: &Bed,
) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let copy = bed.open(copied(bed, 9, 1)).await;
    // It may have started, and is told of by nobody: the copy is put out before.
    let permitted = bed.released(1, &copy).await;
    assert_eq!(bed.admit(bed.hello(1, 1, 1)).await, AdmitOutcome::Fork);
    keep(bed, process(1)).await;
    assert_eq!(bed.state(permitted).await, CommandState::Released);
    let journal_of_both = AdmitRequest {
        unreported: vec![permitted],
        ..bed.hello(1, 1, 1)
    };
    let original = bed.open(journal_of_both).await;
    assert_eq!(bed.state(permitted).await, CommandState::Indeterminate);
    assert_eq!(original.confirmed.ended.len(), 1);
    bed.complete(&original, permitted, OutcomeState::Expired)
        .await;
    let ended = bed.command_now(permitted).await;
    assert_eq!(ended.state, CommandState::Indeterminate);
    assert_eq!(ended.late_outcome.unwrap().state, OutcomeState::Expired);

    // Its own, from then on, is told by its journal again.
    let own = bed.released(1, &original).await;
    bed.session_with(1, 2, &[own]).await;
    assert_eq!(bed.state(own).await, CommandState::Released);
}

pub(crate) async fn whoever_denies_a_start_that_another_holder_told_is_recorded_within_bounds(
    bed: &Bed,
) {
    bed.gateway(1).await;
    let started = bed.session(1, 1).await;
    let mut commands = Vec::new();
    for _ in 0..62 {
        commands.push(bed.command(1, false).await);
    }
    bed.lease(&started).await;
    for command_id in &commands {
        bed.accept(&started, *command_id, false).await;
        let told =
            bed.store
                .start_command(&bed.tenant, &started.holder, *command_id, at(25), at(25));
        assert!(told.await.unwrap());
    }
    // Whoever has an older copy of the disk knows them, and not that they started.
    let older = bed.session_with(1, 2, &commands).await;
    let denial = Outcome {
        started_at: None,
        ..outcome(OutcomeState::Expired)
    };
    for command_id in &commands {
        // What is said again is no news.
        for _ in 0..2 {
            let holder = &older.holder;
            let denied = bed.store.complete_command(
                &bed.tenant,
                holder,
                *command_id,
                denial.clone(),
                at(30),
            );
            denied.await.unwrap();
        }
        assert_eq!(bed.state(*command_id).await, CommandState::Indeterminate);
    }
    let log = bed.store.list_audit(&bed.tenant, Page::first(1_000)).await;
    let mut denials = log.unwrap().items;
    denials.retain(|record| record.record.action == "command.start_denied");
    assert_eq!(denials.len(), 60);
    let first = &denials.last().unwrap().record;
    assert_eq!(first.object, format!("command:{}", commands[0]));
    assert_eq!(first.actor, Actor::gateway(agent(1)));
    let said = |field: &str| first.detail[field].as_str().map(str::to_owned);
    assert_eq!(said("agent_run_id"), Some(process(2).to_string()));
    assert_eq!(said("started_by"), Some(process(1).to_string()));
    assert_eq!(said("state").as_deref(), Some("expired"));
}

pub(crate) async fn a_live_holder_that_is_kept_is_not_disturbed(bed: &Bed) {
    overtaken(bed).await;
    let before = bed.gateway_now(1).await;
    let kept = keep(bed, process(9)).await;
    assert!(!kept.session_ended && kept.fenced.is_none(), "{kept:?}");
    assert_eq!(
        (kept.seen, kept.told_by),
        (None, None),
        "it has the session"
    );
    let after = bed.gateway_now(1).await;
    assert_eq!(after.session, before.session);
    assert_eq!(after.confirmed, before.confirmed);
    assert_eq!(after.issued, before.issued);
    assert_eq!(end_of(bed, 1).await, Some(ForkEnd::Out));
    assert_eq!(bed.admit(bed.hello(1, 1, 1)).await, AdmitOutcome::Fork);
    assert_eq!(end_of(bed, 1).await, Some(ForkEnd::Out));
}

pub(crate) async fn a_decision_can_be_taken_back(bed: &Bed) {
    overtaken(bed).await;
    keep(bed, process(1)).await;
    let session = bed.open(bed.hello(1, 1, 1)).await;
    let other = keep(bed, process(9)).await;
    assert!(!other.already && other.session_ended, "{other:?}");
    let epoch = session.holder.epoch;
    assert_eq!(bed.admit(bed.hello(1, 1, epoch)).await, AdmitOutcome::Fork);
    bed.open(copied(bed, 9, 2)).await;
    assert_eq!(end_of(bed, 1).await, Some(ForkEnd::Out));
    assert_eq!(end_of(bed, 9).await, Some(ForkEnd::Kept));
}

pub(crate) async fn of_two_processes_of_one_boot_the_one_that_is_named_is_kept(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    bed.open(bed.hello(1, 9, 1)).await;
    assert_eq!(bed.admit(bed.hello(1, 1, 1)).await, AdmitOutcome::Fork);
    keep(bed, process(1)).await;
    assert_eq!(bed.admit(bed.hello(1, 9, 2)).await, AdmitOutcome::Fork);
    assert_eq!(bed.admit(bed.hello(1, 3, 1)).await, AdmitOutcome::Fork);
    bed.open(bed.hello(1, 1, 1)).await;
}

pub(crate) async fn a_live_holder_that_started_anew_since_is_not_disturbed(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    bed.session(1, 1).await;
    assert_eq!(bed.admit(bed.hello(1, 9, 1)).await, AdmitOutcome::Fork);
    // The same machine and the same folder, and another process by now.
    bed.session(1, 2).await;
    let kept = keep(bed, process(1)).await;
    assert!(!kept.session_ended, "{kept:?}");
    assert!(bed.gateway_now(1).await.session.is_some());
    // The one that was refused is given it all the same.
    let kept = keep(bed, process(9)).await;
    assert!(kept.session_ended, "{kept:?}");
    bed.open(bed.hello(1, 9, 1)).await;
}

pub(crate) async fn a_second_copied_disk_does_not_pass_for_the_one_that_is_kept(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    // The one that spoke first is a fresh installation; a copied disk of the original knocks as well.
    let fresh = AdmitRequest {
        install_id: InstallId::from_uuid(Uuid::from_u128(70)),
        ..copied(bed, 9, 1)
    };
    bed.open(fresh).await;
    assert_eq!(bed.admit(on_boot(bed, 5, 1, 55)).await, AdmitOutcome::Fork);
    assert_eq!(bed.admit(bed.hello(1, 1, 1)).await, AdmitOutcome::Fork);
    keep(bed, process(1)).await;
    assert_eq!(bed.admit(on_boot(bed, 5, 1, 55)).await, AdmitOutcome::Fork);
    bed.open(bed.hello(1, 1, 1)).await;
}

pub(crate) async fn a_copy_that_was_put_out_before_does_not_pass_for_the_one_that_is_kept(
    bed: &Bed,
) {
    overtaken(bed).await;
    keep(bed, process(1)).await;
    let epoch = bed.open(bed.hello(1, 1, 1)).await.holder.epoch;
    assert_eq!(end_of(bed, 9).await, Some(ForkEnd::Out));
    // A fresh installation comes before the original, which is told apart from that by its installation.
    let fresh = AdmitRequest {
        install_id: InstallId::from_uuid(Uuid::from_u128(70)),
        ..on_boot(bed, 6, epoch, 55)
    };
    bed.open(fresh).await;
    assert_eq!(bed.admit(bed.hello(1, 1, epoch)).await, AdmitOutcome::Fork);
    let kept = keep(bed, process(1)).await;
    assert_eq!(kept.told_by, Some(Apart::Boot), "{kept:?}");
    assert_eq!(bed.admit(copied(bed, 9, 2)).await, AdmitOutcome::Fork);
    bed.open(bed.hello(1, 1, epoch)).await;
}

pub(crate) async fn a_holder_that_gets_another_identity_is_no_fork_any_more(bed: &Bed) {
    overtaken(bed).await;
    let before = bed.gateway_now(1).await;
    let ForkResolution::Resolved(replaced) = decide(bed, ForkDecision::Replace).await else {
        panic!("not resolved");
    };
    assert_eq!(replaced.out.unwrap().agent_run_id, process(1));
    assert_eq!(before.undecided_forks, 1);
    let decided = Gateway {
        undecided_forks: 0,
        ..before
    };
    assert_eq!(bed.gateway_now(1).await, decided);
    assert_eq!(end_of(bed, 1).await, Some(ForkEnd::Replaced));
    let ForkResolution::Resolved(again) = decide(bed, ForkDecision::Replace).await else {
        panic!("not resolved");
    };
    assert!(again.already);
}

/// A copy of a gateway renews the certificate, by which that of the original retires.
pub(super) async fn retired_by_a_copy(bed: &Bed) {
    bed.gateway(1).await;
    let (tenant, actor) = (&bed.tenant, Actor::local("test"));
    let first = NewCertificate {
        fingerprint: bed.hello(1, 1, 0).fingerprint,
        ..new_certificate(1, 1)
    };
    let registered = bed.store.register_certificate(tenant, first, &actor, at(0));
    registered.await.unwrap();
    bed.session(1, 1).await;
    let copy = bed.open(copied(bed, 9, 1)).await;
    let epoch = copy.holder.epoch;
    let renewed = bed
        .store
        .renew_certificate(tenant, renewal(epoch, 8), at(10));
    assert_eq!(renewed.await.unwrap(), RenewalOutcome::Issued);
    let hello = copied(bed, 9, epoch);
    let admitted = bed.admitted(hello.clone()).await;
    let mut confirm = bed.confirm_of(&hello, &admitted);
    confirm.proves = Some([8; 32]);
    bed.confirm(confirm).await;
}

pub(crate) async fn the_certificate_of_the_one_that_is_kept_is_good_again(bed: &Bed) {
    retired_by_a_copy(bed).await;
    let tenant = &bed.tenant;
    let is_retired = async || {
        let known = bed.store.certificate(tenant, agent(1), &[1; 32]).await;
        known.unwrap().unwrap().retired
    };
    assert!(is_retired().await);
    assert_eq!(bed.admit(bed.hello(1, 1, 1)).await, AdmitOutcome::Fork);
    let known = forks(bed).await[0].refused.certificate.clone();
    assert_eq!(known, Some(("0a".to_owned(), at(1_000))));
    keep(bed, process(1)).await;
    assert!(!is_retired().await);
}

pub(crate) async fn an_original_that_is_kept_comes_back_with_the_agent_key_that_it_has(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    // The copy was given a later one before the original came back.
    let later = AdmitRequest {
        key_generation: 2,
        ..copied(bed, 9, 1)
    };
    let copy = bed.open(later).await;
    let epoch = copy.holder.epoch;
    assert!(forks(bed).await.is_empty());
    assert_eq!(bed.admit(bed.hello(1, 1, 1)).await, AdmitOutcome::StaleKey);
    let recorded = forks(bed).await;
    assert_eq!(recorded.len(), 1);
    assert_eq!(recorded[0].refused.agent_run_id, process(1));
    assert!(keep(bed, process(1)).await.session_ended);
    bed.open(bed.hello(1, 1, 1)).await;
    let original = bed.gateway_now(1).await;
    assert!(original.session.is_some());
    assert_eq!(original.key_generation, 1);
    // It gets one that the copy does not have.
    assert_eq!(original.key_wanted, Some(3));
    // Otherwise it would be refused as soon as it connects again.
    let again = bed.hello(1, 1, original.confirmed);
    bed.open(again).await;
    let left_behind = AdmitRequest {
        key_generation: 2,
        ..copied(bed, 9, epoch)
    };
    assert_eq!(bed.admit(left_behind).await, AdmitOutcome::Fork);
}

pub(crate) async fn a_holder_whose_certificate_was_revoked_is_not_kept(bed: &Bed) {
    bed.gateway(1).await;
    let (tenant, actor) = (&bed.tenant, Actor::local("test"));
    let fingerprint = bed.hello(1, 1, 0).fingerprint;
    let first = NewCertificate {
        fingerprint,
        ..new_certificate(1, 1)
    };
    let renewed = NewCertificate {
        fingerprint: [9; 32],
        ..new_certificate(1, 9)
    };
    for new in [first, renewed] {
        let registered = bed.store.register_certificate(tenant, new, &actor, at(0));
        registered.await.unwrap();
    }
    bed.session(1, 1).await;
    let copy = AdmitRequest {
        fingerprint: [9; 32],
        ..copied(bed, 9, 1)
    };
    bed.open(copy).await;
    assert_eq!(bed.admit(bed.hello(1, 1, 1)).await, AdmitOutcome::Fork);
    let which = CertificateRef::Fingerprint(fingerprint);
    let revoked = bed
        .store
        .revoke_certificate(tenant, agent(1), &which, "copied", &actor, at(4));
    assert!(matches!(
        revoked.await.unwrap(),
        CertificateRevocation::Revoked(_)
    ));
    let before = (bed.gateway_now(1).await, forks(bed).await);
    let refused = decide(bed, ForkDecision::Keep(process(1))).await;
    assert_eq!(refused, ForkResolution::HolderIsOut);
    // Whoever has the identity goes on.
    assert_eq!((bed.gateway_now(1).await, forks(bed).await), before);
    assert!(before.0.session.is_some());
}

pub(crate) async fn a_decision_that_means_nobody_changes_nothing(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let keep = |n| ForkDecision::Keep(process(n));
    assert_eq!(decide(bed, keep(1)).await, ForkResolution::NoFork);
    let replaced = decide(bed, ForkDecision::Replace).await;
    assert_eq!(replaced, ForkResolution::NoFork);
    bed.open(copied(bed, 9, 1)).await;
    assert_eq!(bed.admit(bed.hello(1, 1, 1)).await, AdmitOutcome::Fork);
    let before = (bed.gateway_now(1).await, forks(bed).await);
    assert_eq!((before.0.forks, before.0.undecided_forks), (1, 1));
    let counts = async || bed.store.counts(&bed.tenant, at(7)).await.unwrap();
    let open = counts().await;
    assert_eq!((open.forks, open.forked), (1, 1));
    assert_eq!(open.forked_first, std::slice::from_ref(&before.0.name));
    assert_eq!(decide(bed, keep(4)).await, ForkResolution::NoSuchHolder);
    // A copied disk has the installation of the original.
    let installation = ForkDecision::Keep(AgentRunId::from_uuid(Uuid::from_u128(7)));
    assert_eq!(decide(bed, installation).await, ForkResolution::BothHolders);
    assert_eq!((bed.gateway_now(1).await, forks(bed).await), before);
    let actor = Actor::local("test");
    let revoked = bed
        .store
        .revoke_gateway(&bed.tenant, agent(1), None, &actor, at(6));
    revoked.await.unwrap();
    assert_eq!(decide(bed, keep(1)).await, ForkResolution::Revoked);
    let replaced = decide(bed, ForkDecision::Replace).await;
    assert_eq!(replaced, ForkResolution::Revoked);
    let none = counts().await;
    assert!(none.forks == 0 && none.forked_first.is_empty(), "{none:?}");
    let unknown = bed
        .store
        .resolve_fork(&bed.tenant, agent(2), keep(1), &actor, at(6));
    assert_eq!(unknown.await.unwrap(), None);
}

#[tokio::test]
async fn a_copy_s_session_is_cut_on_whichever_backend_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, _)) = two_backends(&folder).await else {
        return;
    };
    one.gateway(1).await;
    one.session(1, 1).await;
    let copy = other.open(copied(&one, 9, 1)).await;
    assert_eq!(copy.confirmed.instance, Some(instance(&other)));
    let told = Letter::Superseded { epoch: 1 };
    assert_eq!(only(&one).await, (agent(1), told));
    assert_eq!(one.admit(one.hello(1, 1, 1)).await, AdmitOutcome::Fork);
    assert!(keep(&one, process(1)).await.session_ended);
    let cut = Letter::Superseded { epoch: 2 };
    assert_eq!(only(&other).await, (agent(1), cut));
    assert_eq!(other.admit(copied(&one, 9, 2)).await, AdmitOutcome::Fork);
    other.open(one.hello(1, 1, 1)).await;
    finish(&folder, one, other).await;
}
