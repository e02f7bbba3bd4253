//! Gateways, catalogue, telemetry, health and metrics as they are read.

use serde_json::json;
use viworks_backend_agent::data::{TelemetryOutcome, TelemetryWrite};
use viworks_common::catalogue::Risk;
use viworks_common::telemetry::{Batch, FieldValue, Gap, GapReason, Record};
use viworks_common::time::Timestamp;
use viworks_runtime::conditions::Severity;

use super::harness::{Backend, catalogue, entry, now};

#[tokio::test]
async fn gateways_are_listed_by_page_and_shown_by_name_and_id() {
    let backend = Backend::new().await;
    backend.register("gw-new").await;
    let holder = backend.connect("gw-1", catalogue()).await;
    let first = backend.get("/v1/gateways?limit=1").await.json();
    assert_eq!(first["kind"], "GatewayList");
    let next = first["next"].as_str().unwrap();
    let second = backend
        .get(&format!("/v1/gateways?limit=1&cursor={next}"))
        .await
        .json();
    // By id: two of the same millisecond come in either order.
    let mut listed = [&first, &second].map(|page| {
        let gateway = &page["items"][0];
        (gateway["name"].as_str(), gateway["status"].as_str())
    });
    listed.sort_unstable();
    let expected = [("gw-1", "online"), ("gw-new", "never")];
    assert_eq!(
        listed,
        expected.map(|(name, status)| (Some(name), Some(status)))
    );
    assert_eq!(second["next"], serde_json::Value::Null);
    for which in ["gw-1".to_owned(), holder.agent_id.to_string()] {
        let gateway = backend.get(&format!("/v1/gateways/{which}")).await.json();
        assert_eq!(gateway["kind"], "Gateway");
        assert_eq!(gateway["status"], "online");
        assert_eq!(gateway["session"]["epoch"], holder.epoch);
        assert_eq!(gateway["agent_version"], "0.1.0");
        assert_eq!(gateway["queued_commands"], 0);
    }
    let online = backend.get("/v1/gateways?online=true").await.json();
    assert_eq!(online["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_catalogue_says_where_a_command_can_run() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    let mut other = entry("sys.uptime", Risk::Change, vec![]);
    other.unavailable = Some("not installed".to_owned());
    backend.connect("gw-2", vec![other]).await;
    let list = backend.get("/v1/catalogue").await.json();
    let names: Vec<_> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["name"].clone())
        .collect();
    assert_eq!(
        names,
        ["log.tail", "service.restart", "sys.reboot", "sys.uptime"]
    );
    let uptime = &list["items"][3];
    assert_eq!(
        (&uptime["available"], &uptime["unavailable"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(
        (&uptime["risk"], &uptime["definitions"]),
        (&json!("change"), &json!(2))
    );
    let shown = backend.get("/v1/catalogue/sys.uptime").await.json();
    let gateways = shown["gateways"].as_array().unwrap();
    let second = gateways
        .iter()
        .find(|row| row["gateway"]["name"] == "gw-2")
        .unwrap();
    assert_eq!(second["unavailable"], "not installed");
    assert_eq!(gateways.len(), 2);
}

#[tokio::test]
async fn telemetry_is_read_by_stream_range_and_page() {
    let backend = Backend::new().await;
    let holder = backend.connect("gw-1", catalogue()).await;
    // All of it has passed.
    let at = now().saturating_sub(std::time::Duration::from_secs(100));
    let record = |seq: u64, stream: &str| {
        let record = Record {
            stream: stream.parse().unwrap(),
            observed_at: at.saturating_add(std::time::Duration::from_secs(seq)),
            fields: [(
                "value".parse().unwrap(),
                FieldValue::Integer(i64::try_from(seq).unwrap()),
            )]
            .into(),
        };
        (seq, record)
    };
    let gap = Gap {
        from_seq: 4,
        to_seq: 6,
        reason: GapReason::SpoolFull,
    };
    let write = TelemetryWrite {
        agent_id: holder.agent_id,
        epoch: holder.epoch,
        skew_ms: None,
        batch: Batch {
            spool_epoch: holder.agent_run_id,
            from_seq: 1,
            to_seq: 7,
            gaps: vec![gap],
            records: vec![
                record(1, "host.cpu"),
                record(2, "host.memory"),
                record(3, "host.cpu"),
                record(7, "host.cpu"),
            ],
        },
    };
    let stored = backend
        .store
        .commit_telemetry(&backend.tenant, [write].into(), at, at)
        .await
        .unwrap();
    assert!(
        matches!(stored[..], [TelemetryOutcome::Committed(_)]),
        "{stored:?}"
    );

    let path = "/v1/telemetry?gateway=gw-1&stream=host.cpu&limit=2";
    let first = backend.get(path).await.json();
    let seqs = |page: &serde_json::Value| -> Vec<u64> {
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["seq"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(seqs(&first), [1, 3]);
    assert_eq!(first["items"][0]["fields"], json!({"value": 1}));
    let next = first["next"].as_str().unwrap();
    assert_eq!(
        seqs(&backend.get(&format!("{path}&cursor={next}")).await.json()),
        [7]
    );
    let from = at.saturating_add(std::time::Duration::from_secs(2));
    let ranged = backend
        .get(&format!(
            "/v1/telemetry?gateway=gw-1&from={from}&order=desc"
        ))
        .await
        .json();
    assert_eq!(seqs(&ranged), [7, 3, 2]);
    numbers_over_time(&backend, at).await;
    let streams = backend
        .get("/v1/telemetry/streams?gateway=gw-1")
        .await
        .json();
    assert_eq!(streams["items"].as_array().unwrap().len(), 2);
    let gaps = backend.get("/v1/telemetry/gaps?gateway=gw-1").await.json();
    assert_eq!(gaps["items"][0]["records"], 3);
    assert_eq!(gaps["items"][0]["reason"], "spool_full");
}

/// Of the records 1, 3 and 7 of host.cpu, each so many seconds after `at`.
async fn numbers_over_time(backend: &Backend, at: Timestamp) {
    let (from, to) = (at, at.saturating_add(std::time::Duration::from_secs(60)));
    let asked = |rest: &str| {
        format!("/v1/telemetry?gateway=gw-1&stream=host.cpu&field=value&from={from}&to={to}&{rest}")
    };
    let whole = backend.get(&asked("step=1h&agg=sum")).await.json();
    assert_eq!(whole["kind"], "TelemetryStepList");
    let sum: i64 = whole["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["value"].as_i64().unwrap())
        .sum();
    assert_eq!(sum, 11, "{whole}");
    // It began before `from`.
    assert_eq!(whole["items"][0]["partial"], true, "{whole}");
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = asked(&format!("step=1s&limit=1&order=desc{cursor}"));
        let page = backend.get(&page).await.json();
        let items = page["items"].as_array().unwrap();
        assert_eq!(items.len(), 1, "{page}");
        assert!(items[0].get("partial").is_none(), "{page}");
        seen.push((items[0]["value"].clone(), items[0]["records"].clone()));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, [7, 3, 1].map(|value| (json!(value), json!(1))));
    let nothing = backend
        .get(&asked("step=1m&agg=max&limit=5").replace("value", "no"))
        .await;
    assert_eq!(nothing.json()["items"], json!([]));
    // Ten thousand steps are not fewer because some of the future counts as now.
    let long = at.saturating_sub(std::time::Duration::from_secs(9_000));
    let long =
        format!("/v1/telemetry?gateway=gw-1&stream=host.cpu&field=value&step=1s&from={long}");
    assert_eq!(backend.get(&long).await.status, 200);
    for (query, field) in [
        ("field=value&step=5m&from=2026-03-02T08:00:00Z", "stream"),
        ("stream=host.cpu&step=5m&from=2026-03-02T08:00:00Z", "field"),
        ("stream=host.cpu&field=value&step=5m", "from"),
        ("stream=host.cpu&field=value", "field"),
        ("stream=host.cpu&agg=max", "agg"),
        (
            "stream=host.cpu&field=value&step=5&from=2026-03-02T08:00:00Z",
            "step",
        ),
        (
            "stream=host.cpu&field=value&step=1ms&from=2026-03-02T08:00:00Z",
            "step",
        ),
        (
            "stream=host.cpu&field=value&step=1h&agg=median&from=2026-03-02T08:00:00Z",
            "agg",
        ),
        (
            "stream=host.cpu&field=value&step=1h&from=2026-03-02T08:00:00Z&cursor=5",
            "cursor",
        ),
    ] {
        let refused = backend
            .get(&format!("/v1/telemetry?gateway=gw-1&{query}"))
            .await;
        assert_eq!(refused.status, 422, "{query}: {}", refused.text);
        assert_eq!(
            refused.json()["errors"][0]["field"],
            field,
            "{query}: {}",
            refused.text
        );
    }
}

#[tokio::test]
async fn health_names_the_worst_part() {
    let backend = Backend::new().await;
    let well = backend.get("/v1/health").await.json();
    assert_eq!(well["status"], "pass", "{well}");
    backend.readiness.latch("agents").set(false, "port taken");
    let ill = backend.get("/v1/health").await.json();
    assert_eq!(ill["status"], "fail");
    assert!(ill.to_string().contains("port taken"));
}

#[tokio::test]
async fn health_says_why_no_certificate_can_be_signed_until_one_can() {
    let backend = Backend::new().await;
    let (key, wanted) = (backend.authority_key(), json!({"uses": 1}));
    let away = key.with_extension("away");
    std::fs::rename(&key, &away).unwrap();
    let refused = backend.post("/v1/tickets", &wanted).await;
    refused.problem(409, "VW-N-002");
    let told = async |name: &str| {
        let health = backend.get("/v1/health").await.json();
        let mut checks = health["checks"].as_array().unwrap().iter();
        checks.find(|check| check["name"] == name).cloned()
    };
    let condition = told("pki.signing").await.unwrap();
    assert_eq!(condition["status"], "warn", "{condition:#}");
    let detail = condition["detail"].as_str().unwrap();
    assert!(detail.contains("ca.key"), "{detail}");
    assert!(detail.contains("put right what the cause"), "{detail}");
    let door = told("door").await.unwrap();
    assert_eq!(door["status"], "warn", "{door:#}");

    std::fs::rename(&away, &key).unwrap();
    let made = backend.post("/v1/tickets", &wanted).await;
    assert!(made.status.is_success(), "{}", made.text);
    assert_eq!(told("pki.signing").await, None);
    assert_eq!(told("door").await.unwrap()["status"], "pass");
}

#[tokio::test]
async fn a_file_of_authorities_that_no_reload_has_taken_keeps_nobody_from_a_ticket() {
    let backend = Backend::new().await;
    let whole = std::fs::read_to_string(backend.authorities_file()).unwrap();
    let half = &whole[..whole.len() / 2];
    for spoiled in [half, "no certificate", ""] {
        std::fs::write(backend.authorities_file(), spoiled).unwrap();
        let made = backend.post("/v1/tickets", &json!({"uses": 1})).await;
        assert!(made.status.is_success(), "{spoiled:?}: {}", made.text);
    }
    let told = backend.get("/v1/health").await.text;
    assert!(!told.contains("pki.signing"), "{told}");
}

#[tokio::test]
async fn health_has_the_figures_of_each_part_and_what_is_over() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    backend.submit_uptime().await;
    backend
        .conditions
        .raise("clock", Severity::Warn, "it jumped", "");
    backend
        .conditions
        .raise("store.commits", Severity::Fail, "the disk is full", "");
    backend.conditions.clear("store.commits");
    let health = backend.get("/v1/health").await.json();
    let checks = health["checks"].as_array().unwrap();
    let part = |name: &str| {
        let mut named = checks.iter().filter(|check| check["name"] == name);
        let found = named.next().unwrap_or_else(|| panic!("{name}: {health:#}"));
        assert_eq!(named.next(), None, "{name} twice: {health:#}");
        found
    };
    let store = part("store");
    assert!(store["latency_us"].as_u64().unwrap() > 0);
    assert_eq!(store["last_failure"]["detail"], "the disk is full");
    assert_eq!(part("fleet").get("last_failure"), None, "{health:#}");
    let figures = |name: &str| &part(name)["figures"];
    assert_eq!(figures("fleet")["connected_gateways"], 1, "{health:#}");
    assert_eq!(figures("queued")["queued_commands"], 1, "{health:#}");
    let age = figures("queued")["oldest_age_ms"].as_i64().unwrap();
    assert!((0..60_000).contains(&age), "{health:#}");
    assert!(figures("disk")["free_bytes"].as_i64().unwrap() > 0);
    assert_eq!(figures("telemetry")["refused_readings"], 0, "{health:#}");
    let open = figures("descriptors")["open"].as_i64().unwrap();
    assert!(open > 2 && open <= figures("descriptors")["open_max"].as_i64().unwrap());
    let door = part("door")["detail"].as_str().unwrap();
    assert!(door.contains("127.0.0.1:8082"), "{health:#}");
    // The figures of a part stand beside what is told of it.
    assert_eq!(part("clock")["status"], "warn", "{health:#}");
    assert!(figures("clock")["ahead_s"].is_i64(), "{health:#}");
    let past = &health["past"][0];
    assert_eq!(past["name"], "store.commits", "{health:#}");
    assert_eq!(past["detail"], "the disk is full", "{health:#}");
    assert!(past["since"].is_string() && past["until"].is_string());
}

#[tokio::test]
async fn metrics_count_requests_by_route_and_not_by_path() {
    let backend = Backend::new().await;
    for path in [
        "/v1/gateways/gw-a",
        "/v1/gateways/gw-b",
        "/nowhere/1",
        "/nowhere/2",
    ] {
        backend.get(path).await;
    }
    let answer = backend.get("/metrics").await;
    assert!(
        answer
            .header("content-type")
            .starts_with("application/openmetrics-text")
    );
    for line in [
        "viworks_api_requests_total{method=\"GET\",route=\"/v1/gateways/{gateway}\",status=\"404\"} 2",
        "viworks_api_requests_total{method=\"GET\",route=\"none\",status=\"404\"} 2",
    ] {
        assert!(answer.text.contains(line), "{}", answer.text);
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_a_problem_that_passes() {
    let backend = Backend::new().await;
    backend.store.close().await;
    let answer = backend.get("/v1/gateways").await;
    answer.problem(503, "VW-S-001");
    assert_eq!(answer.header("retry-after"), "1");
}

#[tokio::test]
async fn every_list_comes_in_pages_that_make_the_whole() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    backend.connect("gw-2", catalogue()).await;
    for _ in 0..3 {
        backend.submit_uptime().await;
        backend.key_with(&[viworks_api::Scope::RunsRead]).await;
    }
    let lists: Vec<&str> = super::declared::operations()
        .filter(|(_method, _path, operation)| {
            let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
            schema["$ref"]
                .as_str()
                .is_some_and(|name| name.ends_with("List") || name.ends_with("Answer"))
        })
        .map(|(_method, path, operation)| {
            let names: Vec<_> = operation["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .map(|parameter| parameter["name"].as_str().unwrap())
                .collect();
            assert!(
                names.contains(&"cursor") && names.contains(&"limit"),
                "{path}"
            );
            path
        })
        .collect();
    assert!(lists.len() >= 9, "{lists:?}");
    let run = backend.get("/v1/runs").await.json()["items"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut paged = 0;
    for path in lists {
        let path = path.replace("{run}", &run).replace("{gateway}", "gw-1");
        let gateway = if path.contains("telemetry") {
            "&gateway=gw-1"
        } else {
            ""
        };
        let whole = backend
            .get(&format!("{path}?limit=1000{gateway}"))
            .await
            .json();
        let whole = whole["items"].as_array().unwrap().clone();
        let (mut pages, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = backend
                .get(&format!("{path}?limit=1{gateway}{cursor}"))
                .await
                .json();
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= 1, "{page}");
            pages.extend(items.iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        if path != "/v1/audit" && path != "/v1/apikeys" {
            assert_eq!(pages, whole, "{path}");
        }
        assert_eq!(pages.len(), whole.len(), "{path}");
        paged += usize::from(pages.len() > 1);
    }
    assert!(paged >= 6, "{paged}");
}
