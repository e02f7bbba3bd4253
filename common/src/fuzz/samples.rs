//! One message of every kind that travels on an established session, as JSON.

/// From the agent.
pub(super) const AGENT: &[(u8, &str)] = &[
    (
        0x10,
        r#"{"sent_at_ms":1,"round_trip_us":null,"clock_skew_ms":null,"spool_records":0,"spool_bytes":0,"commands_running":0}"#,
    ),
    (0x11, r#"{"id":1}"#),
    (
        0x12,
        r#"{"spool_epoch":"01900000-0000-7000-8000-000000000011","from_seq":1,"to_seq":3,"gaps":[],"streams":["host.cpu"],"stream":[0,0,0],"observed_at":[1,1,1],"fields":{"busy":[0.5,0.5,0.5]}}"#,
    ),
    (
        0x13,
        r#"{"command_id":"01900000-0000-7000-8000-000000000001","idempotent":false,"awaiting_permit":true}"#,
    ),
    (
        0x14,
        r#"{"command_id":"01900000-0000-7000-8000-000000000001","code":"not_allowed","detail":"no such command"}"#,
    ),
    (
        0x15,
        r#"{"command_id":"01900000-0000-7000-8000-000000000001","started_at":"2026-09-21T14:13:20Z"}"#,
    ),
    (
        0x16,
        r#"{"command_id":"01900000-0000-7000-8000-000000000001","stream":"stdout","offset":0,"data":"eHh4"}"#,
    ),
    (
        0x17,
        r#"{"command_id":"01900000-0000-7000-8000-000000000001","outcome":{"state":"expired","exit_code":null,"signal":null,"started_at":null,"duration_ms":0,"stdout":{"head":"","tail":"","cut_bytes":0},"stderr":{"head":"","tail":"","cut_bytes":0},"reason":"too late","reject_code":null}}"#,
    ),
    (
        0x18,
        r#"{"digest":"0101010101010101010101010101010101010101010101010101010101010101","commands":[{"name":"sys.uptime","title":"Uptime","risk":"read","idempotent":true,"arguments":[],"timeout_ms":1000,"output_bytes_max":1000,"unavailable":null}]}"#,
    ),
    (0x19, r#"{"version":2}"#),
    (
        0x1a,
        r#"{"csr":"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"}"#,
    ),
    (
        0x1b,
        r#"{"kind":"digest_mismatch","detail":"the same id with another digest"}"#,
    ),
    (0x1c, r#"{"reason":"stopping"}"#),
    (0x1d, r#"{"generation":2}"#),
    (
        0x1e,
        r#"{"digest":"0202020202020202020202020202020202020202020202020202020202020202","refused":null}"#,
    ),
];

/// From the backend.
pub(super) const BACKEND: &[(u8, &str)] = &[
    (
        0x30,
        r#"{"sent_at_ms":1,"server_time":"2026-09-21T14:13:20Z","output_bytes":20000}"#,
    ),
    (0x31, r#"{"id":1}"#),
    (
        0x32,
        r#"{"position":{"spool_epoch":"01900000-0000-7000-8000-000000000011","seq":3}}"#,
    ),
    (
        0x33,
        r#"{"command_id":"01900000-0000-7000-8000-000000000001","order":18,"name":"service.restart","arguments":{"unit":"nginx.service"},"digest":"10a42e0f1b41fb18444b9d727c966224a3f9a14988907307e93485e5394f45fe","attempt":1,"traceparent":null,"deadline":{"remaining_ms":60000,"as_of":2},"permitted":false}"#,
    ),
    (
        0x34,
        r#"{"command_id":"01900000-0000-7000-8000-000000000001","permit":{"remaining_ms":1000,"as_of":2}}"#,
    ),
    (
        0x35,
        r#"{"command_id":"01900000-0000-7000-8000-000000000001"}"#,
    ),
    (
        0x36,
        r#"{"command_id":"01900000-0000-7000-8000-000000000001"}"#,
    ),
    (
        0x37,
        r#"{"command_id":"01900000-0000-7000-8000-000000000001","low_water":18}"#,
    ),
    (
        0x38,
        r#"{"certificate":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n","refused":null}"#,
    ),
    (
        0x39,
        r#"{"version":3,"pins":["sha256/AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","sha256/AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="]}"#,
    ),
    (0x3a, r#"{"reconnect_after_ms":500}"#),
    (
        0x3b,
        r#"{"generation":2,"sealed":"0101010101010101010101010101010101010101010101010101010101010101"}"#,
    ),
    (
        0x3c,
        r#"{"bundle":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}"#,
    ),
];

/// The body of HELLO behind its nonce.
pub(super) const HELLO: &str = r#"{"install_id":"01900000-0000-7000-8000-000000000013","boot_id":"01900000-0000-7000-8000-000000000012","agent_run_id":"01900000-0000-7000-8000-000000000011","epoch":6,"token":"f14a015977b7cac888b05d3598f8b50014ccf182a5ac35e937cd42ac9693bd56","agent_version":"0.1.0","version":1,"capabilities":[],"catalogue_digest":"cacacacacacacacacacacacacacacacacacacacacacacacacacacacacacacaca","labels":{"site":"berlin"},"unreported":["01900000-0000-7000-8000-0000000000c9"],"highest_order":17,"low_water":16,"pin_set_version":2,"telemetry":[{"spool_epoch":"01900000-0000-7000-8000-000000000011","seq":400}]}"#;

/// The body of WELCOME.
pub(super) const WELCOME: &str = r#"{"epoch":7,"token":"86c580f4233b2325feefb745c36642e8e7cac0a3e0e473ab274bd25840b9cd36","heartbeat_interval_ms":15000,"silence_ms":45000,"credits":{"commands":4,"telemetry_bytes":262144,"output_bytes":10000},"low_water":16,"committed":[{"spool_epoch":"01900000-0000-7000-8000-000000000011","seq":420}],"catalogue_known":true,"pins":null,"server_time":"2026-09-21T14:13:20Z","reconnect_slot_ms":5000}"#;
