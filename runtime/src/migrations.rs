//! The steps of a database's schema: which of them a program still has to apply, and whether it can go on after those
//! that only a later program has.
//!
//! A step is noted in `_sqlx_migrations`, as sqlx notes it, which made these databases first, and beside that from
//! which version of the schema on a program can go on after it. The file says so in its first line
//! (`-- usable from: 4`). What says nothing is for programs that have it, and for no others.

use sha2::{Digest, Sha384};

/// How a file begins that adds something which earlier programs need not know.
const USABLE_FROM: &str = "-- usable from: ";

/// One step of a schema, as [`migration!`](crate::migration) reads it from its file.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// The file's name, `NNNN_what_it_does.sql`.
    pub file: &'static str,
    /// What it holds.
    pub sql: &'static str,
}

/// The migration in a file whose path is relative to the calling one.
#[macro_export]
macro_rules! migration {
    ($folder:literal, $file:literal) => {
        $crate::migrations::Migration {
            file: $file,
            sql: ::std::include_str!(::std::concat!($folder, "/", $file)),
        }
    };
}

impl Migration {
    /// Its number.
    #[must_use]
    pub fn version(&self) -> i64 {
        let digits = self.file.split('_').next();
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }

    /// What it does.
    #[must_use]
    pub fn description(&self) -> String {
        let (_, rest) = self.file.split_once('_').unwrap_or_default();
        rest.trim_end_matches(".sql").replace('_', " ")
    }

    /// What recognises its text: the SHA-384 of it.
    #[must_use]
    pub fn checksum(&self) -> Vec<u8> {
        Sha384::digest(self.sql.as_bytes()).to_vec()
    }

    /// The version of the schema that a program has to know, at least, to go on after it: its own, unless its first
    /// line says an earlier one.
    #[must_use]
    pub fn usable_from(&self) -> i64 {
        let first = self.sql.lines().next().unwrap_or_default();
        let said = first.strip_prefix(USABLE_FROM);
        let said = said.and_then(|version| version.trim().parse().ok());
        said.unwrap_or(i64::MAX).min(self.version())
    }
}

/// What a database has noted of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its number.
    pub version: i64,
    /// Whether it came to its end.
    pub finished: bool,
    /// What recognises the text that was applied.
    pub checksum: Vec<u8>,
    /// What a program has to know to go on after it; none where an earlier program applied it, which noted nothing.
    pub usable_from: Option<i64>,
}

/// Why a program cannot use a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// A later program has changed what this one needs.
    #[error(
        "the database schema has version {found}, {}this program knows versions up to {known}; use the newer program \
         or restore a backup",
        takes(*.found, *.needed)
    )]
    TooNew {
        /// The version of the database.
        found: i64,
        /// What a program has to know.
        needed: i64,
        /// The newest version that this program has.
        known: i64,
    },
    /// Another program has gone on without a step that this one has: it can only be applied before what is there.
    #[error(
        "the database schema has version {found} and lacks version {lacking}, which this program would have to apply \
         before it; use the program that made version {found} or restore a backup"
    )]
    Overtaken {
        /// The version of the database.
        found: i64,
        /// The first one of this program's that it lacks.
        lacking: i64,
    },
    /// An earlier attempt was left in the middle.
    #[error("migration {0} was begun and not finished")]
    Unfinished(i64),
    /// One that this program does not have, and should.
    #[error("migration {0} was applied, and this program does not have it")]
    Missing(i64),
    /// A file that was changed after it was applied.
    #[error("migration {0} was applied, and was another one then")]
    Changed(i64),
}

/// What a program has to know to go on, where that is less than all that the database has.
fn takes(found: i64, needed: i64) -> String {
    if needed == found {
        return String::new();
    }
    format!("which takes a program that knows version {needed}; ")
}

