//! CONFIRM of sessions whose gateways have no open commands, say of themselves what they said before, and show the
//! certificate that they showed before, of which it is stored who signed it.

use std::collections::BTreeMap;

use viworks_common::admission::{Confirmation, IdentityRow};
use viworks_common::code::CloseCode;
use viworks_common::id::InstanceId;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::params;

use super::super::arrays::{Arrays, Kind, listed, unnested};
use super::super::confirm;
use super::super::link::Sql;
use super::super::row::Reader;
use super::super::tx::View;
use super::identities::{self, Found};
use crate::data::{ConfirmOutcome, ConfirmRequest, Confirmed, LabelSource, StoreResult};

/// What is written of each.
macro_rules! columns {
    ($as:ident) => {
        $as!(
            agent_id text, version bigint, at bigint, epoch bigint, session_id text,
            confirmed bigint, issued bigint, key_generation bigint, last_agent_run_id text, next_order bigint, low_water bigint,
            older bigint, elsewhere text, is_first boolean
        )
    };
}

const COLUMNS: &[(&str, Kind)] = columns!(listed);

/// Whoever had the older session elsewhere is told, as [`super::super::inbox::POST`] does it. What somebody else has
/// locked is left to the usual way; see [`super::end::END`]: the telemetry of the older session as well, which must not
/// be stored after this.
pub(in crate::data::intents) const CONFIRM: Sql = Sql::of_server(concat!(
    "WITH held AS MATERIALIZED (\
        SELECT a.*, h.* FROM ",
    columns!(unnested),
    " CROSS JOIN LATERAL (\
            SELECT g.ctid AS place, n.ctid AS session_place, n.agent_version, n.pin_set_version, n.labels, \
                   (SELECT o.ctid FROM sessions AS o WHERE o.tenant = :tenant AND o.agent_id = a.agent_id \
                      AND o.epoch = a.older AND o.ended_at IS NULL) AS older_place \
            FROM gateways AS g CROSS JOIN sessions AS n \
            WHERE g.tenant = :tenant AND g.agent_id = a.agent_id AND ",
    version!("g"),
    " = a.version AND n.tenant = :tenant AND n.agent_id = a.agent_id AND n.epoch = a.epoch \
              AND n.session_id = a.session_id AND n.ended_at IS NULL \
            LIMIT 1 FOR NO KEY UPDATE OF g, n SKIP LOCKED) AS h \
        WHERE pg_try_advisory_xact_lock(hashtextextended(:tenant || ' telemetry ' || a.agent_id, 0)) AND ",
    leased!(),
    "), \
     taken AS (UPDATE gateways AS g SET confirmed = h.confirmed, issued = h.issued, key_generation = h.key_generation, \
            last_agent_run_id = h.last_agent_run_id, next_order = h.next_order, low_water = h.low_water, last_seen_at = h.at, \
            session_epoch = h.epoch, session_instance = :instance, favoured_run = NULL, favoured_until = NULL, \
            agent_version = h.agent_version, pin_set_version = h.pin_set_version, round_trip_us = NULL, \
            clock_skew_ms = NULL, spool_records = 0, spool_bytes = 0, commands_running = 0 \
        FROM held AS h WHERE g.ctid = h.place RETURNING h.*), \
     confirmed AS (UPDATE sessions AS s SET confirmed_at = t.at FROM taken AS t WHERE s.ctid = t.session_place), \
     ended AS (UPDATE sessions AS s SET ended_at = t.at, code = :code FROM taken AS t WHERE s.ctid = t.older_place), \
     labelled AS (INSERT INTO labels (tenant, agent_id, key, source, value) \
        SELECT :tenant, t.agent_id, l.key, :source, l.value FROM taken AS t CROSS JOIN json_each_text(t.labels) AS l \
        WHERE t.is_first), \
     told AS (INSERT INTO inbox (tenant, instance, agent_id, kind, about, epoch) \
        SELECT :tenant, i.instance, t.agent_id, 'superseded', CAST(t.older AS text), t.older \
        FROM taken AS t JOIN instances AS i ON i.instance = t.elsewhere ORDER BY 2, 3 FOR KEY SHARE OF i \
        ON CONFLICT (instance, tenant, agent_id, kind, about) DO UPDATE \
            SET epoch = excluded.epoch, body = excluded.body, number = excluded.number \
        RETURNING agent_id, instance) \
     SELECT t.item, m.instance AS mailed FROM taken AS t LEFT JOIN told AS m ON m.agent_id = t.agent_id"
));

