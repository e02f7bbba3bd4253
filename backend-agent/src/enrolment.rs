//! The door by which machines become gateways, and the tickets that open it; and by which gateways come back whose
//! certificates have ended.

mod answer;
mod challenge;
mod door;
mod ends;
mod office;
mod quota;
mod redeem;
mod refusal;
mod reissue;
mod sign;
mod talk;

pub use door::Door;
pub use ends::Ends;
pub use office::{Addresses, IssueTicket, TicketError, TicketOffice, has_secret_of};
pub use redeem::Enrolment;
