//! The ticket as a string: a version, the payload in Base64 that no shell and no form changes, a checksum.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::id::TicketId;
use crate::key::{KEY_BYTES, Secret};
use crate::pin::{PINS_MAX, SpkiPin};
use crate::time::Timestamp;

/// What every ticket of this version begins with; scanners for leaked secrets look for it.
pub const TICKET_PREFIX: &str = "vwt1_";
/// What tickets of every version begin with.
const FAMILY: &str = "vwt";
/// What to do about a ticket that stood on a command line.
pub const TICKET_SHOWN: &str = "that is a ticket, and every user of this machine can read a command line: revoke it \
    (viworks ticket revoke ID), make another one, and hand it over in a file or by the standard input";
/// Bytes of the longest address of a door.
pub const TICKET_URL_BYTES_MAX: usize = 512;

const ID_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;
/// Length, id, secret, end and number of pins.
const FIXED_BYTES: usize = 2 + ID_BYTES + KEY_BYTES + 8 + 1;
const PAYLOAD_BYTES_MAX: usize =
    FIXED_BYTES + PINS_MAX * KEY_BYTES + TICKET_URL_BYTES_MAX + CHECKSUM_BYTES;
/// Characters of the longest ticket.
pub const TICKET_CHARS_MAX: usize = TICKET_PREFIX.len() + chars(PAYLOAD_BYTES_MAX);

/// Everything a machine needs to become a gateway.
///
/// The string is `vwt1_` and the Base64 (RFC 4648, for URLs, without padding) of: the length of all bytes (2), the id
/// (16), the secret (32), the second of the end since 1970 (8), the number of pins (1), the pins (32 each), the URL in
/// UTF-8, and the first 4 bytes of the SHA-256 of `viworks ticket checksum`, a zero byte and all bytes before. Numbers
/// are big-endian.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Which one it is.
    pub id: TicketId,
    /// What proves that its holder has it.
    pub secret: Secret,
    /// When it ends, to the second; the backend decides by its own clock.
    pub expires_at: Timestamp,
    /// The keys that the door may show, one at least.
    pub pins: BTreeSet<SpkiPin>,
    /// The door: `https://`, a host, and a port if need be.
    pub url: String,
}

/// Text that is no ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTicket {
    /// Nothing like one.
    #[error(
        "this is no enrolment ticket: one begins with {TICKET_PREFIX} and comes from viworks ticket create"
    )]
    Other,
    /// One of another version.
    #[error(
        "this ticket is of another version than this agent reads ({TICKET_PREFIX}): install the agent that the backend has"
    )]
    Version,
    /// Its end is missing.
    #[error("the ticket is cut off after {have} of its {whole} characters: copy all of it")]
    Truncated {
        /// How many characters are there.
        have: usize,
        /// How many it has.
        whole: usize,
    },
    /// Something follows it.
    #[error(
        "more than a ticket was given: {have} characters, and it has {whole}: copy nothing else"
    )]
    Overlong {
        /// How many characters are there.
        have: usize,
        /// How many it has.
        whole: usize,
    },
    /// Next to nothing of it is there.
    #[error("the ticket is cut off near its beginning: copy all of it")]
    Begun,
    /// A character is another one.
    #[error("the ticket is mistyped: its checksum does not fit; copy it instead of typing it")]
    Mistyped,
    /// It stands where the name of a file belongs.
    #[error(
        "that is a ticket itself and no file, and every user of this machine can read a command line: revoke it (viworks \
         ticket revoke {}), make another one, and hand it over in a file or by the standard input",
        named(id)
    )]
    Shown {
        /// Which one it is, where it is whole.
        id: Option<TicketId>,
    },
}

/// Which one to revoke, where that is known.
fn named(id: &Option<TicketId>) -> String {
    id.as_ref()
        .map_or_else(|| "ID".to_owned(), ToString::to_string)
}