/// Where a database stands, as one program sees it.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// Its version; none where there is nothing yet.
    pub version: Option<i64>,
    /// What it lacks of what the program has.
    pub missing: Vec<Migration>,
    /// Whether a later program has added to it.
    pub is_ahead: bool,
    /// Whether it notes who can go on with it. The programs that made one without such notes do not look for them
    /// either: they are refused at their next start after anything was added.
    pub has_notes: bool,
}

impl Standing {
    /// Holds what was applied against what a program has.
    ///
    /// # Errors
    ///
    /// When the program cannot go on with it.
    pub fn of(own: &[Migration], applied: &[Applied]) -> Result<Self, Mismatch> {
        let known = own.iter().map(Migration::version).max().unwrap_or_default();
        let version = applied.iter().map(|one| one.version).max();
        let is_ahead = version.is_some_and(|version| version > known);
        let is_applied = |own: &&Migration| applied.iter().any(|one| one.version == own.version());
        let missing: Vec<Migration> = own.iter().filter(|own| !is_applied(own)).copied().collect();
        for one in applied {
            let own = own.iter().find(|own| own.version() == one.version);
            match own {
                None if one.version <= known => return Err(Mismatch::Missing(one.version)),
                None => {
                    // What this program would apply belongs before what is there already.
                    if let Some(lacking) = missing.first() {
                        return Err(Mismatch::Overtaken {
                            found: one.version,
                            lacking: lacking.version(),
                        });
                    }
                }
                Some(own) if one.finished && own.checksum() != one.checksum => {
                    return Err(Mismatch::Changed(one.version));
                }
                Some(_) => {}
            }
            if !one.finished {
                return Err(Mismatch::Unfinished(one.version));
            }
        }
        let later = applied.iter().filter(|one| one.version > known);
        let needed = later.map(|one| one.usable_from.unwrap_or(one.version));
        match (version, needed.max()) {
            (Some(found), Some(needed)) if needed > known => Err(Mismatch::TooNew {
                found,
                needed,
                known,
            }),
            _ => Ok(Self {
                version,
                missing,
                is_ahead,
                has_notes: applied.iter().any(|one| one.usable_from.is_some()),
            }),
        }
    }

