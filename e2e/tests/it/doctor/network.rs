//! What is wrong between the gateway and a session: names, addresses, keys, whatever answers instead of the backend.

use viworks_common::key::BindingMode;

use super::*;

/// What answers the upgrade, in its own words.
fn page(status: &str) -> Answer {
    Answer::Http(format!(
        "HTTP/1.1 {status}\r\nContent-Length: 9\r\n\r\n<b>no</b>"
    ))
}

async fn hold(ward: &Ward, patient: &Patient, url: &str, wanted: Wanted<'_>) {
    wanted.hold(&ward.walk(&patient.path, url).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_that_leads_nowhere_or_to_somebody_else_is_named() {
    let ward = Ward::new(&["gw-1"]);
    let patient = ward.copy("gw-1");
    let case = |name, step, cause, fix| Wanted {
        name,
        step,
        code: 69,
        cause,
        fix,
    };
    let wanted = case("a name that nobody has", "dns", &["resol"], &["DNS"]);
    hold(&ward, &patient, "wss://backend.invalid:8081", wanted).await;
    let wanted = case(
        "a closed port",
        "tcp",
        &["refused the connection"],
        &["check that the backend runs"],
    );
    hold(&ward, &patient, &closed(), wanted).await;

    let stand_in = StandIn::start(&ward.backend(), Answer::Clock(0))
        .await
        .unwrap();
    let address = stand_in.url.trim_start_matches("wss://");
    let proxy = Proxy::before(address.split('/').next().unwrap())
        .await
        .unwrap();
    proxy.set(Network::HalfOpen);
    let dropped = format!("wss://{}", proxy.address());
    let wanted = case(
        "a firewall that drops",
        "tls",
        &["the TLS handshake took longer"],
        &["firewall"],
    );
    hold(&ward, &patient, &dropped, wanted).await;
    let wanted = case(
        "somebody who hangs up",
        "tls",
        &["the TLS handshake failed"],
        &["hangs up", "where the backend expects one"],
    );
    hold(&ward, &patient, &talker(""), wanted).await;

    let other = talker("SSH-2.0-OpenSSH_9.2p1\r\n");
    let wanted = case("no TLS", "tls", &["TLS failed"], &["speaks TLS 1.3"]);
    hold(&ward, &patient, &other, wanted).await;
    let proxy = talker("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    let wanted = case(
        "a proxy without TLS",
        "tls",
        &["TLS failed", "speaks no TLS"],
        &["speaks TLS 1.3"],
    );
    hold(&ward, &patient, &proxy, wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_certificates_of_others_are_named() {
    let (ward, foreign) = (Ward::new(&["gw-1"]), Ward::new(&["gw-1"]));
    let stand_in = StandIn::start(&ward.backend(), Answer::Clock(0))
        .await
        .unwrap();
    let url = stand_in.url.as_str();
    let case = |name, cause, fix| Wanted {
        name,
        step: "tls",
        code: 69,
        cause,
        fix,
    };
    let patient = ward.copy("gw-1");
    patient.take(&foreign.backend(), &["ca.crt"]);
    let wanted = case("another authority", &["is not trusted"], &["ca_file"]);
    hold(&ward, &patient, url, wanted).await;

    let patient = ward.copy("gw-1");
    let toml = patient.read("gateway.toml");
    let pins = foreign.copy("gw-1").read("gateway.toml");
    let listed = |text: &str| {
        let from = text.find("pins = [").unwrap();
        let to = from + text[from..].find(']').unwrap();
        (from, to, text[from..to].to_owned())
    };
    let (from, to, _own) = listed(&toml);
    let wrong = format!("{}{}{}", &toml[..from], listed(&pins).2, &toml[to..]);
    patient.write("gateway.toml", wrong);
    let wanted = case(
        "another pin",
        &["which is not pinned", "sha256/"],
        &["pins"],
    );
    hold(&ward, &patient, url, wanted).await;

    let patient = ward.copy("gw-1");
    patient.configure("ca_file", "server_name = \"other.example.org\"\nca_file");
    let wanted = case("another name", &["is for another name"], &["server_name"]);
    hold(&ward, &patient, url, wanted).await;

    let patient = ward.copy("gw-1");
    let odd = ward.system.path().join("ended");
    let ended = ward.server(&odd, -7_200, -60).await;
    let wanted = case(
        "a server's certificate that ended",
        &["not valid at this gateway's time"],
        &["clock"],
    );
    hold(&ward, &patient, &ended.url, wanted).await;
    let odd = ward.system.path().join("early");
    let early = ward.server(&odd, 3_000, 7_200).await;
    let wanted = case(
        "a server's certificate of tomorrow",
        &["not valid at this gateway's time"],
        &["clock"],
    );
    hold(&ward, &patient, &early.url, wanted).await;

    let stranger = ward.copy("gw-1");
    let files = ["gateway.crt", "gateway.key", "identity.json"];
    stranger.take(&foreign.folder("gw-1"), &files);
    let wanted = case(
        "a foreign certificate",
        &["alert"],
        &["issued by the backend's own authority"],
    );
    hold(&ward, &stranger, url, wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_answers_instead_of_a_session_is_named() {
    let ward = Ward::new(&["gw-1"]);
    let patient = ward.copy("gw-1");
    let stand_in = StandIn::start(&ward.backend(), Answer::Clock(0))
        .await
        .unwrap();
    let case = |name, step, cause, fix| Wanted {
        name,
        step,
        code: 69,
        cause,
        fix,
    };
    for (answer, wanted) in [
        (
            page("404 Not Found"),
            case(
                "404",
                "upgrade",
                &["404 instead of 101"][..],
                &["path of [outbound] url"][..],
            ),
        ),
        (
            page("200 OK"),
            case(
                "a page",
                "upgrade",
                &["200 instead of 101"],
                &["Upgrade and Connection"],
            ),
        ),
        (
            page("301 Moved Permanently"),
            case(
                "a detour",
                "upgrade",
                &["301 instead of 101"],
                &["Upgrade and Connection"],
            ),
        ),
        (
            page("502 Bad Gateway"),
            case(
                "502",
                "upgrade",
                &["502 instead of 101"],
                &["look into their logs"],
            ),
        ),
        (
            page("503 Service Unavailable"),
            case(
                "503",
                "upgrade",
                &["503 instead of 101"],
                &["check that the backend runs"],
            ),
        ),
        (
            page("407 Proxy Authentication Required"),
            case(
                "407",
                "upgrade",
                &["407 instead of 101"],
                &["backend's listener"],
            ),
        ),
        (
            Answer::Challenge(2, 3, BindingMode::Exporter),
            case("another version", "challenge", &["protocol_too_old"], &[""]),
        ),
        (
            Answer::Challenge(1, 1, BindingMode::Certificate),
            case("another binding", "challenge", &["binding"], &["binding"]),
        ),
    ] {
        stand_in.answer(answer);
        hold(&ward, &patient, &stand_in.url, wanted).await;
    }
    for (ahead, side) in [(3_600, "behind"), (-3_600, "ahead of")] {
        stand_in.answer(Answer::Clock(ahead));
        let wanted = Wanted {
            name: side,
            step: "clock",
            code: 20,
            cause: &["this clock is ", side, "the backend's"],
            fix: &["set this machine's clock"],
        };
        hold(&ward, &patient, &stand_in.url, wanted).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_backend_itself_refuses_is_named() {
    let mut ward = Ward::new(&["gw-1", "gw-2", "gw-3"]);
    let config = ward.system.backend_config();
    let revoke = ["gateway", "revoke", "gw-2", "--config", text(&config)];
    let _said = run(&ward.system.binaries().backend(), &revoke);
    ward.system.start_backend(Start::default()).await;
    let url = ward.agents_url();
    let case = |name, cause, fix| Wanted {
        name,
        step: "upgrade",
        code: 69,
        cause,
        fix,
    };
    let revoked = ward.copy("gw-2");
    let wanted = case(
        "revoked",
        &["revoked", "HTTP 403"],
        &["viworks gateway replace"],
    );
    hold(&ward, &revoked, &url, wanted).await;

    let unknown = ward.copy("gw-3");
    let key = KeyPair::generate().unwrap();
    unknown.write("gateway.key", key.serialize_pem());
    ward.reissue(&unknown, -60, 3_600);
    let wanted = case(
        "not registered",
        &["cert_untrusted", "not registered"],
        &[""],
    );
    hold(&ward, &unknown, &url, wanted).await;

    let lost = format!("{url}/elsewhere");
    let wanted = case(
        "a wrong path",
        &["404"],
        &["path of [outbound] url", "that of the door"],
    );
    hold(&ward, &ward.copy("gw-1"), &lost, wanted).await;

    // All is well, but nobody has started it.
    let wanted = Wanted {
        name: "no agent",
        step: "session",
        code: 69,
        cause: &["no agent runs", "api.sock"],
        fix: &["see whether it runs", "start it: "],
    };
    hold(&ward, &ward.copy("gw-1"), &url, wanted).await;
}
