//! What is wrong on the gateway itself.

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use serde_json::json;
use viworks_testkit::small_disk;

use super::*;

/// A spoiled folder, and what is to be said of it.
struct Case {
    spoil: fn(&Ward, &Patient),
    wanted: Wanted<'static>,
}

/// What the configuration, or a file that it names, is refused for.
const fn refused(
    name: &'static str,
    spoil: fn(&Ward, &Patient),
    cause: &'static [&'static str],
    fix: &'static [&'static str],
) -> Case {
    Case {
        spoil,
        wanted: Wanted {
            name,
            step: "config",
            code: 78,
            cause,
            fix,
        },
    }
}

const CASES: &[Case] = &[
    refused(
        "no configuration",
        |_ward, patient| fs::remove_file(patient.at("gateway.toml")).unwrap(),
        &["gateway.toml", "No such file"],
        &[""],
    ),
    refused(
        "a key that there is not",
        |_ward, patient| patient.configure("ca_file", "ca_fil"),
        &["gateway.toml:", "unknown key \"ca_fil\""],
        &["did you mean \"ca_file\""],
    ),
    refused(
        "an address of another kind",
        |_ward, patient| patient.configure("binding = \"exporter\"", "binding = \"tls\""),
        &["gateway.toml:", "tls"],
        &["exporter"],
    ),
    refused(
        "a broken catalogue",
        |_ward, patient| patient.catalogue("[[command]]\nname = \"test.good\n"),
        &["10.toml"],
        &[""],
    ),
    refused(
        "a catalogue that others may write",
        |_ward, patient| {
            patient.catalogue(GOOD_COMMAND);
            patient.mode("commands.d/10.toml", 0o666);
        },
        &["10.toml", "666"],
        &["chmod"],
    ),
    refused(
        "a key that others may read",
        |_ward, patient| patient.mode("gateway.key", 0o644),
        &["gateway.key", "read"],
        &["chmod"],
    ),
    refused(
        "no identity file",
        |_ward, patient| fs::remove_file(patient.at("identity.json")).unwrap(),
        &["identity.json"],
        &[""],
    ),
    refused(
        "another gateway's key",
        |ward, patient| patient.take(&ward.folder("gw-2"), &["gateway.key"]),
        &["gateway.key", "does not fit"],
        &[""],
    ),
    refused(
        "another gateway's identity",
        |ward, patient| patient.take(&ward.folder("gw-2"), &["identity.json"]),
        &["identity.json", "but the certificate is of"],
        &["the same issue"],
    ),
    refused(
        "another gateway's certificate and key",
        |ward, patient| patient.take(&ward.folder("gw-2"), &["gateway.crt", "gateway.key"]),
        &["identity.json", "but the certificate is of"],
        &["the same issue"],
    ),
    refused(
        "a state folder that is a file",
        |_ward, patient| patient.write("state", "not a folder"),
        &["state"],
        &[""],
    ),
    refused(
        "a state folder that others may write",
        |_ward, patient| {
            fs::create_dir_all(patient.at("state")).unwrap();
            patient.mode("state", 0o777);
        },
        &["state", "777"],
        &["chmod"],
    ),
    Case {
        spoil: |ward, patient| ward.reissue(patient, -7_200, -60),
        wanted: Wanted {
            name: "a certificate that has ended",
            step: "certificate",
            code: 69,
            cause: &["gateway.crt", "expired at"],
            fix: &[
                "set door_url",
                "docs/errors/cert_untrusted.md",
                "clock is wrong",
            ],
        },
    },
    Case {
        spoil: |ward, patient| ward.reissue(patient, 3_000, 7_200),
        wanted: Wanted {
            name: "a certificate that is not valid yet",
            step: "certificate",
            code: 69,
            cause: &["gateway.crt", "not valid before"],
            fix: &["set this machine's clock"],
        },
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_certificate_that_has_ended_the_way_and_the_door_are_looked_at() {
    let mut ward = Ward::new(&["gw-1"]);
    let door = Start::default().with("VIWORKS__ENROLMENT__LISTEN", "127.0.0.1:0");
    ward.system.start_backend(door).await;
    let door = format!("https://{}", ward.system.door_address());
    let patient = ward.copy("gw-1");
    ward.reissue(&patient, -7_200, -60);
    let walk = async |door: &str| {
        let mut command = ward.command(&patient.path, &ward.agents_url());
        command.env("VIWORKS__OUTBOUND__DOOR_URL", door);
        finish(command, PATIENCE).await
    };
    let wanted = |cause, fix| Wanted {
        name: "a certificate that has ended",
        step: "certificate",
        code: 69,
        cause,
        fix,
    };
    let said = walk(&door).await;
    wanted(
        &["expired at", "the door answers", "no agent runs"],
        &["start the agent"],
    )
    .hold(&said);
    let told = said.json();
    let found = |name: &str| {
        let steps = told["steps"].as_array().unwrap();
        let step = steps.iter().find(|step| step["name"] == name);
        step.unwrap()["status"].as_str().unwrap().to_owned()
    };
    for name in ["dns", "tcp", "tls", "clock"] {
        assert_eq!(found(name), "pass", "{name}: {told:#}");
    }
    for name in ["agent", "upgrade", "challenge", "session"] {
        assert_eq!(found(name), "skip", "{name}: {told:#}");
    }
    // Nobody is there.
    let nobody = closed().replace("wss://", "https://");
    let said = walk(&nobody).await;
    wanted(
        &["expired at", "no door is there", "refused"],
        &["check door_url", "docs/errors/cert_untrusted.md"],
    )
    .hold(&said);
}

const GOOD_COMMAND: &str = "[[command]]\nname = \"test.good\"\ntitle = \"good\"\nrisk = \"read\"\n\
                            idempotent = true\nargv = [\"/bin/true\"]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_on_the_gateway_is_found_before_anything_is_dialled() {
    let ward = Ward::new(&["gw-1", "gw-2"]);
    // Nobody may be asked: that would be another cause.
    let url = closed();
    for case in CASES {
        let patient = ward.copy("gw-1");
        (case.spoil)(&ward, &patient);
        case.wanted.hold(&ward.walk(&patient.path, &url).await);
        // It leaves no trace.
        let traces = [
            patient.at("state/journal.db"),
            patient.at("state/install_id"),
        ];
        assert!(
            !traces.iter().any(|file| file.exists()),
            "{}",
            case.wanted.name
        );
    }
}

/// What a command needs is no condition of a connection, and a service manager that is busy no fault of the disk's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_helper_that_takes_its_time_is_no_cause() {
    let ward = Ward::new(&["gw-1"]);
    let patient = ward.copy("gw-1");
    patient.catalogue(&GOOD_COMMAND.replace("argv", "user = \"daemon\"\nargv"));
    let helper = patient.at("helper.sock");
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let silent = socket_with(kind.0, kind.1, SocketFlags::CLOEXEC, None).unwrap();
    bind(&silent, &SocketAddrUnix::new(&helper).unwrap()).unwrap();
    listen(&silent, 8).unwrap();
    let mut command = ward.command(&patient.path, &closed());
    command.env("VIWORKS__EXECUTOR__HELPER_SOCKET", &helper);
    let said = finish(command, PATIENCE).await;
    assert!(said.took < IN_TIME, "{said:#?}");
    let told = said.json();
    assert_eq!(told["step"], "tcp", "{told:#}");
    let config = &told["steps"][0];
    assert_eq!(
        (&config["name"], &config["status"]),
        (&json!("config"), &json!("pass"))
    );
    let detail = config["detail"].as_str().unwrap();
    assert!(detail.contains("whether they can is not known"), "{detail}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_and_a_state_folder_that_takes_nothing_are_found() {
    if !small_disk::is_allowed() {
        return;
    }
    let ward = Ward::new(&["gw-1"]);
    let patient = ward.copy("gw-1");
    fs::create_dir_all(patient.at("state")).unwrap();
    patient.mode("state", 0o700);
    fs::write(patient.at("state/journal.db.reserve"), vec![0; 900_000]).unwrap();
    patient.mode("state/journal.db.reserve", 0o600);
    let config = patient.at("gateway.toml");
    let arguments = ["doctor", "-o", "json", "--config", text(&config)];
    let program = ward.system.binaries().gateway();
    let mut full = small_disk::command(&program, &patient.at("state"), 1);
    full.args(arguments).env("VIWORKS__OUTBOUND__URL", closed());
    Wanted {
        name: "a full disk",
        step: "disk",
        code: 20,
        cause: &["KiB are free on the disk of", "state"],
        fix: &["make room"],
    }
    .hold(&finish(full, PATIENCE).await);

    let mut read_only = super::super::checks::read_only(&program, &patient.at("state"));
    read_only
        .args(arguments)
        .env("VIWORKS__OUTBOUND__URL", closed());
    Wanted {
        name: "a state folder on a disk that is read-only",
        step: "config",
        code: 78,
        cause: &["state", "Read-only file system"],
        fix: &[""],
    }
    .hold(&finish(read_only, PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_the_agents_user_is_told_to_be() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let ward = Ward::new(&["gw-1"]);
    let patient = ward.copy("gw-1");
    fs::create_dir_all(patient.at("state")).unwrap();
    for name in ["state", "gateway.key", "identity.json"] {
        std::os::unix::fs::chown(patient.at(name), Some(65_533), Some(65_533)).unwrap();
    }
    Wanted {
        name: "another user's agent",
        step: "config",
        code: 78,
        cause: &["belongs to user 65533", "this is user 0"],
        fix: &["setpriv --reuid 65533", "doctor --config"],
    }
    .hold(&ward.walk(&patient.path, &closed()).await);
}
