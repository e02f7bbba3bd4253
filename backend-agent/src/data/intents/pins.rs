//! The keys of the server: staged, promoted, retired, and which gateways trust them.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use serde_json::json;
use viworks_common::id::AgentId;
use viworks_common::pin::rotation::{
    KeyState, PINS_MIN, Rotation, RotationRefusal, ServerKey, confirmed_with,
};
use viworks_common::pin::{PinSet, SpkiPin};
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::audit;
use super::link::{Party, Sql};
use super::page::following;
use super::row::Reader;
use super::tx::{Tx, View};
use crate::data::{
    Actor, AuditOutcome, OwnPins, PinChange, PinOutcome, PinStep, PinTrust, PinsKnown, SHOWN_FOR,
    StoreResult, Untrusting,
};

pub(in crate::data) const LOAD: &str = "\
SELECT pin, state, staged_in, retired_in, since FROM server_pins WHERE tenant = :tenant ORDER BY pin";

pub(super) const SAVE: &str = "\
INSERT INTO server_pins (tenant, pin, state, staged_in, retired_in, since)
VALUES (:tenant, :pin, :state, :staged_in, :retired_in, :since)
ON CONFLICT (tenant, pin) DO UPDATE
    SET state = excluded.state, staged_in = excluded.staged_in, retired_in = excluded.retired_in, since = excluded.since";

pub(super) const FORGET: &str = "DELETE FROM server_pins WHERE tenant = :tenant AND pin = :pin";

pub(super) const SHOWN: &str =
    "SELECT shown_by, pin FROM shown_pins WHERE tenant = :tenant AND shown_at > :since";

pub(super) const SHOW: &str = "\
INSERT INTO shown_pins (tenant, shown_by, pin, shown_at) VALUES (:tenant, :shown_by, :pin, :now)
ON CONFLICT (tenant, shown_by) DO UPDATE SET pin = excluded.pin, shown_at = excluded.shown_at";

pub(super) const FORGET_SHOWN: &str =
    "DELETE FROM shown_pins WHERE tenant = :tenant AND shown_at <= :since";

/// Backends that are there and have not said which key they show: those of a version before never do.
pub(super) const UNSAID: Sql = Sql::of_server(
    "\
SELECT count(*) AS backends FROM instances AS i
WHERE i.instance <> :own AND NOT i.ended AND i.lease_until > clock_timestamp() AND NOT EXISTS (
    SELECT 1 FROM shown_pins AS s WHERE s.tenant = :tenant AND s.shown_by = i.instance AND s.shown_at > :since)",
);

/// Gateways that a step can cut off: neither revoked themselves, nor by the only certificate that they had. One that
/// retired may be good again where a holder in a fork is known by its key: see [`super::resolutions::UNRETIRE`].
macro_rules! not_out {
    () => {
        "g.tenant = :tenant AND g.revoked_at IS NULL AND (EXISTS ( \
             SELECT 1 FROM certificates AS k \
             WHERE k.tenant = g.tenant AND k.agent_id = g.agent_id AND k.retired_at IS NULL) \
           OR NOT EXISTS ( \
             SELECT 1 FROM certificates AS k \
             WHERE k.tenant = g.tenant AND k.agent_id = g.agent_id AND k.revoked_at IS NOT NULL) \
           OR EXISTS ( \
             SELECT 1 FROM forks AS f \
             JOIN certificates AS k ON k.tenant = f.tenant AND k.agent_id = f.agent_id \
             WHERE f.tenant = g.tenant AND f.agent_id = g.agent_id AND k.revoked_at IS NULL AND k.replaced_at IS NULL \
               AND (k.fingerprint IN (f.refused_fingerprint, f.accepted_fingerprint) OR EXISTS ( \
                 SELECT 1 FROM reissued AS e \
                 WHERE e.tenant = k.tenant AND e.agent_id = k.agent_id AND e.spki = k.spki \
                   AND e.fingerprint IN (f.refused_fingerprint, f.accepted_fingerprint))))) "
    };
}

pub(super) const TRUST: &str = concat!(
    "SELECT g.pin_set_version, count(*) AS gateways FROM gateways AS g WHERE ",
    not_out!(),
    "GROUP BY g.pin_set_version"
);

