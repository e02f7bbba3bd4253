//! Whether what commands need is there at this moment.

use std::collections::BTreeSet;
use std::path::Path;

use futures_util::future::join_all;
use tracing::warn;

use super::{Definition, OtherUsers, Owners, Program, Unavailable};
use crate::builtin;
use crate::host::look::{self, Question};

/// What has to be asked of the file system for a command; nothing for one that the agent serves itself.
fn questions(definition: &Definition, owners: Owners) -> impl Iterator<Item = Question> {
    let program = match &definition.program {
        Program::File(path) => Some(Question::Program {
            path: path.clone(),
            own: owners == Owners::RootAndOwn,
        }),
        Program::Builtin(_) => None,
    };
    let needed = definition.requires.iter().cloned().map(Question::Needed);
    program.into_iter().chain(needed)
}

/// Where the helper is that has to be asked as well.
fn helper<'o>(definition: &Definition, others: &'o OtherUsers) -> Option<&'o Path> {
    match (&definition.user, others) {
        (Some(_), OtherUsers::Helper(socket)) => Some(socket),
        (Some(_), OtherUsers::Itself) | (None, _) => None,
    }
}

/// Why a command cannot run on this gateway at this moment, as far as files go.
async fn missing(definition: &Definition, owners: Owners) -> Option<String> {
    if let Some(reason) = not_built_in(definition) {
        return Some(reason);
    }
    let asked = questions(definition, owners).map(look::ask);
    join_all(asked).await.into_iter().flatten().next()
}

/// Why a command cannot run on this gateway at this moment, if it cannot; a file system that does not answer is a
/// reason.
pub(super) async fn unavailable(
    definition: &Definition,
    owners: Owners,
    others: &OtherUsers,
) -> Option<String> {
    if let Some(reason) = missing(definition, owners).await {
        return Some(reason);
    }
    // A helper that was willing is not asked twice: it says whether it still is when it is told to run it.
    definition.entry.unavailable.as_ref()?;
    let socket = helper(definition, others)?;
    let objections = look::ask_helper(socket, vec![definition.helper_entry()]).await;
    objections.into_iter().next().flatten()
}

/// The same of several that could not run, each with what speaks against it now. What only the helper has refused stays
/// refused when it is not to be asked.
pub(super) async fn again(
    definitions: Vec<&Definition>,
    owners: Owners,
    others: &OtherUsers,
    asks_helper: bool,
) -> Vec<Option<Unavailable>> {
    let mut found = Vec::new();
    let mut asked = Vec::new();
    for (index, definition) in definitions.iter().enumerate() {
        let reason = missing(definition, owners).await;
        let of_files = reason.map(Unavailable::of_files);
        if of_files.is_none() && helper(definition, others).is_some() {
            asked.push(index);
        }
        found.push(of_files);
    }
    let refused = |index: &usize| {
        let definition = definitions.get(*index);
        definition
            .filter(|it| it.is_refused)
            .and_then(|it| it.entry.unavailable.clone())
    };
    let OtherUsers::Helper(socket) = others else {
        return found;
    };
    let is_news = asked.iter().any(|index| refused(index).is_none());
    let objections = if asked.is_empty() {
        Vec::new()
    } else if asks_helper || is_news {
        let entries = asked.iter().filter_map(|index| definitions.get(*index));
        look::ask_helper(socket, entries.map(|it| it.helper_entry()).collect()).await
    } else {
        asked.iter().map(refused).collect()
    };
    for (index, objection) in asked.into_iter().zip(objections) {
        if let Some(found) = found.get_mut(index) {
            *found = objection.map(Unavailable::by_helper);
        }
    }
    found
}

/// Notes of all of them why they cannot run at this moment. Blocks, for as long as two looks may take.
pub(super) fn note_unavailable<'a>(
    definitions: impl IntoIterator<Item = &'a mut Definition>,
    owners: Owners,
    others: &OtherUsers,
) {
    let mut definitions: Vec<&mut Definition> = definitions.into_iter().collect();
    let all: BTreeSet<Question> = definitions
        .iter()
        .flat_map(|definition| questions(definition, owners))
        .collect();
    let answers = look::ask_all(all);
    for definition in &mut definitions {
        let reason = questions(definition, owners)
            .find_map(|question| answers.get(&question).cloned().flatten());
        definition.note(
            not_built_in(definition)
                .or(reason)
                .map(Unavailable::of_files),
        );
    }
    let OtherUsers::Helper(socket) = others else {
        return;
    };
    definitions.retain(|it| it.entry.unavailable.is_none() && helper(it, others).is_some());
    if definitions.is_empty() {
        return;
    }
    let entries = definitions.iter().map(|it| it.helper_entry()).collect();
    let objections = look::ask_helper_here(socket, entries);
    for (definition, objection) in definitions.into_iter().zip(objections) {
        if let Some(reason) = &objection {
            warn!(command = %definition.entry.name, reason, "a command of another user is refused");
        }
        definition.note(objection.map(Unavailable::by_helper));
    }
}

fn not_built_in(definition: &Definition) -> Option<String> {
    match &definition.program {
        Program::File(_) => None,
        Program::Builtin(name) => builtin::unavailable(name),
    }
}
