//! Who waits for which batch, and what each is told once it is known what became of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio::time::Instant;
use tracing::debug;
use viworks_common::id::{AgentId, GatewayName};

use super::composed::{Composed, Dropped, Parts, Why};
use super::doubts::{Doubts, Proof};
use super::line::{Line, Waiting};
use super::watch::{Watch, lock};
use super::withheld::Withheld;
use crate::data::{TelemetryCommit, TelemetryOutcome, TelemetryWrite};
use crate::metrics::BackendMetrics;

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// All of it is stored, refused or in a gap.
    Committed(TelemetryCommit),
    /// The session's epoch is no longer the current one.
    Fenced,
    /// It is no batch; nothing more of it was stored.
    Malformed(String),
    /// The database refused it, and there was no room to keep it until it does not: it has to come again. Nothing more
    /// of it was stored.
    Unstorable,
}

/// What becomes of what a session hands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is stored when its turn comes.
    InTurn,
    /// The database refuses it: it is kept until it does not, and takes nothing of what may wait in the process.
    Kept,
    /// The database refuses it, and there is no room to keep it: nothing more of this session is stored.
    Outside,
}

/// What is remembered of a batch until it is dealt with.
#[derive(Debug)]
pub(super) struct Note {
    gateway: GatewayName,
    answer: oneshot::Sender<Answer>,
    /// Tells the session how it stands: what it has not handed in yet waits as this does.
    standing: watch::Sender<Standing>,
    /// What its parts came to so far.
    so_far: Option<TelemetryCommit>,
    share: Option<OwnedSemaphorePermit>,
}

/// Batches that were handed in and are not answered.
pub(super) struct Pending {
    pub(super) line: Line<Note>,
    pub(super) withheld: Withheld<Note>,
    pub(super) doubts: Doubts,
    watch: Arc<Mutex<Watch>>,
    metrics: BackendMetrics,
}

/// What became of each of some writes; none of one that the database does not take.
pub(super) type Stored = Vec<Option<TelemetryOutcome>>;

/// Writes of one transaction, with what they belong to.
pub(super) struct Written {
    pub(super) writes: Arc<[TelemetryWrite]>,
    /// For each the number of its batch.
    pub(super) numbers: Vec<u64>,
    /// The batches that end with them.
    pub(super) ending: BTreeMap<u64, Note>,
}

/// A batch that is none.
pub(super) struct Malformed {
    pub(super) agent_id: AgentId,
    /// Of which session.
    pub(super) epoch: u64,
    pub(super) note: Note,
    /// What is wrong with it.
    pub(super) reason: String,
}

impl Pending {
    pub(super) const fn new(
        watch: Arc<Mutex<Watch>>,
        proof: Proof,
        metrics: BackendMetrics,
    ) -> Self {
        Self {
            line: Line::new(),
            withheld: Withheld::new(),
            doubts: Doubts::new(proof),
            watch,
            metrics,
        }
    }

    /// Whether anybody who waits for what is tried again is still there; nothing of the gateway is kept otherwise.
    pub(super) fn waits(&mut self, agent_id: AgentId, parts: &mut Parts<Note>) -> bool {
        let ending = parts.ending.values_mut();
        let mut notes = ending.chain(self.line.withheld(agent_id));
        let waits = notes.any(|note| !note.answer.is_closed());
        drop(notes);
        if !waits {
            // What is on its way here yet would be stored past what is forgotten.
            if let Some(epoch) = parts.writes.iter().map(|write| write.epoch).max() {
                self.line.spoil(agent_id, epoch, &Why::Unstorable);
            }
            self.line.forget(agent_id);
        }
        waits
    }

    /// Lets those in that wait outside, as far as there is room beside so many that are to be kept as well, or their
    /// time has come: they are to hand in again.
    pub(super) fn let_in(&mut self, to_be_kept: usize) {
        for (agent_id, notes) in self.withheld.let_in(Instant::now(), to_be_kept) {
            for note in notes {
                tell(note, Answer::Unstorable);
            }
            self.settle_withheld(agent_id);
        }
    }

