//! Gateways: who they are, their sessions, agent keys and catalogues.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use viworks_common::catalogue::{CatalogueEntry, Risk};
use viworks_common::code::CloseCode;
use viworks_common::id::{
    AgentId, AgentRunId, BootId, CommandId, GatewayName, InstallId, InstanceId, SessionId, TicketId,
};
use viworks_common::key::MASTER_ID_BYTES;
use viworks_common::pin::PinSet;
use viworks_common::telemetry::{Position, RecordRefusal};
use viworks_common::time::Timestamp;

use super::{AuthorityBundle, NewCertificate, OpenCommand, Settled, SignedBy};

/// A gateway to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewGateway {
    /// Its identity, never used before.
    pub agent_id: AgentId,
    /// Its name, unique within the tenant.
    pub name: GatewayName,
    /// Labels given by the operator.
    pub labels: BTreeMap<String, String>,
    /// The generation of the agent key that is handed to it.
    pub key_generation: u32,
    /// The pin set that is handed to it together with its identity, where one is.
    pub pins: Option<PinSet>,
    /// The authorities that are handed to it as well, as it would report them.
    pub authorities: Option<AuthorityBundle>,
    /// Its first certificate, registered with it.
    pub certificate: Option<NewCertificate>,
}

/// A gateway by id or by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum GatewayRef {
    /// By id.
    Id(AgentId),
    /// By name.
    Name(GatewayName),
}

impl std::str::FromStr for GatewayRef {
    type Err = viworks_common::id::InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A name never reads as an id, so the order cannot matter.
        text.parse()
            .map(Self::Id)
            .or_else(|_no_id| text.parse().map(Self::Name))
    }
}

/// Which gateways to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayFilter {
    /// Only those with, or without, a confirmed session.
    pub connected: Option<bool>,
    /// Only those that are, or are not, revoked.
    pub revoked: Option<bool>,
    /// Only those with this label and value, from whatever source.
    pub label: Option<(String, String)>,
    /// Only those that came of this ticket.
    pub ticket: Option<TicketId>,
}

/// Where a label comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LabelSource {
    /// An operator said so.
    Operator,
    /// The gateway's own configuration says so.
    Gateway,
}

impl LabelSource {
    /// The word in the store and in answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Gateway => "gateway",
        }
    }
}

/// One label of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Where it comes from.
    pub source: LabelSource,
}

/// A gateway as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Its identity.
    pub agent_id: AgentId,
    /// Its name.
    pub name: GatewayName,
    /// Its labels, by key and source.
    pub labels: Vec<Label>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
    /// The confirmed epoch: zero before the first session.
    pub confirmed: u64,
    /// The highest issued epoch.
    pub issued: u64,
    /// The lowest generation of the agent key that is still accepted.
    pub key_generation: u32,
    /// The generation that an operator asked for last.
    pub key_wanted: Option<u32>,
    /// Whether its agent takes a key over a session, by its last one.
    pub takes_keys: Option<bool>,
    /// Of which master key its agent key and its token were by its last session; none where not of the same one.
    pub key_master: Option<[u8; MASTER_ID_BYTES]>,
    /// The confirmed session, while there is one.
    pub session: Option<GatewaySession>,
    /// When something was last heard of it.
    pub last_seen_at: Option<Timestamp>,
    /// The version of its agent, by its last HELLO.
    pub agent_version: Option<String>,
    /// When its certificate ends: the latest of those that are in use and not retired.
    pub certificate_not_after: Option<Timestamp>,
    /// When that certificate was registered.
    pub certificate_since: Option<Timestamp>,
    /// When the last certificate of it was revoked, where there is none left that is accepted or may come to be.
    pub certificate_revoked_at: Option<Timestamp>,
    /// The digest of the stored catalogue.
    pub catalogue_digest: Option<String>,
    /// The version of the pin set it trusts, by its last report; before its first session that of the set that was
    /// handed to it together with its identity.
    pub pin_set_version: u64,
    /// The bundle of authorities that it was given and has, by its digest, as it reported last; before its first
    /// session that which was handed to it together with its identity.
    pub authorities: Option<String>,
    /// Since when it has that.
    pub authorities_at: Option<Timestamp>,
    /// Commands of it that are not final.
    pub open_commands: u64,
    /// The number the next command gets.
    pub next_order: u64,
    /// The highest order up to which every command is final.
    pub low_water: u64,
    /// Recorded forks.
    pub forks: u64,
    /// Those of them about which nobody has decided.
    pub undecided_forks: u64,
    /// Kept outcomes of commands that nobody knows.
    pub orphans: u64,
}

