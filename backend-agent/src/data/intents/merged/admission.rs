//! HELLO of gateways of which nothing was forgotten, as after the end of another backend.

use std::collections::BTreeMap;

use viworks_common::admission::{Admission, IdentityRow, admit as decide};
use viworks_common::ledger::telemetry::{Reached, Usage, remembered};
use viworks_common::rules::Complete;
use viworks_common::telemetry::Position;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::super::admit::{self, SESSIONS_KEPT};
use super::super::arrays::{Arrays, Kind, listed, unnested};
use super::super::link::Sql;
use super::super::row::{Reader, to_json};
use super::super::standing;
use super::super::tx::View;
use super::identities::{self, Found};
use crate::data::{AdmitOutcome, AdmitRequest, StoreResult, TelemetryLimits};

/// A gateway that opened very many sessions goes the usual way so often, where the oldest are forgotten.
const FORGETS_EVERY: u64 = 16;

/// What is written of each.
macro_rules! columns {
    ($as:ident) => {
        $as!(
            agent_id text, version bigint, catalogue_digest text, at bigint,
            confirmed bigint, issued bigint, key_generation bigint, last_agent_run_id text, next_order bigint, low_water bigint,
            session_id text, agent_run_id text, install_id text, boot_id text, peer_address text, fingerprint bytea,
            agent_version text, labels text, pin_set_version bigint
        )
    };
}

const COLUMNS: &[(&str, Kind)] = columns!(listed);

/// What is asked about each spool epoch that is named.
macro_rules! named {
    ($as:ident) => {
        $as!(agent_id text, spool_epoch text)
    };
}

const NAMED: &[(&str, Kind)] = named!(listed);

pub(in crate::data::intents) const POSITIONS: Sql = Sql::of_server(concat!(
    "SELECT a.item, \
     (SELECT p.seq FROM telemetry_positions AS p \
      WHERE p.tenant = :tenant AND p.agent_id = a.agent_id AND p.spool_epoch = a.spool_epoch) AS committed, \
     (SELECT r.seq FROM telemetry_refused_epochs AS r \
      WHERE r.tenant = :tenant AND r.agent_id = a.agent_id AND r.spool_epoch = a.spool_epoch) AS refused FROM ",
    named!(unnested)
));

/// What somebody else has locked is left to the usual way; see [`super::end::END`].
pub(in crate::data::intents) const ADMIT: Sql = Sql::of_server(concat!(
    "WITH held AS MATERIALIZED (\
        SELECT a.*, h.place FROM ",
    columns!(unnested),
    " CROSS JOIN LATERAL (\
            SELECT g.ctid AS place FROM gateways AS g WHERE g.tenant = :tenant AND g.agent_id = a.agent_id AND ",
    version!("g"),
    " = a.version \
              AND (SELECT k.digest FROM catalogues AS k WHERE k.tenant = :tenant AND k.agent_id = a.agent_id) \
                  IS NOT DISTINCT FROM a.catalogue_digest \
            LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) AS h \
        WHERE ",
    leased!(),
    "), \
     taken AS (UPDATE gateways AS g SET confirmed = h.confirmed, issued = h.issued, key_generation = h.key_generation, \
            last_agent_run_id = h.last_agent_run_id, next_order = h.next_order, low_water = h.low_water, last_seen_at = h.at \
        FROM held AS h WHERE g.ctid = h.place RETURNING h.*), \
     opened AS (INSERT INTO sessions (tenant, agent_id, epoch, session_id, agent_run_id, install_id, boot_id, peer_address, \
                                      fingerprint, agent_version, labels, pin_set_version, admitted_at) \
        SELECT :tenant, t.agent_id, t.issued, t.session_id, t.agent_run_id, t.install_id, t.boot_id, t.peer_address, \
               t.fingerprint, t.agent_version, CAST(t.labels AS json), t.pin_set_version, t.at FROM taken AS t) \
     SELECT t.item FROM taken AS t"
));

/// A HELLO that is accepted, and proves nothing about the database.
struct Opening<'r> {
    request: &'r AdmitRequest,
    found: Found,
    presented: u64,
    after: IdentityRow,
    committed: Vec<Position>,
    now: Timestamp,
}

impl<'r> Opening<'r> {
    fn judged(
        request: &'r AdmitRequest,
        found: Found,
        committed: Vec<Position>,
        now: Timestamp,
    ) -> Option<Self> {
        let (standing, clock) = (&found.known.standing, standing::clock(now));
        let favours = standing.favours_another(Complete, request.agent_run_id, clock);
        let Admission::Accept {
            presented,
            issued,
            row,
        } = decide(&found.known.row, &admit::facts(request, &found.known))
        else {
            return None;
        };
        // It is recorded that an earlier key is good no more.
        let rotates = row.key_generation != found.known.row.key_generation;
        let forgets = issued > SESSIONS_KEPT && issued.is_multiple_of(FORGETS_EVERY);
        (favours.is_none() && !forgets && !rotates).then_some(Self {
            request,
            found,
            presented,
            after: row,
            committed,
            now,
        })
    }

