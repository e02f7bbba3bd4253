//! Without a way to the door: the request goes out in a file, and the answer comes back in one.

use std::path::Path;

use viworks_common::enrolment::read_answer_file;
use viworks_common::text;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files::{self, quoted};
use viworks_runtime::stdout;

use super::{left, say, tell_of};
use crate::enrol::{EnrolError, Papers, Places, Staging};
use crate::identity::known_install_id;

/// Makes the key, where there is none yet, and writes the request for its certificate into a new file.
pub(super) fn request(staging: Staging, out: &Path, places: &Places) -> anyhow::Result<ExitCode> {
    let known = known_install_id(places.state()).ok().flatten();
    let written = staging.request(known).and_then(|(request, _install_id)| {
        files::write_new(out, request.as_bytes(), 0o644).map_err(|error| {
            if error.is_taken() {
                let path = out.to_owned();
                EnrolError::RequestTaken { path }
            } else {
                error.into()
            }
        })
    });
    if let Err(error) = written {
        return Err(left(staging, error).into());
    }
    say("key", "ECDSA P-256, made here, never leaves this machine")?;
    say("request", &out.display().to_string())?;
    let name = out
        .file_name()
        .map_or_else(|| quoted(out), |name| quoted(Path::new(name)));
    let folder = quoted(&places.target);
    stdout::print(&format!(
        "\nTake {name} to a machine of the backend, and there, with the name that this gateway is to have:\n  \
         viworks-backend-agent pki sign-request {name} --name NAME --out NAME.answer\nBring the answer back over a way \
         that you trust, for it holds this gateway's secrets, and here:\n  \
         viworks-gateway-agent enroll --out {folder} --answer NAME.answer\n"
    ))?;
    Ok(ExitCode::Ok)
}

/// Takes the answer to the request that was made here. What does not fit changes nothing.
pub(super) fn answered(staging: Staging, file: &Path, places: &Places) -> anyhow::Result<()> {
    let path = file.to_owned();
    if staging.is_fresh() {
        return Err(EnrolError::NoRequest { path }.into());
    }
    let bytes = files::read_private(file).map_err(EnrolError::from)?;
    let known = known_install_id(places.state()).ok().flatten();
    let (request, _install_id) = staging.request(known)?;
    let read = read_answer_file(&bytes).map_err(|bad| bad.to_string());
    let papers = read.and_then(|(answer, secrets)| {
        let papers = Papers {
            answer,
            secrets,
            door: None,
        };
        let life = papers.examine(&request)?;
        is_good(life, SystemClock.wall())?;
        Ok(papers)
    });
    let papers = papers.map_err(|reason| EnrolError::AnswerFile {
        path,
        reason: text::line(&reason).into_owned(),
    })?;
    let filled = staging.fill(&papers, places.home);
    let finished = filled.and_then(|whole| whole.finish(places));
    finished.map_err(|error| error.unkept("answer"))?;
    tell_of(&papers)?;
    let file = quoted(file);
    say(
        "answer",
        &format!("this machine needs it no more, and it holds secrets: rm {file}"),
    )
}

/// Whether a certificate of this life is good now, by the clock of this machine.
fn is_good((from, to): (Timestamp, Timestamp), now: Timestamp) -> Result<(), String> {
    if now < from {
        return Err(format!(
            "its certificate is good from {from} on, and this machine's clock says {now}: set the clock where that is \
             wrong"
        ));
    }
    if now > to {
        return Err(format!(
            "its certificate ended at {to}, and this machine's clock says {now}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_of_an_answer_is_good_in_its_time_alone() {
        let at = |micros| Timestamp::from_unix_micros(micros);
        let life = (at(10), at(20));
        for (now, told) in [
            (9, Some("set the clock")),
            (10, None),
            (20, None),
            (21, Some("ended at")),
        ] {
            let refused = is_good(life, at(now)).err();
            match (refused, told) {
                (None, None) => {}
                (Some(refused), Some(told)) => assert!(refused.contains(told), "{refused}"),
                other => panic!("{now}: {other:?}"),
            }
        }
    }
}