/// A session that becomes its gateway's live one.
struct Confirming<'r> {
    request: &'r ConfirmRequest,
    found: Found,
    after: IdentityRow,
    now: Timestamp,
}

impl<'r> Confirming<'r> {
    fn judged(request: &'r ConfirmRequest, found: Found, now: Timestamp) -> Option<Self> {
        let known = &found.known;
        let again = known.live == Some((request.session_id, request.issued));
        let labels_stay = found.labelled.is_empty() || found.labelled == found.announced;
        let about_certificates = request.proves.is_some() || request.signed_by.is_some();
        if again || found.waits || !labels_stay || about_certificates {
            return None;
        }
        let Confirmation::Confirmed(after) = confirm::judge(known, request) else {
            return None;
        };
        Some(Self {
            request,
            found,
            after,
            now,
        })
    }

    /// Which other backend has the older session.
    fn elsewhere(&self, own: Option<InstanceId>) -> Option<InstanceId> {
        let known = &self.found.known;
        let owner = known.live_instance.filter(|_| known.live.is_some());
        owner.filter(|owner| Some(*owner) != own)
    }

    fn confirmed(self, instance: Option<InstanceId>) -> ConfirmOutcome {
        ConfirmOutcome::Confirmed(Box::new(Confirmed {
            released: Vec::new(),
            cancel_requested: Vec::new(),
            ended: Vec::new(),
            low_water: self.after.low_water,
            waiting: false,
            fenced: self.found.known.live.map(|(session_id, _)| session_id),
            instance,
            keys: self.found.known.keys(),
            authorities: self.found.known.authorities,
        }))
    }
}

/// What became of a CONFIRM, and which other backend was told.
pub(in crate::data::intents) type Told = (ConfirmOutcome, Option<InstanceId>);

/// Confirms those of the sessions of which nothing else has to be settled.
pub(super) fn confirm_all(
    view: &View<'_>,
    requests: &[(Timestamp, &ConfirmRequest)],
) -> StoreResult<Vec<Option<Told>>> {
    let mut answers: Vec<Option<Told>> = requests.iter().map(|_| None).collect();
    if requests.is_empty() {
        return Ok(answers);
    }
    let asked = requests.iter().map(|(_, request)| {
        let session = (request.issued, request.session_id);
        (request.agent_id, Some(session))
    });
    let mut found = identities::found(view, asked)?;
    let (mut places, mut confirming) = (Vec::new(), Vec::new());
    for (place, &(now, request)) in requests.iter().enumerate() {
        let found = found.remove(&place);
        if let Some(one) = found.and_then(|found| Confirming::judged(request, found, now)) {
            places.push(place);
            confirming.push(one);
        }
    }
    let own = view.party().instance();
    let mut written = write(view, own, &confirming)?;
    for (number, (place, one)) in places.into_iter().zip(confirming).enumerate() {
        if let Some((answer, mailed)) = answers.get_mut(place).zip(written.remove(&number)) {
            *answer = Some((one.confirmed(own), mailed));
        }
    }
    Ok(answers)
}

/// The numbers of those that were written, each with the other backend that was told.
fn write(
    view: &View<'_>,
    own: Option<InstanceId>,
    confirming: &[Confirming<'_>],
) -> StoreResult<BTreeMap<usize, Option<InstanceId>>> {
    let mut rows = Arrays::of(COLUMNS);
    for one in confirming {
        push(&mut rows, one, own)?;
    }
    if confirming.is_empty() {
        return Ok(BTreeMap::new());
    }
    let (code, source) = (CloseCode::Superseded.name(), LabelSource::Gateway.name());
    let others = params! { instance: own, code, source };
    let written = view.all_and_commit(CONFIRM, &rows.and(others), |row| {
        let row = Reader::new("gateways", row);
        let item: usize = row.get("item")?;
        Ok((item.saturating_sub(1), row.get("mailed")?))
    })?;
    Ok(written.unwrap_or_default().into_iter().collect())
}

fn push(rows: &mut Arrays, one: &Confirming<'_>, own: Option<InstanceId>) -> StoreResult<()> {
    let Confirming {
        request,
        found,
        after,
        now,
    } = one;
    rows.push(params! {
        agent_id: request.agent_id, version: found.version, at: now, epoch: request.issued, session_id: request.session_id,
        confirmed: after.confirmed, issued: after.issued, key_generation: after.key_generation,
        last_agent_run_id: after.last_agent_run_id, next_order: after.next_order, low_water: after.low_water,
        older: found.known.live.map(|(_, epoch)| epoch), elsewhere: one.elsewhere(own),
        is_first: found.labelled.is_empty(),
    })
}
