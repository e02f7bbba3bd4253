//! Reading HELLO: whose key made it, and what the session's keys are from then on.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{BackendEvent, BackendSessionConfig};
use crate::id::CommandId;
use crate::key::{KeyCover, MasterKey, Schedule, SessionKeys};
use crate::wire::envelope::{EnvelopeError, NONCE_BYTES, Phase, Sealed};
use crate::wire::message::AgentMessage;

/// HELLO was verified.
#[derive(Debug)]
pub(super) struct Deciding {
    pub(super) keys: SessionKeys,
    pub(super) cover: KeyCover,
    /// It was made with a key of the master key that is beside the one that makes others.
    pub(super) of_the_other: bool,
    /// Commands that already use up credit.
    pub(super) unreported: BTreeSet<CommandId>,
}

/// Why a first message is no HELLO.
#[derive(Debug)]
pub(super) enum Unread {
    /// Its sender has not proved anything: it only sees the connection close.
    Unproved(EnvelopeError),
    /// It is authentic and breaks a rule.
    Malformed(Box<Deciding>, String),
}

/// Reads the answer to a challenge of this age: the keys that follow, and the protocol version that the gateway speaks.
///
/// # Errors
///
/// It is no HELLO of this gateway.
pub(super) fn read(
    config: &BackendSessionConfig,
    challenge: &[u8],
    bytes: &[u8],
    challenge_age: Duration,
) -> Result<(Deciding, u8, BackendEvent), Unread> {
    let sealed = Sealed::new(bytes, Phase::Opening).map_err(Unread::Unproved)?;
    let key_generation = sealed.claimed_key_generation();
    let mut schedule = schedule(config, &config.master, key_generation);
    let mut opened = sealed.open(&schedule.hello_key(challenge), 1);
    let mut of_the_other = false;
    let is_foreign = matches!(opened, Err(EnvelopeError::BadTag));
    if let Some(other) = config.master.other().filter(|_| is_foreign) {
        let by_the_other = self::schedule(config, &other, key_generation);
        let tried = sealed.open(&by_the_other.hello_key(challenge), 1);
        if tried.is_ok() {
            of_the_other = true;
            (schedule, opened) = (by_the_other, tried);
        }
    }
    let opened = opened.map_err(Unread::Unproved)?;
    let deciding = |unreported| Deciding {
        keys: schedule.session_keys(challenge, bytes),
        cover: schedule.key_cover(challenge, bytes),
        of_the_other,
        unreported,
    };
    let malformed =
        |what: &str| Unread::Malformed(Box::new(deciding(BTreeSet::new())), what.to_owned());
    let (client_nonce, json) = opened
        .body()
        .split_first_chunk::<NONCE_BYTES>()
        .ok_or_else(|| malformed("it is too short"))?;
    let hello = match AgentMessage::decode(opened.kind(), json) {
        Some(Ok(AgentMessage::Hello(hello))) => hello,
        Some(Err(error)) => return Err(malformed(&error.to_string())),
        Some(Ok(_)) | None => return Err(malformed("it is another message")),
    };
    let deciding = deciding(hello.unreported.iter().copied().collect());
    let version = hello.version;
    let event = BackendEvent::Hello {
        hello: Box::new(hello),
        client_nonce: *client_nonce,
        key_generation,
        challenge_age,
    };
    Ok((deciding, version, event))
}

/// The keys of a session that is opened with the agent key of this generation.
fn schedule(config: &BackendSessionConfig, master: &MasterKey, key_generation: u8) -> Schedule {
    let key = master.agent_key(&config.identity, u32::from(key_generation));
    let identity = config.identity.clone();
    Schedule::new(&config.server_nonce, &key, identity, &config.binding)
}
