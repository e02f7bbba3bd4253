//! The answer to a request that came by hand: a file with everything that the door would have answered.
//!
//! Nobody has proved anything to seal its secrets with, so they stand in it as they are: the file is for its owner
//! alone, on the way as well.

use serde::{Deserialize, Serialize};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::{AgentSecrets, EnrolmentAnswer};
use crate::key::Secret;

/// The form that this version writes and reads.
const FORM: u32 = 1;

#[derive(Serialize, Deserialize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct AnswerFile {
    viworks_enrolment: u32,
    #[zeroize(skip)]
    answer: EnrolmentAnswer,
    agent_key: String,
    token: String,
}

/// Bytes that are no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswerFile {
    /// It cannot be read.
    #[error("it is no answer to a request: {0}")]
    Malformed(String),
    /// It is of a later version.
    #[error(
        "it is of form {0}, and this agent reads form {FORM}: install the agent that the backend has"
    )]
    Form(u32),
    /// Its secrets are none.
    #[error("its agent key and token are not 64 hexadecimal digits each")]
    Secrets,
}

/// The bytes of the file, JSON.
///
/// # Panics
/// Never: text and numbers have a JSON form.
#[must_use]
pub fn answer_file(answer: EnrolmentAnswer, secrets: &AgentSecrets) -> Zeroizing<Vec<u8>> {
    let file = AnswerFile {
        viworks_enrolment: FORM,
        answer,
        agent_key: secrets.agent_key.expose_hex(),
        token: secrets.token.expose_hex(),
    };
    let mut json = serde_json::to_vec_pretty(&file).expect("text and numbers have a JSON form");
    json.push(b'\n');
    Zeroizing::new(json)
}

/// Reads such a file.
///
/// # Errors
/// When it is none.
pub fn read_answer_file(bytes: &[u8]) -> Result<(EnrolmentAnswer, AgentSecrets), BadAnswerFile> {
    #[derive(Deserialize)]
    struct Form {
        viworks_enrolment: u32,
    }
    let malformed = |error: serde_json::Error| BadAnswerFile::Malformed(error.to_string());
    // First of all: what a later version has in it is not known here.
    let Form { viworks_enrolment } = serde_json::from_slice(bytes).map_err(malformed)?;
    if viworks_enrolment != FORM {
        return Err(BadAnswerFile::Form(viworks_enrolment));
    }
    let file: AnswerFile = serde_json::from_slice(bytes).map_err(malformed)?;
    let secret = |text: &str| Secret::from_hex(text).ok_or(BadAnswerFile::Secrets);
    let secrets = AgentSecrets {
        agent_key: secret(&file.agent_key)?,
        token: secret(&file.token)?,
    };
    Ok((file.answer.clone(), secrets))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use uuid::Uuid;

    use super::*;
    use crate::id::AgentId;
    use crate::key::BindingMode;
    use crate::pin::{PinSet, SpkiPin};
    use crate::time::Timestamp;

    fn answer() -> EnrolmentAnswer {
        EnrolmentAnswer {
            tenant: "default".parse().unwrap(),
            agent_id: AgentId::from_uuid(Uuid::from_u128(7)),
            name: "gw-1".parse().unwrap(),
            trust_domain: "viworks.test".parse().unwrap(),
            certificate: "certificate".to_owned(),
            not_after: Timestamp::from_unix_micros(1_000_000),
            authority: "authority".to_owned(),
            key_generation: 1,
            epoch: 0,
            sealed: String::new(),
            pins: PinSet {
                version: 1,
                pins: BTreeSet::from([SpkiPin::from_digest([5; 32])]),
            },
            binding: BindingMode::Exporter,
            labels: [].into(),
            url: "wss://a.test".to_owned(),
        }
    }

    #[test]
    fn an_answer_reads_back_as_it_was_written_and_nothing_else_is_one() {
        let secrets = AgentSecrets {
            agent_key: Secret::from_bytes([1; 32]),
            token: Secret::from_bytes([2; 32]),
        };
        let written = answer_file(answer(), &secrets);
        assert_eq!(read_answer_file(&written), Ok((answer(), secrets)));
        let text = String::from_utf8(written.to_vec()).unwrap();
        let later = text.replace("\"viworks_enrolment\": 1", "\"viworks_enrolment\": 2");
        assert_eq!(
            read_answer_file(later.as_bytes()),
            Err(BadAnswerFile::Form(2))
        );
        let short = text.replace(&"01".repeat(32), "0101");
        assert_eq!(
            read_answer_file(short.as_bytes()),
            Err(BadAnswerFile::Secrets)
        );
        for other in ["", "{}", "vwt1_AAAA", &text[..text.len() / 2]] {
            let refused = read_answer_file(other.as_bytes());
            assert!(
                matches!(refused, Err(BadAnswerFile::Malformed(_))),
                "{other}"
            );
        }
    }
}
