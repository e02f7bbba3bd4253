//! When the certificates of all gateways end.

use std::time::Duration;

use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::params;

use super::row::Reader;
use super::tx::View;
use crate::data::{CertificateEnds, StoreResult, TimeLeft};

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Gateways that are named.
const NAMED_MAX: usize = 5;

/// Generations of keys that are told apart, the latest ones.
const GENERATIONS_MAX: usize = 16;

/// The certificate of each gateway that is not revoked: of those in use the one that ends last.
macro_rules! in_use {
    () => {
        "(SELECT g.agent_id, g.name, g.session_epoch, max(k.not_after) AS ends, \
          max(coalesce(k.renewed_at, k.registered_at)) AS since \
          FROM gateways AS g JOIN certificates AS k ON k.tenant = g.tenant AND k.agent_id = g.agent_id \
          WHERE g.tenant = :tenant AND g.revoked_at IS NULL AND k.retired_at IS NULL AND k.unproved IS NULL \
          GROUP BY g.agent_id, g.name, g.session_epoch) AS seen "
    };
}

pub(super) const TALLY: &str = concat!(
    "SELECT count(*) FILTER (WHERE ends <= :at) AS ended, \
     count(*) FILTER (WHERE ends > :at AND ends <= :day) AS within_day, \
     count(*) FILTER (WHERE ends > :day AND ends <= :week) AS within_week, \
     count(*) FILTER (WHERE ends > :week AND ends <= :month) AS within_month, \
     count(*) FILTER (WHERE ends > :month) AS later FROM ",
    in_use!()
);

pub(super) const GENERATIONS: &str = "\
SELECT key_generation, count(*) AS gateways FROM gateways WHERE tenant = :tenant AND revoked_at IS NULL
GROUP BY key_generation ORDER BY key_generation DESC LIMIT :limit";

/// Those that are away and in the last quarter of a certificate's life, thirty days at the most: they have not renewed
/// it, and cannot now. See [`viworks_common::certificate::life`].
pub(super) const AWAY: &str = concat!(
    "SELECT name, ends, count(*) OVER () AS gateways FROM ",
    in_use!(),
    "WHERE session_epoch IS NULL AND ends <= :month AND (ends - :at) * 4 <= ends - since \
     ORDER BY ends, name LIMIT :limit"
);

/// Counts them by how much time is left at `at`, by the wall clock.
pub(super) fn ends(view: &View<'_>, at: Timestamp) -> StoreResult<CertificateEnds> {
    let after = |days: u32| at.saturating_add(DAY * days);
    let (day, week, month) = (after(1), after(7), after(30));
    let left = view.one(TALLY, params! { at, day, week, month }, |row| {
        let row = Reader::new("certificates", row);
        Ok([
            (TimeLeft::Ended, row.get("ended")?),
            (TimeLeft::Day, row.get("within_day")?),
            (TimeLeft::Week, row.get("within_week")?),
            (TimeLeft::Month, row.get("within_month")?),
            (TimeLeft::More, row.get("later")?),
        ])
    })?;
    let limit = GENERATIONS_MAX;
    let generations = view.all(GENERATIONS, params! { limit }, |row| {
        let row = Reader::new("gateways", row);
        Ok((row.get("key_generation")?, row.get("gateways")?))
    })?;
    let mut away = 0;
    let limit = NAMED_MAX;
    let first = view.all(AWAY, params! { at, month, limit }, |row| {
        let row = Reader::new("gateways", row);
        away = row.get("gateways")?;
        Ok((row.get("name")?, row.get("ends")?))
    })?;
    Ok(CertificateEnds {
        left,
        generations,
        away,
        first,
    })
}