    /// Sorts batches that are none and those behind what the database refuses: the latter go on waiting, the former
    /// are given back to be answered.
    pub(super) fn sort(&mut self, dropped: Vec<Dropped<Note>>) -> Vec<Malformed> {
        let mut malformed = Vec::new();
        for one in dropped {
            match one.why {
                Why::Malformed(reason) => malformed.push(Malformed {
                    agent_id: one.agent_id,
                    epoch: one.epoch,
                    note: one.note,
                    reason,
                }),
                // Its session has ended.
                Why::Unstorable if one.note.answer.is_closed() => {}
                Why::Unstorable => self.leave_outside((one.agent_id, one.epoch), [one.note]),
            }
        }
        malformed
    }

    /// Takes in a batch. Whoever hands one in has a session, so those of before are fenced.
    pub(super) fn take(&mut self, mut waiting: Waiting<Note>) {
        let (agent_id, epoch) = (waiting.agent_id, waiting.epoch);
        let had_place = self.withheld.has(agent_id);
        // Of one that stands in the lane nothing is withheld yet, and what is known of it stays.
        let is_known = !self.withheld.knows_nothing_of(agent_id);
        self.fence(agent_id, epoch, Vec::new());
        if is_known {
            self.settle_withheld(agent_id);
        }
        if had_place && !self.withheld.has(agent_id) {
            self.withheld.reserve(agent_id, Instant::now());
        }
        if self.withheld.has(agent_id) {
            waiting.note.stands(Standing::Kept);
        }
        self.line.push(waiting);
    }

    /// Answers what is withheld of sessions of a gateway before this one, and these.
    fn fence(&mut self, agent_id: AgentId, epoch: u64, mut fenced: Vec<Note>) {
        fenced.extend(self.withheld.fence(agent_id, epoch));
        fenced.extend(self.line.fence(agent_id, epoch));
        for note in fenced {
            tell(note, Answer::Fenced);
        }
    }

    /// Lets a gateway take its turns again when nothing of it is withheld any more.
    pub(super) fn settle_withheld(&mut self, agent_id: AgentId) {
        if self.withheld.settle(agent_id) {
            for note in self.line.withheld(agent_id) {
                note.stands(Standing::InTurn);
            }
            self.line.release(agent_id);
        }
        if self.withheld.knows_nothing_of(agent_id) {
            self.doubts.forget(agent_id);
            lock(&self.watch).released(agent_id);
        }
    }

