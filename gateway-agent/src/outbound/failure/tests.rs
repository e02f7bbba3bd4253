//! What each failure is called, what is to be done about it, and how long it waits.

use super::*;

#[test]
fn what_a_server_says_is_shown_without_what_would_forge_a_line() {
    let body = br#"{"code":"revoked","detail":"gone\nconnection   connected","status":403}"#;
    let said = Said::read(body).unwrap();
    assert_eq!(said.known(), Some(CloseCode::Revoked));
    let shown = said.to_string();
    assert!(!shown.contains('\n') && shown.contains("gone"), "{shown}");
    let long = format!(r#"{{"code":"{0}","detail":"{0}"}}"#, "x".repeat(10_000));
    let said = Said::read(long.as_bytes()).unwrap();
    assert_eq!((said.code.len(), said.detail.len()), (64, DETAIL_BYTES_MAX));
    for page in [
        "<html>403</html>",
        "",
        "{}",
        r#"{"code":""}"#,
        r#"{"code":7}"#,
    ] {
        assert_eq!(Said::read(page.as_bytes()), None, "{page}");
    }
}

#[test]
fn a_server_that_revoked_a_certificate_alone_is_told_from_one_that_revoked_the_gateway() {
    let fix = |detail: &str| {
        let declined = DialFailure::Declined {
            status: 403,
            said: Said {
                code: "revoked".to_owned(),
                detail: detail.to_owned(),
            },
            retry_after: None,
        };
        declined.fix()
    };
    assert_eq!(fix("this gateway was revoked"), CloseCode::Revoked.advice());
    let alone = fix("this certificate was revoked; the gateway itself was not");
    assert!(
        alone.contains("only this certificate was revoked"),
        "{alone}"
    );
}

#[test]
fn a_certificate_that_has_ended_is_named_where_it_may_be_the_cause_and_nowhere_else() {
    let (past, now) = (
        Timestamp::from_unix_micros(1),
        Timestamp::from_unix_micros(2),
    );
    let cut = DialFailure::Network {
        step: Step::Upgrade,
        reason: "Broken pipe".to_owned(),
    };
    let named = cut.clone().with_certificate((past, past), now);
    assert!(
        named
            .to_string()
            .contains("certificate ended at 1970-01-01"),
        "{named}"
    );
    assert_eq!(named.class(), FailureClass::PermanentUnproved);
    assert!(named.fix().contains("SIGHUP"));
    assert_eq!(cut.clone().with_certificate((past, now), past), cut);
    let refused = DialFailure::Refused {
        address: "127.0.0.1:1".to_owned(),
    };
    assert_eq!(refused.clone().with_certificate((past, past), now), refused);
}

#[test]
fn a_certificate_that_is_good_here_and_not_there_is_a_question_of_two_clocks() {
    let at = |micros| Timestamp::from_unix_micros(micros);
    let alert = DialFailure::TlsAlert {
        alert: CERTIFICATE_EXPIRED.to_owned(),
        certificate: true,
    };
    let named = alert.clone().with_certificate((at(1), at(3)), at(2));
    let (cause, fix) = (named.to_string(), named.fix());
    assert!(cause.contains("by this gateway's clock"), "{cause}");
    assert!(
        fix.contains("backend whose clock is behind") && fix.contains("renewed"),
        "{fix}"
    );
    assert_eq!(named.class(), FailureClass::PermanentUnproved);
    assert_eq!(named.code(), Some(CloseCode::CertUntrusted));
    let ended = alert.clone().with_certificate((at(1), at(2)), at(3));
    assert!(matches!(ended, DialFailure::CertificateEnded { .. }));
    // Another one may live longer, such as one that somebody put there by hand.
    assert!(named.is_of_the_certificate(true) && ended.is_of_the_certificate(true));
    assert_eq!(alert.clone().with_certificate((at(2), at(3)), at(1)), alert);
}

#[test]
fn what_may_be_chance_speaks_only_against_a_certificate_that_is_still_to_be_proved() {
    let reason = || "reset".to_owned();
    let said = |code: &str| DialFailure::Declined {
        status: 403,
        said: Said {
            code: code.to_owned(),
            detail: String::new(),
        },
        retry_after: None,
    };
    let alert = |certificate| DialFailure::TlsAlert {
        alert: "HandshakeFailure".to_owned(),
        certificate,
    };
    let status = |code| DialFailure::HttpStatus {
        code,
        retry_after: None,
    };
    let network = |step| DialFailure::Network {
        step,
        reason: reason(),
    };
    let hung_up = |step| DialFailure::HungUp {
        step,
        reason: reason(),
    };
    for (failure, of_proved, of_unproved) in [
        (alert(true), true, true),
        (alert(false), false, true),
        (said("cert_untrusted"), true, true),
        (said("revoked"), true, true),
        (said("rate_limited"), false, false),
        (said("a_word_of_a_proxy"), false, true),
        (status(400), false, true),
        (status(401), false, true),
        (status(403), false, true),
        (status(503), false, false),
        (network(Step::Connect), false, false),
        (network(Step::Tls), false, true),
        (hung_up(Step::Connect), false, false),
        (hung_up(Step::Upgrade), false, true),
        (DialFailure::Tls { reason: reason() }, false, true),
        (DialFailure::Subprotocol, false, false),
    ] {
        let found = [true, false].map(|proved| failure.is_of_the_certificate(proved));
        assert_eq!(found, [of_proved, of_unproved], "{failure:?}");
    }
}

#[test]
fn a_certificate_in_whose_place_there_is_a_later_one_is_told_from_others_that_are_refused() {
    let declined = |code: &str, detail: &str| DialFailure::Declined {
        status: 403,
        said: Said {
            code: code.to_owned(),
            detail: detail.to_owned(),
        },
        retry_after: None,
    };
    let said = "this certificate was replaced by a later one of the same gateway, which has connected with that";
    for (code, detail, against) in [
        ("cert_untrusted", said, Against::Retired),
        (
            "cert_untrusted",
            "no certificate was shown",
            Against::Refused,
        ),
        ("revoked", said, Against::Refused),
        ("a_word_of_a_proxy", said, Against::Refused),
    ] {
        assert_eq!(
            declined(code, detail).against(),
            against,
            "{code}: {detail}"
        );
    }
}

#[test]
fn a_port_without_tls_is_told_from_a_fault_of_tls() {
    let plain = TlsError::InvalidMessage(InvalidMessage::InvalidContentType);
    let failure = DialFailure::of_tls(&plain);
    let (cause, fix) = (failure.to_string(), failure.fix());
    assert!(cause.contains("speaks no TLS"), "{cause}");
    assert!(
        fix.contains("listener for agents") && fix.contains("plain HTTP"),
        "{fix}"
    );
    assert_eq!(failure.class(), FailureClass::Transient);
}

#[test]
fn a_server_that_cannot_serve_is_no_mistake_of_the_gateway() {
    for code in 500..=599 {
        let failure = DialFailure::HttpStatus {
            code,
            retry_after: None,
        };
        assert_eq!(failure.class(), FailureClass::Transient, "{code}");
        assert!(failure.fix().starts_with("no action"), "{code}");
    }
    let elsewhere = DialFailure::HttpStatus {
        code: 404,
        retry_after: None,
    };
    assert!(elsewhere.fix().contains("[outbound] url"));
}

/// What the page says about one line of its table, by a phrase of it.
fn next_attempt(phrase: &str) -> String {
    let page = include_str!("../../../../docs/protocol.md");
    let (_, section) = page.split_once("## Reconnecting").unwrap();
    let rows: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with('|') && line.contains(phrase))
        .collect();
    assert_eq!(rows.len(), 1, "{phrase:?} stands in one row");
    rows[0].split('|').nth(2).unwrap().trim().to_owned()
}

