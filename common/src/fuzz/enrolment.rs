//! What strangers send to the door for new gateways, and what is pasted as a ticket: each has one form, and a name
//! keeps the rule of its ticket.

use crate::enrolment::{
    EnrolmentRequest, Exchange, LapsedRequest, NAME_PREFIX_BYTES_MAX, NameRule, RedeemRequest,
    Ticket, answer_file, read_answer_file,
};
use crate::id::{AgentId, GatewayName};
use crate::key::Secret;

/// Takes the bytes as the body of a request, as an answer in a file, as a ticket, and as what a machine calls itself.
pub fn enrolment(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<EnrolmentRequest>(data) {
        let written = serde_json::to_vec(&request).expect("a request has string keys");
        let again = serde_json::from_slice::<EnrolmentRequest>(&written);
        assert_eq!(again.ok().as_ref(), Some(&request), "two forms");
        if let EnrolmentRequest::Redeem(request) = request {
            redeem(data, &request);
        }
    }
    if let Ok(request) = serde_json::from_slice::<LapsedRequest>(data) {
        let written = serde_json::to_vec(&request).expect("a request has string keys");
        let again = serde_json::from_slice::<LapsedRequest>(&written);
        assert_eq!(again.ok().as_ref(), Some(&request), "two forms");
    }
    if let Ok((answer, secrets)) = read_answer_file(data) {
        let written = answer_file(answer.clone(), &secrets);
        assert_eq!(read_answer_file(&written), Ok((answer, secrets)));
    }
    if let Ok(text) = str::from_utf8(data) {
        ticket(text);
        name(None, text);
    }
}

fn redeem(body: &[u8], request: &RedeemRequest) {
    let secret = Secret::from_bytes([7; 32]);
    let exchange = Exchange::new(&secret, request.ticket, &request.challenge);
    let proof = exchange.prove(body);
    assert!(exchange.proves(body, proof.as_bytes()), "its own proof");
    let (short, _last) = proof.split_at(proof.len() - 2);
    assert!(!exchange.proves(body, short.as_bytes()), "half a proof");
    assert!(
        !exchange.proves(body, request.host.as_bytes()),
        "it was made without the secret"
    );
    name(request.name.as_ref(), &request.host);
}

fn ticket(text: &str) {
    if let Ok(ticket) = text.parse::<Ticket>() {
        let kept: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let written = ticket.expose();
        assert_eq!(*written, kept, "two strings of one ticket");
    }
}

fn name(wish: Option<&GatewayName>, host: &str) {
    let longest = "a".repeat(NAME_PREFIX_BYTES_MAX);
    for prefix in ["", "gw-", &longest] {
        let rule = NameRule::Prefix(prefix.to_owned());
        let Ok(name) = rule.name(wish, host) else {
            continue;
        };
        assert!(name.as_str().starts_with(prefix), "{name}");
        let id = AgentId::from_uuid(uuid::Uuid::from_u128(7));
        let beside = rule.beside(&name, id).expect("there is room for it");
        assert!(beside.as_str().starts_with(prefix), "{beside}");
    }
}
