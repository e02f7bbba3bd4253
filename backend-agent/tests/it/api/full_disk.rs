//! Every operation that writes, on a disk that becomes full: it is refused as the description says.

use std::collections::BTreeSet;

use serde_json::json;
use viworks_common::pin::SpkiPin;

use super::declared::Outcome;
use super::harness::{Answer, Backend, catalogue};

/// Asks for each of them until the disk is full; what was answered on the way.
pub(super) async fn outcomes() -> BTreeSet<Outcome> {
    let backend = Backend::with(|_limits, queue| {
        (queue.per_gateway, queue.global) = (100_000, 100_000);
    })
    .await;
    let holder = backend.connect("gw-1", catalogue()).await;
    let (mut runs, mut keys, mut tickets) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..80 {
        backend.submit_uptime().await;
    }
    let dead = backend.kill_queued(&holder).await;
    let (retried, discarded) = dead.split_at(40);
    let body = json!({"name": "x", "scopes": ["runs:read"]});
    let ticket = json!({"uses": 1});
    for _ in 0..40 {
        runs.push(backend.submit_uptime().await);
        let made = backend.post("/v1/apikeys", &body).await.json();
        keys.push(made["key"]["id"].as_str().unwrap().to_owned());
        let made = backend.post("/v1/tickets", &ticket).await.json();
        tickets.push(made["ticket"]["id"].as_str().unwrap().to_owned());
    }
    let (mut gateways, mut rekeyed) = (Vec::new(), Vec::new());
    let mut certificates = Vec::new();
    for n in 0..40 {
        gateways.push(backend.register(&format!("gw-out-{n}")).await);
        certificates.push(backend.certify(holder.agent_id, n).await);
        rekeyed.push(backend.register(&format!("gw-key-{n}")).await);
    }
    let holders = [
        holder.agent_run_id,
        backend.second_holder(holder.agent_id).await,
    ];
    let pin = |n: u8| json!({"pin": SpkiPin::from_digest([n; 32]), "reason": "x".repeat(512)});
    let staged: [u8; 4] = [1, 2, 3, 4];
    for n in staged {
        let done = backend.post("/v1/pins/stage", &pin(n)).await;
        assert_eq!(done.status, 200, "{}", done.text);
    }
    let backend = backend.on_a_full_disk().await;
    let run = json!({"command": "sys.uptime", "targets": {"gateways": ["gw-1"]}});
    until_full("submitRun", async || backend.post("/v1/runs", &run).await).await;
    until_full("createApiKey", async || {
        backend.post("/v1/apikeys", &body).await
    })
    .await;
    until_full("createTicket", async || {
        backend.post("/v1/tickets", &ticket).await
    })
    .await;
    let replace = json!({"expires_in_ms": 60_000});
    until_full("replaceGateway", async || {
        backend.post("/v1/gateways/gw-1/replace", &replace).await
    })
    .await;
    let mut tickets = tickets.into_iter();
    until_full("revokeTicket", async || {
        let path = format!("/v1/tickets/{}", tickets.next().unwrap());
        backend.delete(&path).await
    })
    .await;
    let mut gateways = gateways.into_iter();
    let reason = json!({"reason": "x".repeat(512)});
    until_full("revokeGateway", async || {
        let path = format!("/v1/gateways/{}/revoke", gateways.next().unwrap());
        backend.post(&path, &reason).await
    })
    .await;
    let mut certificates = certificates.into_iter();
    until_full("revokeCertificate", async || {
        let fingerprint = certificates.next().unwrap();
        let path = format!("/v1/gateways/gw-1/certificates/{fingerprint}/revoke");
        backend.post(&path, &reason).await
    })
    .await;
    let mut rekeyed = rekeyed.into_iter();
    until_full("rotateGatewayKey", async || {
        let path = format!("/v1/gateways/{}/rotate-key", rekeyed.next().unwrap());
        backend.post_text(&path, "", &[]).await
    })
    .await;
    let mut runs = runs.into_iter();
    until_full("cancelRun", async || {
        let run = runs.next().unwrap();
        backend
            .post_text(&format!("/v1/runs/{run}/cancel"), "", &[])
            .await
    })
    .await;
    for (verb, dead) in [("retry", retried), ("discard", discarded)] {
        let mut dead = dead.iter();
        until_full(verb, async || {
            let path = format!("/v1/dead-letters/{}/{verb}", dead.next().unwrap());
            backend.post_text(&path, "", &[]).await
        })
        .await;
    }
    let mut keys = keys.into_iter();
    until_full("revokeApiKey", async || {
        backend
            .delete(&format!("/v1/apikeys/{}", keys.next().unwrap()))
            .await
    })
    .await;
    // Each time the other one.
    let mut holders = holders.into_iter().rev().cycle();
    until_full("resolveGatewayFork", async || {
        let keep = json!({"keep": holders.next().unwrap()});
        backend.post("/v1/gateways/gw-1/forks/resolve", &keep).await
    })
    .await;
    let mut more = 5..;
    until_full("stagePin", async || {
        let body = pin(more.next().unwrap());
        backend.post("/v1/pins/stage", &body).await
    })
    .await;
    let mut promoted = staged.into_iter();
    until_full("promotePin", async || {
        let mut body = pin(promoted.next().unwrap());
        body["force"] = json!(true);
        backend.post("/v1/pins/promote", &body).await
    })
    .await;
    let mut retired = staged.into_iter();
    until_full("retirePin", async || {
        let body = pin(retired.next().unwrap());
        backend.post("/v1/pins/retire", &body).await
    })
    .await;
    backend.seen()
}

async fn until_full(what: &str, mut ask: impl AsyncFnMut() -> Answer) {
    for _ in 0..5_000 {
        let answer = ask().await;
        if answer.status == 507 {
            answer.problem(507, "VW-S-003");
            return;
        }
        assert!(answer.status.is_success(), "{what}: {}", answer.text);
    }
    panic!("{what} never met a full disk");
}
