//! Takes the time line up from the store and keeps it: by the clocks of this machine, or where several processes
//! share a server, by what that server's clock shows.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};
use viworks_common::timeline::RENEWED_EVERY;
use viworks_common::timeline::shared::{Course, Look, TOGETHER, is_doubtful};
use viworks_runtime::clock::{Clock, Timeline, boot_id, sleep_until};

use super::{Store, StoreResult, StoredLine};

/// How often the server's clock is looked at for one good look.
const LOOKS: u32 = 5;

/// The error of a good one. The first is taken if it is no worse.
const GOOD: Duration = Duration::from_millis(5);

/// What keeping the line has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// By how many microseconds this machine's wall clock is ahead of the line; negative when it is behind.
    pub wall_ahead: i64,
    /// The same of the server's clock, where there is one.
    pub server_ahead: Option<i64>,
    /// By how much the best look at it may be wrong, where that is so much that the line goes on without it.
    pub blurred: Option<Duration>,
}

/// Takes the line up for a process that keeps it from here on. Where it cannot be known whether the server's clock was
/// just set, it first gives those who know the time to see it.
///
/// # Errors
/// As the store's.
pub async fn begin(store: &dyn Store, clock: Arc<dyn Clock>) -> StoreResult<Timeline> {
    let (stored, look) = look(store, &*clock).await?;
    if look.is_some_and(|look| is_doubtful(boot_id(), &stored.line, &look)) {
        let pause = RENEWED_EVERY + Duration::from_secs(1);
        info!(
            seconds = pause.as_secs(),
            "the time line was not kept lately by the database server's clock; waiting for whoever keeps it"
        );
        sleep_until(&*clock, clock.now().saturating_add(pause)).await;
    }
    take_up(store, clock).await
}

/// Takes the line up.
///
/// # Errors
/// As the store's.
pub async fn take_up(store: &dyn Store, clock: Arc<dyn Clock>) -> StoreResult<Timeline> {
    let (stored, look) = look(store, &*clock).await?;
    let Some(look) = look else {
        let anchored = stored.line.anchored.as_ref();
        return Ok(Timeline::resume(clock, boot_id(), anchored));
    };
    if !look.is_sharp() {
        warn!(
            error_ms = look.error().as_millis(),
            "the database server answers so slowly that its clock is not known well; times may be off by this much until it is"
        );
    }
    Ok(Timeline::join(clock, boot_id(), &stored.line, &look))
}

/// Keeps the line for another [`RENEWED_EVERY`]: stores where it is, and lets it lean towards the wall clock or follow
/// the server's.
///
/// # Errors
/// As the store's. The line goes on by the monotonic clock of this machine.
pub async fn keep(store: &dyn Store, line: &Timeline) -> StoreResult<Kept> {
    loop {
        let (stored, look) = look(store, line).await?;
        let Some(look) = look else {
            let next = line.next_anchor();
            store.anchor_time_line(&next, None).await?;
            line.adopt(&next);
            return Ok(Kept {
                wall_ahead: next.anchor.wall_ahead,
                server_ahead: None,
                blurred: None,
            });
        };
        let kept = |server_ahead, blurred| Kept {
            wall_ahead: line.wall().unix_micros() - line.line().unix_micros(),
            server_ahead: Some(server_ahead),
            blurred,
        };
        let followed = line.follow(&stored.line, &look);
        if !look.is_sharp() {
            return Ok(kept(followed.anchor.wall_ahead, Some(look.error())));
        }
        let next = line.anchored(followed.anchor);
        if let Some(point) = &followed.next
            && !store.anchor_time_line(&next, Some(point)).await?
        {
            // Somebody else was first, and what they stored may change what this look says.
            continue;
        }
        line.adopt(&next);
        tell(followed.course);
        return Ok(kept(followed.anchor.wall_ahead, None));
    }
}

fn tell(course: Course) {
    match course {
        Course::Steady | Course::Begun => {}
        Course::ServerSet(micros) => warn!(
            ahead_ms = micros / 1_000,
            "the clock of the database server was set; the time line goes on as if not"
        ),
        Course::StoodStill(span) => warn!(
            seconds = span.as_secs(),
            "the clock of this machine stood still while other backends went on; the time line goes on where they are"
        ),
    }
}

/// What is stored of the line, with the best of some looks at the server's clock.
async fn look(store: &dyn Store, clock: &dyn Clock) -> StoreResult<(StoredLine, Option<Look>)> {
    let mut best: Option<(StoredLine, Look)> = None;
    for _ in 0..LOOKS {
        let sent = clock.now();
        let stored = store.time_line().await?;
        let came = clock.now();
        let Some(shows) = stored.server else {
            return Ok((stored, None));
        };
        let look = Look { sent, came, shows };
        if best.is_none_or(|(_, best)| look.error() < best.error()) {
            best = Some((stored, look));
        }
        if look.error() <= GOOD {
            break;
        }
    }
    Ok(best.map_or_else(Default::default, |(stored, look)| (stored, Some(look))))
}

const _: () = assert!(
    GOOD.as_millis() < TOGETHER.as_millis(),
    "a good look is of use"
);
