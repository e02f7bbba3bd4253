//! The time line of several processes on several machines: the clock of the server that they share, with an offset
//! that takes back whatever somebody sets that clock by.
//!
//! The stored [`Point`] says what the line reads when the server's clock shows something. Each process looks at that
//! clock now and then, and goes on by its own monotonic clock in between. Where the two disagree by more than a look
//! can be wrong, somebody has set the server's clock, and whoever sees it first stores a new point at which the line
//! goes on as if nothing had happened. Or its own clock stood still, as that of a suspended virtual machine does: then
//! others have stored a point that lies beyond what it thought the time was, and it takes that. A clock that stood
//! still for less than a point is old cannot be told from a server's clock that was set: its process stores a point,
//! whoever knows better stores another, and now the process finds that between its looks both clocks ran alike, and
//! that it was contradicted. So the line is as far as the process that is furthest, and it never runs backwards.

use std::time::Duration;

use super::{Anchor, Anchored, RENEWED_EVERY, SLEW_PER_MILLION, UNSEEN, lean};
use crate::id::BootId;
use crate::time::{Monotonic, Timestamp};

/// By how much a look at the server's clock may be wrong to be of use. What two processes read at the same moment is
/// twice this apart at most, and what the server's clock is set by is noticed from here on.
pub const TOGETHER: Duration = Duration::from_millis(250);

/// How old a point is, by the server's clock, when it is stored anew.
const STALE: Duration = Duration::from_millis(2_500);

/// How old a point may be, by the server's clock, when those who store it are there and the clock was not set.
const FRESH: Duration = Duration::from_secs(15);

/// A look at the server's clock, by the monotonic clock of whoever looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// When the question was sent.
    pub sent: Monotonic,
    /// When the answer was there.
    pub came: Monotonic,
    /// What the clock showed in between.
    pub shows: Timestamp,
}

impl Look {
    /// When the clock showed it: the middle, from where it cannot be further than [`Look::error`].
    #[must_use]
    pub fn at(&self) -> Monotonic {
        self.sent.saturating_add(self.error())
    }

    /// By how much the moment may be wrong, either way.
    #[must_use]
    pub fn error(&self) -> Duration {
        self.came.saturating_since(self.sent) / 2
    }

    /// Whether it says enough to go by.
    #[must_use]
    pub fn is_sharp(&self) -> bool {
        self.error() <= TOGETHER
    }
}

/// A point of the common line, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Counts up with each that is stored, so that of two who store the next one of them looks again.
    pub number: u64,
    /// What the server's clock showed.
    pub shows: Timestamp,
    /// What the line read there.
    pub reads: Timestamp,
}

impl Point {
    /// What the line reads when the server's clock shows `shows`, as long as nobody sets that: it leans towards it.
    #[must_use]
    pub fn read(&self, shows: Timestamp) -> Timestamp {
        let passed = micros_between(self.shows, shows);
        let ahead = micros_between(self.reads, self.shows);
        let micros = self.reads.unix_micros().saturating_add(passed);
        Timestamp::from_unix_micros(micros.saturating_add(lean(ahead, passed)))
    }

    /// Whether it was stored a moment ago by the server's clock.
    fn is_fresh(&self, shows: Timestamp) -> bool {
        let age = micros_between(self.shows, shows);
        u64::try_from(age).is_ok_and(|age| Duration::from_micros(age) <= FRESH)
    }

    const fn next(&self, shows: Timestamp, reads: Timestamp) -> Self {
        Self {
            number: self.number.saturating_add(1),
            shows,
            reads,
        }
    }
}

/// What is stored of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stored {
    /// The anchor that was stored last, by whichever process.
    pub anchored: Option<Anchored>,
    /// The point that was stored last, where processes share a server.
    pub point: Option<Point>,
}

impl Stored {
    /// The line as a process of this boot goes on with it, where one of the same boot stored it last.
    #[must_use]
    pub fn own(&self, boot_id: Option<BootId>, look: &Look) -> Option<Anchor> {
        self.anchored?.of_boot(boot_id, look.at())
    }
}

/// What a look brought to light.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// The line is where it was expected.
    Steady,
    /// Nobody knew the line; it begins, or goes on somewhere beyond all that was read from it.
    Begun,
    /// Somebody set the server's clock by so many microseconds; the line goes on as if not.
    ServerSet(i64),
    /// The monotonic clock of this process stood still for so long, while others went on.
    StoodStill(Duration),
}

/// Where the line goes on after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Followed {
    /// By the monotonic clock of the process that looked; what it leans to is the server's clock.
    pub anchor: Anchor,
    /// By how much the look may have been wrong that it is from.
    pub error: Duration,
    /// What the look brought to light.
    pub course: Course,
    /// To be stored before the anchor is used, unless somebody else has stored a point meanwhile: then look again.
    pub next: Option<Point>,
}

/// Whether a process that does not know the line should wait for [`RENEWED_EVERY`] and look again: the server's clock
/// may just have been set, and those who know have not seen it yet.
#[must_use]
pub fn is_doubtful(boot_id: Option<BootId>, stored: &Stored, look: &Look) -> bool {
    stored.own(boot_id, look).is_none()
        && stored
            .point
            .is_some_and(|point| !point.is_fresh(look.shows))
}

