//! What backends that share a database leave for each other about the sessions of gateways, each in the transaction of
//! its cause.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use viworks_common::id::{AgentId, InstanceId, SessionId};
use viworks_runtime::sqlite::{Row, params};

use super::instances::LEASE_SECONDS;
use super::link::{Party, Sql};
use super::row::{Reader, column, to_json};
use super::tx::Tx;
use crate::data::{Letter, Mail, Owner, ProbeAnswer, StoreError, StoreResult};

/// What is taken at once.
const AT_ONCE: usize = 1_000;

/// To the instance that is named, or to the one that has the gateway's session; nothing to oneself, and nothing to one
/// that is gone: the row of whoever is written to stays until this is committed. The same asked again is one row, with
/// another number. The limit has each gateway looked up by its key.
pub(super) const POST: Sql = Sql::of_server(
    "\
INSERT INTO inbox (tenant, instance, agent_id, kind, about, epoch, body)
SELECT g.tenant, i.instance, g.agent_id, m.kind, m.about, m.epoch, m.body
FROM json_to_recordset(:mail) AS m (instance text, agent_id text, kind text, about text, epoch bigint, body text)
CROSS JOIN LATERAL (
    SELECT tenant, agent_id, session_instance FROM gateways WHERE tenant = :tenant AND agent_id = m.agent_id LIMIT 1) AS g
JOIN instances AS i ON i.instance = coalesce(m.instance, g.session_instance)
WHERE i.instance IS DISTINCT FROM :own
ORDER BY 2, 3, 4, 5
FOR KEY SHARE OF i
ON CONFLICT (instance, tenant, agent_id, kind, about) DO UPDATE
    SET epoch = excluded.epoch, body = excluded.body, number = excluded.number
RETURNING instance",
);

/// What somebody is asking again at the moment is deleted another time.
pub(super) const DELETE: Sql = Sql::of_server(
    "\
DELETE FROM inbox WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM inbox
    WHERE instance = :own AND number IN (SELECT CAST(value AS bigint) FROM json_array_elements_text(:handled))
    FOR UPDATE SKIP LOCKED))",
);

pub(super) const TAKE: Sql = Sql::of_server(
    "\
SELECT number, agent_id, kind, about, epoch, body FROM inbox
WHERE instance = :own AND tenant = :tenant ORDER BY number LIMIT :limit",
);

/// Who has the session of a gateway, and whether others may take that one for gone, as [`super::instances::END`] has
/// it.
pub(super) const OWNER: Sql = Sql::of_server(
    "\
SELECT g.agent_id, g.session_epoch, g.session_instance,
       coalesce(i.ended OR NOT i.lease_until BETWEEN clock_timestamp()
                AND clock_timestamp() + CAST(:seconds AS bigint) * interval '1 second', true) AS lapsed,
       coalesce(i.ended OR (NOT i.lease_until BETWEEN clock_timestamp()
                AND clock_timestamp() + CAST(:seconds AS bigint) * interval '1 second'
           AND o.since < clock_timestamp() - CAST(:seconds AS bigint) * interval '1 second'), true) AS gone
FROM gateways AS g
LEFT JOIN instances AS i ON i.instance = g.session_instance
LEFT JOIN instances AS o ON o.instance = :own
WHERE g.tenant = :tenant AND g.agent_id = :agent_id",
);

/// Something for another instance, kept until the end of its transaction.
#[derive(Debug)]
pub(super) struct Post {
    /// To whom; otherwise to whichever has the gateway's session.
    pub(super) to: Option<InstanceId>,
    pub(super) agent_id: AgentId,
    pub(super) letter: Letter,
}

impl Post {
    fn row(&self) -> (Key, Value) {
        let (kind, about, epoch, body) = match self.letter {
            Letter::Look => ("look", String::new(), None, None),
            Letter::Cancel(command_id) => ("cancel", command_id.to_string(), None, None),
            Letter::Revoked => ("revoked", String::new(), None, None),
            Letter::CertificateRevoked { epoch } => {
                ("certificate_revoked", epoch.to_string(), Some(epoch), None)
            }
            Letter::Superseded { epoch } => ("superseded", epoch.to_string(), Some(epoch), None),
            Letter::Drain => ("drain", String::new(), None, None),
            Letter::Rekey { generation } => {
                ("rekey", String::new(), Some(u64::from(generation)), None)
            }
            Letter::Probe {
                newcomer,
                asks,
                epoch,
            } => (
                "probe",
                newcomer.to_string(),
                Some(epoch),
                Some(asks.to_string()),
            ),
            Letter::Answer { newcomer, alive } => {
                let word = if alive { ALIVE } else { SILENT };
                ("answer", newcomer.to_string(), None, Some(word.to_owned()))
            }
        };
        let row = json!({
            "instance": self.to, "agent_id": self.agent_id, "kind": kind, "about": about, "epoch": epoch, "body": body,
        });
        ((self.to, self.agent_id, kind, about), row)
    }
}

