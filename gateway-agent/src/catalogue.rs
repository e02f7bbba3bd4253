//! What this gateway allows: the commands of `commands.d`, checked as a whole before anything starts.
//!
//! The gateway decides, by files that only root can change. A message from outside names a command and gives values
//! for its arguments; program, options, time limit and environment come from here alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::info;
use viworks_common::catalogue::{
    ArgumentProblem, ArgvTemplate, CatalogueEntry, Grammar, catalogue_digest,
};
use viworks_common::code::RejectCode;
use viworks_common::command::Arguments;
use viworks_common::id::{CommandId, CommandName};

use crate::executor::Launch;
use crate::program;
use crate::spawner::{Entry, Order};

mod current;
mod file;
mod load;
mod look;

pub use current::{Current, reload};
pub use load::{load, read};
pub use viworks_common::catalogue::SHIPPED;
pub use viworks_runtime::files::Owners;

/// How long reading the whole catalogue may take.
pub const LOAD_TIME: Duration = Duration::from_secs(60);

/// What a command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Program {
    /// A program, by absolute path.
    File(PathBuf),
    /// The agent's own `builtin` subcommand.
    Builtin(String),
}

/// Who runs a command whose entry names a user other than the agent's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OtherUsers {
    /// The helper that listens at this socket.
    Helper(PathBuf),
    /// This process: it is the helper, and the files are its list, in which each entry names a user.
    Itself,
}

/// One allowed command.
#[derive(Debug, Clone)]
struct Definition {
    entry: CatalogueEntry,
    /// Whether it is unavailable because the helper refuses it.
    is_refused: bool,
    /// As whom it runs, when that is not who reads this.
    user: Option<String>,
    /// Everything that decides what runs.
    fingerprint: String,
    grammar: Grammar,
    argv: ArgvTemplate,
    program: Program,
    requires: Vec<PathBuf>,
    working_directory: PathBuf,
    environment: BTreeMap<String, String>,
}

/// Every allowed command.
#[derive(Debug, Clone)]
pub struct Catalogue {
    definitions: BTreeMap<CommandName, Definition>,
    owners: Owners,
    own_program: PathBuf,
    others: OtherUsers,
}

/// Why this gateway does not run something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// The stable code.
    pub code: RejectCode,
    /// One sentence.
    pub detail: String,
    /// The arguments that are wrong, when they are what is wrong.
    pub problems: Vec<ArgumentProblem>,
}

/// A command that may run, with every argument checked and filled in.
#[derive(Debug, Clone)]
pub struct Allowed<'c> {
    definition: &'c Definition,
    owners: Owners,
    own_program: &'c Path,
    others: &'c OtherUsers,
    given: Arguments,
    arguments: Vec<String>,
}

impl Catalogue {
    /// What is reported to the backend and shown by the local API, by name.
    #[must_use]
    pub fn entries(&self) -> Vec<CatalogueEntry> {
        self.definitions
            .values()
            .map(|definition| definition.entry.clone())
            .collect()
    }

    /// SHA-256 over the entries.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        catalogue_digest(&self.entries())
    }

    /// How many commands there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.definitions.len()
    }

    /// Whether nothing is allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.definitions.is_empty()
    }

    /// Notes of every command why it cannot run at this moment. Blocks, for a few seconds at the most.
    pub fn look(&mut self) {
        look::note_unavailable(self.definitions.values_mut(), self.owners, &self.others);
    }

    /// How many commands could not run when somebody looked last.
    #[must_use]
    pub fn unavailable(&self) -> usize {
        let definitions = self.definitions.values();
        definitions
            .filter(|it| it.entry.unavailable.is_some())
            .count()
    }

    /// The same, after another look at those that could not run; none when nothing is new. The helper is asked about
    /// what it has refused only when `asks_helper` is true.
    async fn looked_again(&self, asks_helper: bool) -> Option<Self> {
        let before: Vec<&Definition> = self.definitions.values().collect();
        let before: Vec<&Definition> = before
            .into_iter()
            .filter(|it| it.entry.unavailable.is_some())
            .collect();
        let found = look::again(before.clone(), self.owners, &self.others, asks_helper).await;
        let mut after = self.clone();
        let mut is_new = false;
        for (before, found) in before.into_iter().zip(found) {
            let name = &before.entry.name;
            let reason = found.as_ref().map(|it| &it.reason);
            if reason == before.entry.unavailable.as_ref() {
                continue;
            }
            info!(command = %name, reason, "whether a command can run has changed");
            if let Some(definition) = after.definitions.get_mut(name) {
                definition.note(found);
                is_new = true;
            }
        }
        is_new.then_some(after)
    }

    /// Everything that decides what a command of another user runs, for whoever has the same entry to compare.
    #[must_use]
    pub fn fingerprint(&self, name: &CommandName) -> Option<&str> {
        let definition = self.definitions.get(name)?;
        definition.user.as_ref()?;
        Some(&definition.fingerprint)
    }

    /// Checks a request by the catalogue: name and arguments. Whether its program is there at this moment is another
    /// question: [`Allowed::available`].
    ///
    /// # Errors
    /// Why this gateway does not run it.
    pub fn check(&self, name: &CommandName, given: &Arguments) -> Result<Allowed<'_>, Refusal> {
        let definition = self.definitions.get(name).ok_or_else(|| Refusal {
            code: RejectCode::NotAllowed,
            detail: format!("this gateway's catalogue has no command {name}"),
            problems: Vec::new(),
        })?;
        let checked = definition
            .grammar
            .check(given)
            .map_err(|problems| bad_arguments(name, problems))?;
        let arguments = definition
            .argv
            .expand(&checked)
            .map_err(|refusal| Refusal {
                code: RejectCode::BadArguments,
                detail: format!("{name}: {refusal}"),
                problems: Vec::new(),
            })?;
        Ok(Allowed {
            definition,
            owners: self.owners,
            own_program: &self.own_program,
            others: &self.others,
            given: given.clone(),
            arguments,
        })
    }
}

