//! The authorities that gateways are given, and which gateways have them.

use std::collections::BTreeSet;

use viworks_backend_agent::data::{
    Actor, AuthorityBundle, AuthorityTrust, StoreError, Tally, Unaware,
};

use super::bed::{Bed, Session, agent, at};

/// A digest of which one letter is known.
fn digest(letter: &str) -> String {
    letter.repeat(64)
}

/// The bundle of this digest, with these authorities.
pub(crate) fn bundle(letter: &str, authorities: &[&str]) -> AuthorityBundle {
    AuthorityBundle {
        digest: digest(letter),
        authorities: set(authorities),
    }
}

fn set(authorities: &[&str]) -> BTreeSet<String> {
    authorities.iter().map(|letter| digest(letter)).collect()
}

async fn note(bed: &Bed, given: AuthorityBundle, seconds: i64) {
    let noted = bed.store.note_bundle(&bed.tenant, given, at(seconds));
    noted.await.unwrap();
}

async fn report(bed: &Bed, session: &Session, letter: Option<&str>) -> Result<(), StoreError> {
    let (agent_id, epoch) = (session.holder.agent_id, session.holder.epoch);
    let has = letter.map(digest);
    let reported = bed
        .store
        .report_bundle(&bed.tenant, agent_id, epoch, has, at(5));
    reported.await
}

async fn trust(bed: &Bed) -> AuthorityTrust {
    bed.store.authority_trust(&bed.tenant).await.unwrap()
}

async fn unaware(bed: &Bed, authority: &str) -> Vec<Unaware> {
    let asked = bed
        .store
        .unaware(&bed.tenant, digest(authority), false, None, 10);
    asked.await.unwrap()
}

/// The first so many of those that reported what they have.
async fn known_unaware(bed: &Bed, authority: &str, limit: usize) -> Vec<Unaware> {
    let asked = bed
        .store
        .unaware(&bed.tenant, digest(authority), true, None, limit);
    asked.await.unwrap()
}

fn names(gateways: &[Unaware]) -> Vec<&str> {
    gateways.iter().map(|one| one.name.as_str()).collect()
}

/// Gateways 1 to 3, of which the first two have sessions; both authorities are given.
async fn three(bed: &Bed) -> [Session; 2] {
    for n in 1..=3 {
        bed.gateway(n).await;
    }
    note(bed, bundle("0", &["a"]), 1).await;
    note(bed, bundle("1", &["a", "b"]), 2).await;
    [bed.session(1, 1).await, bed.session(2, 2).await]
}

pub(crate) async fn a_gateway_has_what_it_reported_whether_it_is_connected_or_not(bed: &Bed) {
    let [first, second] = three(bed).await;
    assert_eq!(first.confirmed.authorities, None);
    report(bed, &first, Some("1")).await.unwrap();
    report(bed, &second, Some("0")).await.unwrap();
    let shown = bed.gateway_now(1).await;
    assert_eq!(
        (shown.authorities, shown.authorities_at),
        (Some(digest("1")), Some(at(5)))
    );
    let tally = |gateways, connected| Tally {
        gateways,
        connected,
    };
    let known = trust(bed).await;
    assert_eq!(known.all(), tally(3, 2));
    assert_eq!(known.lacking(&set(&["a", "b"])), tally(2, 1));
    assert_eq!(known.lacking(&set(&["a"])), tally(1, 0));
    let without = unaware(bed, "b").await;
    assert_eq!(names(&without), ["gw-2", "gw-3"]);
    assert_eq!(without[0].authorities, Some(digest("0")));
    assert!(without[0].connected && !without[1].connected);
    assert_eq!(names(&unaware(bed, "a").await), ["gw-3"]);
    assert_eq!(names(&known_unaware(bed, "b", 10).await), ["gw-2"]);
    assert!(known_unaware(bed, "a", 10).await.is_empty());
    let behind = bed
        .store
        .unaware(&bed.tenant, digest("b"), false, Some(agent(2)), 10)
        .await
        .unwrap();
    assert_eq!(names(&behind), ["gw-3"]);

    // What it has outlives its session, and the next one begins with it.
    let epoch = first.holder.epoch;
    let code = viworks_common::code::CloseCode::Draining;
    let ended = bed
        .store
        .end_session(&bed.tenant, agent(1), epoch, code, at(6));
    assert!(ended.await.unwrap());
    assert_eq!(trust(bed).await.lacking(&set(&["b"])), tally(2, 1));
    let again = bed.session(1, 1).await;
    assert_eq!(again.confirmed.authorities, Some(digest("1")));
    // An agent of an earlier version has none of it, and takes nobody's place among those that are named.
    report(bed, &again, None).await.unwrap();
    assert_eq!(names(&known_unaware(bed, "b", 1).await), ["gw-2"]);
    assert_eq!(bed.gateway_now(1).await.authorities, None);
    assert_eq!(trust(bed).await.lacking(&set(&["b"])), tally(3, 2));
}

pub(crate) async fn only_the_session_of_a_gateway_that_is_not_revoked_reports_what_it_has(
    bed: &Bed,
) {
    let [first, second] = three(bed).await;
    report(bed, &first, Some("1")).await.unwrap();
    let later = bed.session(1, 1).await;
    let fenced = report(bed, &first, Some("0")).await;
    assert!(matches!(fenced, Err(StoreError::Fenced)), "{fenced:?}");
    assert_eq!(bed.gateway_now(1).await.authorities, Some(digest("1")));
    report(bed, &later, Some("0")).await.unwrap();
    for n in 1..=3 {
        let actor = Actor::local("test");
        let revoked = bed
            .store
            .revoke_gateway(&bed.tenant, agent(n), None, &actor, at(7));
        revoked.await.unwrap();
    }
    let fenced = report(bed, &second, Some("1")).await;
    assert!(matches!(fenced, Err(StoreError::Fenced)), "{fenced:?}");
    assert_eq!(trust(bed).await.all(), Tally::default());
    assert!(unaware(bed, "b").await.is_empty());
}

pub(crate) async fn a_bundle_is_forgotten_once_no_gateway_has_it_and_no_backend_gives_it(
    bed: &Bed,
) {
    let [first, _second] = three(bed).await;
    report(bed, &first, Some("0")).await.unwrap();
    let digests = async || trust(bed).await.bundles.into_keys().collect::<Vec<_>>();
    // Given by another backend a moment ago, and reported by nobody yet.
    note(bed, bundle("2", &["b"]), 500).await;
    assert_eq!(digests().await, ["0", "1", "2"].map(digest));
    note(bed, bundle("2", &["b"]), 1_000).await;
    assert_eq!(digests().await, ["0", "2"].map(digest));
    // Nobody made the bundle that it has by what it says.
    report(bed, &first, Some("9")).await.unwrap();
    note(bed, bundle("2", &["b"]), 1_100).await;
    assert_eq!(digests().await, ["2"].map(digest));
    assert_eq!(names(&unaware(bed, "b").await), ["gw-1", "gw-2", "gw-3"]);
}
