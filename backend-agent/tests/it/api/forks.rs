//! Two holders of one identity: what is shown of both, and what an operator's decision does.

use http::StatusCode;
use serde_json::{Value, json};

use super::harness::{Backend, catalogue};

async fn shown(backend: &Backend) -> Value {
    backend.get("/v1/gateways/gw-1/forks").await.json()["items"].clone()
}

async fn health_of_the_fleet(backend: &Backend) -> Value {
    let health = backend.get("/v1/health").await.json();
    let checks = health["checks"].as_array().unwrap();
    let fleet = checks.iter().find(|check| check["name"] == "fleet");
    fleet.unwrap().clone()
}

#[tokio::test]
async fn an_operator_decides_which_of_two_holders_keeps_an_identity() {
    let backend = Backend::new().await;
    let holder = backend.connect("gw-1", catalogue()).await;
    let second = backend.second_holder(holder.agent_id).await;
    let undecided = shown(&backend).await;
    assert_eq!(undecided[0]["refused"]["agent_run_id"], json!(second));
    assert_eq!(
        undecided[0]["accepted"]["agent_run_id"],
        json!(holder.agent_run_id)
    );
    assert_eq!(undecided[0]["resolution"], Value::Null);
    let fleet = health_of_the_fleet(&backend).await;
    assert_eq!(fleet["figures"]["forks"], 1);
    let told = fleet["detail"].as_str().unwrap();
    let named = "1 fork to decide about, of gw-1 (viworks gateway forks gw-1)";
    assert!(told.contains(named), "{fleet:#}");
    let listed = backend.get("/v1/gateways").await.json();
    assert_eq!(listed["items"][0]["undecided_forks"], 1, "{listed:#}");
    let whole = backend.get("/v1/gateways/gw-1").await.json();
    assert_eq!(whole["last_refusal"]["why"], "fork", "{whole:#}");
    let fix = |whole: &Value| whole["last_refusal"]["fix"].as_str().unwrap().to_owned();
    assert!(fix(&whole).contains("decide who keeps"), "{whole:#}");

    let path = "/v1/gateways/gw-1/forks/resolve";
    let answer = backend.post(path, &json!({"keep": second})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let told = answer.json();
    assert_eq!(
        (&told["already"], &told["session_ended"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(told["kept"]["agent_run_id"], json!(second));
    assert_eq!(told["out"]["agent_run_id"], json!(holder.agent_run_id));
    // It waits for nobody any more, and its kept holder is on its way.
    assert_eq!(told["gateway"]["status"], "offline");
    let fleet = health_of_the_fleet(&backend).await;
    assert_eq!(fleet["figures"]["forks"], 0);
    assert!(
        fleet["detail"].as_str().unwrap().contains(" 0 forks"),
        "{fleet:#}"
    );
    assert_eq!(told["gateway"]["undecided_forks"], 0);
    let again = backend.post(path, &json!({"keep": second})).await.json();
    assert_eq!(again["already"], true);
    // If the first answer was lost between database and backend, the session was not told.
    let cut = (holder.agent_id, holder.epoch);
    assert_eq!(*backend.nudges.given_away.lock().unwrap(), [cut, cut]);

    // What was asked of somebody is asked no more.
    let whole = backend.get("/v1/gateways/gw-1").await.json();
    let last = &whole["last_refusal"];
    assert_eq!(last["why"], "fork", "{whole:#}");
    let cause = last["cause"].as_str().unwrap();
    assert!(cause.contains("this one keeps the identity"), "{whole:#}");
    assert!(
        fix(&whole).starts_with("nothing: it is let in"),
        "{whole:#}"
    );

    let decided = shown(&backend).await;
    let end_of = |run: Value| {
        let forks = decided.as_array().unwrap().iter();
        let mut of = forks.filter(|fork| fork["refused"]["agent_run_id"] == run);
        of.next().unwrap()["resolution"].clone()
    };
    assert_eq!(end_of(json!(second)), "kept");
    assert_eq!(end_of(json!(holder.agent_run_id)), "out");
    let audit = backend.get("/v1/audit").await.json();
    let records = audit["items"].as_array().unwrap().iter();
    let records: Vec<_> = records
        .filter(|record| record["action"] == "identity.resolve")
        .collect();
    let [record] = records[..] else {
        panic!("{records:#?}")
    };
    assert_eq!(record["detail"]["kept"]["agent_run_id"], json!(second));
    assert!(
        record["actor"].as_str().unwrap().starts_with("api_key:"),
        "{record:#}"
    );
}

#[tokio::test]
async fn a_decision_is_for_one_of_the_two_and_not_for_both_ways() {
    let backend = Backend::new().await;
    let holder = backend.connect("gw-1", catalogue()).await;
    backend.second_holder(holder.agent_id).await;
    let path = "/v1/gateways/gw-1/forks/resolve";
    let both = json!({"keep": holder.agent_run_id, "replace": true});
    for (body, field) in [(both, "replace"), (json!({}), "keep")] {
        let refused = backend.post(path, &body).await;
        let problem = refused.problem(422, "VW-H-006");
        assert_eq!(problem["errors"][0]["field"], field, "{problem:#}");
    }
    let stranger = json!({"keep": holder.agent_id});
    let problem = backend.post(path, &stranger).await;
    let problem = problem.problem(404, "VW-N-001");
    assert_eq!(problem["errors"][0]["field"], "keep", "{problem:#}");
    let fix = problem["fix"].as_str().unwrap();
    assert!(fix.contains("viworks gateway forks gw-1"), "{problem:#}");
    let replaced = backend.post(path, &json!({"replace": true})).await.json();
    assert_eq!(replaced["session_ended"], false);
    assert_eq!(replaced["gateway"]["status"], "online");
    assert_eq!(shown(&backend).await[0]["resolution"], "replaced");
    let whole = backend.get("/v1/gateways/gw-1").await.json();
    let told = whole["last_refusal"].to_string();
    assert!(told.contains("an identity of its own"), "{whole:#}");
    assert!(told.contains("--name gw-1-2"), "{whole:#}");
    assert!(!told.contains("decide who keeps"), "{whole:#}");
}

#[tokio::test]
async fn nobody_decides_who_keeps_the_identity_of_a_revoked_gateway() {
    let backend = Backend::new().await;
    let holder = backend.connect("gw-1", catalogue()).await;
    let second = backend.second_holder(holder.agent_id).await;
    let body = json!({"reason": "stolen"});
    let revoked = backend.post("/v1/gateways/gw-1/revoke", &body).await;
    assert!(revoked.status.is_success(), "{}", revoked.text);
    let path = "/v1/gateways/gw-1/forks/resolve";
    for body in [json!({"keep": second}), json!({"replace": true})] {
        let refused = backend.post(path, &body).await;
        let problem = refused.problem(409, "VW-N-002");
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains("was revoked: nobody keeps it"),
            "{problem:#}"
        );
        let fix = problem["fix"].as_str().unwrap();
        assert!(fix.contains("viworks gateway replace gw-1"), "{problem:#}");
    }
    let whole = backend.get("/v1/gateways/gw-1").await.json();
    assert_eq!(
        (&whole["forks"], &whole["undecided_forks"]),
        (&json!(1), &json!(0))
    );
    let fix = whole["last_refusal"]["fix"].as_str().unwrap();
    assert!(!fix.contains("resolve"), "{whole:#}");
    assert!(fix.contains("gateway replace gw-1"), "{whole:#}");
    assert_eq!(health_of_the_fleet(&backend).await["figures"]["forks"], 0);
}