impl Allowed<'_> {
    /// Whether its program and what else it needs are there at this moment. Looks at them, for at most a few seconds,
    /// and not at all while an earlier look at one of them hangs.
    ///
    /// # Errors
    /// Why it cannot run on this gateway right now; a file system that does not answer is a reason.
    pub async fn available(&self) -> Result<(), Refusal> {
        match look::unavailable(self.definition, self.owners, self.others).await {
            None => Ok(()),
            Some(reason) => Err(Refusal {
                code: RejectCode::Unavailable,
                detail: format!(
                    "{} cannot run on this gateway: {reason}",
                    self.definition.entry.name
                ),
                problems: Vec::new(),
            }),
        }
    }

    /// Whether running it twice does no harm, in this gateway's own judgement.
    #[must_use]
    pub const fn idempotent(&self) -> bool {
        self.definition.entry.idempotent
    }

    /// The entry it was checked against.
    #[must_use]
    pub const fn entry(&self) -> &CatalogueEntry {
        &self.definition.entry
    }

    /// As whom it runs, when that is not who read the catalogue.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.definition.user.as_deref()
    }

    /// What the executor is to run.
    #[must_use]
    pub fn launch(self, command_id: CommandId) -> Launch {
        let definition = self.definition;
        let order = definition.order(self.others, self.given);
        let (program, arguments) = match &definition.program {
            Program::File(path) => (path.clone(), self.arguments),
            Program::Builtin(name) => {
                let mut arguments = vec![program::BUILTIN.to_owned(), name.clone()];
                arguments.extend(self.arguments);
                (self.own_program.to_owned(), arguments)
            }
        };
        Launch {
            command_id,
            program,
            arguments,
            working_directory: definition.working_directory.clone(),
            environment: definition.environment.clone(),
            deadline: None,
            timeout: Duration::from_millis(definition.entry.timeout_ms),
            output_bytes_max: usize::try_from(definition.entry.output_bytes_max)
                .unwrap_or(usize::MAX),
            order,
        }
    }
}

/// Why a command cannot run at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unavailable {
    reason: String,
    is_refused: bool,
}

impl Unavailable {
    /// Something is not there, or may not be run.
    const fn of_files(reason: String) -> Self {
        let is_refused = false;
        Self { reason, is_refused }
    }

    /// The helper refuses it.
    const fn by_helper(reason: String) -> Self {
        let is_refused = true;
        Self { reason, is_refused }
    }
}

impl Definition {
    fn note(&mut self, unavailable: Option<Unavailable>) {
        self.is_refused = unavailable.as_ref().is_some_and(|it| it.is_refused);
        self.entry.unavailable = unavailable.map(|it| it.reason);
    }

    fn helper_entry(&self) -> Entry {
        Entry {
            name: self.entry.name.clone(),
            fingerprint: self.fingerprint.clone(),
        }
    }

    /// What the helper is told, when it is for the helper to run.
    fn order(&self, others: &OtherUsers, arguments: Arguments) -> Option<Order> {
        match (&self.user, others) {
            (Some(_), OtherUsers::Helper(socket)) => Some(Order {
                socket: socket.clone(),
                entry: self.helper_entry(),
                arguments,
            }),
            (Some(_), OtherUsers::Itself) | (None, _) => None,
        }
    }
}

fn bad_arguments(name: &CommandName, problems: Vec<ArgumentProblem>) -> Refusal {
    let listed: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Refusal {
        code: RejectCode::BadArguments,
        detail: format!("{name}: {}", listed.join("; ")),
        problems,
    }
}