/// Where the line goes on after a look. `own` is the line as this process knows it by sharp looks, if it does.
#[must_use]
pub fn follow(own: Option<&Anchor>, stored: &Stored, look: &Look) -> Followed {
    follow_roughly(own.map(|own| (own, Duration::ZERO)), stored, look)
}

/// The same, where the look may have been wrong by so much that the process knows the line from: as long as that is
/// possible, nobody set a clock, and what it takes for the line does not become everybody's.
#[must_use]
pub fn follow_roughly(own: Option<(&Anchor, Duration)>, stored: &Stored, look: &Look) -> Followed {
    let known = own.map(|(_, error)| error);
    let own = own.map(|(own, error)| Expected::new(own, error, look));
    let shows = look.shows;
    let (reads, course, next) = match (own, stored.point) {
        (None, None) => {
            let read = stored.anchored.map(|it| it.anchor.reads);
            let beyond = read.map_or(shows, |read| read.saturating_add(UNSEEN));
            (beyond.max(shows), Course::Begun, None)
        }
        (None, Some(point)) if shows < point.shows => {
            let beyond = point.reads.saturating_add(UNSEEN);
            (beyond, Course::Begun, Some(point.next(shows, beyond)))
        }
        (None, Some(point)) => (point.read(shows), Course::Steady, renewed(&point, shows)),
        // The database was moved to the server, or nobody has looked at its clock yet.
        (Some(own), None) => (own.reads, Course::Steady, None),
        (Some(own), Some(point)) => beside(&own, &point, look),
    };
    let first = Point {
        number: 1,
        shows,
        reads,
    };
    Followed {
        anchor: Anchor {
            at: look.at(),
            reads,
            wall_ahead: micros_between(reads, shows),
        },
        error: match (known, course) {
            (Some(known), Course::Steady) => known.min(look.error()),
            (Some(known), Course::ServerSet(_)) => known,
            (Some(_), Course::Begun | Course::StoodStill(_)) | (None, _) => look.error(),
        },
        course,
        next: next.or_else(|| stored.point.is_none().then_some(first)),
    }
}

/// What a process takes for the time when it looks.
struct Expected {
    /// What the line reads by its own clock.
    reads: Timestamp,
    /// How far that may be from the common line without somebody having set a clock: the error of the look that it is
    /// from and of this one, and what its clock runs faster or slower.
    tolerance: Duration,
    /// Whether its clock and the server's ran alike since its last look: neither was set, and neither stood still.
    alike: bool,
}

impl Expected {
    fn new(own: &Anchor, error: Duration, look: &Look) -> Self {
        let elapsed = look.came.saturating_since(own.at);
        let drift = elapsed / u32::try_from(1_000_000 / SLEW_PER_MILLION).unwrap_or(u32::MAX);
        let tolerance = TOGETHER.max(error) + look.error() + drift;
        let showed = own.reads.unix_micros().saturating_add(own.wall_ahead);
        let expected =
            Timestamp::from_unix_micros(showed).saturating_add(look.at().saturating_since(own.at));
        let apart = micros_between(expected, look.shows).unsigned_abs();
        Self {
            reads: own.read(look.at()),
            tolerance,
            alike: Duration::from_micros(apart) <= tolerance,
        }
    }
}

/// Holds what this process takes for the time against the stored point.
fn beside(own: &Expected, point: &Point, look: &Look) -> (Timestamp, Course, Option<Point>) {
    let (shows, common, fresh) = (
        look.shows,
        point.read(look.shows),
        point.is_fresh(look.shows),
    );
    if point.reads.saturating_since(own.reads) > own.tolerance {
        let reads = if fresh { common } else { point.reads };
        let course = Course::StoodStill(reads.saturating_since(own.reads));
        return (reads, course, (!fresh).then(|| point.next(shows, reads)));
    }
    let apart = micros_between(own.reads, common);
    if Duration::from_micros(apart.unsigned_abs()) > own.tolerance {
        // No clock was set since this process last looked, so it is somebody else who has moved the point; and whoever
        // is further is right, as a monotonic clock may stand still and never leaps. That the server's clock was set
        // twice in between, there and back, would look the same: hence only while the point is fresh, which bounds it.
        if own.alike && fresh && common > own.reads {
            let course = Course::StoodStill(common.saturating_since(own.reads));
            return (common, course, renewed(point, shows));
        }
        let course = Course::ServerSet(apart);
        return (own.reads, course, Some(point.next(shows, own.reads)));
    }
    // No further than the look proves: the errors of looks do not move the line.
    let (error, low) = (look.error(), common.saturating_sub(look.error()));
    let reads = own.reads.clamp(low, common.saturating_add(error));
    (reads, Course::Steady, renewed(point, shows))
}

/// The point anew, once it has aged. It says the same: what one process is wrong by does not become the line.
fn renewed(point: &Point, shows: Timestamp) -> Option<Point> {
    let age = shows.saturating_since(point.shows);
    (age >= STALE).then(|| point.next(shows, point.read(shows)))
}

const fn micros_between(from: Timestamp, to: Timestamp) -> i64 {
    to.unix_micros().saturating_sub(from.unix_micros())
}

const _: () = assert!(
    STALE.as_millis() < RENEWED_EVERY.as_millis()
        && 2 * RENEWED_EVERY.as_millis() < FRESH.as_millis(),
    "a point is fresh as long as somebody renews it"
);

#[cfg(test)]
mod tests;
