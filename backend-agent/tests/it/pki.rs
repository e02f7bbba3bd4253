//! The authority: what it makes is accepted by rustls and by OpenSSL, and never overwritten.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;
use viworks_backend_agent::config::{Config, TlsEnd};
use viworks_backend_agent::data::sqlite::SqliteStore;
use viworks_backend_agent::data::{Actor, CertificateRef, GatewayRef, Store, StoreError};
use viworks_backend_agent::material::ServerMaterial;
use viworks_backend_agent::pki::authority::Authority;
use viworks_backend_agent::pki::init::{InitRequest, init};
use viworks_backend_agent::pki::issue::{
    Delivery, GATEWAY_LIFE, IssueRequest, Material, Office, authority_in_force, issue, make,
};
use viworks_backend_agent::pki::place::strange_public_url;
use viworks_backend_agent::pki::{Home, PkiError, crl};
use viworks_common::id::{AgentId, Tenant};
use viworks_common::key::Identity;
use viworks_runtime::clock::{Clock, SystemClock, Timeline};
use viworks_runtime::conditions::Conditions;
use viworks_runtime::config::Environment;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::sqlite::Options;
use viworks_runtime::tls;
use viworks_testkit::process::eventually;

fn request(folder: &Path) -> InitRequest {
    InitRequest {
        folder: folder.to_owned(),
        trust_domain: "viworks.test".parse().unwrap(),
        server_names: ["localhost", "127.0.0.1", "::1"]
            .map(str::to_owned)
            .to_vec(),
        installed: false,
        authority: None,
    }
}

/// A folder with everything of a new backend in `b`.
pub(crate) fn initialised() -> TempDir {
    tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    init(&request(&folder.path().join("b")), SystemClock.wall()).unwrap();
    folder
}

pub(crate) fn config(folder: &TempDir) -> Config {
    Config::load(
        &folder.path().join("b/backend.toml"),
        &Environment::default(),
    )
    .unwrap()
}

pub(crate) async fn store(config: &Config) -> Arc<dyn Store> {
    viworks_runtime::files::create_private_folder(&config.data.state_folder).unwrap();
    let store = SqliteStore::open(Options::new(&config.data.sqlite_file)).await;
    Arc::new(store.unwrap())
}

pub(crate) async fn join(
    store: &dyn Store,
    office: &Office,
    name: &str,
    life: Duration,
) -> Result<Material, PkiError> {
    let request = IssueRequest {
        name: name.parse().unwrap(),
        labels: [].into(),
        life,
    };
    let (tenant, now) = (Tenant::default_tenant(), SystemClock.wall());
    let (material, gateway) = make(&tenant, office, request, now)?;
    store
        .create_gateway(&tenant, gateway, &Actor::system(), now)
        .await?;
    Ok(material)
}

#[test]
fn a_public_address_that_the_certificate_is_not_for_is_told() {
    let folder = initialised();
    let told = |config: &Config| -> Vec<String> {
        let found = strange_public_url(config);
        found.iter().map(ToString::to_string).collect()
    };
    let mut config = config(&folder);
    config.enrolment.listen = Some("127.0.0.1:8082".parse().unwrap());
    assert_eq!(told(&config), [""; 0]);
    // Of the certificate's names, in the forms that there are.
    config.enrolment.public_url = Some("https://127.0.0.1:8082".to_owned());
    for url in ["wss://localhost", "wss://[::1]:9/agent/v1/connect"] {
        config.agents.public_url = Some(url.to_owned());
        assert_eq!(told(&config), [""; 0], "{url}");
    }
    config.agents.public_url = Some("wss://agents.example.org".to_owned());
    config.enrolment.public_url = Some("https://enrol.example.org:8082".to_owned());
    // At the door machines look at the key alone.
    let found = told(&config);
    let [told_of] = &found[..] else {
        panic!("{found:#?}");
    };
    for words in [
        "public_url in [agents]",
        "server.crt is not for agents.example.org",
        "help: correct public_url",
    ] {
        assert!(told_of.contains(words), "{told_of}");
    }
    // A start says so as well, and is no worse for it.
    let material = ServerMaterial::load(&config).unwrap();
    let warnings = material.warnings(&config, SystemClock.wall());
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    // What a proxy shows where it ends TLS is not known here.
    config.agents.tls_ends_at = TlsEnd::Proxy;
    assert_eq!(told(&config), [""; 0]);
}