#[test]
fn each_failure_waits_as_the_page_of_the_protocol_says() {
    let status = |code| FailureClass::of_http_status(code, None);
    let told = FailureClass::of_http_status(503, Some(Duration::from_secs(1)));
    let refuse = |code| FailureClass::of_refusal(code, None);
    let pin = DialFailure::PinMismatch {
        seen: SpkiPin::from_digest([7; 32]),
    };
    let alert = DialFailure::of_tls(&TlsError::AlertReceived(AlertDescription::UnknownCA));
    let network = DialFailure::Network {
        step: Step::Connect,
        reason: String::new(),
    };
    for (phrase, class) in [
        ("a transient failure", network.class()),
        ("`Retry-After`", told),
        ("a permanent code in REFUSE", refuse(CloseCode::Revoked)),
        ("a TLS alert", alert.class()),
        ("a key that is not pinned", pin.class()),
        ("HTTP 400, 401 or 403", status(400)),
        ("HTTP 400, 401 or 403", status(401)),
        ("HTTP 400, 401 or 403", status(403)),
        (
            "a close frame with a permanent code",
            FailureClass::of_close_frame(4403),
        ),
        (
            "an established session was lost without a word",
            FailureClass::Slot {
                within: Duration::from_secs(1),
            },
        ),
    ] {
        let said = match class {
            FailureClass::Transient => "a ceiling of 1 s that doubles to 60 s",
            FailureClass::Told { .. } => "that delay, capped at 15 min",
            FailureClass::Slot { .. } => "`reconnect_slot_ms`, capped at 15 min",
            FailureClass::PermanentAuthenticated => "between 15 and 60 min",
            FailureClass::PermanentUnproved => {
                "between half and all of a ceiling of 1 min that doubles to 60 min"
            }
        };
        let page = next_attempt(phrase);
        assert!(
            page.contains(said),
            "{phrase}: {class:?}, and the page says {page:?}"
        );
    }
}

