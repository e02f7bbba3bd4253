//! When the certificates of all gateways end.

use viworks_backend_agent::data::{Actor, NewCertificate, TimeLeft};

use super::bed::{Bed, agent, at};
use super::gateways::new_certificate;

const DAY: i64 = 24 * 3_600;

/// Gateway `n` with a certificate that was registered at first and ends after so many days.
async fn lasting(bed: &Bed, n: u64, days: i64) {
    bed.gateway(n).await;
    let key = u8::try_from(n).unwrap();
    let certificate = NewCertificate {
        not_after: at(days * DAY),
        fingerprint: [key; 32],
        ..new_certificate(n, key)
    };
    let actor = Actor::local("test");
    let registered = bed
        .store
        .register_certificate(&bed.tenant, certificate, &actor, at(0));
    registered.await.unwrap();
}

pub(crate) async fn certificates_are_counted_by_the_time_that_they_have_left(bed: &Bed) {
    for (n, days) in [(1, 90), (2, 81), (3, 85), (4, 110), (5, 200), (6, 81)] {
        lasting(bed, n, days).await;
    }
    // One that is connected renews by itself, and one that is revoked is of no account.
    bed.session(3, 1).await;
    let actor = Actor::local("test");
    let revoked = bed
        .store
        .revoke_gateway(&bed.tenant, agent(6), None, &actor, at(1));
    revoked.await.unwrap();
    let ends = bed.store.certificate_ends(&bed.tenant, at(80 * DAY)).await;
    let ends = ends.unwrap();
    assert_eq!(
        ends.left,
        [
            (TimeLeft::Ended, 0),
            (TimeLeft::Day, 1),
            (TimeLeft::Week, 1),
            (TimeLeft::Month, 2),
            (TimeLeft::More, 1),
        ]
    );
    assert_eq!(ends.generations, [(1, 5)]);
    // The one that ends in thirty days of a hundred and ten is not in its last quarter.
    let first: Vec<_> = ends.first.iter().map(|(name, _at)| name.as_str()).collect();
    assert_eq!((ends.away, first), (2, vec!["gw-2", "gw-1"]));
    assert_eq!(ends.first[0].1, at(81 * DAY));
}
