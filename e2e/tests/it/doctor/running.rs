//! Beside a running agent.

use rustix::process::Signal;
use viworks_testkit::process::eventually;

use super::super::told::status;
use super::*;

async fn epoch(ward: &Ward, folder: &Path) -> Value {
    let said = status(ward.system.binaries(), &folder.join("state/api.sock")).await;
    said.json()["connection"]["epoch"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_not_disturbed_and_its_loss_is_explained() {
    let mut ward = Ward::new(&["gw-1"]);
    let folder = ward.folder("gw-1");
    ward.system.start_backend(Start::default()).await;
    let url = ward.agents_url();
    let gateway = ward.system.start_gateway(&folder, Start::default());
    ward.system.online("gw-1").await;
    let (before, log) = (epoch(&ward, &folder).await, ward.system.backend().log());
    for _ in 0..5 {
        let said = ward.walk(&folder, &url).await.ended_with(0);
        assert_eq!(said.json()["status"], "pass", "{said:#?}");
        assert!(said.took < IN_TIME, "{said:#?}");
    }
    assert_eq!(epoch(&ward, &folder).await, before);
    let forks = ward.system.get("/v1/gateways/gw-1/forks").await;
    assert_eq!(forks["items"], Value::from(Vec::<Value>::new()));
    assert_eq!(
        ward.system.backend().log(),
        log,
        "the backend noticed nothing"
    );

    // The door is needed later, if at all: it is told of, and everything else is as it should be.
    let mut command = ward.command(&folder, &url);
    let door = closed().replace("wss://", "https://");
    command.env("VIWORKS__OUTBOUND__DOOR_URL", &door);
    let said = finish(command, PATIENCE).await.ended_with(0).json();
    let steps = said["steps"].as_array().unwrap();
    let told = steps.iter().find(|step| step["status"] == "warn").unwrap();
    assert_eq!(told["name"], "certificate", "{said:#}");
    let detail = told["detail"].as_str().unwrap();
    assert!(detail.contains(&door), "{said:#}");
    assert!(told["fix"].as_str().unwrap().contains("door_url"));

    gateway.signal(Signal::STOP);
    let stopped = ward.walk(&folder, &url).await;
    gateway.signal(Signal::CONT);
    Wanted {
        name: "an agent that stands still",
        step: "agent",
        code: 69,
        cause: &["does not answer within"],
        fix: &["stands still"],
    }
    .hold(&stopped);

    ward.system.kill_backend();
    eventually("the agent has noticed", PATIENCE, async || {
        let said = status(ward.system.binaries(), &folder.join("state/api.sock")).await;
        (said.code == Some(69)).then_some(())
    })
    .await;
    Wanted {
        name: "a backend that is away",
        step: "tcp",
        code: 69,
        cause: &["refused the connection"],
        fix: &["check that the backend runs"],
    }
    .hold(&ward.walk(&folder, &url).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_hello_shows_is_asked_of_the_running_agent() {
    let mut ward = Ward::new(&["gw-1", "gw-2"]);
    ward.system.start_backend(Start::default()).await;
    let url = ward.agents_url();
    let folder = ward.folder("gw-1");
    let identity = folder.join("identity.json");
    let right = fs::read_to_string(&identity).unwrap();
    let mut wrong: Value = serde_json::from_str(&right).unwrap();
    wrong["agent_key"] = Value::from("09".repeat(32));
    fs::write(&identity, wrong.to_string()).unwrap();
    let _gateway = ward.system.start_gateway(&folder, Start::default());
    eventually("the agent listens", PATIENCE, async || {
        folder.join("state/api.sock").exists().then_some(())
    })
    .await;
    Wanted {
        name: "another agent key",
        step: "session",
        code: 69,
        cause: &["does not accept this gateway's agent key"],
        fix: &["identity_file"],
    }
    .hold(&ward.walk(&folder, &url).await);

    // A copy of a folder whose state was lost is another holder of the identity.
    let folder = ward.folder("gw-2");
    let mut gateway = ward.system.start_gateway(&folder, Start::default());
    ward.system.online("gw-2").await;
    assert!(gateway.stop(PATIENCE).await.success());
    fs::remove_dir_all(folder.join("state")).unwrap();
    let _refused = ward.system.start_gateway(&folder, Start::default());
    eventually("the agent listens", PATIENCE, async || {
        folder.join("state/api.sock").exists().then_some(())
    })
    .await;
    Wanted {
        name: "a state folder that was lost",
        step: "session",
        code: 69,
        cause: &["identity_fork", "state was lost or restored"],
        fix: &["revoke"],
    }
    .hold(&ward.walk(&folder, &url).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_in_the_agents_place_is_no_agent() {
    let ward = Ward::new(&["gw-1"]);
    let patient = ward.copy("gw-1");
    fs::create_dir_all(patient.at("state")).unwrap();
    patient.mode("state", 0o700);
    let listener = UnixListener::bind(patient.at("state/api.sock")).unwrap();
    let _talking = std::thread::spawn(move || {
        for mut connected in listener.incoming().flatten() {
            drop(connected.write_all(b"+OK ready\r\n"));
        }
    });
    Wanted {
        name: "another program at the socket",
        step: "agent",
        code: 69,
        cause: &["is no agent"],
        fix: &["socket in [gateway]"],
    }
    .hold(&ward.walk(&patient.path, &closed()).await);
}
