//! Whether the TLS that ends in nginx is what Mozilla recommends as "intermediate", and nothing weaker.

use super::directive::{Directive, in_force};
use super::whole::Findings;

/// The suites of TLS 1.2 in Mozilla's recommendation "intermediate", version 5.7. The last three need a file of DH
/// parameters, without which nginx offers none of them.
const SUITES: [&str; 9] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "DHE-RSA-AES128-GCM-SHA256",
    "DHE-RSA-AES256-GCM-SHA384",
    "DHE-RSA-CHACHA20-POLY1305",
];

/// Protocols that no browser and no command line needs any more.
const OLD: [&str; 4] = ["SSLv2", "SSLv3", "TLSv1", "TLSv1.1"];

/// Key exchanges with keys that are forgotten, as OpenSSL names them.
const EXCHANGES: [&str; 8] = [
    "ECDHE", "EECDH", "kECDHE", "kEECDH", "DHE", "EDH", "kDHE", "kEDH",
];

/// Ciphers that authenticate what they encrypt.
const CIPHERS: [&str; 2] = ["AESGCM", "CHACHA20"];

/// The least level of OpenSSL's that leaves old protocols and short keys out.
const LEVEL_MIN: u8 = 2;

/// What stands in the shipped files.
const PROTOCOLS_HELP: &str = "write ssl_protocols TLSv1.2 TLSv1.3;";

/// What is spoken where these blocks are in force, the last of them within a server.
pub(super) fn check(server: &Directive, blocks: &[&[Directive]], findings: &mut Findings) {
    let protocols = in_force(blocks, "ssl_protocols");
    let spoken = protocols.map_or(&[][..], |it| it.arguments.as_slice());
    if let Some(protocols) = protocols
        && let Some(old) = spoken.iter().find(|it| OLD.contains(&it.as_str()))
    {
        let problem = protocols.problem(format!("{old} is broken"), PROTOCOLS_HELP);
        findings.problems.push(problem);
    }
    if protocols.is_none() {
        let message =
            "before its version 1.27.3 nginx speaks TLS 1.0 and 1.1 where nothing is said about it";
        findings.warn(server.problem(message, PROTOCOLS_HELP));
    }
    // The suites of TLS 1.3 are all as they should be, and chosen somewhere else.
    if protocols.is_some() && !spoken.iter().any(|it| it == "TLSv1.2") {
        return;
    }
    let named = in_force(blocks, "ssl_ciphers");
    let weak: Vec<_> = named.map_or_else(Vec::new, |it| weak(it.value()));
    let message = match named {
        None => "without a word about suites of TLS 1.2 nginx takes weaker ones than Mozilla's intermediate".to_owned(),
        Some(_) if weak.is_empty() => return,
        Some(_) => format!(
            "takes weaker suites of TLS 1.2 than Mozilla's intermediate: {}",
            weak.join(", ")
        ),
    };
    let help = format!("write ssl_ciphers {};", shipped());
    findings.warn(named.unwrap_or(server).problem(message, help));
}

/// The suites that need no further file.
fn shipped() -> String {
    let needless = |suite: &&&str| !suite.starts_with("DHE-");
    let suites: Vec<_> = SUITES.iter().filter(needless).copied().collect();
    suites.join(":")
}

/// The words of a list of OpenSSL's by which more may be taken than the recommendation has.
fn weak(list: &str) -> Vec<&str> {
    let words = list.split([':', ',', ' ']);
    words
        .filter(|word| !word.is_empty() && !is_strong(word))
        .collect()
}

