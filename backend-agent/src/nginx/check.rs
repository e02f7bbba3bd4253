//! Holds a configuration of nginx against what the backend expects of the proxy in front of it.

use std::path::Path;
use std::process::Command;

use viworks_common::pin::SpkiPin;
use viworks_runtime::config::{Problem, Problems};
use viworks_runtime::files;

use super::whole::{Findings, Whole};
use super::{directive, operators, passed, renewal, terminated};
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

/// What was found to be right, a line each, and behind it what could not be looked at.
///
/// # Errors
///
/// Everything that is wrong, each with its place and what to do.
pub fn check(question: &Question<'_>) -> Result<Vec<String>, Problems> {
    let mut findings = Findings::default();
    if question.ask_nginx {
        ask_nginx(question.file, &mut findings);
    }
    let pins = pins(question, &mut findings);
    match directive::load(question.file) {
        Ok(directives) => {
            let whole = Whole {
                config: question.config,
                file: question.file,
                directives: &directives,
            };
            match question.config.agents.tls_ends_at {
                TlsEnd::Backend => passed::check(&whole, &mut findings),
                TlsEnd::Proxy => terminated::check(&whole, &pins, &mut findings),
            }
            operators::check(&whole, &mut findings);
        }
        Err(problem) => findings.problems.push(problem),
    }
    let Findings {
        mut right,
        unseen,
        problems,
    } = findings;
    right.extend(unseen);
    Problems::refuse(problems).map(|()| right)
}

fn ask_nginx(file: &Path, findings: &mut Findings) {
    // Of a user who is not root, the path does not lead there.
    let programs = ["nginx", "/usr/sbin/nginx"].into_iter();
    let mut asked =
        programs.map(|nginx| Command::new(nginx).arg("-t").arg("-c").arg(file).output());
    let Some(asked) = asked.find_map(Result::ok) else {
        let line =
            "not looked at: whether nginx can read it, which is not here to be asked (nginx -t)";
        findings.unseen.push(line.to_owned());
        return;
    };
    if asked.status.success() {
        findings
            .right
            .push("nginx can read it (nginx -t)".to_owned());
        return;
    }
    let said = String::from_utf8_lossy(&asked.stderr);
    let cause = said.lines().find(|line| line.contains("[emerg]"));
    let cause = cause.unwrap_or_else(|| said.trim());
    let (_when, cause) = cause.split_once("[emerg] ").unwrap_or(("", cause));
    let help = if cause.contains("Permission denied") {
        "ask as root, as whom nginx starts"
    } else {
        "see nginx -t -c with this file; for the stream module: apt-get install libnginx-mod-stream"
    };
    let message = format!("nginx refuses it: {cause}");
    findings
        .problems
        .push(Problem::of_file(file, message, help));
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
