//! What the engine has to say, until the session has room for it.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tracing::warn;
use viworks_common::command::Outcome;
use viworks_common::id::CommandId;
use viworks_common::limits;
use viworks_common::wire::message::{AgentMessage, CommandResult};

use crate::journal::{Journal, JournalError};

/// Words that may wait before the session has to wait with its requests.
const WORDS_MAX: usize = 4 * limits::COMMANDS_UNREPORTED_MAX;

/// Outcomes that wait in memory, which can be large; the others are read from the journal when it is their turn.
const OUTCOMES_MAX: usize = 8;

enum Word {
    Message(Box<AgentMessage>),
    Outcome(CommandId, Arc<Outcome>),
    Stored(CommandId),
}

/// Words for one session; the next one is told by the journal.
pub(super) struct Outbox {
    journal: Journal,
    session: Option<mpsc::Sender<AgentMessage>>,
    words: VecDeque<Word>,
    outcomes: usize,
    /// The first word is being read: a read that was begun is not begun again.
    reading: Option<BoxFuture<'static, Result<Option<Outcome>, JournalError>>>,
}

impl Outbox {
    /// Nothing to say and nobody to say it to.
    pub(super) const fn new(journal: Journal) -> Self {
        Self {
            journal,
            session: None,
            words: VecDeque::new(),
            outcomes: 0,
            reading: None,
        }
    }

    /// Whatever comes from here on is for another session.
    pub(super) fn attach(&mut self, session: mpsc::Sender<AgentMessage>) {
        self.clear();
        self.session = Some(session);
    }

    fn clear(&mut self) {
        self.words.clear();
        self.outcomes = 0;
        self.reading = None;
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Whether the session may ask for more words.
    pub(super) fn has_room(&self) -> bool {
        self.words.len() < WORDS_MAX
    }

    /// Says something that is kept nowhere else.
    pub(super) fn say(&mut self, message: Box<AgentMessage>) {
        self.push(Word::Message(message));
    }

    /// Says an outcome that the journal holds as well.
    pub(super) fn report(&mut self, id: CommandId, outcome: Arc<Outcome>) {
        if self.outcomes >= OUTCOMES_MAX {
            return self.resend(id);
        }
        self.outcomes += usize::from(self.session.is_some());
        self.push(Word::Outcome(id, outcome));
    }

    /// Says an outcome that only the journal holds.
    pub(super) fn resend(&mut self, id: CommandId) {
        self.push(Word::Stored(id));
    }

    fn push(&mut self, word: Word) {
        if self.session.is_some() {
            self.words.push_back(word);
        }
    }

    /// Brings the first word to the session, or one step nearer. Nothing is lost when this is given up.
    pub(super) async fn pass_on(&mut self) {
        if let Some(Word::Stored(id)) = self.words.front() {
            let (id, journal) = (*id, &self.journal);
            let reading = self.reading.get_or_insert_with(|| {
                let journal = journal.clone();
                Box::pin(async move { Ok(journal.entry(id).await?.and_then(|it| it.outcome)) })
            });
            let read = reading.as_mut().await;
            self.reading = None;
            self.words.pop_front();
            match read {
                Ok(Some(outcome)) => {
                    self.outcomes += 1;
                    self.words.push_front(Word::Outcome(id, Arc::new(outcome)));
                }
                // It was forgotten meanwhile: the backend has it.
                Ok(None) => {}
                Err(error) => warn!(command_id = %id, %error, "an outcome cannot be read again"),
            }
            return;
        }
        let Some(session) = self.session.clone() else {
            return self.clear();
        };
        let Ok(place) = session.reserve().await else {
            self.session = None;
            return self.clear();
        };
        match self.words.pop_front() {
            Some(Word::Message(message)) => place.send(*message),
            Some(Word::Outcome(command_id, outcome)) => {
                self.outcomes -= 1;
                place.send(AgentMessage::CommandResult(CommandResult {
                    command_id,
                    outcome: Arc::unwrap_or_clone(outcome),
                }));
            }
            // What the journal holds was read above.
            Some(word @ Word::Stored(_)) => self.words.push_front(word),
            None => {}
        }
    }
}
