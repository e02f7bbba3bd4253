//! What the agent of a new gateway reads at its first start: who it is, and its secrets.

use serde::Serialize;
use zeroize::Zeroizing;

use crate::id::{AgentId, Tenant, TrustDomain};
use crate::key::Secret;

#[derive(Serialize)]
struct IdentityFile<'a> {
    tenant: &'a Tenant,
    agent_id: AgentId,
    trust_domain: &'a TrustDomain,
    key_generation: u32,
    agent_key: &'a str,
    epoch: u64,
    token: &'a str,
}

/// The file's bytes, JSON: who it is, its key of that generation, and its ratchet token of the epoch that it begins
/// with.
///
/// # Panics
/// Never: text and numbers have a JSON form.
#[must_use]
pub fn identity_file(
    tenant: &Tenant,
    agent_id: AgentId,
    trust_domain: &TrustDomain,
    key_generation: u32,
    agent_key: &Secret,
    (epoch, token): (u64, &Secret),
) -> Zeroizing<Vec<u8>> {
    let agent_key = Zeroizing::new(agent_key.expose_hex());
    let token = Zeroizing::new(token.expose_hex());
    let file = IdentityFile {
        tenant,
        agent_id,
        trust_domain,
        key_generation,
        agent_key: &agent_key,
        epoch,
        token: &token,
    };
    let mut json = serde_json::to_vec_pretty(&file).expect("text and numbers have a JSON form");
    json.push(b'\n');
    Zeroizing::new(json)
}