fn is_strong(word: &str) -> bool {
    if let Some(level) = word.strip_prefix("@SECLEVEL=") {
        return level.parse::<u8>().is_ok_and(|level| level >= LEVEL_MIN);
    }
    // What takes suites away, or puts them in an order.
    if word.starts_with(['!', '-', '+', '@']) {
        return true;
    }
    // Of TLS 1.3, which OpenSSL passes over here.
    let is_newer = word.starts_with("TLS_AES_") || word.starts_with("TLS_CHACHA20_");
    let has = |known: &[&str]| word.split('+').any(|part| known.contains(&part));
    is_newer || SUITES.contains(&word) || has(&EXCHANGES) && has(&CIPHERS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use viworks_runtime::config::Problem;

    use super::super::directive::{named, parse};
    use super::*;

    /// Mozilla's recommendation "intermediate", version 5.7, as its configuration generator has it for nginx.
    const MOZILLA_PROTOCOLS: [&str; 2] = ["TLSv1.2", "TLSv1.3"];
    const MOZILLA_CIPHERS: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
        ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:\
        ECDHE-RSA-CHACHA20-POLY1305:DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384:DHE-RSA-CHACHA20-POLY1305";
    const MOZILLA_SETTINGS: [(&str, &str); 2] = [
        ("ssl_prefer_server_ciphers", "off"),
        ("ssl_session_tickets", "off"),
    ];
    const MOZILLA_SESSIONS: (&str, &str) = ("1d", "10m");

    const SHIPPED: [(&str, &str); 3] = [
        ("nginx.conf", include_str!("../../../nginx/nginx.conf")),
        (
            "nginx-terminate.conf",
            include_str!("../../../nginx/nginx-terminate.conf"),
        ),
        (
            "containers/nginx.conf",
            include_str!("../../../containers/nginx.conf"),
        ),
    ];

    #[test]
    fn every_server_that_ships_and_ends_tls_speaks_mozillas_intermediate() {
        let suites =
            |list: &str| -> BTreeSet<String> { list.split(':').map(str::to_owned).collect() };
        // The others need a file that nobody has made.
        let mut wanted = suites(MOZILLA_CIPHERS);
        wanted.retain(|suite| !suite.starts_with("DHE-"));
        for (name, text) in SHIPPED {
            let whole = parse(text, Path::new(name)).unwrap();
            let mut seen = 0;
            for http in named(&whole, "http") {
                for server in named(&http.block, "server") {
                    let ends = |it: &Directive| it.arguments.iter().any(|word| word == "ssl");
                    if !named(&server.block, "listen").any(ends) {
                        continue;
                    }
                    seen += 1;
                    let blocks = [&*http.block, &*server.block];
                    let value = |setting| in_force(&blocks, setting).map_or("", Directive::value);
                    let place = format!("{name}:{}", server.line);
                    let spoken = in_force(&blocks, "ssl_protocols").unwrap();
                    let is_own = |it: &String| MOZILLA_PROTOCOLS.contains(&it.as_str());
                    assert!(spoken.arguments.iter().all(is_own), "{place}");
                    assert!(spoken.arguments.contains(&"TLSv1.3".to_owned()), "{place}");
                    assert_eq!(suites(value("ssl_ciphers")), wanted, "{place}");
                    for (setting, wanted) in MOZILLA_SETTINGS {
                        assert_eq!(value(setting), wanted, "{place}: {setting}");
                    }
                    // Stricter where a session is to show its certificate each time.
                    let (time, size) = MOZILLA_SESSIONS;
                    let cache = value("ssl_session_cache");
                    let is_kept =
                        cache.starts_with("shared:") && cache.ends_with(&format!(":{size}"));
                    assert!(
                        cache == "off" || is_kept && value("ssl_session_timeout") == time,
                        "{place}: {cache}"
                    );
                    let mut findings = Findings::default();
                    check(server, &blocks, &mut findings);
                    assert!(findings.problems.is_empty() && findings.warnings.is_empty());
                }
            }
            assert!(seen > 0, "{name}");
        }
    }

    #[test]
    fn what_the_check_calls_strong_is_mozillas_list() {
        assert_eq!(SUITES.join(":"), MOZILLA_CIPHERS);
    }

    #[test]
    fn words_that_let_weaker_suites_in_are_found() {
        for strong in [
            MOZILLA_CIPHERS,
            "ECDHE+AESGCM:ECDHE+CHACHA20",
            "EECDH+AESGCM:!aNULL:@SECLEVEL=2",
            "TLS_AES_128_GCM_SHA256:ECDHE-RSA-AES128-GCM-SHA256",
            "ECDHE+AESGCM:@STRENGTH:-RSA",
        ] {
            assert_eq!(weak(strong), [""; 0], "{strong}");
        }
        for (list, found) in [
            ("HIGH:!aNULL:!MD5", "HIGH"),
            ("DEFAULT", "DEFAULT"),
            ("ECDHE+AES", "ECDHE+AES"),
            ("AESGCM", "AESGCM"),
            ("RSA+AESGCM", "RSA+AESGCM"),
            ("ECDHE-RSA-AES128-SHA256", "ECDHE-RSA-AES128-SHA256"),
            ("ECDHE+AESGCM:AES128-SHA", "AES128-SHA"),
            ("ECDHE+AESGCM @SECLEVEL=0", "@SECLEVEL=0"),
            (
                "TLS_RSA_WITH_AES_128_CBC_SHA",
                "TLS_RSA_WITH_AES_128_CBC_SHA",
            ),
        ] {
            assert_eq!(weak(list), [found], "{list}");
        }
    }

    #[test]
    fn a_server_that_allows_less_is_warned_of() {
        let told = |settings: &str| {
            let text = format!("server {{\n listen 443 ssl;\n{settings}\n}}");
            let whole = parse(&text, Path::new("nginx.conf")).unwrap();
            let mut findings = Findings::default();
            check(&whole[0], &[&whole[0].block], &mut findings);
            (findings.problems, findings.warnings)
        };
        let both = "ssl_protocols TLSv1.2 TLSv1.3;";
        for (settings, place, words) in [
            ("", "nginx.conf:1:1", "TLS 1.0 and 1.1"),
            (both, "nginx.conf:1:1", "without a word about suites"),
            (
                "ssl_protocols TLSv1.2 TLSv1.3;\nssl_ciphers HIGH:!aNULL;",
                "nginx.conf:4:1",
                "Mozilla's intermediate: HIGH",
            ),
        ] {
            let (problems, warnings) = told(settings);
            assert_eq!(problems, []);
            let warned = |it: &Problem| {
                it.place.to_string() == place
                    && it.message.contains(words)
                    && it.help.starts_with("write ssl_")
            };
            assert!(warnings.iter().any(warned), "{settings}: {warnings:#?}");
        }
        let shipped = format!("{both} ssl_ciphers {};", shipped());
        for settings in [shipped.as_str(), "ssl_protocols TLSv1.3;"] {
            assert_eq!(told(settings), (Vec::new(), Vec::new()), "{settings}");
        }
        let (problems, _warnings) = told("ssl_protocols TLSv1.1 TLSv1.2;");
        assert_eq!(problems[0].message, "TLSv1.1 is broken");
    }
}
