//! The families of cases that an echo has to get right; each is a script between a [`Peer`] and the echo.

use std::fmt;

use anyhow::Context;

use super::Peer;

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
/// Without FIN.
const TEXT_BEGINS: u8 = 0x01;
const BINARY_BEGINS: u8 = 0x02;
const GOES_ON: u8 = 0x00;
const ENDS: u8 = 0x80;

/// The number for a broken rule.
const PROTOCOL: u16 = 1002;
/// The number for text that is none.
const NOT_UTF8: u16 = 1007;
/// The number for too much.
const TOO_LARGE: u16 = 1009;

/// One thing that happens.
#[derive(Clone)]
enum Step {
    Send(u8, Vec<u8>),
    SendInBytes(u8, Vec<u8>),
    SendWronglyMasked(u8, Vec<u8>),
    Claim(u8, u64),
    Expect(u8, Vec<u8>),
}

/// How it ends.
#[derive(Clone)]
enum End {
    /// The peer closes with this payload and gets that one.
    Closes(Vec<u8>, Vec<u8>),
    /// The echo must fail the connection.
    Fails(u16),
}

/// One case.
#[derive(Clone)]
pub struct Case {
    name: String,
    steps: Vec<Step>,
    end: End,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Case {
    fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            steps: Vec::new(),
            end: End::Closes(1000_u16.to_be_bytes().into(), 1000_u16.to_be_bytes().into()),
        }
    }

    fn send(mut self, first: u8, payload: impl Into<Vec<u8>>) -> Self {
        self.steps.push(Step::Send(first, payload.into()));
        self
    }

    fn expect(mut self, first: u8, payload: impl Into<Vec<u8>>) -> Self {
        self.steps.push(Step::Expect(first, payload.into()));
        self
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    fn fails(mut self, number: u16) -> Self {
        self.end = End::Fails(number);
        self
    }

    fn closes(mut self, sent: impl Into<Vec<u8>>, answered: impl Into<Vec<u8>>) -> Self {
        self.end = End::Closes(sent.into(), answered.into());
        self
    }

    /// Plays the case against an echo.
    ///
    /// # Errors
    ///
    /// When the echo did something else; the error names the case and the step.
    pub async fn play(self, mut peer: Peer) -> anyhow::Result<()> {
        let name = self.name;
        for (index, step) in self.steps.into_iter().enumerate() {
            match step {
                Step::Send(first, payload) => peer.send(first, &payload).await,
                Step::SendInBytes(first, payload) => peer.send_in_bytes(first, &payload).await,
                Step::SendWronglyMasked(first, payload) => {
                    peer.send_wrongly_masked(first, &payload).await;
                }
                Step::Claim(first, length) => peer.claim(first, length).await,
                Step::Expect(first, payload) => peer
                    .expect(first, &payload)
                    .await
                    .with_context(|| format!("{name}, step {index}"))?,
            }
        }
        match self.end {
            End::Fails(number) => peer.expect_failed(number).await,
            End::Closes(sent, answered) => {
                peer.send(CLOSE, &sent).await;
                match peer.expect(CLOSE, &answered).await {
                    Ok(()) => peer.expect_end().await,
                    error => error,
                }
            }
        }
        .with_context(|| format!("{name}, at its end"))
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    // Every value occurs, and no block equals its neighbour.
    (0..bytes)
        .map(|at| (at ^ (at >> 8)).to_le_bytes()[0])
        .collect()
}

/// Messages of every length that is written in another way, whole and byte by byte.
#[must_use]
pub fn framing() -> Vec<Case> {
    let mut cases = Vec::new();
    for length in [0, 1, 125, 126, 127, 128, 65_535, 65_536] {
        let text = "x".repeat(length);
        let name = format!("text of {length} bytes");
        cases.push(Case::new(name).send(TEXT, text.clone()).expect(TEXT, text));
        let bytes = pattern(length);
        let name = format!("binary of {length} bytes");
        cases.push(
            Case::new(name)
                .send(BINARY, bytes.clone())
                .expect(BINARY, bytes),
        );
    }
    for (first, payload) in [(TEXT, "κόσμε".as_bytes().to_vec()), (BINARY, pattern(300))] {
        let case = Case::new(format!("{first:#04x} a byte at a time"))
            .step(Step::SendInBytes(first, payload.clone()))
            .expect(first, payload);
        cases.push(case);
    }
    cases
}

/// Pings are answered at once and in order, pongs ignored.
#[must_use]
pub fn pings() -> Vec<Case> {
    let mut many = Case::new("ten pings");
    for number in 0..10_u8 {
        many = many.send(PING, [number]);
    }
    for number in 0..10_u8 {
        many = many.expect(PONG, [number]);
    }
    vec![
        Case::new("an empty ping").send(PING, []).expect(PONG, []),
        Case::new("a ping with bytes")
            .send(PING, [0x00, 0xff, 0xfe, 0xfd])
            .expect(PONG, [0x00, 0xff, 0xfe, 0xfd]),
        Case::new("the largest ping")
            .send(PING, pattern(125))
            .expect(PONG, pattern(125)),
        Case::new("a ping that is too large")
            .send(PING, pattern(126))
            .fails(PROTOCOL),
        Case::new("unasked pongs")
            .send(PONG, [])
            .send(PONG, "unasked")
            .send(PING, "asked")
            .expect(PONG, "asked"),
        many,
    ]
}

/// Reserved bits and opcodes fail the connection, also behind something good.
#[must_use]
pub fn reserved() -> Vec<Case> {
    let mut cases = Vec::new();
    for bits in 1..8_u8 {
        for first in [TEXT, BINARY, PING, CLOSE] {
            let name = format!("{first:#04x} with the reserved bits {bits:03b}");
            let first = first | bits << 4;
            cases.push(Case::new(name).send(first, "").fails(PROTOCOL));
        }
    }
    for opcode in (0x3..=0x7).chain(0xb..=0xf) {
        let case = Case::new(format!("opcode {opcode:#03x}"))
            .send(TEXT, "good")
            .expect(TEXT, "good")
            .send(0x80 | opcode, "bad")
            .fails(PROTOCOL);
        cases.push(case);
    }
    cases
}

/// Fragments are put together, with control frames between them; fragments out of place fail the connection.
#[must_use]
pub fn fragments() -> Vec<Case> {
    let mut singles = Case::new("a fragment for each byte, with a ping behind each");
    singles = singles.send(BINARY_BEGINS, []);
    for byte in 0..100_u8 {
        singles = singles
            .send(GOES_ON, [byte])
            .send(PING, [byte])
            .expect(PONG, [byte]);
    }
    singles = singles
        .send(ENDS, [])
        .expect(BINARY, (0..100).collect::<Vec<u8>>());
    vec![
        Case::new("two fragments")
            .send(TEXT_BEGINS, "one ")
            .send(ENDS, "two")
            .expect(TEXT, "one two"),
        Case::new("empty fragments")
            .send(TEXT_BEGINS, "")
            .send(GOES_ON, "")
            .send(ENDS, "")
            .expect(TEXT, ""),
        Case::new("a ping between fragments")
            .send(TEXT_BEGINS, "one ")
            .send(PING, "now")
            .expect(PONG, "now")
            .send(PONG, "unasked")
            .send(ENDS, "two")
            .expect(TEXT, "one two"),
        singles,
        Case::new("a fragmented ping")
            .send(0x09, "a")
            .fails(PROTOCOL),
        Case::new("a fragmented pong")
            .send(0x0a, "a")
            .fails(PROTOCOL),
        Case::new("a fragmented close")
            .send(0x08, [3, 232])
            .fails(PROTOCOL),
        Case::new("an end of nothing")
            .send(ENDS, "a")
            .fails(PROTOCOL),
        Case::new("a continuation of nothing")
            .send(GOES_ON, "a")
            .fails(PROTOCOL),
        Case::new("a continuation behind a whole message")
            .send(TEXT, "whole")
            .expect(TEXT, "whole")
            .send(ENDS, "more")
            .fails(PROTOCOL),
        Case::new("a text inside a text")
            .send(TEXT_BEGINS, "a")
            .send(TEXT, "b")
            .fails(PROTOCOL),
        Case::new("a beginning inside a binary message")
            .send(BINARY_BEGINS, "a")
            .send(TEXT_BEGINS, "b")
            .fails(PROTOCOL),
    ]
}

/// Text is UTF-8, whole or in fragments that split characters; what is not fails at the first fragment that shows it.
#[must_use]
pub fn utf8() -> Vec<Case> {
    let mut cases = Vec::new();
    let good = "Hello-µ@ßöäüàá-UTF-8!! \u{0} \u{7f} \u{80} \u{7ff} \u{800} \u{fffd} \u{ffff} \u{10000} \u{10ffff}";
    cases.push(
        Case::new("all lengths of characters")
            .send(TEXT, good)
            .expect(TEXT, good),
    );
    let mut split = Case::new("a fragment for each byte of a text").send(TEXT_BEGINS, []);
    for byte in good.bytes() {
        split = split.send(GOES_ON, [byte]);
    }
    cases.push(split.send(ENDS, []).expect(TEXT, good));
    let bad: [&[u8]; 14] = [
        b"\x80",
        b"\xbf\xbf",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xf0\x80\x80\x80",
        b"\xf0\x8f\xbf\xbf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xfe",
        b"\xff",
    ];
    for bytes in bad {
        let framed = [b"good ", bytes, b" good"].concat();
        let name = format!("{bytes:02x?} in a text");
        cases.push(Case::new(name).send(TEXT, framed.clone()).fails(NOT_UTF8));
        let name = format!("{bytes:02x?} as bytes");
        cases.push(
            Case::new(name)
                .send(BINARY, framed.clone())
                .expect(BINARY, framed),
        );
        // The message never ends: waiting for its end would be waiting for ever.
        let name = format!("{bytes:02x?} in the first of many fragments");
        cases.push(
            Case::new(name)
                .send(TEXT_BEGINS, [bytes, b" "].concat())
                .fails(NOT_UTF8),
        );
    }
    cases.push(
        Case::new("a text that ends inside a character")
            .send(TEXT, b"\xce\xba\xe1\xbd".to_vec())
            .fails(NOT_UTF8),
    );
    cases.push(
        Case::new("fragments that end inside a character")
            .send(TEXT_BEGINS, b"\xce\xba\xe1".to_vec())
            .send(ENDS, b"\xbd".to_vec())
            .fails(NOT_UTF8),
    );
    cases
}

/// Close frames are answered with their number, bad ones fail the connection, and behind one nothing is answered.
#[must_use]
pub fn closes() -> Vec<Case> {
    let mut cases = Vec::new();
    for number in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999_u16,
    ] {
        let payload = [&number.to_be_bytes()[..], b"because"].concat();
        cases.push(Case::new(format!("close {number}")).closes(payload.clone(), payload));
    }
    for number in [
        0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535_u16,
    ] {
        let case = Case::new(format!("close {number}, which nobody may send"))
            .send(CLOSE, number.to_be_bytes())
            .fails(PROTOCOL);
        cases.push(case);
    }
    let longest = [&1000_u16.to_be_bytes()[..], &[b'*'; 123]].concat();
    cases.extend([
        Case::new("close with nothing").closes([], []),
        Case::new("close with the longest reason").closes(longest.clone(), longest.clone()),
        Case::new("close with a longer reason")
            .send(CLOSE, [&longest[..], b"*"].concat())
            .fails(PROTOCOL),
        Case::new("close with half a number")
            .send(CLOSE, [3])
            .fails(PROTOCOL),
        Case::new("close with a reason that is no text")
            .send(CLOSE, [3, 232, 0xce, 0xba, 0xe1, 0xbd])
            .fails(NOT_UTF8),
        Case::new("close amid fragments")
            .send(TEXT_BEGINS, "half")
            .closes(1001_u16.to_be_bytes(), 1001_u16.to_be_bytes()),
    ]);
    for (name, first) in [
        ("a message", TEXT),
        ("a ping", PING),
        ("a close frame", CLOSE),
    ] {
        let case = Case::new(format!("{name} behind the close frame"))
            .send(CLOSE, 1000_u16.to_be_bytes())
            .send(first, [3, 232])
            .fails(1000);
        cases.push(case);
    }
    cases
}