/// What was said about words that were not understood, with no more of the tickets in it than what tickets begin with;
/// `None` where there is none in it.
///
/// Whoever quotes a word ends it with a quotation mark: a ticket whose line was broken goes up to there.
#[must_use]
pub fn without_tickets(said: &str) -> Option<String> {
    let mut rest = said;
    let mut hidden = String::new();
    while let Some((before, behind)) = split_at_ticket(rest) {
        hidden.push_str(before);
        hidden.push_str(TICKET_PREFIX);
        hidden.push('…');
        let is_foreign = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        let end = behind.find(['\'', '"']).or_else(|| behind.find(is_foreign));
        rest = behind
            .get(end.unwrap_or(behind.len())..)
            .unwrap_or_default();
    }
    if hidden.is_empty() {
        return None;
    }
    hidden.push_str(rest);
    Some(hidden)
}

/// Whether a ticket is among the words of a command line.
#[must_use]
pub fn holds_ticket<W: AsRef<str>>(words: &[W]) -> bool {
    words
        .iter()
        .any(|word| split_at_ticket(word.as_ref()).is_some())
}

/// What is said of a command line that was not understood, where a ticket is among its words: no more of the ticket
/// than what tickets begin with, and what to do about it. `None` where there is none.
///
/// What is said need not repeat the ticket: of a flag that nobody knows only the name is told.
#[must_use]
pub fn told_of_tickets<W: AsRef<str>>(said: &str, words: &[W]) -> Option<String> {
    let hidden = without_tickets(said);
    if hidden.is_none() && !holds_ticket(words) {
        return None;
    }
    let said = hidden.as_deref().unwrap_or(said).trim_end();
    let shown = ticket_shown(words);
    Some(format!("{said}\n\n{shown}"))
}

/// What to do about a ticket among the words of a command line. Of one that is whole the id is no secret, and is named.
#[must_use]
pub fn ticket_shown<W: AsRef<str>>(words: &[W]) -> String {
    let id = words.iter().find_map(|word| id_in(word.as_ref()));
    id.map_or_else(
        || TICKET_SHOWN.to_owned(),
        |id| TICKET_SHOWN.replace("ID", &id.to_string()),
    )
}

/// The id of the ticket in a word, such as behind a flag.
fn id_in(word: &str) -> Option<TicketId> {
    let (before, _payload) = split_at_ticket(word)?;
    let ticket = word.get(before.len()..)?.parse::<Ticket>();
    ticket.ok().map(|ticket| ticket.id)
}

/// What stands in front of the first ticket of any version, and what behind the prefix of that.
fn split_at_ticket(text: &str) -> Option<(&str, &str)> {
    let mut families = text.match_indices(FAMILY);
    families.find_map(|(at, family)| {
        let (before, ticket) = text.split_at_checked(at)?;
        let version = ticket.strip_prefix(family)?;
        let behind = version.trim_start_matches(|c: char| c.is_ascii_digit());
        let is_prefix = behind.len() < version.len();
        behind
            .strip_prefix('_')
            .filter(|_payload| is_prefix)
            .map(|payload| (before, payload))
    })
}

/// Characters that so many bytes become.
const fn chars(bytes: usize) -> usize {
    (bytes * 4).div_ceil(3)
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest: [u8; 32] = Sha256::new()
        .chain_update(b"viworks ticket checksum\0")
        .chain_update(payload)
        .finalize()
        .into();
    let [a, b, c, d, ..] = digest;
    [a, b, c, d]
}

impl Ticket {
    /// Refuses a ticket that is given where the name of its file belongs, without repeating it.
    ///
    /// # Errors
    /// [`InvalidTicket::Shown`], with the id of one that is whole.
    pub fn is_file(word: &Path) -> Result<(), InvalidTicket> {
        let word = word.to_string_lossy();
        if word.trim_start().starts_with(TICKET_PREFIX) {
            return Err(InvalidTicket::Shown { id: id_in(&word) });
        }
        Ok(())
    }