#[test]
fn nothing_is_overwritten_and_secrets_are_private() {
    let folder = initialised();
    let again = init(&request(&folder.path().join("b")), SystemClock.wall());
    assert!(matches!(again, Err(PkiError::Exists { .. })), "{again:?}");
    for (name, mode) in [
        ("", 0o700),
        ("ca.key", 0o600),
        ("server.key", 0o600),
        ("next.key", 0o600),
        ("master.key", 0o600),
    ] {
        let found = folder
            .path()
            .join("b")
            .join(name)
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(found & 0o777, mode, "{name}");
    }
}

#[tokio::test]
async fn a_gateway_gets_everything_it_needs_and_its_name_is_taken_for_ever() {
    let folder = initialised();
    let config = config(&folder);
    let (office, store) = (Office::open(&config).unwrap(), store(&config).await);
    assert_eq!(office.pins.len(), 2);
    let delivery = delivery(&folder);
    let agent_id = deliver(&*store, &office, "gw-1", &delivery).await.unwrap();
    let known = Identity {
        tenant: Tenant::default_tenant(),
        agent_id,
    };
    let identity: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("g/identity.json")).unwrap())
            .unwrap();
    assert_eq!(identity["agent_id"], agent_id.to_string());
    assert_eq!(
        identity["token"],
        office.master.token(&known, 0).expose_hex()
    );
    assert_eq!(identity["key_generation"], 1);
    let toml = std::fs::read_to_string(folder.path().join("g/gateway.toml")).unwrap();
    assert!(
        office
            .pins
            .iter()
            .all(|pin| toml.contains(&pin.to_string()))
            && !toml.contains("allow_own_commands"),
        "{toml}"
    );
    let occupied = deliver(&*store, &office, "gw-2", &delivery).await;
    assert!(matches!(occupied, Err(PkiError::Exists { .. })));
    let twice = join(&*store, &office, "gw-1", GATEWAY_LIFE).await;
    assert!(matches!(
        twice,
        Err(PkiError::Store(StoreError::Conflict { .. }))
    ));
    let known = store
        .gateway(
            &Tenant::default_tenant(),
            &GatewayRef::Name("gw-1".parse().unwrap()),
        )
        .await
        .unwrap();
    assert_eq!(known.unwrap().agent_id, agent_id);
    openssl_agrees(folder.path());
    store.close().await;
}

#[tokio::test]
async fn certificates_live_for_ninety_days_and_only_the_authority_outlives_them() {
    let folder = initialised();
    let config = config(&folder);
    let (office, store) = (Office::open(&config).unwrap(), store(&config).await);
    let delivery = delivery(&folder);
    deliver(&*store, &office, "gw-1", &delivery).await.unwrap();
    let now = SystemClock.wall().unix_micros() / 1_000_000;
    let days = |name: &str| {
        let certificate = tls::load_certificates(&folder.path().join(name)).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate[0]).unwrap();
        let seconds = parsed.validity().not_after.timestamp() - now;
        (seconds + 3_600) / 86_400
    };
    assert_eq!((days("b/server.crt"), days("g/gateway.crt")), (90, 90));
    assert!(days("b/ca.crt") > 3_600);
    store.close().await;
}

pub(crate) fn delivery(folder: &TempDir) -> Delivery {
    Delivery {
        folder: folder.path().join("g"),
        url: "wss://localhost:1".to_owned(),
        home: Home::Folder,
    }
}

pub(crate) async fn deliver(
    store: &dyn Store,
    office: &Office,
    name: &str,
    delivery: &Delivery,
) -> Result<AgentId, PkiError> {
    let request = IssueRequest {
        name: name.parse().unwrap(),
        labels: [].into(),
        life: GATEWAY_LIFE,
    };
    let tenant = Tenant::default_tenant();
    issue(
        store,
        &tenant,
        office,
        request,
        delivery,
        &Actor::system(),
        &Timeline::unstored(Arc::new(SystemClock)),
    )
    .await
}