/// The masking rule, in the direction of the peer.
#[must_use]
pub fn masking() -> Vec<Case> {
    [TEXT, BINARY, PING, CLOSE]
        .into_iter()
        .map(|first| {
            Case::new(format!("{first:#04x} with the wrong mask bit"))
                .send(TEXT, "good")
                .expect(TEXT, "good")
                .step(Step::SendWronglyMasked(first, vec![3, 232]))
                .fails(PROTOCOL)
        })
        .collect()
}

/// The bounds of an echo that takes messages of `message` bytes in frames of `frame` bytes: what fits comes back, what
/// does not is refused, before it is sent where its length says so.
#[must_use]
pub fn bounds(message: usize, frame: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for claimed in [
        frame as u64 + 1,
        u64::from(u32::MAX),
        u64::MAX >> 1,
        u64::MAX,
    ] {
        let name = format!("a frame that claims {claimed} bytes");
        cases.push(
            Case::new(name)
                .step(Step::Claim(BINARY, claimed))
                .fails(TOO_LARGE),
        );
    }
    let whole = pattern(frame);
    cases.push(
        Case::new("the largest frame")
            .send(BINARY, whole.clone())
            .expect(BINARY, whole.clone()),
    );
    let pieces = message / frame;
    let mut largest = Case::new("the largest message").send(BINARY_BEGINS, []);
    for _ in 0..pieces {
        largest = largest.send(GOES_ON, whole.clone());
    }
    let mut larger = largest.clone();
    "a larger message".clone_into(&mut larger.name);
    cases.push(largest.send(ENDS, []).expect(BINARY, whole.repeat(pieces)));
    cases.push(larger.send(GOES_ON, [0]).fails(TOO_LARGE));
    cases
}

/// Messages from one to sixteen mebibytes, as one frame and in fragments, as bytes and as text.
#[must_use]
pub fn large() -> Vec<Case> {
    let mut cases = Vec::new();
    for mebibytes in [1, 4, 16] {
        let bytes = pattern(mebibytes * 1_048_576);
        let name = format!("{mebibytes} MiB in one frame");
        cases.push(
            Case::new(name)
                .send(BINARY, bytes.clone())
                .expect(BINARY, bytes),
        );
        let text = "κόσμε ".repeat(mebibytes * 1_048_576 / 12).into_bytes();
        let mut case = Case::new(format!("{mebibytes} MiB of text in fragments"));
        case = case.send(TEXT_BEGINS, []);
        for piece in text.chunks(65_521) {
            case = case.send(GOES_ON, piece);
        }
        cases.push(case.send(ENDS, []).expect(TEXT, text));
    }
    cases
}