    /// The string that an operator hands over; it holds the secret. At most [`PINS_MAX`] pins and
    /// [`TICKET_URL_BYTES_MAX`] bytes of the URL are in it.
    #[must_use]
    pub fn expose(&self) -> Zeroizing<String> {
        let pins = self.pins.len().min(PINS_MAX);
        let url = &self.url.as_bytes()[..self.url.floor_char_boundary(TICKET_URL_BYTES_MAX)];
        let length = FIXED_BYTES + pins * KEY_BYTES + url.len() + CHECKSUM_BYTES;
        let mut payload = Zeroizing::new(Vec::with_capacity(length));
        payload.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        payload.extend_from_slice(self.id.as_uuid().as_bytes());
        payload.extend_from_slice(self.secret.expose());
        payload.extend_from_slice(&seconds(self.expires_at).to_be_bytes());
        payload.push(u8::try_from(pins).unwrap_or(u8::MAX));
        for pin in self.pins.iter().take(PINS_MAX) {
            payload.extend_from_slice(pin.digest());
        }
        payload.extend_from_slice(url);
        let checksum = checksum(&payload);
        payload.extend_from_slice(&checksum);
        let mut text = Zeroizing::new(String::with_capacity(TICKET_PREFIX.len() + chars(length)));
        text.push_str(TICKET_PREFIX);
        URL_SAFE_NO_PAD.encode_string(&*payload, &mut text);
        text
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let (body, sum) = payload.split_last_chunk::<CHECKSUM_BYTES>()?;
        if checksum(body) != *sum {
            return None;
        }
        let (_length, body) = body.split_first_chunk::<2>()?;
        let (id, body) = body.split_first_chunk::<ID_BYTES>()?;
        let (secret, body) = body.split_first_chunk::<KEY_BYTES>()?;
        let (expires_at, body) = body.split_first_chunk::<8>()?;
        let (count, mut body) = body.split_first()?;
        if usize::from(*count) > PINS_MAX {
            return None;
        }
        let mut pins = BTreeSet::new();
        for _pin in 0..*count {
            let (pin, rest) = body.split_first_chunk::<KEY_BYTES>()?;
            // In ascending order, so that a ticket has one string.
            let pin = SpkiPin::from_digest(*pin);
            if pins.last().is_some_and(|last| *last >= pin) {
                return None;
            }
            pins.insert(pin);
            body = rest;
        }
        let url = str::from_utf8(body).ok()?;
        let expires_at = i64::from_be_bytes(*expires_at).checked_mul(1_000_000)?;
        if pins.is_empty() || url.len() > TICKET_URL_BYTES_MAX || !url.starts_with("https://") {
            return None;
        }
        Some(Self {
            id: TicketId::from_uuid(Uuid::from_bytes(*id)),
            secret: Secret::from_bytes(*secret),
            expires_at: Timestamp::from_unix_micros(expires_at),
            pins,
            url: url.to_owned(),
        })
    }
}

/// Whole seconds since 1970.
const fn seconds(at: Timestamp) -> i64 {
    at.unix_micros().div_euclid(1_000_000)
}

impl FromStr for Ticket {
    type Err = InvalidTicket;

