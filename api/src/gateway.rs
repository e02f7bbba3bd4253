//! Gateways as an operator sees them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::page::{Kind, list};
use viworks_common::human;
use viworks_common::id::{
    AgentId, AgentRunId, BootId, GatewayName, InstallId, InvalidId, SessionId,
};
use viworks_common::time::Timestamp;

/// A gateway named by an operator: by id or by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GatewayRef {
    /// By its id.
    Id(AgentId),
    /// By its name.
    Name(GatewayName),
}

impl fmt::Display for GatewayRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl FromStr for GatewayRef {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.parse()
            .map(Self::Id)
            .or_else(|_not_an_id| text.parse().map(Self::Name))
    }
}

impl Serialize for GatewayRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GatewayRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for GatewayRef {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("A gateway's id or its name"))
            .build()
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for GatewayRef {}

/// A gateway's id with its name, wherever one is mentioned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NamedGateway {
    /// Its id: never reused.
    pub id: AgentId,
    /// Its name: can be changed.
    pub name: GatewayName,
}

/// Whether a gateway takes commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum GatewayStatus {
    /// A confirmed session: a command sent to it starts.
    Online,
    /// No session; commands wait until their deadline.
    Offline,
    /// Registered and never connected.
    Never,
    /// Its identity was revoked.
    Revoked,
    /// Two machines hold its identity and an operator must decide.
    Blocked,
}

impl GatewayStatus {
    /// Every status.
    pub const ALL: &[Self] = &[
        Self::Online,
        Self::Offline,
        Self::Never,
        Self::Revoked,
        Self::Blocked,
    ];

    /// The word in answers and on screen.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Never => "never",
            Self::Revoked => "revoked",
            Self::Blocked => "blocked",
        }
    }
}

/// Who said that a label holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum LabelSource {
    /// An operator, on the backend: trusted.
    Operator,
    /// The gateway's own configuration.
    Gateway,
}

/// One label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Label {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Who said so.
    pub source: LabelSource,
}

/// The session of a connected gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GatewaySession {
    /// Which session; the same id is in both ends' logs.
    pub id: SessionId,
    /// Its epoch: each accepted session of a gateway has a higher one.
    pub epoch: u64,
    /// The address it came from.
    pub peer_address: String,
    /// The backend that has it, as health names it; only where a site may have several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
}

/// Who threw a gateway out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GatewayRevocation {
    /// Who, such as `api_key:01…`, or `local:uid 0` at the backend's own command line.
    pub by: String,
    /// The name of the API key that it was, where that is known.
    #[serde(default)]
    pub by_name: Option<String>,
    /// Why, where that was said.
    pub reason: Option<String>,
}

/// The last time that somebody who showed a certificate of a gateway got no session, or that somebody who says to be it
/// got no certificate at the door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GatewayRefusal {
    /// When.
    pub at: Timestamp,
    /// Why, as one word: `fork`, `bad_token`, `stale_key`, `revoked`, `hello_replayed`, `wrong_agent_key`,
    /// `retired_certificate`, `unregistered_certificate`, `revoked_certificate`, `replaced_certificate`; at the door
    /// `bad_proof`, `bad_token`, `stale_agent_key`, `revoked`, `unknown_key`, `certificate_revoked`, `retired_key`,
    /// `not_lapsed`, `challenge` or `too_soon`; or one that a later version adds.
    pub why: String,
    /// The same in words.
    pub cause: String,
    /// What to do about it.
    pub fix: String,
    /// The address that it came from, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_address: Option<String>,
}

/// How full a gateway's telemetry spool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GatewaySpool {
    /// Records that wait to be delivered.
    pub records: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// The key that a gateway shares with the backend, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GatewayKey {
    /// The generation that it uses; earlier ones are refused.
    pub generation: u32,
    /// The generation that it is to use, until it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<u32>,
    /// Whether its agent takes a later one over a session, by its last session; absent before the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takes_later: Option<bool>,
}

/// The bundle of authorities that a gateway has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GatewayAuthorities {
    /// SHA-256 of it, 64 hexadecimal digits.
    pub bundle: String,
    /// Whether it is the one that gateways are given now.
    pub current: bool,
    /// Since when it has that.
    pub since: Option<Timestamp>,
}