#[tokio::test]
async fn a_delivery_that_was_interrupted_is_finished_or_begun_again() {
    let folder = initialised();
    let config = config(&folder);
    let (office, store) = (Office::open(&config).unwrap(), store(&config).await);
    let delivery = delivery(&folder);
    let mark = delivery.folder.join(".unfinished");
    let certificate = || std::fs::read(delivery.folder.join("gateway.crt")).unwrap();
    // Before anything was written, and before its gateway was registered.
    std::fs::create_dir(&delivery.folder).unwrap();
    for begun in ["", "01a1fbe2-51fb-79ab-baa7-040f308ffe33"] {
        std::fs::write(&mark, begun).unwrap();
        std::fs::write(delivery.folder.join("gateway.crt"), "half a certi").unwrap();
        let name = format!("gw-{}", begun.len());
        deliver(&*store, &office, &name, &delivery).await.unwrap();
        assert!(!mark.exists() && certificate().len() > 100);
    }
    // After it was registered: what was delivered is the one that is known.
    let (name, before) = ("gw-36", certificate());
    let known = GatewayRef::Name(name.parse().unwrap());
    let known = store.gateway(&Tenant::default_tenant(), &known).await;
    let agent_id = known.unwrap().unwrap().agent_id;
    std::fs::write(&mark, agent_id.to_string()).unwrap();
    std::fs::write(delivery.folder.join("gateway.toml"), "[outb").unwrap();
    let finished = deliver(&*store, &office, name, &delivery).await.unwrap();
    assert_eq!(finished, agent_id);
    assert_eq!(certificate(), before);
    let toml = std::fs::read_to_string(delivery.folder.join("gateway.toml")).unwrap();
    assert!(toml.contains("[outbound]") && !mark.exists());
    // A name that is taken leaves nothing behind.
    let other = Delivery {
        folder: folder.path().join("other"),
        ..delivery
    };
    let taken = deliver(&*store, &office, name, &other).await;
    assert!(matches!(
        taken,
        Err(PkiError::Store(StoreError::Conflict { .. }))
    ));
    assert!(!other.folder.exists());
    // A folder that was there stays, and so does what is in it.
    std::fs::create_dir(&other.folder).unwrap();
    std::fs::write(other.folder.join("notes"), "somebody's").unwrap();
    let taken = deliver(&*store, &office, name, &other).await;
    assert!(taken.is_err(), "{taken:?}");
    assert_eq!(std::fs::read_dir(&other.folder).unwrap().count(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_gateway_is_bound_to_what_its_backend_binds_sessions_to() {
    let folder = initialised();
    let store = store(&config(&folder)).await;
    for (number, binding) in ["exporter", "certificate"].into_iter().enumerate() {
        let file = folder.path().join("b/backend.toml");
        let written = std::fs::read_to_string(&file).unwrap();
        let bound = written.replace(
            "binding = \"exporter\"",
            &format!("binding = \"{binding}\""),
        );
        std::fs::write(&file, bound).unwrap();
        let delivery = Delivery {
            folder: folder.path().join(binding),
            ..delivery(&folder)
        };
        let office = Office::open(&config(&folder)).unwrap();
        deliver(&*store, &office, &format!("gw-{number}"), &delivery)
            .await
            .unwrap();
        let toml = std::fs::read_to_string(delivery.folder.join("gateway.toml")).unwrap();
        assert!(
            toml.contains(&format!("\nbinding = \"{binding}\"\n")),
            "{toml}"
        );
    }
    store.close().await;
}

#[tokio::test]
async fn a_machine_with_the_package_gets_the_places_of_its_service() {
    tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let wanted = InitRequest {
        installed: true,
        ..request(&folder.path().join("b"))
    };
    init(&wanted, SystemClock.wall()).unwrap();
    let state = config(&folder).data.state_folder;
    assert_eq!(state, Path::new("/var/lib/viworks-backend"));

    let folder = initialised();
    let config = config(&folder);
    let (office, store) = (Office::open(&config).unwrap(), store(&config).await);
    let delivery = Delivery {
        home: Home::Installed,
        ..delivery(&folder)
    };
    deliver(&*store, &office, "gw-1", &delivery).await.unwrap();
    let toml = std::fs::read_to_string(delivery.folder.join("gateway.toml")).unwrap();
    for line in [
        "state_folder = \"/var/lib/viworks-gateway\"",
        "socket = \"/run/viworks-gateway/api.sock\"",
    ] {
        assert!(toml.contains(line), "{toml}");
    }
    assert!(delivery.folder.join("commands.d").is_dir());
    store.close().await;
}

#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
/// OpenSSL refuses what rustls accepts, such as a leaf whose subject is its issuer's.
fn openssl_agrees(folder: &Path) {
    let verify = |purpose: &str, certificate: &str| {
        Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"])
            .arg(folder.join("b/ca.crt"))
            .arg(folder.join(certificate))
            .output()
    };
    for (purpose, certificate) in [
        ("sslclient", "g/gateway.crt"),
        ("sslserver", "b/server.crt"),
    ] {
        match verify(purpose, certificate) {
            Ok(output) => assert!(output.status.success(), "{certificate}: {output:?}"),
            Err(error) => eprintln!("NOT CHECKED against OpenSSL, which is not installed: {error}"),
        }
    }
    let crossed = verify("sslserver", "g/gateway.crt");
    assert!(
        crossed.map_or(true, |output| !output.status.success()),
        "a gateway's certificate must not serve"
    );
}

#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
fn unchecked(error: &std::io::Error) {
    eprintln!("NOT CHECKED against OpenSSL, which is not installed: {error}");
}

#[tokio::test]
async fn openssl_refuses_by_the_list_what_was_revoked_and_nothing_else() {
    let folder = initialised();
    let mut config = config(&folder);
    config.keys.crl_file = Some(folder.path().join("b/gateways.crl"));
    let (office, store) = (Office::open(&config).unwrap(), store(&config).await);
    let tenant = Tenant::default_tenant();
    let mut files = Vec::new();
    for name in ["gw-1", "gw-2", "gw-3"] {
        let material = join(&*store, &office, name, GATEWAY_LIFE).await.unwrap();
        let file = folder.path().join(format!("{name}.crt"));
        std::fs::write(&file, &material.certificate.certificate).unwrap();
        files.push((file, material));
    }
    let list = config.keys.crl_file.clone().unwrap();
    let written = async || {
        let now = SystemClock.wall();
        let listed = store.withdrawn_certificates(&tenant, now).await.unwrap();
        crl::write(&config, &listed, &list, now).unwrap();
        listed.len()
    };
    // An empty one is one, too.
    assert_eq!(written().await, 0);
    let ca = folder.path().join("b/ca.crt");
    let openssl = |arguments: &[&str], paths: &[(&str, &Path)]| {
        let mut command = Command::new("openssl");
        command.args(arguments);
        for (flag, path) in paths {
            if !flag.is_empty() {
                command.arg(flag);
            }
            command.arg(path);
        }
        command.output()
    };
    let accepted = |file: &Path| {
        // As nginx asks: each certificate of the chain.
        let verify = ["verify", "-crl_check", "-crl_check_all"];
        let paths = [("-CAfile", &*ca), ("-CRLfile", &*list), ("", file)];
        let verified = openssl(&verify, &paths)?;
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        assert!(
            verified.status.success() || said.contains("certificate revoked"),
            "{said}"
        );
        std::io::Result::Ok(verified.status.success())
    };
    match accepted(&files[0].0) {
        Ok(is_accepted) => assert!(is_accepted, "by an empty list"),
        Err(error) => {
            unchecked(&error);
            return;
        }
    }
    let (actor, now) = (Actor::system(), SystemClock.wall());
    let facts = &files[0].1.certificate.facts;
    let which = CertificateRef::Serial(facts.serial.clone());
    let agent_id = files[0].1.identity.agent_id;
    let revoked = store.revoke_certificate(&tenant, agent_id, &which, "copied", &actor, now);
    revoked.await.unwrap();
    let agent_id = files[1].1.identity.agent_id;
    let revoked = store.revoke_gateway(&tenant, agent_id, None, &actor, now);
    revoked.await.unwrap();
    assert_eq!(written().await, 2);
    let found: Vec<_> = files
        .iter()
        .map(|(file, _material)| accepted(file).unwrap())
        .collect();
    assert_eq!(found, [false, false, true]);
    let verify = ["crl", "-noout", "-verify"];
    let paths = [("-in", &*list), ("-CAfile", &*ca)];
    let signed = openssl(&verify, &paths).unwrap();
    let said = String::from_utf8_lossy(&signed.stderr).into_owned();
    assert!(
        signed.status.success() && said.contains("verify OK"),
        "{said}"
    );
    // Whoever runs nginx reads it.
    let mode = std::fs::metadata(&list).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    store.close().await;
}

/// Whoever keeps the list of a backend that has just read its files.
fn keeper(config: Config, store: &Arc<dyn Store>, conditions: &Conditions) -> crl::Keeper {
    let server = ServerMaterial::load(&config).unwrap().server;
    crl::Keeper {
        config: Arc::new(config),
        side: watch::channel(server).1,
        store: Arc::clone(store),
        tenant: Tenant::default_tenant(),
        clock: Arc::new(Timeline::unstored(Arc::new(SystemClock))),
        conditions: conditions.clone(),
    }
}

#[test]
fn the_authority_in_force_signs_with_its_own_key_alone_whatever_its_file_has() {
    let folder = initialised();
    let config = config(&folder);
    let (ca, key) = (
        config.agents.client_ca_file.clone(),
        config.keys.ca_key_file.clone().unwrap(),
    );
    let in_force = ServerMaterial::load(&config)
        .unwrap()
        .server
        .signing
        .clone();
    let (next, next_key) = Authority::create(SystemClock.wall()).unwrap();
    // The certificates of another one, or half of one, are in the file.
    for text in [next.certificate(), "-----BEGIN CERTIFICATE-----\nMIIB"] {
        std::fs::write(&ca, text).unwrap();
        let signs = authority_in_force(&config, &in_force).unwrap();
        assert_eq!(signs.certificate(), in_force);
    }
    std::fs::write(&key, next_key.as_bytes()).unwrap();
    let refused = authority_in_force(&config, &in_force).unwrap_err();
    assert!(
        matches!(&refused, PkiError::NotInForce { key: named } if *named == key),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("SIGHUP"), "{refused}");
    let signs = authority_in_force(&config, next.certificate()).unwrap();
    assert_eq!(signs.certificate(), next.certificate());
}

#[tokio::test]
async fn health_says_of_which_authorities_the_list_is_not() {
    let folder = initialised();
    let mut config = config(&folder);
    let list = folder.path().join("b/gateways.crl");
    config.keys.crl_file = Some(list.clone());
    let ca = config.agents.client_ca_file.clone();
    let (earlier, _key) = Authority::create(SystemClock.wall()).unwrap();
    let both = std::fs::read_to_string(&ca).unwrap() + earlier.certificate();
    std::fs::write(&ca, both).unwrap();
    let conditions = Conditions::new(Arc::new(SystemClock));
    let lifecycle = Lifecycle::new();
    let store = store(&config).await;
    let keeper = keeper(config, &store, &conditions);
    drop(lifecycle.spawn("revocation list", keeper.run(lifecycle.clone())));
    let found = eventually("it is told", Duration::from_secs(20), async || {
        let mut told = conditions.list().into_iter();
        told.find(|condition| condition.name == "pki.crl.authorities")
    });
    let found = found.await;
    assert!(found.cause.contains("CN=ViWorkS authority "), "{found:?}");
    assert!(found.fix.contains("leave ssl_crl out"), "{found:?}");
    // It is written all the same: of the one that signs.
    let issuers = crl::issuers(&std::fs::read(&list).unwrap()).unwrap();
    assert_eq!(issuers.len(), 1, "{issuers:?}");
    lifecycle.stop();
    let _outcome = lifecycle.shutdown(Duration::from_secs(10)).await;
    store.close().await;
}

#[tokio::test]
async fn a_file_that_is_no_list_is_kept_and_told_where_one_was_to_be_written() {
    let folder = initialised();
    let mut config = config(&folder);
    let key = config.keys.master_key_file.clone();
    let written = std::fs::read(&key).unwrap();
    config.keys.crl_file = Some(key.clone());
    // By whoever checks the configuration, and at a start.
    let now = SystemClock.wall();
    let warned = ServerMaterial::load(&config)
        .unwrap()
        .warnings(&config, now);
    let told = warned.iter().any(|it| it.message.contains("is no list"));
    assert!(told, "{warned:?}");
    let (conditions, lifecycle) = (Conditions::new(Arc::new(SystemClock)), Lifecycle::new());
    let store = store(&config).await;
    let refused = crl::write(&config, &[], &key, now).unwrap_err();
    assert!(
        matches!(&refused, PkiError::File(error) if error.is_taken()),
        "{refused:?}"
    );
    let keeper = keeper(config, &store, &conditions);
    drop(lifecycle.spawn("revocation list", keeper.run(lifecycle.clone())));
    let found = eventually("it is told", Duration::from_secs(20), async || {
        let mut told = conditions.list().into_iter();
        told.find(|condition| condition.name == "pki.crl")
    });
    let found = found.await;
    assert!(found.cause.contains("is no list"), "{found:?}");
    lifecycle.stop();
    let _outcome = lifecycle.shutdown(Duration::from_secs(10)).await;
    store.close().await;
    assert_eq!(std::fs::read(&key).unwrap(), written);
}

#[test]
fn a_list_that_nothing_can_sign_is_refused_with_its_place() {
    let folder = initialised();
    let file = folder.path().join("b/backend.toml");
    let written = std::fs::read_to_string(&file).unwrap();
    let list = written.replace("ca_key_file = \"ca.key\"", "crl_file = \"gateways.crl\"");
    assert_ne!(list, written);
    std::fs::write(&file, list).unwrap();
    let refused = Config::load(&file, &Environment::default()).unwrap_err();
    let told = refused.to_string();
    assert!(told.contains("nothing can sign it"), "{told}");
}