    /// Reads a ticket; white space in it, as of a mail that broke its line, is nothing.
    fn from_str(text: &str) -> Result<Self, InvalidTicket> {
        let kept = |c: &char| !c.is_ascii_whitespace();
        let text = Zeroizing::new(
            text.chars()
                .filter(kept)
                .take(16 * 1024)
                .collect::<String>(),
        );
        let Some(encoded) = text.strip_prefix(TICKET_PREFIX) else {
            let family = text
                .strip_prefix(FAMILY)
                .and_then(|rest| rest.split_once('_'));
            let numbered = |version: &str| {
                !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit())
            };
            return Err(match family {
                Some((version, _rest)) if numbered(version) => InvalidTicket::Version,
                Some(_) | None
                    if TICKET_PREFIX.starts_with(text.as_str()) && text.len() >= FAMILY.len() =>
                {
                    InvalidTicket::Begun
                }
                Some(_) | None => InvalidTicket::Other,
            });
        };
        let Some(first) = encoded.get(..4) else {
            // A character of several bytes is none of a ticket.
            let is_short = encoded.len() < 4;
            return Err(if is_short {
                InvalidTicket::Begun
            } else {
                InvalidTicket::Mistyped
            });
        };
        let first = URL_SAFE_NO_PAD
            .decode(first)
            .map_err(|_not_base64| InvalidTicket::Mistyped)?;
        let length = match first.as_slice() {
            [high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
            _short => return Err(InvalidTicket::Mistyped),
        };
        if !(FIXED_BYTES + CHECKSUM_BYTES..=PAYLOAD_BYTES_MAX).contains(&length) {
            return Err(InvalidTicket::Mistyped);
        }
        let (have, whole) = (text.len(), TICKET_PREFIX.len() + chars(length));
        if have < whole {
            return Err(InvalidTicket::Truncated { have, whole });
        }
        if have > whole {
            return Err(InvalidTicket::Overlong { have, whole });
        }
        let decoded = URL_SAFE_NO_PAD.decode(encoded);
        let payload = Zeroizing::new(decoded.map_err(|_not_base64| InvalidTicket::Mistyped)?);
        Self::read(&payload).ok_or(InvalidTicket::Mistyped)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("id", &self.id)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;

    fn tickets() -> impl Strategy<Value = Ticket> {
        (
            any::<u128>(),
            any::<[u8; 32]>(),
            0..=253_402_300_799_i64,
            btree_set(any::<[u8; 32]>(), 1..=PINS_MAX),
            "https://[a-z0-9.-]{1,60}(:[0-9]{1,5})?",
        )
            .prop_map(|(id, secret, end, pins, url)| Ticket {
                id: TicketId::from_uuid(Uuid::from_u128(id)),
                secret: Secret::from_bytes(secret),
                expires_at: Timestamp::from_unix_micros(end * 1_000_000),
                pins: pins.into_iter().map(SpkiPin::from_digest).collect(),
                url,
            })
    }

    proptest! {
        #[test]
        fn a_ticket_reads_back_as_it_was_written(ticket in tickets()) {
            let text = ticket.expose();
            prop_assert!(text.len() <= TICKET_CHARS_MAX);
            prop_assert_eq!(text.parse::<Ticket>(), Ok(ticket));
        }

        #[test]
        fn one_on_a_command_line_is_named_and_not_shown(ticket in tickets(), is_flag in any::<bool>()) {
            let secret = ticket.expose();
            let word = if is_flag { format!("--ticket={}", &*secret) } else { String::clone(&secret) };
            let told = told_of_tickets("what is that?", &["enroll", word.as_str()]).unwrap();
            let revoke = format!("viworks ticket revoke {})", ticket.id);
            prop_assert!(told.contains(&revoke), "{told}");
            prop_assert!(!told.contains(&*secret), "{told}");
            let in_place_of_a_file = Ticket::is_file(Path::new(secret.as_str())).unwrap_err();
            prop_assert_eq!(in_place_of_a_file, InvalidTicket::Shown { id: Some(ticket.id) });
            prop_assert!(in_place_of_a_file.to_string().contains(&revoke), "{in_place_of_a_file}");
        }

        #[test]
        fn one_that_is_cut_off_says_so(ticket in tickets(), at in any::<prop::sample::Index>()) {
            let text = ticket.expose();
            let kept = TICKET_PREFIX.len() + 4 + at.index(text.len() - TICKET_PREFIX.len() - 4);
            let refused = text[..kept].parse::<Ticket>();
            prop_assert_eq!(refused, Err(InvalidTicket::Truncated { have: kept, whole: text.len() }));
        }

        #[test]
        fn one_with_another_character_is_never_taken(
            ticket in tickets(),
            at in any::<prop::sample::Index>(),
            put in "[A-Za-z0-9_-]",
        ) {
            let text = ticket.expose();
            let at = TICKET_PREFIX.len() + at.index(text.len() - TICKET_PREFIX.len());
            prop_assume!(text[at..=at] != *put);
            let changed = format!("{}{put}{}", &text[..at], &text[at + 1..]);
            prop_assert!(changed.parse::<Ticket>().is_err());
        }

        #[test]
        fn white_space_is_nothing_and_other_text_no_ticket(ticket in tickets(), other in ".{0,40}") {
            let text = ticket.expose();
            let (front, back) = text.split_at(text.len() / 2);
            prop_assert_eq!(format!(" {front}\r\n\t{back}\n").parse::<Ticket>(), Ok(ticket));
            prop_assert!(other.parse::<Ticket>().is_err());
        }
    }

    #[test]
    fn what_is_wrong_with_a_text_is_told() {
        for (text, told) in [
            ("", InvalidTicket::Other),
            ("vwk_0011", InvalidTicket::Other),
            ("vwt_", InvalidTicket::Other),
            ("vwt2_AAAA", InvalidTicket::Version),
            ("v", InvalidTicket::Other),
            ("vwt", InvalidTicket::Begun),
            ("vwt1", InvalidTicket::Begun),
            ("vwt1_", InvalidTicket::Begun),
            ("vwt1_AAA", InvalidTicket::Begun),
            ("vwt1_ééé", InvalidTicket::Mistyped),
            ("vwt1_AAAA", InvalidTicket::Mistyped),
        ] {
            assert_eq!(text.parse::<Ticket>(), Err(told), "{text}");
        }
    }

    #[test]
    fn a_ticket_does_not_show_its_secret() {
        let ticket = Ticket {
            id: TicketId::from_uuid(Uuid::from_u128(7)),
            secret: Secret::from_bytes([0x5a; 32]),
            expires_at: Timestamp::from_unix_micros(0),
            pins: BTreeSet::from([SpkiPin::from_digest([1; 32])]),
            url: "https://door.test:8082".to_owned(),
        };
        let shown = format!("{ticket:?}");
        assert!(shown.contains("door.test") && !shown.contains("5a5a"));
        let more = format!("{}A", *ticket.expose());
        let whole = ticket.expose().len();
        let told = InvalidTicket::Overlong {
            have: whole + 1,
            whole,
        };
        assert_eq!(more.parse::<Ticket>(), Err(told));
    }

    #[test]
    fn what_is_said_of_words_shows_no_ticket() {
        for (said, shown) in [
            (
                "unexpected argument 'vwt1_Ab-_9' found",
                "unexpected argument 'vwt1_…' found",
            ),
            ("'vwt1_Ab\n cd' and \"vwt12_x\"", "'vwt1_…' and \"vwt1_…\""),
            ("--name=vwt1_Abc is bad", "--name=vwt1_… is bad"),
            ("vwt1_", "vwt1_…"),
        ] {
            assert_eq!(without_tickets(said).as_deref(), Some(shown));
        }
        for said in ["", "vwt", "vwt_abc", "vwt1", "the vwt1-abc of vwt2 _x"] {
            assert_eq!(without_tickets(said), None, "{said}");
        }
    }

    #[test]
    fn a_ticket_among_the_words_is_warned_of_whatever_is_said_of_them() {
        let said = "error: unexpected argument '--ticket' found\n";
        for words in [
            ["enroll", "--ticket=vwt1_c2VjcmV0"],
            ["--ticket", "vwt1_c2VjcmV0"],
        ] {
            let told = told_of_tickets(said, &words).unwrap();
            assert!(told.starts_with(said.trim_end()), "{told}");
            assert!(told.ends_with(TICKET_SHOWN), "{told}");
        }
        let told = told_of_tickets("what is vwt1_c2VjcmV0?", &["x"]).unwrap();
        assert!(!told.contains("c2VjcmV0") && told.ends_with(TICKET_SHOWN));
        assert_eq!(told_of_tickets(said, &["enroll", "--ticket", "vwt"]), None);
    }

    proptest! {
        #[test]
        fn no_letter_of_a_ticket_is_left_in_what_is_said_of_it(payload in "[A-Za-z0-9_-]{8,40}", before in "[ a-z='-]{0,9}") {
            let said = format!("{before}'vwt1_{payload}' is wrong, \"vwt1_{payload}\" as well");
            let hidden = without_tickets(&said).unwrap();
            prop_assert!(!hidden.contains(&payload), "{}", hidden);
        }
    }
}
