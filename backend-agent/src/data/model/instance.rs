//! Backends that share a database.

use std::time::Duration;

use viworks_common::arrivals::House;
use viworks_common::id::{AgentId, CommandId, InstanceId, SessionId};
use viworks_common::key::{MASTER_ID_BYTES, MasterKey};

use crate::data::TelemetryLimits;

/// A backend as the others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Which one; a process that lost its lease goes on as another one.
    pub id: InstanceId,
    /// Its machine and process, for people.
    pub name: String,
    /// For how long it has its lease yet; nothing once that ran out.
    pub lease: Duration,
    /// Its sessions, as it told with its last renewal.
    pub sessions: u64,
    /// Whether it is about to stop.
    pub draining: bool,
    /// For how long it is set to keep telemetry; `None` until it told.
    pub retention: Option<Retention>,
    /// The bundle of authorities that it gives gateways, by its digest; `None` until it told, and by earlier versions.
    pub authorities: Option<String>,
}

impl Instance {
    /// Whether it is another one than this, is there, and gives gateways another bundle of authorities.
    #[must_use]
    pub fn gives_others(&self, own: InstanceId, bundle: &str) -> bool {
        let told = self.authorities.as_deref();
        self.id != own && !self.lease.is_zero() && told.is_some_and(|told| told != bundle)
    }
}

/// Which master keys a backend has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MasterIds {
    /// The one that makes others.
    pub makes: [u8; MASTER_ID_BYTES],
    /// The one that is accepted beside it.
    pub beside: Option<[u8; MASTER_ID_BYTES]>,
}

impl MasterIds {
    /// Those of these keys.
    #[must_use]
    pub fn of(master: &MasterKey) -> Self {
        Self {
            makes: master.id(),
            beside: master.other().map(|other| other.id()),
        }
    }

    /// As they are stored.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let beside = self.beside.into_iter().flatten();
        self.makes.into_iter().chain(beside).collect()
    }

    /// As they were stored; `None` for what is neither one nor two.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let (ids, rest) = bytes.as_chunks::<MASTER_ID_BYTES>();
        let (makes, beside) = match (ids, rest) {
            ([makes], []) => (*makes, None),
            ([makes, beside], []) => (*makes, Some(*beside)),
            _ => return None,
        };
        Some(Self { makes, beside })
    }
}

/// A backend that is there, and which master keys it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyHolder {
    /// Its machine and process, for people; nothing where it is the only one that there is.
    pub name: Option<String>,
    /// What it told; nothing by one of a version before.
    pub masters: Option<MasterIds>,
}

/// For how long telemetry is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Days for records; for ever, where it is none.
    pub records_days: u64,
    /// Days for roll-ups; none are made where it is none.
    pub rollups_days: u64,
}

impl Retention {
    /// For how many days it holds when whoever is set to it is not there any more, and others are.
    pub const PROMISED_DAYS: u64 = 7;

    /// What these limits say.
    #[must_use]
    pub const fn of(limits: &TelemetryLimits) -> Self {
        Self {
            records_days: limits.retention_days,
            rollups_days: limits.rollup_days,
        }
    }

    /// The longer of both, each for itself: nobody deletes what somebody promises.
    #[must_use]
    pub fn or_longer(self, other: Self) -> Self {
        let for_ever = self.records_days == 0 || other.records_days == 0;
        Self {
            records_days: if for_ever {
                0
            } else {
                self.records_days.max(other.records_days)
            },
            rollups_days: self.rollups_days.max(other.rollups_days),
        }
    }
}

/// What a backend tells the others with its lease.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InstanceLoad {
    /// Its sessions.
    pub sessions: u64,
    /// How many connections it takes at most.
    pub connections_max: u64,
    /// How many openings of sessions it takes in a second.
    pub openings_per_second: u64,
    /// Whether it is about to stop.
    pub draining: bool,
    /// For how long it is set to keep telemetry; its store adds that.
    pub retention: Option<Retention>,
}