/// The live session of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewaySession {
    /// Its id.
    pub session_id: SessionId,
    /// Which of several backends has it.
    pub instance: Option<InstanceId>,
    /// Its epoch.
    pub epoch: u64,
    /// The process at the other end.
    pub agent_run_id: AgentRunId,
    /// Where it came from.
    pub peer_address: String,
    /// When it was confirmed.
    pub confirmed_at: Timestamp,
    /// The figures of its last heartbeat.
    pub figures: HeartbeatFigures,
}

/// What a heartbeat says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeartbeatFigures {
    /// Microseconds of the last measured round trip.
    pub round_trip_us: Option<u64>,
    /// The gateway's wall clock minus the backend's, in milliseconds.
    pub clock_skew_ms: Option<i64>,
    /// Telemetry records waiting on the gateway.
    pub spool_records: u64,
    /// Bytes of its spool.
    pub spool_bytes: u64,
    /// Commands running on it.
    pub commands_running: u32,
}

/// The session on whose behalf something is done.
///
/// A session writes only while `gateways.confirmed` equals its epoch and it has not ended. CONFIRM raises that for the
/// newcomer, and revocation raises it beyond every issued epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The gateway.
    pub agent_id: AgentId,
    /// The epoch that the session confirmed.
    pub epoch: u64,
    /// The process at the other end.
    pub agent_run_id: AgentRunId,
}

/// One heartbeat to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionTouch {
    /// The gateway.
    pub agent_id: AgentId,
    /// The session's epoch.
    pub epoch: u64,
    /// The figures.
    pub figures: HeartbeatFigures,
}

/// What revoking a gateway did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Whether it had been revoked before.
    pub already: bool,
    /// The session to cut.
    pub live_session: Option<SessionId>,
    /// Its commands that were not final, as they ended.
    pub ended: Vec<Settled>,
}

/// Who revoked a gateway, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Who, such as `api_key:01…`.
    pub by: String,
    /// The name of the API key that it was, where that is known.
    pub by_name: Option<String>,
    /// Why, where that was said.
    pub reason: Option<String>,
}

/// The last time that somebody who showed a gateway's certificate got no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastRefusal {
    /// When, by the wall clock.
    pub at: Timestamp,
    /// Why, as one word, such as `fork`.
    pub why: String,
    /// The address that it came from, where that is known.
    pub peer_address: Option<String>,
}

/// What was found of the last refusal of a gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LookedForRefusal {
    /// The refusal.
    pub last: Option<LastRefusal>,
    /// Among how many of the latest audit records none was, where there are older ones: one may be there.
    pub among: Option<usize>,
    /// The last time that the gateway, or whoever says to be it, got no certificate at the door, where that is among
    /// the same records.
    pub at_door: Option<LastRefusal>,
}

