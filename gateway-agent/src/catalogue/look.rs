//! Whether what commands need is there at this moment.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use tracing::warn;

use super::{Definition, OtherUsers, Owners, Program};
use crate::builtin;
use crate::host::look::{self, Question};

/// What has to be asked for a command; nothing for one that the agent serves itself.
fn questions(
    definition: &Definition,
    owners: Owners,
    others: &OtherUsers,
) -> impl Iterator<Item = Question> {
    let asked = match (&definition.user, others) {
        (Some(_), OtherUsers::Helper(socket)) => Some(Question::Helper {
            socket: socket.clone(),
            entry: definition.helper_entry(),
        }),
        (Some(_), OtherUsers::Itself) | (None, _) => None,
    };
    let program = match &definition.program {
        Program::File(path) => Some(Question::Program {
            path: path.clone(),
            own: owners == Owners::RootAndOwn,
        }),
        Program::Builtin(_) => None,
    };
    let needed = definition.requires.iter().cloned().map(Question::Needed);
    program.into_iter().chain(needed).chain(asked)
}

/// Why a command cannot run on this gateway at this moment, if it cannot; a file system that does not answer is a
/// reason.
pub(super) async fn unavailable(
    definition: &Definition,
    owners: Owners,
    others: &OtherUsers,
) -> Option<String> {
    if let Some(reason) = not_built_in(definition) {
        return Some(reason);
    }
    // A helper that was willing is not asked twice: it says whether it still is when it is told to run it.
    let was_willing = definition.entry.unavailable.is_none();
    let asked = questions(definition, owners, others)
        .filter(|question| !(was_willing && matches!(question, Question::Helper { .. })))
        .map(look::ask);
    join_all(asked).await.into_iter().flatten().next()
}

/// Notes of all of them why they cannot run at this moment. Blocks, for as long as one look may take.
pub(super) fn note_unavailable<'a>(
    definitions: impl IntoIterator<Item = &'a mut Definition>,
    owners: Owners,
    others: &OtherUsers,
) {
    let definitions: Vec<&mut Definition> = definitions.into_iter().collect();
    let all: BTreeSet<Question> = definitions
        .iter()
        .flat_map(|definition| questions(definition, owners, others))
        .collect();
    let answers = look::ask_all(all);
    for definition in definitions {
        let mut asked = questions(definition, owners, others);
        let reason = asked.find_map(|question| {
            let reason = answers.get(&question).cloned().flatten()?;
            if matches!(question, Question::Helper { .. }) {
                warn!(command = %definition.entry.name, reason, "a command of another user is refused");
            }
            Some(reason)
        });
        drop(asked);
        definition.entry.unavailable = not_built_in(definition).or(reason);
    }
}

fn not_built_in(definition: &Definition) -> Option<String> {
    match &definition.program {
        Program::File(_) => None,
        Program::Builtin(name) => builtin::unavailable(name),
    }
}
