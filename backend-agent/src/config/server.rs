//! Where a server is that something of the site may be kept on, and the files that go with that.

use std::fmt;
use std::path::Path;

use viworks_runtime::config::Section;
use viworks_runtime::files;

use crate::credentials::CredentialError;

/// A section that names a server, or goes without one.
pub(super) struct Named<'a> {
    /// What there is without a server.
    pub(super) instead: &'static str,
    /// The shortest URL of one.
    pub(super) shortest: &'static str,
    /// How `url` may be set.
    pub(super) like: &'static str,
    /// The files that go with it.
    pub(super) password_file: Option<&'a Path>,
    pub(super) ca_file: Option<&'a Path>,
}

impl Named<'_> {
    /// Says what is wrong with it. `file` tells of an error whether it is one of a file.
    pub(super) fn check<T, E: fmt::Display>(
        &self,
        section: &mut Section<'_>,
        address: Result<Option<T>, E>,
        file: fn(&E) -> Option<&CredentialError>,
    ) {
        match address {
            Ok(Some(_)) => {}
            Ok(None) => {
                if self.password_file.is_some() || self.ca_file.is_some() {
                    section.problem(
                        "url",
                        format!("{} has no password and no certificate", self.instead),
                        format!(
                            "name a server as url = \"{}\", or leave both out",
                            self.shortest
                        ),
                    );
                }
            }
            Err(error) => match file(&error) {
                Some(error) => self.tell_file(section, error),
                None => section.problem("url", error.to_string(), self.like),
            },
        }
    }

    /// What is wrong with a file as a file was said where it is named.
    fn tell_file(&self, section: &mut Section<'_>, error: &CredentialError) {
        let is_password = self.password_file == Some(error.path());
        let examine = if is_password {
            files::examine_private
        } else {
            files::examine
        };
        if examine(error.path()).is_err() {
            return;
        }
        let (key, help) = if is_password {
            (
                "password_file",
                "password_file names a file with the password on one line, and nothing else in it",
            )
        } else {
            (
                "ca_file",
                "ca_file names the certificate of the authority that signed the server's, PEM",
            )
        };
        section.problem(key, error.to_string(), help);
    }
}