/// A HELLO whose MAC was right, with what the connection says about its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmitRequest {
    /// Who, by the certificate.
    pub agent_id: AgentId,
    /// The session that asks.
    pub session_id: SessionId,
    /// The installation.
    pub install_id: InstallId,
    /// The boot.
    pub boot_id: BootId,
    /// The process.
    pub agent_run_id: AgentRunId,
    /// The epoch it presents.
    pub epoch: u64,
    /// Whether the ratchet token of that epoch is right.
    pub token_valid: bool,
    /// The generation of the agent key that made the MAC.
    pub key_generation: u32,
    /// The highest order the gateway ever saw.
    pub highest_order: u64,
    /// The highest low-water mark it was told.
    pub low_water: u64,
    /// The gateway's confirmed epoch before the challenge was made.
    pub confirmed_at_challenge: u64,
    /// Every command its journal holds that was not acknowledged.
    pub unreported: Vec<CommandId>,
    /// The telemetry positions it asks about.
    pub telemetry: Vec<Position>,
    /// The digest of its catalogue, 64 hexadecimal digits.
    pub catalogue_digest: String,
    /// Labels from its own configuration.
    pub labels: BTreeMap<String, String>,
    /// Its version.
    pub agent_version: String,
    /// The version of the pin set it trusts.
    pub pin_set_version: u64,
    /// Where it came from.
    pub peer_address: String,
    /// SHA-256 of its certificate.
    pub fingerprint: [u8; 32],
}

/// What became of a HELLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdmitOutcome {
    /// An epoch was issued; nothing has an effect before its CONFIRM.
    Accepted(Box<Admitted>),
    /// The same process presents an epoch it has left behind: a message that was overtaken.
    Late,
    /// Another holder of the identity has moved on: recorded.
    Fork,
    /// The ratchet token is wrong: recorded as a security event.
    BadToken,
    /// The gateway was revoked.
    Revoked,
    /// The agent key's generation was superseded.
    StaleKey,
    /// Another process of this identity was alive when a copy spoke, and is waited for so long yet.
    Favoured(Duration),
    /// There is no such gateway.
    Unknown,
}

/// The terms of an accepted HELLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The epoch that was presented.
    pub presented: u64,
    /// The epoch that was issued.
    pub issued: u64,
    /// Up to which order everything is final.
    pub low_water: u64,
    /// How far the spool epochs that HELLO names are committed; zero where nothing is.
    pub committed: Vec<Position>,
    /// Whether the catalogue with HELLO's digest is stored.
    pub catalogue_known: bool,
    /// Whether HELLO proved that the database had been rolled back: an alarm.
    pub rolled_back: bool,
    /// Telemetry records that it says were acknowledged and that are beyond what may be kept of it, by reason.
    pub refused: BTreeMap<RecordRefusal, u64>,
    /// The session that is confirmed now, if one is.
    pub live_session: Option<LiveSession>,
}

/// A session that is confirmed while another one opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveSession {
    /// Its id.
    pub session_id: SessionId,
    /// Its epoch.
    pub epoch: u64,
    /// Whether the newcomer is the same process.
    pub same_agent_run: bool,
}

/// A CONFIRM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfirmRequest {
    /// Who.
    pub agent_id: AgentId,
    /// The session.
    pub session_id: SessionId,
    /// The epoch HELLO presented.
    pub presented: u64,
    /// The epoch WELCOME issued.
    pub issued: u64,
    /// The process.
    pub agent_run_id: AgentRunId,
    /// What HELLO said is in the journal and not acknowledged.
    pub unreported: Vec<CommandId>,
    /// The key (SHA-256) of a certificate that was issued over a session and is confirmed for the first time: every
    /// earlier one of the gateway retires.
    pub proves: Option<[u8; 32]>,
    /// Which authority signed the certificate that is shown, where that is to be stored.
    pub signed_by: Option<SignedBy>,
}

/// What became of a CONFIRM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfirmOutcome {
    /// The session is the gateway's one live session.
    Confirmed(Box<Confirmed>),
    /// Another HELLO came in between; the session must end.
    Superseded,
}

