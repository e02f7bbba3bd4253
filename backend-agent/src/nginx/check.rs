//! Holds a configuration of nginx against what the backend expects of the proxy in front of it.

use std::path::Path;

use viworks_common::pin::{PinSet, SpkiPin};
use viworks_runtime::checked::Checked;
use viworks_runtime::config::{Problem, Problems};
use viworks_runtime::files;
use zeroize::Zeroizing;

use super::asked::{self, Refusal};
use super::whole::{Findings, Whole};
use super::{directive, operators, passed, renewal, terminated};
use crate::config::{AgentsConfig, Config, TlsEnd};
use crate::data::OwnPins;
use crate::pki::authority::Standby;

/// Where certbot has its renewals.
pub const RENEWALS: &str = "/etc/letsencrypt/renewal";

/// More than any private key has.
const KEY_BYTES_MAX: u64 = 64 * 1024;

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
    /// The keys that gateways are to trust, by the database; otherwise why nobody could read that.
    pub in_force: &'q Result<PinSet, String>,
}

/// What a backend with this configuration brings to the question which keys gateways are to trust; nothing where its
/// own key cannot be read, which [`check`] tells.
#[must_use]
pub fn own_pins(config: &Config) -> Option<OwnPins> {
    let pins = pinned(&config.agents, &mut Findings::default()).ok()?;
    Some(OwnPins {
        live: *pins.first()?,
        configured: PinSet {
            version: config.agents.pin_set_version,
            pins: pins.into_iter().collect(),
        },
    })
}

/// Puts into `checked` what was found to be right, a line each, behind it what could not be looked at, and beside it
/// what should be better: all of that whether the file fits or not.
///
/// # Errors
///
/// Everything that is wrong, each with its place and what to do: that the file is not there, or what nginx itself
/// refuses, comes first, and where nobody can read the file, nothing is said of where it leads. Whoever shows the error
/// puts it beside what was found.
pub fn check(question: &Question<'_>, checked: &mut Checked) -> Result<(), Problems> {
    let mut findings = Findings::default();
    // nginx would look for it in a folder of its own.
    let file = &*std::path::absolute(question.file).unwrap_or_else(|_| question.file.to_owned());
    if files::is_absent(file) {
        let help = "name the file that nginx starts with, such as /etc/nginx/nginx.conf";
        findings.refusal = Some(Refusal {
            problem: Problem::of_file(file, "there is no such file", help),
            is_understood: false,
        });
    } else if question.ask_nginx {
        asked::ask(&asked::PROGRAMS, file, &mut findings);
    }
    let is_understood = findings.refusal.as_ref().is_none_or(|it| it.is_understood);
    let pins = pins(question, &mut findings);
    // Of a file that is not there, or that nginx does not understand, nobody knows where it leads: whatever would be
    // said of that follows from the refusal.
    let read = is_understood.then(|| directive::load(file));
    match read {
        None => {}
        Some(Ok(directives)) => {
            let whole = Whole {
                config: question.config,
                file,
                directives: &directives,
            };
            match question.config.agents.tls_ends_at {
                TlsEnd::Backend => passed::agents(&whole, &mut findings),
                TlsEnd::Proxy => terminated::check(&whole, &pins, &mut findings),
            }
            passed::door(&whole, &mut findings);
            operators::check(&whole, &mut findings);
        }
        // nginx has said it better.
        Some(Err(_)) if findings.refusal.is_some() => {}
        Some(Err(problem)) => findings.problems.push(problem),
    }
    let Findings {
        refusal,
        right,
        unseen,
        warnings,
        problems,
    } = findings;
    checked.found.extend(right);
    checked.found.extend(unseen);
    checked.warnings.extend(warnings);
    if let Some(refusal) = refusal {
        return Err(Problems::led_by(refusal.problem, problems));
    }
    Problems::refuse(problems)
}

/// The keys that gateways pin by the configuration, read whoever could change their files, as [`renewal::pin`] does.
fn pinned(agents: &AgentsConfig, findings: &mut Findings) -> Result<Vec<SpkiPin>, Problem> {
    let file = &agents.certificate_file;
    let own = renewal::pin(file).map_err(|why| {
        let help = "have it made by viworks-backend-agent pki init, and ask check-config about it";
        Problem::of_file(file, why, help)
    })?;
    let mut pins = vec![own];
    if let Some(next) = &agents.next_key_file {
        match next_pin(next) {
            // One that was put in place is named as the next one until the configuration is written anew.
            Ok(pin) if pin == own => {}
            Ok(pin) => pins.push(pin),
            Err(why) => findings.unseen.push(format!(
                "not looked at: the key that gateways pin beside it, {}: {why}",
                next.display()
            )),
        }
    }
    Ok(pins)
}

fn next_pin(file: &Path) -> Result<SpkiPin, String> {
    let read = files::read_at_most(file, KEY_BYTES_MAX).map_err(|error| error.to_string())?;
    let read = Zeroizing::new(read);
    let text = std::str::from_utf8(&read).map_err(|error| error.to_string())?;
    let standby = Standby::load(text).map_err(|error| error.to_string())?;
    Ok(standby.pin)
}

/// The keys that gateways pin, and whether they stay.
fn pins(question: &Question<'_>, findings: &mut Findings) -> Vec<SpkiPin> {
    let agents = &question.config.agents;
    let configured = match pinned(agents, findings) {
        Ok(pins) => pins,
        Err(problem) => {
            findings.problems.push(problem);
            return Vec::new();
        }
    };
    let listed = |pins: &[SpkiPin]| -> String {
        let pins: Vec<_> = pins.iter().map(SpkiPin::to_string).collect();
        pins.join(" and ")
    };
    let pins = match question.in_force {
        Ok(set) => {
            let of_files = configured.iter().filter(|pin| set.contains(pin));
            let others = set.pins.iter().filter(|pin| !configured.contains(pin));
            let pins: Vec<_> = of_files.chain(others).copied().collect();
            let listed = listed(&pins);
            findings.right.push(format!("gateways pin {listed}"));
            pins
        }
        Err(why) => {
            let listed = listed(&configured);
            findings
                .right
                .push(format!("gateways pin {listed} by the configuration"));
            findings.unseen.push(format!(
                "not looked at: keys that were staged, promoted or retired since, which are in the database: {why}"
            ));
            configured.clone()
        }
    };
    let Some(folder) = question.renewals() else {
        let usual = question.usual_renewal.display();
        findings.unseen.push(format!(
            "not looked at: renewals of certificates, for there is no {usual}; --renewal DIR names another folder"
        ));
        return pins;
    };
    let own = [agents.certificate_file.clone(), agents.key_file.clone()];
    // The one that is shown must not change, whether it is in force already or still.
    let mut kept = pins.clone();
    kept.extend(configured.iter().filter(|pin| !pins.contains(pin)));
    let found = renewal::check(folder, &kept, &own);
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
