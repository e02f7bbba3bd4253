//! The lines of the log on their way out: bounded, never waited for by who logs, written by a thread of their own.
//!
//! Whoever reads the log may stop reading: a full pipe, a full disk, a terminal that was stopped. A line then waits in
//! the queue, and beyond its bound it is dropped and counted. `tracing-appender` has the same idea, but counts lines
//! where memory counts bytes, and says nothing in the log of what is missing there.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Bytes that are written at once: what a pipe takes or does not take as a whole.
const CHUNK_BYTES: usize = 4 * 1024;

/// What a line costs beside its text.
const LINE_OVERHEAD: usize = 64;

/// Whether the log flows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    /// Lines that were dropped since the process started.
    pub dropped: u64,
    /// Lines are missing, and the log does not say so yet because nobody takes it.
    pub stuck: bool,
}

/// Lines that wait, and what became of those before.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Something waits.
    filled: Condvar,
    /// Nothing waits any more.
    emptied: Condvar,
    flow: watch::Sender<Flow>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    /// Bytes of what is being written.
    writing: usize,
    /// Lines that the output refused, and that the log does not name yet.
    refused: u64,
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    /// So many lines found no room here.
    Dropped(u64),
}

/// What is written at once.
#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    /// Bytes of the queue's bound that it holds.
    held: usize,
    /// Its lines.
    lines: u64,
    /// Lines whose absence it tells.
    told: u64,
}