pub(super) const UNTRUSTING_COUNT: &str = concat!(
    "SELECT count(*) AS gateways FROM gateways AS g WHERE ",
    not_out!(),
    "AND (g.pin_set_version < :from OR g.pin_set_version > :to)"
);

pub(super) const UNTRUSTING: &str = concat!(
    "SELECT g.agent_id, g.name, g.pin_set_version, g.session_epoch IS NOT NULL AS connected, g.last_seen_at \
     FROM gateways AS g WHERE ",
    not_out!(),
    "AND g.agent_id > :after AND (g.pin_set_version < :from OR g.pin_set_version > :to) \
     ORDER BY g.agent_id LIMIT :limit"
);

/// What is known of the pins.
pub(super) fn known(view: &View<'_>, own: &OwnPins, now: Timestamp) -> StoreResult<PinsKnown> {
    let keys = view.all(LOAD, &[], read)?;
    let shown = shown(view, own, now)?;
    let mut rotation = Rotation::of(&own.configured, own.live, keys);
    rotation.put_in_place(&shown);
    Ok(PinsKnown {
        stepped: rotation.is_stepped(),
        rotation,
        shown,
    })
}

/// Stores the configured set, where nothing is stored or what is stored is of a lower version.
pub(super) fn note(tx: &Tx<'_>, own: &OwnPins, actor: &Actor) -> StoreResult<bool> {
    // A backend that has no next key at hand keeps none of another one's out.
    if own.configured.pins.len() < PINS_MIN {
        return Ok(false);
    }
    tx.lock_name("pins")?;
    let stored: Vec<ServerKey> = tx.all(LOAD, &[], read)?;
    let mut rotation = Rotation::of(&own.configured, own.live, stored.clone());
    if rotation.keys().eq(&stored) {
        return Ok(false);
    }
    save_all(tx, &mut rotation)?;
    if !stored.is_empty() {
        let set = rotation.set();
        let detail = json!({ "version": set.version, "pins": set.pins });
        audit::append(
            tx,
            actor,
            "pin.configure",
            "pins",
            AuditOutcome::Done,
            &detail,
        )?;
    }
    Ok(true)
}

/// Stores each key, and forgets those that were retired too long ago.
fn save_all(tx: &Tx<'_>, rotation: &mut Rotation) -> StoreResult<()> {
    for pin in rotation.forget() {
        let pin = pin.digest();
        tx.execute(FORGET, params! { pin })?;
    }
    for key in rotation.keys() {
        save(tx, key)?;
    }
    Ok(())
}

/// The keys that backends show: this one, and those that said so lately.
fn shown(view: &View<'_>, own: &OwnPins, now: Timestamp) -> StoreResult<BTreeSet<SpkiPin>> {
    let since = now.saturating_sub(SHOWN_FOR);
    let itself = shown_by(view);
    let others = view.all(SHOWN, params! { since }, |row| {
        let row = Reader::new("shown_pins", row);
        let pin = SpkiPin::from_digest(row.get("pin")?);
        Ok((row.get::<String>("shown_by")?, pin))
    })?;
    let others = others.into_iter().filter(|(by, _pin)| *by != itself);
    Ok(others.map(|(_by, pin)| pin).chain([own.live]).collect())
}

/// What this backend is called where it says which key it shows.
fn shown_by(view: &View<'_>) -> String {
    let instance = view.party().instance();
    instance.map_or_else(|| "alone".to_owned(), |instance| instance.to_string())
}

/// Whether there is a backend of which nobody knows what it shows.
fn is_unsaid(tx: &Tx<'_>) -> StoreResult<bool> {
    if tx.party() == Party::Alone {
        return Ok(false);
    }
    let (own, since) = (shown_by(tx), tx.now.saturating_sub(SHOWN_FOR));
    let backends: u64 = tx.one(UNSAID, params! { own, since }, |row| {
        Reader::new("instances", row).get("backends")
    })?;
    Ok(backends > 0)
}

/// Which version a gateway has confirmed that becomes one with these pins, if it gets some; zero where it is none.
pub(super) fn given(view: &View<'_>, pins: Option<&PinSet>) -> StoreResult<u64> {
    let Some(pins) = pins else {
        return Ok(0);
    };
    let stored: Vec<ServerKey> = view.all(LOAD, &[], read)?;
    Ok(confirmed_with(pins, &stored))
}