/// What is one row: to whom, about which gateway, and what.
type Key = (Option<InstanceId>, AgentId, &'static str, String);

/// What a probed gateway is said to be.
const ALIVE: &str = "alive";
const SILENT: &str = "silent";

/// Writes what a transaction leaves for others; answers for whom it left something.
pub(super) fn deliver(tx: &Tx<'_>, posts: &[Post]) -> StoreResult<BTreeSet<InstanceId>> {
    if posts.is_empty() || tx.party() == Party::Alone {
        return Ok(BTreeSet::new());
    }
    let own = tx.party().instance();
    // Each once: a statement does not write the same row twice.
    let rows: BTreeMap<_, _> = posts.iter().map(Post::row).collect();
    let mail = Value::from_iter(rows.into_values()).to_string();
    let to = column::<InstanceId>("inbox", "instance");
    Ok(tx
        .all(POST, params! { mail, own }, to)?
        .into_iter()
        .collect())
}

/// What was left for this instance, without what was `handled` since.
pub(super) fn take(tx: &Tx<'_>, handled: &[u64]) -> StoreResult<Vec<Mail>> {
    let Some(own) = tx.party().instance() else {
        return Ok(Vec::new());
    };
    if !handled.is_empty() {
        let handled = to_json(handled);
        tx.execute(DELETE, params! { own, handled })?;
    }
    tx.all(TAKE, params! { own, limit: AT_ONCE }, read)
}

fn read(row: &Row<'_>) -> StoreResult<Mail> {
    let row = Reader::new("inbox", row);
    Ok(Mail {
        number: row.get("number")?,
        agent_id: row.get("agent_id")?,
        // One that a later version writes must not keep the others from being read.
        letter: letter(&row).unwrap_or_default(),
    })
}

fn letter(row: &Reader<'_>) -> StoreResult<Option<Letter>> {
    let newcomer = || row.get::<SessionId>("about");
    Ok(Some(match &*row.get::<String>("kind")? {
        "look" => Letter::Look,
        "cancel" => Letter::Cancel(row.get("about")?),
        "revoked" => Letter::Revoked,
        "certificate_revoked" => Letter::CertificateRevoked {
            epoch: row.get("epoch")?,
        },
        "superseded" => Letter::Superseded {
            epoch: row.get("epoch")?,
        },
        "drain" => Letter::Drain,
        "rekey" => Letter::Rekey {
            generation: row.get("epoch")?,
        },
        "probe" => Letter::Probe {
            newcomer: newcomer()?,
            asks: row.get("body")?,
            epoch: row.get("epoch")?,
        },
        "answer" => Letter::Answer {
            newcomer: newcomer()?,
            alive: row.get::<String>("body")? == ALIVE,
        },
        _ => return Ok(None),
    }))
}

/// Has the owner of a gateway's session asked whether that is alive.
pub(super) fn ask(
    tx: &Tx<'_>,
    agent_id: AgentId,
    epoch: u64,
    newcomer: SessionId,
) -> StoreResult<Owner> {
    // Where there is one backend, it has the session or nobody has.
    let Some(own) = tx.party().instance() else {
        return Ok(Owner::Gone);
    };
    let params = params! { agent_id, own, seconds: LEASE_SECONDS };
    let owner = tx.optional(OWNER, params, |row| {
        let row = Reader::new("gateways", row);
        let current = row.get::<Option<u64>>("session_epoch")? == Some(epoch);
        let instance = row.get::<Option<InstanceId>>("session_instance")?;
        let instance = instance.filter(|instance| current && *instance != own);
        Ok((
            instance,
            row.get::<bool>("lapsed")?,
            row.get::<bool>("gone")?,
        ))
    })?;
    match owner {
        Some((Some(to), false, _)) => {
            let letter = Letter::Probe {
                newcomer,
                asks: own,
                epoch,
            };
            tx.post(Post {
                to: Some(to),
                agent_id,
                letter,
            });
            Ok(Owner::Asked)
        }
        Some((Some(_), true, false)) => Ok(Owner::Unsure),
        Some((Some(_), true, true) | (None, ..)) => Ok(Owner::Gone),
        None => Err(StoreError::Missing {
            what: format!("gateway {agent_id}"),
        }),
    }
}

/// Answers what other instances asked.
pub(super) fn answer(tx: &Tx<'_>, answers: &[ProbeAnswer]) {
    for answer in answers {
        let &ProbeAnswer {
            agent_id,
            to,
            newcomer,
            alive,
        } = answer;
        tx.post(Post {
            to: Some(to),
            agent_id,
            letter: Letter::Answer { newcomer, alive },
        });
    }
}