#[test]
fn whoever_hangs_up_drops_nothing_and_is_told_from_a_path_that_does() {
    for (kind, hangs_up) in [
        (io::ErrorKind::ConnectionReset, true),
        (io::ErrorKind::UnexpectedEof, true),
        (io::ErrorKind::BrokenPipe, true),
        (io::ErrorKind::TimedOut, false),
        (io::ErrorKind::HostUnreachable, false),
    ] {
        let failure = DialFailure::of_io(&io::Error::from(kind), Step::Tls);
        let (cause, fix) = (failure.to_string(), failure.fix());
        assert!(cause.starts_with("the TLS handshake failed: "), "{cause}");
        assert_eq!(failure.class(), FailureClass::Transient);
        assert_eq!(fix.contains("hangs up"), hangs_up, "{kind}: {fix}");
        assert_eq!(fix.contains("firewall"), !hangs_up, "{kind}: {fix}");
    }
    let at = |step| {
        let limit = Duration::from_secs(1);
        DialFailure::Timeout { step, limit }.fix()
    };
    let silent = at(Step::Upgrade);
    assert!(silent.contains("does not answer"), "{silent}");
    assert!(!silent.contains("firewall"), "{silent}");
    assert!(at(Step::Connect).contains("firewall"));
}

#[test]
fn a_server_without_tls_1_3_is_a_proxy_and_nothing_that_the_backend_logs() {
    let alert = TlsError::AlertReceived(AlertDescription::ProtocolVersion);
    let failure = DialFailure::of_tls(&alert);
    let fix = failure.fix();
    assert!(fix.contains("does not speak TLS 1.3"), "{fix}");
    assert_eq!(failure.class(), FailureClass::Transient);
    let other = TlsError::AlertReceived(AlertDescription::InternalError);
    assert!(DialFailure::of_tls(&other).fix().contains("backend's log"));
}
