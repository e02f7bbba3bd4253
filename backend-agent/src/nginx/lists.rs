//! Lists of revoked certificates: nginx that has one refuses whoever has a certificate of an authority without one.

use viworks_runtime::files;

use super::directive::{Directive, in_force};
use super::whole::{Findings, Whole};
use crate::pki::crl::{self, Signatory};

/// More than a list of as many certificates as one can have.
const BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Directives with the authorities that nginx believes.
const TRUSTED: [&str; 2] = ["ssl_client_certificate", "ssl_trusted_certificate"];

/// Whether each authority that nginx believes has a list, where it goes by lists at all.
pub(super) fn check(whole: &Whole<'_>, blocks: &[&[Directive]], findings: &mut Findings) {
    let Some(list) = in_force(blocks, "ssl_crl") else {
        return;
    };
    let read = |directive: &Directive| -> Result<Vec<u8>, String> {
        let path = whole.path(directive)?;
        files::read_at_most(&path, BYTES_MAX).map_err(|error| error.problem().message)
    };
    let issuers = match read(list).and_then(|text| crl::issuers(&text)) {
        Ok(issuers) => issuers,
        Err(why) => {
            findings.unseen(list, &why);
            return;
        }
    };
    for name in TRUSTED {
        let Some(trusted) = in_force(blocks, name) else {
            continue;
        };
        let authorities = match read(trusted).and_then(|text| crl::authorities(&text)) {
            Ok(authorities) => authorities,
            Err(why) => {
                findings.unseen(trusted, &why);
                continue;
            }
        };
        let has_none = |authority: &&Signatory| !issuers.iter().any(|it| it.is(authority));
        for authority in authorities.iter().filter(has_none) {
            let mut named = authority.name.clone();
            if let Some(key_id) = &authority.key_id
                && issuers.iter().any(|it| it.name == authority.name)
            {
                named = format!("{named} with the key {}", hex::encode(key_id));
            }
            let problem = list.problem(
                format!(
                    "there is no list of {named} in it, which {name} has: nginx refuses every gateway whose \
                     certificate is of that authority, or of one below it"
                ),
                "leave ssl_crl out as long as there is no list of each, or put one of that authority into the file: \
                 the backend itself refuses what is revoked",
            );
            if !findings.problems.contains(&problem) {
                findings.problems.push(problem);
            }
        }
    }
}
