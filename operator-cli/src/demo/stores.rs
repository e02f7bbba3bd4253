//! Where a demo keeps its data, and what its backends share.

/// Where a demo's backends keep their data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stores {
    /// One backend, in its own embedded database.
    Embedded,
    /// Two backends, on a PostgreSQL server that the demo has for itself.
    Postgres,
    /// The same with a Redis server between them.
    PostgresRedis,
}

impl Stores {
    /// Reads the words for it, in any order.
    ///
    /// # Errors
    /// What was expected instead.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut words: Vec<&str> = text.split(',').map(str::trim).collect();
        words.sort_unstable();
        match words.as_slice() {
            ["sqlite"] => Ok(Self::Embedded),
            ["postgres"] => Ok(Self::Postgres),
            ["postgres", "redis"] => Ok(Self::PostgresRedis),
            ["redis"] | ["redis", "sqlite"] => Err(
                "redis is the queue between backends that share a database server: postgres,redis"
                    .to_owned(),
            ),
            ["postgres", .., "sqlite"] => {
                Err("data is in one place: sqlite, postgres, or postgres,redis".to_owned())
            }
            _ => Err("expected sqlite, postgres, or postgres,redis".to_owned()),
        }
    }

    /// The words for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedded => "sqlite",
            Self::Postgres => "postgres",
            Self::PostgresRedis => "postgres,redis",
        }
    }

    /// Where the data is, in a sentence.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Embedded => "SQLite",
            Self::Postgres => "PostgreSQL",
            Self::PostgresRedis => "PostgreSQL with Redis",
        }
    }

    /// What it is made of, in the demo's first line.
    #[must_use]
    pub const fn parts(self) -> &'static str {
        match self {
            Self::Embedded => "SQLite + in-process queue",
            Self::Postgres => "PostgreSQL + in-process queue",
            Self::PostgresRedis => "PostgreSQL + Redis",
        }
    }

    /// Where identities are, in a sentence.
    #[must_use]
    pub const fn place(self) -> &'static str {
        match self {
            Self::Embedded => "in the embedded database",
            Self::Postgres | Self::PostgresRedis => "in the database server",
        }
    }

    /// Whether several backends can share it.
    #[must_use]
    pub const fn is_shared(self) -> bool {
        matches!(self, Self::Postgres | Self::PostgresRedis)
    }
}

#[cfg(test)]
mod tests {
    use super::Stores;

    #[test]
    fn what_goes_together_is_read_in_any_order_and_what_does_not_is_refused() {
        for stores in [Stores::Embedded, Stores::Postgres, Stores::PostgresRedis] {
            assert_eq!(Stores::read(stores.name()), Ok(stores));
        }
        assert_eq!(Stores::read("redis, postgres"), Ok(Stores::PostgresRedis));
        for text in ["redis", "sqlite,redis"] {
            let refused = Stores::read(text).unwrap_err();
            assert!(refused.contains("share a database server"), "{refused}");
        }
        for text in ["sqlite,postgres", "postgres,redis,sqlite"] {
            let refused = Stores::read(text).unwrap_err();
            assert!(refused.contains("in one place"), "{refused}");
        }
        for text in ["", ",", "mysql", "postgres,postgres", "postgres,valkey"] {
            let refused = Stores::read(text).unwrap_err();
            assert!(refused.starts_with("expected sqlite"), "{text}: {refused}");
        }
    }
}
