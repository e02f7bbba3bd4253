//! Agent keys of later generations, in the agent's own folder: the identity file is root's, and has the first one.
//!
//! They are one file, which is written and moved whole: no crash leaves one of them half, or one without the one
//! before.

use std::cmp::Reverse;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use viworks_common::id::{AgentId, Tenant};
use viworks_common::key::{AgentKey, Identity as Name, Secret};
use viworks_common::rotation;
use viworks_runtime::config::Problem;
use viworks_runtime::fault;
use viworks_runtime::files::{self, FileError};
use zeroize::Zeroizing;

use crate::reserve;

/// The file, as the state folder may have it.
pub const FILE: &str = "agent_keys.json";

/// An agent key that this gateway has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Which generation it is of.
    pub generation: u8,
    /// The key.
    pub key: AgentKey,
}

impl Held {
    /// SHA-256 of it.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.key.secret().expose()).into()
    }
}

/// Why a key is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// It has no JSON form.
    #[error("the agent keys cannot be encoded")]
    Encode(#[from] serde_json::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    tenant: Tenant,
    agent_id: AgentId,
    #[serde(borrow)]
    keys: Vec<WrittenKey<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenKey<'a> {
    generation: u8,
    agent_key: &'a str,
}

/// The keys that came over sessions, the latest first.
///
/// # Errors
///
/// When they cannot be read, or are another gateway's: then the others are good without them.
pub fn read(folder: &Path, name: &Name) -> Result<Vec<Held>, Problem> {
    let path = folder.join(FILE);
    let bytes = match files::read_private(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.is_missing() => return Ok(Vec::new()),
        Err(error) => return Err(error.problem()),
    };
    // Never its contents: they are secret.
    let refused = |reason: &str| {
        let message = format!("{} holds no agent keys: {reason}", path.display());
        let help = "remove it: the key that this gateway was issued with is used, unless the backend has seen a later one; then issue this gateway again";
        Problem::of_file(&path, message, help)
    };
    let written: Written<'_> =
        serde_json::from_slice(&bytes).map_err(|_secret| refused("it is not of their form"))?;
    if written.tenant != name.tenant || written.agent_id != name.agent_id {
        return Err(refused("they are another gateway's"));
    }
    let held = written.keys.iter().map(|key| {
        let secret = Secret::from_hex(key.agent_key).filter(|_| key.generation > 0)?;
        Some(Held {
            generation: key.generation,
            key: AgentKey::new(secret),
        })
    });
    held.collect::<Option<Vec<Held>>>()
        .ok_or_else(|| refused("one of them is none"))
}

/// Keeps a key that came in a session that was opened with one of generation `in_use`: durable once this returns.
///
/// # Errors
///
/// When it cannot be kept; what there is stays.
pub fn keep(folder: &Path, name: &Name, in_use: u8, new: &Held) -> Result<(), KeyringError> {
    // One that is broken, or another gateway's, is of no use to anybody.
    let mut all = read(folder, name).unwrap_or_default();
    // What came last under a number counts.
    all.retain(|held| held.generation != new.generation);
    let known: Vec<u8> = all.iter().map(|held| held.generation).collect();
    let kept = rotation::kept(&known, in_use, new.generation);
    all.push(new.clone());
    all.retain(|held| kept.contains(&held.generation));
    all.sort_by_key(|one| Reverse(one.generation));
    let texts: Vec<(u8, Zeroizing<String>)> = all
        .iter()
        .map(|held| {
            let text = Zeroizing::new(held.key.secret().expose_hex());
            (held.generation, text)
        })
        .collect();
    let written = Written {
        tenant: name.tenant.clone(),
        agent_id: name.agent_id,
        keys: texts
            .iter()
            .map(|(generation, agent_key)| WrittenKey {
                generation: *generation,
                agent_key,
            })
            .collect(),
    };
    let bytes = Zeroizing::new(serde_json::to_vec(&written)?);
    reserve::write(&folder.join(FILE), &bytes)?;
    fault::point("agent_key.kept");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use uuid::Uuid;

    use super::*;

    fn name(number: u128) -> Name {
        Name {
            tenant: Tenant::default_tenant(),
            agent_id: AgentId::from_uuid(Uuid::from_u128(number)),
        }
    }

    fn held(generation: u8) -> Held {
        Held {
            generation,
            key: AgentKey::new(Secret::from_bytes([generation; 32])),
        }
    }

    #[test]
    fn a_key_is_kept_beside_those_that_may_still_be_needed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert!(read(folder, &name(1)).unwrap().is_empty());
        for generation in 2..=5 {
            keep(folder, &name(1), generation - 1, &held(generation)).unwrap();
            // The answer was lost, and it came again.
            keep(folder, &name(1), generation - 1, &held(generation)).unwrap();
        }
        assert_eq!(read(folder, &name(1)).unwrap(), [held(5), held(4), held(3)]);
        let mode = folder.join(FILE).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_came_last_under_a_number_counts() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        keep(folder, &name(1), 1, &held(2)).unwrap();
        let other = Held {
            generation: 2,
            ..held(9)
        };
        keep(folder, &name(1), 1, &other).unwrap();
        assert_eq!(read(folder, &name(1)).unwrap(), [other]);
    }

    #[test]
    fn what_is_broken_or_another_gateways_is_told_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        keep(folder, &name(2), 1, &held(2)).unwrap();
        let foreign = std::fs::read(folder.join(FILE)).unwrap();
        let zero = br#"{"tenant":"default","agent_id":"00000000-0000-0000-0000-000000000001","keys":[{"generation":0,"agent_key":"00"}]}"#;
        for bytes in [&foreign[..], b"{}", &zero[..]] {
            files::write_atomic(&folder.join(FILE), bytes).unwrap();
            let problem = read(folder, &name(1)).unwrap_err();
            assert!(
                problem.line().contains("holds no agent keys"),
                "{problem:?}"
            );
            keep(folder, &name(1), 1, &held(3)).unwrap();
            assert_eq!(read(folder, &name(1)).unwrap(), [held(3)]);
        }
    }
}