/// Which versions gateways trust.
pub(super) fn trust(view: &View<'_>) -> StoreResult<PinTrust> {
    let mut trust = PinTrust::new();
    view.each(TRUST, &[], |row| {
        let row = Reader::new("gateways", row);
        trust.insert(row.get("pin_set_version")?, row.get("gateways")?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(trust)
}

/// The first so many gateways behind one that trust no version from `from` to `to`.
pub(super) fn untrusting(
    view: &View<'_>,
    from: u64,
    to: u64,
    after: Option<AgentId>,
    limit: usize,
) -> StoreResult<Vec<Untrusting>> {
    let after = following(after);
    view.all(UNTRUSTING, params! { after, from, to, limit }, |row| {
        let row = Reader::new("gateways", row);
        Ok(Untrusting {
            agent_id: row.get("agent_id")?,
            name: row.get("name")?,
            version: row.get("pin_set_version")?,
            connected: row.get("connected")?,
            last_seen_at: row.get("last_seen_at")?,
        })
    })
}

/// Takes a step, unless a rule speaks against it.
pub(super) fn change(tx: &Tx<'_>, change: &PinChange, actor: &Actor) -> StoreResult<PinOutcome> {
    tx.lock_name("pins")?;
    let PinChange {
        step,
        pin,
        reason,
        own,
    } = change;
    let PinsKnown {
        mut rotation,
        shown,
        ..
    } = known(tx, own, tx.now)?;
    let mut missing = 0;
    let (action, taken) = match step {
        PinStep::Stage => ("pin.stage", rotation.stage(*pin, own.live, tx.now)),
        PinStep::Promote { forced } => {
            if let Some(from) = rotation.trusted_from(pin) {
                let to = rotation.set().version;
                missing = tx.one(UNTRUSTING_COUNT, params! { from, to }, |row| {
                    Reader::new("gateways", row).get("gateways")
                })?;
            }
            let promoted = rotation.promote(pin, missing, *forced, tx.now);
            ("pin.promote", promoted)
        }
        PinStep::Retire => {
            let retired = match rotation.retire(pin, &shown, tx.now) {
                Ok(true) if is_unsaid(tx)? => Err(RotationRefusal::Unsaid),
                other => other,
            };
            ("pin.retire", retired)
        }
    };
    match taken {
        Err(refusal) => return Ok(PinOutcome::Refused(refusal)),
        Ok(false) => return Ok(PinOutcome::Before),
        Ok(true) => {}
    }
    save_all(tx, &mut rotation)?;
    let set = rotation.set();
    let detail = json!({
        "version": set.version, "pins": set.pins, "cut_off": missing, "reason": reason,
    });
    let object = format!("pin:{pin}");
    audit::append(tx, actor, action, &object, AuditOutcome::Done, &detail)?;
    Ok(PinOutcome::Done)
}

fn save(tx: &Tx<'_>, key: &ServerKey) -> StoreResult<()> {
    let ServerKey {
        staged_in,
        retired_in,
        since,
        ..
    } = key;
    let (pin, state) = (key.pin.digest(), key.state.name());
    let params = params! { pin, state, staged_in, retired_in, since };
    tx.execute(SAVE, params).map(drop)
}

/// Notes which key this backend shows, and forgets what was said too long ago.
pub(super) fn show(tx: &Tx<'_>, pin: &SpkiPin) -> StoreResult<()> {
    let since = tx.now.saturating_sub(SHOWN_FOR);
    tx.execute(FORGET_SHOWN, params! { since })?;
    let (pin, shown_by) = (pin.digest(), shown_by(tx));
    tx.execute(SHOW, params! { pin, shown_by }).map(drop)
}

/// One of the rows of [`LOAD`].
pub(in crate::data) fn read(row: &Row<'_>) -> StoreResult<ServerKey> {
    let row = Reader::new("server_pins", row);
    Ok(ServerKey {
        pin: SpkiPin::from_digest(row.get("pin")?),
        state: row.word("state", KeyState::from_name)?,
        staged_in: row.get("staged_in")?,
        retired_in: row.get("retired_in")?,
        since: row.get("since")?,
    })
}