/// One gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Gateway {
    /// What this is.
    pub kind: Kind,
    /// Its id: never reused.
    pub id: AgentId,
    /// Its name: unique, can be changed, accepted wherever an id is.
    pub name: GatewayName,
    /// Whether it takes commands.
    pub status: GatewayStatus,
    /// Since when it has this status.
    pub since: Timestamp,
    /// When it was registered.
    pub created_at: Timestamp,
    /// The version of its agent, once it connected.
    pub agent_version: Option<String>,
    /// When its certificate ends, unless it is renewed before.
    #[serde(default)]
    pub certificate_not_after: Option<Timestamp>,
    /// Since when the backend knows that certificate.
    #[serde(default)]
    pub certificate_since: Option<Timestamp>,
    /// When the last of its certificates was revoked, where none is left that is accepted and the gateway itself is not
    /// revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_revoked_at: Option<Timestamp>,
    /// Whether an authority that this backend does not trust (`client_ca_file`) signed a certificate with which it would
    /// get in otherwise, so that TLS refuses it as of an unknown CA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_unknown_ca: Option<bool>,
    /// Whether this backend has a door at which it gets another certificate by itself once its own has ended, if its
    /// agent knows where that is (`door_url`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renews_at_door: Option<bool>,
    /// The lowest generation of its agent key that is still accepted.
    #[serde(default)]
    pub key_generation: u32,
    /// The version of the pin set that it trusts, by its last report, or before its first session the one that it was
    /// given; 0 is the set of its own configuration.
    #[serde(default)]
    pub pin_set_version: u64,
    /// The key that it shares with the backend, by its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<GatewayKey>,
    /// The authorities that it was given and has, by its last report, or before its first session those that it
    /// enrolled with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities: Option<GatewayAuthorities>,
    /// Its labels.
    pub labels: Vec<Label>,
    /// When it was last heard.
    pub last_seen: Option<Timestamp>,
    /// The last measured round trip, in microseconds.
    pub round_trip_us: Option<u64>,
    /// Its wall clock minus the backend's, in milliseconds, as last measured.
    pub clock_skew_ms: Option<i64>,
    /// Its session while it is online.
    pub session: Option<GatewaySession>,
    /// SHA-256 of its catalogue, 64 hexadecimal digits, once it sent one.
    pub catalogue_digest: Option<String>,
    /// Commands that wait for it.
    pub queued_commands: u64,
    /// Commands that it runs, as last reported.
    pub running_commands: Option<u64>,
    /// Its telemetry spool, as last reported.
    pub spool: Option<GatewaySpool>,
    /// How often a second holder of its identity was seen.
    pub forks: u64,
    /// Second holders of its identity about which somebody has to decide; none of a gateway that is revoked.
    #[serde(default)]
    pub undecided_forks: u64,
    /// Results that it reported of commands that the backend does not have, as many as are kept.
    #[serde(default)]
    pub orphans: u64,
    /// Who revoked it and why; only where one gateway is shown, and as long as it is among the latest 50,000 records of
    /// the audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<GatewayRevocation>,
    /// When it, or whoever has its certificate, was last refused a session; only where one gateway is shown, and as
    /// long as it is among the latest 50,000 records of the audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<GatewayRefusal>,
    /// Among how many of the latest records of the audit trail no refusal was found, where there are older records,
    /// which are not looked through; only where one gateway is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_refusal_among: Option<u64>,
    /// When it, or whoever says to be it, was last refused a certificate at the door; only where one gateway is shown,
    /// and as long as it is among the latest 50,000 records of the audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal_at_door: Option<GatewayRefusal>,
}

/// The longest reason that is kept, in bytes.
pub const REASON_BYTES_MAX: usize = viworks_common::limits::DETAIL_BYTES_MAX;

/// A request to throw a gateway out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RevokeRequest {
    /// Why, for the audit trail: 1 to 512 bytes.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 512))]
    pub reason: String,
}

/// The answer to whoever throws a gateway out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GatewayRevoked {
    /// What this is.
    pub kind: Kind,
    /// Whether it had been revoked before: then nothing has changed, and the first reason stays.
    pub already: bool,
    /// Whether it had a session, which is ended within a second on whichever backend has it.
    pub session_ended: bool,
    /// Commands that had not been permitted to start and never will.
    pub cancelled: u64,
    /// Commands that may have begun: nobody will be heard who could tell.
    pub indeterminate: u64,
    /// The gateway as it stands.
    pub gateway: Gateway,
}

