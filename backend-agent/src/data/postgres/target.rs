//! A database that is filled by hand: one connection, which its caller waits for.

use super::connection::{Begin, Connection};
use super::error::Error;
use super::{Address, Role, lock, schema};
use crate::data::intents::link::{Link, LinkError, Party};

/// What it has added would not be filled.
pub(in crate::data) const MOVE_WITH_LATER: &str =
    "a later version has added to the database; move the site with the programs of that one";

/// The database, and no backend at it.
#[derive(Debug)]
pub struct Target {
    address: Address,
    connection: Connection,
    /// Has the lock that keeps backends away. Should the server drop it, the notes of the move still do.
    _lock: Connection,
}

impl Target {
    /// Connects, and keeps backends away.
    ///
    /// # Errors
    ///
    /// When the server cannot be used, or a backend has the database.
    pub fn open(address: &Address) -> Result<Self, Error> {
        let first = Connection::open_first(address)?;
        lock::own(&first)?;
        Ok(Self {
            address: address.clone(),
            connection: Connection::open(address)?,
            _lock: first,
        })
    }

    /// Makes the schema or brings it up to date; with `make` false only looks whether it is.
    ///
    /// # Errors
    ///
    /// When it is not, or what the server says.
    pub(in crate::data) fn prepare(&self, make: bool) -> Result<(), Error> {
        let standing = schema::prepare(&self.address, make, Role::Backend)?;
        if standing.is_ahead {
            return Err(Error::Schema(MOVE_WITH_LATER.to_owned()));
        }
        Ok(())
    }

    /// Asks something.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub(in crate::data) fn ask<T>(
        &self,
        work: impl FnOnce(&dyn Link) -> Result<T, LinkError>,
    ) -> Result<T, Error> {
        work(&self.connection).map_err(of_server)
    }

    /// Carries out a transaction.
    ///
    /// # Errors
    ///
    /// What the server says; nothing of it remains then, or it is not known.
    pub(in crate::data) fn transact(
        &self,
        work: impl FnOnce(&dyn Link) -> Result<(), LinkError>,
    ) -> Result<(), Error> {
        self.connection.begin(Begin::Write(Party::Beside))?;
        let done = work(&self.connection).map_err(of_server);
        if done.is_ok() {
            return self.connection.commit();
        }
        self.connection.roll_back();
        done
    }

    /// The same, and leaves nothing of it.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub(in crate::data) fn try_out(
        &self,
        work: impl FnOnce(&dyn Link) -> Result<(), LinkError>,
    ) -> Result<(), Error> {
        self.connection.begin(Begin::Write(Party::Beside))?;
        let done = work(&self.connection).map_err(of_server);
        self.connection.roll_back();
        done
    }
}

fn of_server(error: LinkError) -> Error {
    match error {
        LinkError::Postgres(error) => error,
        // This connection has no other kind.
        LinkError::Sqlite(_) => Error::Closed,
    }
}
