//! Enrolment: how a machine that nobody knows becomes a gateway, with one string that an operator hands over.
//!
//! The ticket names the door, the keys that the door may show, and a secret. The secret is never sent: the gateway
//! proves that it has it, over a challenge of the backend and everything it asks for, and what it gets is sealed and
//! authenticated with keys that follow from it. Whoever ends TLS on the way can read neither secret nor key, and can
//! change nothing unnoticed.

mod configuration;
mod exchange;
mod identity_file;
mod lapsed;
mod naming;
mod offline;
mod ticket;

pub use configuration::{Home, configuration};
pub use exchange::{
    AgentSecrets, BadSeal, CHALLENGE_TIME, CLOCK_OFF_MAX, EnrolmentAnswer, EnrolmentChallenge,
    EnrolmentRequest, Exchange, PATH, PROOF_HEADER, REQUEST_BYTES_MAX, RedeemRequest,
    WireChallenge, clock_suits,
};
pub use identity_file::identity_file;
pub use lapsed::{
    GivenAuthorities, LapsedAnswer, LapsedExchange, LapsedRenewal, LapsedRequest, RENEW_PATH,
};
pub use naming::{NAME_PREFIX_BYTES_MAX, NameRule, NoName};
pub use offline::{BadAnswerFile, answer_file, read_answer_file};
pub use ticket::{
    InvalidTicket, TICKET_CHARS_MAX, TICKET_PREFIX, TICKET_SHOWN, TICKET_URL_BYTES_MAX, Ticket,
    holds_ticket, ticket_shown, told_of_tickets, without_tickets,
};

/// Most gateways that one ticket may enrol.
pub const TICKET_USES_MAX: u32 = 10_000;
/// Most networks that a ticket may be bound to.
pub const TICKET_NETWORKS_MAX: usize = 16;
