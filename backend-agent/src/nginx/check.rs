//! Holds a configuration of nginx against what the backend expects of the proxy in front of it.

use std::path::Path;

use viworks_common::pin::SpkiPin;
use viworks_runtime::config::Problems;
use viworks_runtime::files;

use super::whole::{Findings, Whole};
use super::{asked, directive, operators, passed, renewal, terminated};
use crate::config::{Config, TlsEnd};
use crate::pki::issue::server_pins;

/// Where certbot has its renewals.
pub const RENEWALS: &str = "/etc/letsencrypt/renewal";

/// What is to be checked.
#[derive(Debug, Clone)]
pub struct Question<'q> {
    /// The backend's configuration.
    pub config: &'q Config,
    /// nginx's configuration.
    pub file: &'q Path,
    /// Certbot's folder of renewals; its usual one, where that is there, when nobody names another.
    pub renewal: Option<&'q Path>,
    /// Its usual one: [`RENEWALS`].
    pub usual_renewal: &'q Path,
    /// Whether nginx itself is asked.
    pub ask_nginx: bool,
}

/// What was found to be right, a line each, and behind it what could not be looked at, and what should be better.
///
/// # Errors
///
/// Everything that is wrong, each with its place and what to do.
pub fn check(question: &Question<'_>) -> Result<Vec<String>, Problems> {
    let mut findings = Findings::default();
    // nginx would look for it in a folder of its own.
    let file = &*std::path::absolute(question.file).unwrap_or_else(|_| question.file.to_owned());
    if question.ask_nginx {
        asked::ask(&asked::PROGRAMS, file, &mut findings);
    }
    let is_refused = !findings.problems.is_empty();
    let pins = pins(question, &mut findings);
    match directive::load(file) {
        Ok(directives) => {
            let whole = Whole {
                config: question.config,
                file,
                directives: &directives,
            };
            match question.config.agents.tls_ends_at {
                TlsEnd::Backend => passed::check(&whole, &mut findings),
                TlsEnd::Proxy => terminated::check(&whole, &pins, &mut findings),
            }
            operators::check(&whole, &mut findings);
        }
        // nginx has said it better.
        Err(_) if is_refused => {}
        Err(problem) => findings.problems.push(problem),
    }
    let Findings {
        mut right,
        unseen,
        warnings,
        problems,
    } = findings;
    right.extend(unseen);
    right.extend(warnings);
    Problems::refuse(problems).map(|()| right)
}

/// The keys that gateways pin, and whether they stay.
fn pins(question: &Question<'_>, findings: &mut Findings) -> Vec<SpkiPin> {
    let agents = &question.config.agents;
    let pins = match server_pins(agents) {
        Ok(pins) => pins,
        Err(error) => {
            findings
                .problems
                .push(error.problem(&agents.certificate_file));
            return Vec::new();
        }
    };
    let shown: Vec<_> = pins.iter().map(SpkiPin::to_string).collect();
    findings
        .right
        .push(format!("gateways pin {}", shown.join(" and ")));
    let Some(folder) = question.renewals() else {
        let usual = question.usual_renewal.display();
        findings.unseen.push(format!(
            "not looked at: renewals of certificates, for there is no {usual}; --renewal DIR names another folder"
        ));
        return pins;
    };
    let own = [agents.certificate_file.clone(), agents.key_file.clone()];
    let found = renewal::check(folder, &pins, &own);
    if found.is_empty() {
        let kept = format!("no renewal in {} changes these keys", folder.display());
        findings.right.push(kept);
    }
    findings.problems.extend(found);
    pins
}

impl<'q> Question<'q> {
    /// The folder of renewals to look at. One that is perhaps there is looked at: what keeps us from it will be told.
    fn renewals(&self) -> Option<&'q Path> {
        let usual = || {
            let usual = self.usual_renewal;
            (!files::is_absent(usual)).then_some(usual)
        };
        self.renewal.or_else(usual)
    }
}