    fn admitted(self) -> AdmitOutcome {
        let epochs = (self.presented, self.after.issued);
        let known = &self.found.known;
        AdmitOutcome::Accepted(Box::new(admit::admitted(
            self.request,
            known,
            epochs,
            self.committed,
        )))
    }
}

/// Accepts those HELLOs of which nothing has to be settled.
pub(super) fn admit_all(
    view: &View<'_>,
    requests: &[(Timestamp, &AdmitRequest, TelemetryLimits)],
) -> StoreResult<Vec<Option<AdmitOutcome>>> {
    let mut answers: Vec<Option<AdmitOutcome>> = requests.iter().map(|_| None).collect();
    if requests.is_empty() {
        return Ok(answers);
    }
    let asked = requests
        .iter()
        .map(|(_, request, _)| (request.agent_id, None));
    let mut found = identities::found(view, asked)?;
    let mut committed = positions(view, requests)?;
    let (mut places, mut openings) = (Vec::new(), Vec::new());
    for (place, &(now, request, _)) in requests.iter().enumerate() {
        let facts = found.remove(&place).zip(committed.remove(&place));
        let opening =
            facts.and_then(|(found, committed)| Opening::judged(request, found, committed, now));
        if let Some(opening) = opening {
            places.push(place);
            openings.push(opening);
        }
    }
    let written = write(view, &openings)?;
    for (number, (place, opening)) in places.into_iter().zip(openings).enumerate() {
        if let Some(answer) = answers.get_mut(place).filter(|_| written.contains(&number)) {
            *answer = Some(opening.admitted());
        }
    }
    Ok(answers)
}

/// How far the spool epochs are committed that each request names. Where one is not as far as its gateway was told,
/// there is something to settle, and nothing is answered.
///
/// Records that are stored meanwhile are not held up: a position that is seen too low has some sent again.
fn positions(
    view: &View<'_>,
    requests: &[(Timestamp, &AdmitRequest, TelemetryLimits)],
) -> StoreResult<BTreeMap<usize, Vec<Position>>> {
    let mut rows = Arrays::of(NAMED);
    let mut named = Vec::new();
    for (place, (_, request, limits)) in requests.iter().enumerate() {
        for position in &request.telemetry {
            rows.push(params! { agent_id: request.agent_id, spool_epoch: position.spool_epoch })?;
            named.push((place, *position, limits));
        }
    }
    let places = 0..requests.len();
    let mut settled: BTreeMap<usize, Vec<Position>> =
        places.map(|place| (place, Vec::new())).collect();
    if named.is_empty() {
        return Ok(settled);
    }
    let reached = view.all(POSITIONS, &rows.and(&[]), |row| Ok(reached(row).ok()))?;
    let reached: BTreeMap<usize, Reached> = reached.into_iter().flatten().collect();
    for (number, (place, asked, limits)) in named.into_iter().enumerate() {
        let nothing_to_settle = reached.get(&number).and_then(|reached| {
            let mut nothing = Usage::default();
            let told = remembered(Complete, asked, *reached, &mut nothing, limits);
            let settles = told.moved_to.is_some() || told.refused_to.is_some();
            (!settles).then_some(told.position)
        });
        match nothing_to_settle {
            Some(position) => settled
                .entry(place)
                .and_modify(|positions| positions.push(position)),
            None => {
                settled.remove(&place);
                continue;
            }
        };
    }
    Ok(settled)
}

fn reached(row: &Row<'_>) -> StoreResult<(usize, Reached)> {
    let row = Reader::new("telemetry_positions", row);
    let item: usize = row.get("item")?;
    let committed: Option<u64> = row.get("committed")?;
    let refused: Option<u64> = row.get("refused")?;
    // Whether it was refused matters only where it is not known.
    let refused = refused.filter(|_| committed.is_none()).unwrap_or(0);
    Ok((item.saturating_sub(1), Reached { committed, refused }))
}

/// The numbers of those that were written.
fn write(view: &View<'_>, openings: &[Opening<'_>]) -> StoreResult<Vec<usize>> {
    let mut rows = Arrays::of(COLUMNS);
    for one in openings {
        push(&mut rows, one)?;
    }
    if openings.is_empty() {
        return Ok(Vec::new());
    }
    let instance = view.party().instance();
    let written = view.all_and_commit(ADMIT, &rows.and(params! { instance }), |row| {
        let item: usize = Reader::new("gateways", row).get("item")?;
        Ok(item.saturating_sub(1))
    })?;
    Ok(written.unwrap_or_default())
}

fn push(rows: &mut Arrays, opening: &Opening<'_>) -> StoreResult<()> {
    let Opening {
        request,
        found,
        after,
        now,
        ..
    } = opening;
    rows.push(params! {
        agent_id: request.agent_id, version: found.version, catalogue_digest: found.known.catalogue_digest, at: now,
        confirmed: after.confirmed, issued: after.issued, key_generation: after.key_generation,
        last_agent_run_id: after.last_agent_run_id, next_order: after.next_order, low_water: after.low_water,
        session_id: request.session_id, agent_run_id: request.agent_run_id, install_id: request.install_id,
        boot_id: request.boot_id, peer_address: request.peer_address, fingerprint: request.fingerprint,
        agent_version: request.agent_version, labels: to_json(&request.labels), pin_set_version: request.pin_set_version,
    })
}