impl InstanceLoad {
    /// What a house says of itself.
    #[must_use]
    pub fn of(house: House) -> Self {
        Self {
            sessions: house.sessions,
            connections_max: house.sessions_max,
            openings_per_second: u64::from(house.per_second),
            draining: house.closes,
            retention: None,
        }
    }

    /// The house that says so.
    #[must_use]
    pub fn house(&self) -> House {
        House {
            sessions: self.sessions,
            sessions_max: self.connections_max,
            per_second: u32::try_from(self.openings_per_second).unwrap_or(u32::MAX),
            closes: self.draining,
        }
    }
}

/// Another backend that has its lease, by what it told when this one renewed its own last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Which one.
    pub id: InstanceId,
    /// What it tells of itself.
    pub load: InstanceLoad,
}

/// An instance that was taken for gone, because its lease ran out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUpInstance {
    /// Which one.
    pub id: InstanceId,
    /// Its machine and process, for people.
    pub name: String,
    /// For how long it had told nothing.
    pub unheard: Duration,
}

/// What became of instances whose lease ran out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndedInstances {
    /// Those that were taken for gone just now. What one was that stopped or began anew is no news.
    pub given_up: Vec<GivenUpInstance>,
    /// Those whose lease ran out that were taken for gone before, and are there yet. Whoever lost the answer to that
    /// hears of them here.
    pub earlier: Vec<GivenUpInstance>,
    /// Those that are gone with the last of their sessions.
    pub instances: u64,
    /// Sessions that were ended.
    pub sessions: u64,
    /// Instances that have some left.
    pub left: u64,
    /// Whether there are more.
    pub more: bool,
}

/// What one backend leaves for another one about a gateway whose session that one has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Letter {
    /// Commands may wait for it.
    Look,
    /// The end of a command was asked for.
    Cancel(CommandId),
    /// It was revoked.
    Revoked,
    /// The certificate that its session was opened with was revoked.
    CertificateRevoked {
        /// The epoch of the session that is over.
        epoch: u64,
    },
    /// A newer session of it was confirmed elsewhere.
    Superseded {
        /// The epoch of the one that is over.
        epoch: u64,
    },
    /// It is to get a later agent key.
    Rekey {
        /// Of this generation.
        generation: u32,
    },
    /// A copy of it was refused: it is to connect again, which moves its epoch past the copy's.
    Drain,
    /// Whether it is alive, for the sake of a session that wants to open.
    Probe {
        /// That session.
        newcomer: SessionId,
        /// Who asks.
        asks: InstanceId,
        /// The epoch of the confirmed session that it is about.
        epoch: u64,
    },
    /// The answer to that.
    Answer {
        /// That session.
        newcomer: SessionId,
        /// Whether the gateway answered.
        alive: bool,
    },
}

/// What another backend is told of a session that it asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// The gateway.
    pub agent_id: AgentId,
    /// Who asked.
    pub to: InstanceId,
    /// The session for whose sake it did.
    pub newcomer: SessionId,
    /// Whether the gateway answered.
    pub alive: bool,
}

/// One thing that was left for this backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mail {
    /// Its number, by which it is told that it was dealt with.
    pub number: u64,
    /// The gateway.
    pub agent_id: AgentId,
    /// What about it; `None` for what only a later version knows.
    pub letter: Option<Letter>,
}

/// Who can say whether the gateway of a session is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Another backend; it was asked, and its answer comes by the inbox.
    Asked,
    /// Another backend whose lease ran out, which nobody may take for gone yet.
    Unsure,
    /// Nobody: that session is not any more, or whoever had it is gone.
    Gone,
}

/// Tells another instance that there is something in its inbox, where that can be done at once. Nothing depends on it.
pub trait Hurry: Send + Sync {
    /// Called after each commit that left something there; it must not wait for anything.
    fn hurry(&self, instance: InstanceId);
}