impl Queue {
    /// An empty queue that holds so many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            flow: watch::Sender::default(),
            bytes_max,
        }
    }

    /// Takes a line with its line break, or drops it; never waits for the output.
    pub(super) fn push(&self, line: &[u8]) {
        let cost = line.len().saturating_add(LINE_OVERHEAD);
        let mut state = self.lock();
        let room = self
            .bytes_max
            .saturating_sub(state.bytes.saturating_add(state.writing));
        let dropped = cost > room;
        if dropped {
            match state.items.back_mut() {
                Some(Item::Dropped(lines)) => *lines = lines.saturating_add(1),
                Some(Item::Line(_)) | None => state.items.push_back(Item::Dropped(1)),
            }
        } else {
            state.bytes = state.bytes.saturating_add(cost);
            state.items.push_back(Item::Line(line.to_vec()));
        }
        drop(state);
        self.filled.notify_one();
        if dropped {
            self.missed(1);
        }
    }

    /// Whether lines are missing, and how many.
    pub(super) fn flow(&self) -> watch::Receiver<Flow> {
        self.flow.subscribe()
    }

    /// Waits until everything is written, for `limit` at most. True when it is.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let waits = |state: &mut State| !state.items.is_empty() || state.writing > 0;
        let (state, _timeout) = self
            .emptied
            .wait_timeout_while(self.lock(), limit, waits)
            .unwrap_or_else(PoisonError::into_inner);
        state.items.is_empty() && state.writing == 0
    }

    /// Writes what comes to `output`, for ever. `missing` says in the log's format that so many lines are missing.
    pub(super) fn drain(&self, mut output: impl Write, missing: impl Fn(u64) -> String) {
        loop {
            let chunk = self.take(&missing);
            let written = output.write_all(&chunk.bytes).and_then(|()| output.flush());
            self.written(&chunk, &written);
        }
    }

    /// What is to be written next; waits until there is something.
    fn take(&self, missing: &impl Fn(u64) -> String) -> Chunk {
        let mut state = self
            .filled
            .wait_while(self.lock(), |state| state.items.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let mut chunk = Chunk::default();
        // What the output refused stands before everything that came later.
        chunk.tell(std::mem::take(&mut state.refused), missing);
        while chunk.bytes.len() < CHUNK_BYTES {
            match state.items.pop_front() {
                Some(Item::Line(line)) => {
                    chunk.held += line.len().saturating_add(LINE_OVERHEAD);
                    chunk.lines += 1;
                    chunk.bytes.extend(line);
                }
                Some(Item::Dropped(lines)) => chunk.tell(lines, missing),
                None => break,
            }
        }
        state.bytes = state.bytes.saturating_sub(chunk.held);
        // Never zero: a chunk that only tells of missing lines is under way, too.
        state.writing = chunk.held.max(1);
        chunk
    }

    fn written(&self, chunk: &Chunk, result: &io::Result<()>) {
        let mut state = self.lock();
        if result.is_err() {
            state.refused = state
                .refused
                .saturating_add(chunk.lines)
                .saturating_add(chunk.told);
        }
        let missing = state.refused > 0
            || state
                .items
                .iter()
                .any(|item| matches!(item, Item::Dropped(_)));
        drop(state);
        if result.is_err() {
            self.missed(chunk.lines);
        } else if !missing {
            self.flow.send_if_modified(|flow| {
                let was = flow.stuck;
                flow.stuck = false;
                was
            });
        }
        // Last: whoever waits for this is to know by then what is missing.
        let mut state = self.lock();
        state.writing = 0;
        if state.items.is_empty() {
            self.emptied.notify_all();
        }
    }

    fn missed(&self, lines: u64) {
        self.flow.send_if_modified(|flow| {
            flow.dropped = flow.dropped.saturating_add(lines);
            !std::mem::replace(&mut flow.stuck, true)
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves the books in order before anything could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chunk {
    fn tell(&mut self, lines: u64, missing: &impl Fn(u64) -> String) {
        if lines > 0 {
            self.told = self.told.saturating_add(lines);
            self.bytes.extend(missing(lines).into_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    const WAITING_BYTES_MAX: usize = 1024 * 1024;

    /// An output that takes one piece after each permission.
    struct Gate {
        permits: Receiver<bool>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let allowed = self.permits.recv().map_err(io::Error::other)?;
            if !allowed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.taken
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn started() -> (Arc<Queue>, SyncSender<bool>, Arc<Mutex<Vec<u8>>>) {
        let (permit, permits) = sync_channel(10_000);
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        let queue = Arc::new(Queue::new(WAITING_BYTES_MAX));
        let output = Gate {
            permits,
            taken: Arc::clone(&taken),
        };
        let drained = Arc::clone(&queue);
        std::thread::spawn(move || {
            drained.drain(output, |lines| format!("[{lines} missing]\n"));
        });
        (queue, permit, taken)
    }

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn what_an_output_that_takes_nothing_costs_is_bounded_and_what_is_missing_is_told_where_it_is()
    {
        let (queue, permit, taken) = started();
        let flow = queue.flow();
        let lines = 40_000;
        for n in 0..lines {
            queue.push(format!("line {n}\n").as_bytes());
        }
        let state = queue.lock();
        assert!(state.bytes + state.writing <= WAITING_BYTES_MAX);
        drop(state);
        assert!(flow.borrow().stuck);
        assert!(!queue.flush(Duration::ZERO));
        let dropped = flow.borrow().dropped;
        assert!(dropped > 0);
        for _ in 0..9_000 {
            permit.send(true).unwrap();
        }
        assert!(queue.flush(PATIENCE));
        queue.push(b"after\n");
        assert!(queue.flush(PATIENCE));
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        let written: Vec<&str> = text.lines().collect();
        let kept = usize::try_from(lines - dropped).unwrap();
        assert_eq!(written.len(), kept + 2);
        assert_eq!(written[kept], format!("[{dropped} missing]"));
        assert_eq!(written[kept + 1], "after");
        assert!(!flow.borrow().stuck);
    }

    #[test]
    fn lines_that_the_output_refused_are_counted_and_told_before_the_next_one() {
        let (queue, permit, taken) = started();
        permit.send(false).unwrap();
        queue.push(b"lost\n");
        assert!(queue.flush(PATIENCE), "a refused line is not waited for");
        assert_eq!(
            *queue.flow().borrow(),
            Flow {
                dropped: 1,
                stuck: true
            }
        );
        permit.send(true).unwrap();
        queue.push(b"kept\n");
        assert!(queue.flush(PATIENCE));
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "[1 missing]\nkept\n");
        assert!(!queue.flow().borrow().stuck);
    }

    #[test]
    fn a_line_larger_than_the_queue_is_dropped_and_counted() {
        let (queue, permit, taken) = started();
        queue.push(&vec![b'x'; WAITING_BYTES_MAX]);
        for _ in 0..3 {
            permit.send(true).unwrap();
        }
        queue.push(b"kept\n");
        assert!(queue.flush(PATIENCE));
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "[1 missing]\nkept\n");
    }
}
