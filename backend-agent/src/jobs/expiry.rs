//! Tells of gateways that are away and whose certificate ends soon: those that are connected renew theirs.

use std::time::Duration;

use viworks_common::human;
use viworks_common::time::Timestamp;
use viworks_runtime::conditions::Severity;

use super::Jobs;
use crate::data::{CertificateEnds, StoreResult};

/// How often they are counted.
pub(super) const EVERY: Duration = Duration::from_secs(60);

/// The condition of certificates of gateways that are away.
const AWAY: &str = "certificate.away";

const FIX: &str = "viworks gateway expiring lists them with the reason; a gateway renews its certificate when it is \
                   back, and one that is not coming back is revoked";

impl Jobs {
    /// Counts what ends when, and who is away.
    pub(super) async fn look_at_certificates(&self) -> StoreResult<()> {
        let wall = self.clock.wall();
        let ends = self.store.certificate_ends(&self.tenant, wall).await?;
        let left = ends.left.map(|(left, gateways)| (left.name(), gateways));
        self.metrics.gateways_end(left, &ends.generations);
        self.tell(AWAY, cause(&ends, wall), Severity::Warn, FIX);
        Ok(())
    }
}

fn cause(ends: &CertificateEnds, wall: Timestamp) -> Option<String> {
    if ends.away == 0 {
        return None;
    }
    let named = ends.first.iter();
    let named = named.map(|(name, at)| format!("{name} {}", human::relative_and_exact(*at, wall)));
    let named: Vec<_> = named.collect();
    let all = u64::try_from(named.len()).unwrap_or(u64::MAX);
    let more = if ends.away > all { ", …" } else { "" };
    Some(format!(
        "the certificates of {} end soon or have ended: {}{more}",
        human::counted_all(ends.away, "gateway that is away", "gateways that are away"),
        named.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TimeLeft;

    #[test]
    fn the_first_few_of_those_that_are_away_are_named() {
        let wall = Timestamp::parse("2026-03-01T00:00:00Z").unwrap();
        let ends = |away| CertificateEnds {
            left: [(TimeLeft::More, 0); 5],
            generations: Vec::new(),
            away,
            first: vec![("gw-1".parse().unwrap(), wall.saturating_add(EVERY))],
        };
        assert_eq!(cause(&ends(0), wall), None);
        let one = cause(&ends(1), wall).unwrap();
        assert!(one.contains("1 gateway that is away end"), "{one}");
        assert!(one.contains("gw-1 in 1 min"), "{one}");
        assert!(!one.contains('…'), "{one}");
        assert!(cause(&ends(7), wall).unwrap().ends_with(", …"));
    }
}