    /// Whether programs that know the version which the database has now can go on when all that is missing was
    /// applied.
    #[must_use]
    pub fn keeps_programs(&self) -> bool {
        let needed = self.missing.iter().map(Migration::usable_from).max();
        needed.is_none_or(|needed| self.version.is_some_and(|version| needed <= version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Migration = Migration {
        file: "0001_make_it.sql",
        sql: "CREATE TABLE it (id INTEGER)",
    };
    const TWO: Migration = Migration {
        file: "0002_add_to_it.sql",
        sql: "-- usable from: 1\n-- Why.\nALTER TABLE it ADD COLUMN more INTEGER",
    };
    const THREE: Migration = Migration {
        file: "0003_take_from_it.sql",
        sql: "-- usable from: 2\nALTER TABLE it DROP COLUMN id",
    };

    fn noted(migrations: &[Migration]) -> Vec<Applied> {
        let note = |migration: &Migration| Applied {
            version: migration.version(),
            finished: true,
            checksum: migration.checksum(),
            usable_from: Some(migration.usable_from()),
        };
        migrations.iter().map(note).collect()
    }

    #[test]
    fn a_file_says_its_version_what_it_does_and_who_can_go_on_after_it() {
        let migration = Migration {
            file: "0012_keep_it.sql",
            sql: "",
        };
        assert_eq!(migration.version(), 12);
        assert_eq!(migration.description(), "keep it");
        assert_eq!(migration.usable_from(), 12);
        assert_eq!((TWO.usable_from(), THREE.usable_from()), (1, 2));
        for nothing in [
            "-- usable from: 99",
            "-- usable from: x",
            "SELECT 1\n-- usable from: 1",
        ] {
            let said = Migration {
                sql: nothing,
                ..migration
            };
            assert_eq!(said.usable_from(), 12, "{nothing}");
        }
    }

    #[test]
    fn a_program_goes_on_after_what_leaves_it_what_it_needs() {
        let both = noted(&[ONE, TWO]);
        let standing = Standing::of(&[ONE], &both).unwrap();
        assert!(standing.is_ahead && standing.missing.is_empty());
        assert_eq!(standing.version, Some(2));
        let all = noted(&[ONE, TWO, THREE]);
        let refused = Standing::of(&[ONE], &all).unwrap_err();
        let why = Mismatch::TooNew {
            found: 3,
            needed: 2,
            known: 1,
        };
        assert_eq!(refused, why);
        assert!(Standing::of(&[ONE, TWO], &all).unwrap().is_ahead);
        assert!(!Standing::of(&[ONE, TWO, THREE], &all).unwrap().is_ahead);
        // What was noted without a word is for those that have it.
        let mut silent = both;
        for one in &mut silent {
            one.usable_from = None;
        }
        assert!(!Standing::of(&[ONE, TWO], &silent).unwrap().is_ahead);
        let refused = Standing::of(&[ONE], &silent).unwrap_err();
        assert!(matches!(refused, Mismatch::TooNew { needed: 2, .. }));
    }

    #[test]
    fn what_was_changed_left_or_skipped_is_refused() {
        let mut changed = noted(&[ONE, TWO]);
        changed[0].checksum = vec![0];
        let refused = |applied: &[Applied]| Standing::of(&[ONE, TWO], applied).unwrap_err();
        assert_eq!(refused(&changed), Mismatch::Changed(1));
        let mut left = noted(&[ONE, TWO]);
        left[1].finished = false;
        assert_eq!(refused(&left), Mismatch::Unfinished(2));
        let skipped = Standing::of(&[ONE, THREE], &noted(&[ONE, TWO])).unwrap_err();
        assert_eq!(skipped, Mismatch::Missing(2));
        // Later than what it has, and not after all of it.
        let beside = Standing::of(&[ONE, TWO], &noted(&[ONE, THREE])).unwrap_err();
        let why = Mismatch::Overtaken {
            found: 3,
            lacking: 2,
        };
        assert_eq!(beside, why);
    }

    #[test]
    fn a_refusal_says_which_versions_are_meant_and_what_to_do() {
        const SILENT: Migration = Migration {
            file: "0003_take_from_it.sql",
            sql: "ALTER TABLE it DROP COLUMN id",
        };
        let said = |own: &[Migration], applied: &[Migration]| {
            let refused = Standing::of(own, &noted(applied)).unwrap_err();
            refused.to_string()
        };
        assert_eq!(
            said(&[ONE], &[ONE, TWO, THREE]),
            "the database schema has version 3, which takes a program that knows version 2; this program knows \
             versions up to 1; use the newer program or restore a backup"
        );
        // Who can go on has all of it: that is one number, and not two.
        assert_eq!(
            said(&[ONE, TWO], &[ONE, TWO, SILENT]),
            "the database schema has version 3, this program knows versions up to 2; use the newer program or restore \
             a backup"
        );
        // The last one would do for this program; it is what comes before that is not there.
        assert_eq!(
            said(&[ONE, TWO], &[ONE, THREE]),
            "the database schema has version 3 and lacks version 2, which this program would have to apply before it; \
             use the program that made version 3 or restore a backup"
        );
    }

    #[test]
    fn whoever_runs_is_told_whether_to_go_on() {
        let missing = |applied: &[Migration]| {
            let standing = Standing::of(&[ONE, TWO, THREE], &noted(applied)).unwrap();
            (standing.missing.len(), standing.keeps_programs())
        };
        assert_eq!(missing(&[ONE, TWO, THREE]), (0, true));
        assert_eq!(missing(&[ONE, TWO]), (1, true));
        assert_eq!(missing(&[ONE]), (2, false));
        assert_eq!(missing(&[]), (3, false));
    }
}