/// What became of a gateway that was just revoked, as one sentence: the same wherever it was revoked.
#[must_use]
pub fn revocation_told(
    name: &GatewayName,
    session_ended: bool,
    cancelled: u64,
    indeterminate: u64,
) -> String {
    let mut parts = vec![format!("{name} is revoked")];
    if session_ended {
        parts.push("its session ends within a second".to_owned());
    }
    if cancelled > 0 {
        parts.push(human::counted_all(
            cancelled,
            "waiting command was cancelled",
            "waiting commands were cancelled",
        ));
    }
    if indeterminate > 0 {
        let begun = human::counted_all(
            indeterminate,
            "command that may have begun is",
            "commands that may have begun are",
        );
        parts.push(format!("{begun} indeterminate"));
    }
    parts.join("; ")
}

/// The answer to whoever gives a gateway another key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GatewayKeyRotated {
    /// What this is.
    pub kind: Kind,
    /// The generation that it is to use.
    pub wanted: u32,
    /// The gateway as it stands.
    pub gateway: Gateway,
}

/// One of two holders of an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ForkHolder {
    /// The epoch that it presented, or holds.
    pub epoch: u64,
    /// Where it came from.
    pub peer_address: String,
    /// SHA-256 of the certificate it showed, 64 hexadecimal digits.
    pub certificate_sha256: String,
    /// The serial number of that certificate, in hexadecimal, as long as the backend knows it.
    #[serde(default)]
    pub certificate_serial: Option<String>,
    /// When that certificate ends, as long as the backend knows it.
    #[serde(default)]
    pub certificate_not_after: Option<Timestamp>,
    /// The serial number of the certificate that the same key has now, where it got another one at the door since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reissued_serial: Option<String>,
    /// When that one ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reissued_not_after: Option<Timestamp>,
    /// Its installation: drawn once for a state folder.
    pub install_id: InstallId,
    /// Its boot: the same on two holders means one machine.
    pub boot_id: BootId,
    /// Its process.
    pub agent_run_id: AgentRunId,
    /// Since when it is known; not known of what an older version recorded.
    pub since: Option<Timestamp>,
    /// When it was last heard.
    pub last_seen: Option<Timestamp>,
}

/// Two holders of one identity, side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Fork {
    /// How often the refused one spoke.
    pub times: u64,
    /// The one that was refused.
    pub refused: ForkHolder,
    /// The one that was accepted last when the other first spoke.
    pub accepted: Option<ForkHolder>,
    /// When an operator decided about the refused one; absent while nobody has.
    #[serde(default)]
    pub resolved_at: Option<Timestamp>,
    /// What was decided about the refused one.
    #[serde(default)]
    pub resolution: Option<ForkEnd>,
}

/// What an operator decided about a holder that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ForkEnd {
    /// It keeps the identity.
    Kept,
    /// It stays out.
    Out,
    /// It stays out, and is to get an identity of its own.
    Replaced,
}

/// By what the holder that keeps an identity is known when it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum KeptBy {
    /// Its installation: after a restart and a reboot as well.
    Install,
    /// Its installation and its boot: after a restart as well.
    Boot,
    /// The very process.
    Process,
}

/// A request to decide between two holders of one identity: either `keep` or `replace`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResolveForkRequest {
    /// Who keeps the identity: its process (`agent_run_id`), or its installation (`install_id`) where the two differ in
    /// that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<AgentRunId>,
    /// Whether the one that was accepted goes on and the other gets an identity of its own.
    #[serde(default)]
    pub replace: bool,
}

/// The answer to whoever decides between two holders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ForkResolved {
    /// What this is.
    pub kind: Kind,
    /// Whether that was decided before: then nothing has changed.
    pub already: bool,
    /// Who keeps the identity. Without a session it is let in when it comes back: within a minute, or with its next attempt within the hour if the other renewed the certificate meanwhile.
    pub kept: Option<ForkHolder>,
    /// By what it is known when it comes back: with `process`, it does so only if that very process still runs. Absent
    /// when it has the session.
    #[serde(default)]
    pub kept_by: Option<KeptBy>,
    /// Who stays out.
    pub out: Option<ForkHolder>,
    /// Whether a session of the one that stays out was ended, within a second on whichever backend has it.
    pub session_ended: bool,
    /// The gateway as it stands.
    pub gateway: Gateway,
}

list! {
    /// Forks of one gateway's identity, the latest first.
    ForkList of Fork
}

list! {
    /// Gateways, by name.
    GatewayList of Gateway
}