/// What a confirmed session has to take care of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmed {
    /// Commands whose permit belongs to this very process: their GO is sent again.
    pub released: Vec<OpenCommand>,
    /// Commands of this gateway whose end was asked for and that may run: their `COMMAND_CANCEL` is sent again.
    pub cancel_requested: Vec<CommandId>,
    /// Commands that ended because an earlier process is gone and left no trace of them.
    pub ended: Vec<Settled>,
    /// Up to which order everything is final.
    pub low_water: u64,
    /// Whether commands wait for it.
    pub waiting: bool,
    /// The older session that is now fenced.
    pub fenced: Option<SessionId>,
    /// Which of several backends has the session now.
    pub instance: Option<InstanceId>,
    /// What is known of its agent key.
    pub keys: KeyStanding,
    /// The bundle of authorities that it has, by its digest, as it reported last.
    pub authorities: Option<String>,
}

/// What is known of a gateway's agent key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyStanding {
    /// The lowest generation that is still accepted: the one that it uses.
    pub generation: u32,
    /// The generation that an operator asked for last.
    pub wanted: Option<u32>,
    /// Whether its agent takes a key over a session, by its last one.
    pub takes_one: Option<bool>,
    /// Of which master key its agent key and its token were by its last session; none where not of the same one.
    pub master: Option<[u8; MASTER_ID_BYTES]>,
}

impl KeyStanding {
    /// The generation that it is to get and does not use so far.
    #[must_use]
    pub fn pending(&self) -> Option<u32> {
        viworks_common::rotation::pending(self.generation, self.wanted)
    }
}

impl Gateway {
    /// What is known of its agent key.
    #[must_use]
    pub const fn keys(&self) -> KeyStanding {
        KeyStanding {
            generation: self.key_generation,
            wanted: self.key_wanted,
            takes_one: self.takes_keys,
            master: self.key_master,
        }
    }
}

/// What became of asking for a later agent key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRotation {
    /// It is to get the key of this generation, since now or since somebody asked before.
    Wanted(u32),
    /// Its key is of the last generation that there is.
    Exhausted,
    /// It is revoked.
    Revoked,
}

/// A stored catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCatalogue {
    /// Its digest, 64 hexadecimal digits.
    pub digest: String,
    /// When it was reported.
    pub reported_at: Timestamp,
    /// Its entries, by name.
    pub entries: Vec<CatalogueEntry>,
}

/// One command of the fleet, as the gateways that are not revoked report it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedCommand {
    /// As most of them define it, leaving aside whether it can be run there.
    pub entry: CatalogueEntry,
    /// How many different definitions there are.
    pub definitions: u64,
    /// Whether all of them call it idempotent.
    pub idempotent: bool,
    /// How many gateways say which risk.
    pub risks: BTreeMap<Risk, u64>,
    /// Gateways that would run it.
    pub available: u64,
    /// Gateways that have it and cannot run it.
    pub unavailable: u64,
}

/// Which gateways a run is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetSelection {
    /// Every gateway that is not revoked.
    All,
    /// Every gateway that is not revoked, without these.
    AllExcept(Vec<GatewayRef>),
    /// Exactly these.
    Gateways(Vec<GatewayRef>),
}

/// One gateway of a selection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// It exists.
    Known {
        /// Its identity.
        agent_id: AgentId,
        /// Its name.
        name: GatewayName,
        /// Whether it was revoked.
        revoked: bool,
        /// What its catalogue says about the command, if it ever reported one.
        report: Option<Report>,
    },
    /// It does not exist.
    Unknown(GatewayRef),
}

/// What a gateway's catalogue says about one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// When the catalogue was reported.
    pub reported_at: Timestamp,
    /// The command's entry, if it has one.
    pub entry: Option<Arc<CatalogueEntry>>,
}

/// One ended or live session, for a gateway's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its id.
    pub session_id: SessionId,
    /// Its epoch.
    pub epoch: u64,
    /// The process at the other end.
    pub agent_run_id: AgentRunId,
    /// Where it came from.
    pub peer_address: String,
    /// When its HELLO was accepted.
    pub admitted_at: Timestamp,
    /// When it was confirmed.
    pub confirmed_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it ended.
    pub code: Option<CloseCode>,
}
