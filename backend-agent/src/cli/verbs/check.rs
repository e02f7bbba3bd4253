//! Verbs that check something: what they found, for people or for programs.

use viworks_runtime::checked::Checked;
use viworks_runtime::config::{Problem, Problems};

use super::super::exit;
use super::super::flags::{ConfigFlag, Format};
use super::migrate;
use super::open::load_all;
use crate::agent::signers::WOULD_BE_CUT_OFF_FIX;
use crate::database;
use crate::setup::Setup;

/// `check-config`: everything that a start reads, and whether the servers take us.
pub(super) async fn config(flag: &ConfigFlag, connect: bool, output: Format) -> anyhow::Result<()> {
    let mut checked = Checked::default();
    let ended = look(flag, connect, &mut checked).await;
    show(checked, ended, flag, output)
}

async fn look(flag: &ConfigFlag, connect: bool, checked: &mut Checked) -> anyhow::Result<()> {
    let setup = load_all(flag)?;
    checked.warnings.clone_from(&setup.warnings);
    checked.warnings.extend(setup.look_over()?);
    let valid = format!("{} is valid", flag.config.display());
    checked.found.push(valid);
    if connect {
        migrate::try_connection(&setup, flag, checked).await?;
    }
    if connect || setup.config.store.is_embedded() {
        checked.warnings.extend(cut_off(&setup).await);
    }
    Ok(())
}

/// That gateways have certificates of an authority that is not in the file, which a backend may have taken or not.
/// Where the database cannot tell, it is not told here: what is wrong with it is for others to say.
async fn cut_off(setup: &Setup) -> Option<Problem> {
    let trusted = &setup.material.authorities;
    let holders = database::cut_off(&setup.config, trusted).await.ok()?;
    let file = &setup.config.agents.client_ca_file;
    let told = (!holders.are_none()).then(|| holders.would_be_cut_off());
    told.map(|told| Problem::of_file(file, told, WOULD_BE_CUT_OFF_FIX))
}

/// Shows what was found, and ends as the check did: an error is told by whoever gets it, and stands in the document as
/// well.
pub(super) fn show(
    mut checked: Checked,
    ended: anyhow::Result<()>,
    flag: &ConfigFlag,
    output: Format,
) -> anyhow::Result<()> {
    if let Err(error) = &ended {
        checked.problems = if let Some(problems) = error.downcast_ref::<Problems>() {
            problems.iter().cloned().collect()
        } else {
            let help = exit::fix_of(error).unwrap_or_default();
            vec![Problem::of_file(&flag.config, format!("{error:#}"), help)]
        };
    }
    let shown = checked.show(output == Format::Json);
    // What the check ended with says more than that its output could not be written.
    ended?;
    shown?;
    Ok(())
}