    /// Adds up the parts of each batch, answers those that end, and keeps what the database refuses.
    pub(super) fn settle(
        &mut self,
        written: Written,
        stored: Stored,
        mut ahead: Option<&mut Composed<Note>>,
    ) {
        let Written {
            writes,
            numbers,
            mut ending,
        } = written;
        let mut rows = 0;
        let mut refused = BTreeMap::<AgentId, Parts<Note>>::new();
        for ((write, number), outcome) in writes.iter().zip(numbers).zip(stored) {
            let agent_id = write.agent_id;
            match outcome {
                Some(TelemetryOutcome::Committed(commit)) => {
                    rows += commit.stored;
                    self.metrics.telemetry_retimed.inc_by(commit.retimed);
                    let ending_ahead = ahead.as_deref_mut().map(|it| &mut it.ending);
                    let note = ending
                        .get_mut(&number)
                        .or_else(|| ending_ahead?.get_mut(&number))
                        .or_else(|| self.line.note(agent_id, number));
                    if let Some(note) = note {
                        lock(&self.watch).refused(agent_id, &note.gateway, &commit.refused);
                        note.add(commit);
                    }
                }
                Some(TelemetryOutcome::Fenced) => {
                    let given_up = (&mut ending, ahead.as_deref_mut());
                    self.give_up(agent_id, number, given_up, Answer::Fenced);
                }
                Some(TelemetryOutcome::Malformed(malformed)) => {
                    let reason = malformed.to_string();
                    let why = Why::Malformed(reason.clone());
                    self.line.spoil(agent_id, write.epoch, &why);
                    let answer = Answer::Malformed(reason);
                    if let Some(ahead) = ahead.as_deref_mut() {
                        let behind = ahead.take_out(agent_id, Some(write.epoch));
                        for note in behind.ending.into_values() {
                            tell(note, answer.clone());
                        }
                    }
                    let given_up = (&mut ending, ahead.as_deref_mut());
                    self.give_up(agent_id, number, given_up, answer);
                }
                None => {
                    let parts = refused.entry(agent_id).or_default();
                    parts.push(write.clone(), number, ending.remove(&number));
                }
            }
        }
        for (agent_id, mut parts) in refused {
            if let Some(ahead) = ahead.as_deref_mut() {
                parts.append(ahead.take_out(agent_id, None));
            }
            self.withhold(agent_id, parts);
        }
        for mut note in ending.into_values() {
            if let Some(commit) = note.so_far.take() {
                // Of whom something is refused, nothing ends here.
                note.stands(Standing::InTurn);
                tell(note, Answer::Committed(commit));
            }
        }
        self.metrics.telemetry_rows.inc_by(rows);
        #[expect(
            clippy::cast_precision_loss,
            reason = "far fewer rows than a double can count"
        )]
        self.metrics.telemetry_commit_rows.observe(rows as f64);
    }

    /// Keeps what the database refuses of a gateway, and what comes behind it, until it does not. Where there is no
    /// room for that, it is only kept who waits: the session goes on, and nothing of it is stored.
    fn withhold(&mut self, agent_id: AgentId, mut parts: Parts<Note>) {
        if !self.withheld.takes(agent_id) {
            if let Some(epoch) = parts.writes.last().map(|write| write.epoch) {
                self.line.spoil(agent_id, epoch, &Why::Unstorable);
                self.leave_outside((agent_id, epoch), parts.ending.into_values());
            }
            return;
        }
        self.line.withhold(agent_id);
        if let Some(latest) = parts.writes.iter().map(|write| write.epoch).max() {
            self.fence(agent_id, latest, parts.fence(latest));
        }
        let notes = parts.ending.values_mut();
        for note in notes.chain(self.line.withheld(agent_id)) {
            note.stands(Standing::Kept);
            lock(&self.watch).withheld(agent_id, &note.gateway);
        }
        let now = Instant::now();
        self.withheld.keep(agent_id, parts, now);
        if self.doubts.is_open(agent_id) {
            self.withheld.hurry(agent_id, now);
        }
    }

    /// Keeps who waits for an answer about batches of which nothing is kept.
    fn leave_outside(
        &mut self,
        (agent_id, epoch): (AgentId, u64),
        notes: impl IntoIterator<Item = Note>,
    ) {
        let notes = notes.into_iter().map(|mut note| {
            note.stands(Standing::Outside);
            lock(&self.watch).withheld(agent_id, &note.gateway);
            note
        });
        let now = Instant::now();
        self.withheld.leave_outside((agent_id, epoch), notes, now);
    }

    /// Nothing more of a batch will be stored; it is answered once.
    fn give_up(
        &mut self,
        agent_id: AgentId,
        number: u64,
        (ending, ahead): (&mut BTreeMap<u64, Note>, Option<&mut Composed<Note>>),
        answer: Answer,
    ) {
        // Its last part may be composed already, and parts that are not its last as well.
        let note = ending.remove(&number);
        let note = note.or_else(|| ahead?.give_up(number));
        let note = note.or_else(|| self.line.give_up(agent_id, number));
        if let Some(note) = note {
            tell(note, answer);
        }
    }
}

impl Note {
    /// Of a batch that is handed in now.
    pub(super) const fn new(
        gateway: GatewayName,
        share: Option<OwnedSemaphorePermit>,
        standing: watch::Sender<Standing>,
        answer: oneshot::Sender<Answer>,
    ) -> Self {
        Self {
            gateway,
            answer,
            standing,
            so_far: None,
            share,
        }
    }

    /// Tells the session how it stands. What is withheld has a bound of its own, and takes nothing from others. Whoever
    /// is outside stays there: something of that session is not kept, and what is behind it would leave a gap.
    fn stands(&mut self, now: Standing) {
        if now != Standing::InTurn {
            self.share = None;
        }
        self.standing.send_if_modified(|standing| {
            let changes = *standing != now && *standing != Standing::Outside;
            if changes {
                *standing = now;
            }
            changes
        });
    }

    fn add(&mut self, part: TelemetryCommit) {
        let Some(sum) = &mut self.so_far else {
            self.so_far = Some(part);
            return;
        };
        sum.position = part.position;
        sum.stored += part.stored;
        sum.retimed += part.retimed;
        sum.missing = sum.missing.saturating_add(part.missing);
        sum.rolled_back |= part.rolled_back;
        for (reason, records) in part.refused {
            let refused = sum.refused.entry(reason).or_default();
            *refused = refused.saturating_add(records);
        }
    }
}

pub(super) fn tell(note: Note, answer: Answer) {
    if note.answer.send(answer).is_err() {
        debug!("the session of a batch has ended; its gateway will ask again");
    }
}
