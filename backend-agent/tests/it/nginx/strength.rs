//! TLS that is weaker than what ships: a warning, beside whatever else is said of the file.

use super::{SHIPPED, Scene};

#[test]
fn a_weaker_tls_than_what_ships_is_warned_of_and_fits() {
    let scene = Scene::new();
    let ciphers = SHIPPED
        .lines()
        .find(|line| line.contains("ssl_ciphers "))
        .unwrap();
    let warnings = |ciphers_now: &str| {
        let (checked, ended) = scene.checked(&SHIPPED.replace(ciphers, ciphers_now), None);
        assert_eq!(ended, Ok(()));
        checked.warnings
    };
    assert_eq!(warnings(ciphers), []);
    for (weak, told) in [
        ("ssl_ciphers HIGH:!aNULL:!MD5;", "intermediate: HIGH"),
        ("", "without a word about suites"),
    ] {
        let told_now = warnings(weak);
        assert!(
            told_now.len() == 1
                && told_now[0].message.contains(told)
                && told_now[0].help.starts_with("write ssl_ciphers "),
            "{told_now:#?}"
        );
    }
}

#[test]
fn what_is_right_and_what_should_be_better_is_told_of_a_file_that_does_not_fit_as_well() {
    let scene = Scene::new();
    let wrong = SHIPPED
        .replace("proxy_protocol on;", "")
        .replace("ssl_ciphers ", "ssl_ciphers HIGH:");
    let (checked, ended) = scene.checked(&wrong, None);
    let problems = ended.unwrap_err();
    assert!(
        problems
            .to_string()
            .contains("none is sent: no gateway could connect"),
        "{problems}"
    );
    let found = checked.found.join("\n");
    for told in ["gateways pin sha256/", "not looked at: renewals"] {
        assert!(found.contains(told), "{told} is not in:\n{found}");
    }
    let [warning] = &*checked.warnings else {
        panic!("{checked:#?}");
    };
    assert!(warning.message.ends_with("intermediate: HIGH"), "{warning}");
}
