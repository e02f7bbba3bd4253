//! Gateways, certificates and catalogues.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use viworks_backend_agent::data::{
    Actor, GatewayFilter, GatewayRef, Label, LabelSource, NewCertificate, NewGateway, Page, Report,
    StoreError, Target, TargetSelection,
};
use viworks_common::catalogue::{CatalogueEntry, Risk};
use viworks_common::limits::PAGE_BYTES_MAX;

use super::bed::{Bed, agent, at};

pub(crate) fn new_gateway(n: u64, name: &str) -> NewGateway {
    NewGateway {
        agent_id: agent(n),
        name: name.parse().unwrap(),
        labels: BTreeMap::new(),
        key_generation: 1,
        pins: None,
        authorities: None,
        certificate: None,
    }
}

pub(crate) async fn a_gateway_is_found_by_id_and_by_name(bed: &Bed) {
    bed.gateway(1).await;
    let by_id = bed.gateway_now(1).await;
    let by_name = bed
        .store
        .gateway(&bed.tenant, &GatewayRef::Name("gw-1".parse().unwrap()))
        .await
        .unwrap();
    assert_eq!(by_name, Some(by_id));
    assert_eq!(
        bed.store
            .gateway(&bed.tenant, &GatewayRef::Id(agent(2)))
            .await
            .unwrap(),
        None
    );
}

pub(crate) async fn a_name_is_unique_within_its_tenant_only(bed: &Bed) {
    bed.gateway(1).await;
    let actor = Actor::local("test");
    let taken = bed
        .store
        .create_gateway(&bed.tenant, new_gateway(2, "gw-1"), &actor, at(0))
        .await;
    assert!(matches!(taken, Err(StoreError::Conflict { what }) if what.contains("gw-1")));
    let other = "other".parse().unwrap();
    bed.store
        .create_gateway(&other, new_gateway(2, "gw-1"), &actor, at(0))
        .await
        .unwrap();
    assert_eq!(
        bed.store
            .gateway(&bed.tenant, &GatewayRef::Id(agent(2)))
            .await
            .unwrap(),
        None
    );
}

pub(crate) async fn an_id_is_never_used_again(bed: &Bed) {
    bed.gateway(1).await;
    let again = bed
        .store
        .create_gateway(
            &bed.tenant,
            new_gateway(1, "another"),
            &Actor::local("test"),
            at(0),
        )
        .await;
    assert!(
        matches!(again, Err(StoreError::Conflict { what }) if what.contains(&agent(1).to_string()))
    );
}

pub(crate) async fn a_rename_to_a_taken_name_is_a_conflict(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    let (actor, tenant) = (Actor::local("test"), &bed.tenant);
    let taken = bed
        .store
        .rename_gateway(tenant, agent(1), &"gw-2".parse().unwrap(), &actor, at(1))
        .await;
    assert!(matches!(taken, Err(StoreError::Conflict { .. })));
    let renamed = bed
        .store
        .rename_gateway(tenant, agent(1), &"berlin".parse().unwrap(), &actor, at(1))
        .await;
    assert_eq!(renamed.unwrap(), Some(()));
    assert_eq!(bed.gateway_now(1).await.name.as_str(), "berlin");
    let unknown = bed
        .store
        .rename_gateway(tenant, agent(9), &"rome".parse().unwrap(), &actor, at(1))
        .await;
    assert_eq!(unknown.unwrap(), None);
}

pub(crate) async fn gateways_are_listed_in_pages_and_filtered(bed: &Bed) {
    for n in 1..=5 {
        bed.gateway(n).await;
    }
    bed.session(2, 1).await;
    bed.store
        .revoke_gateway(&bed.tenant, agent(5), None, &Actor::local("test"), at(5))
        .await
        .unwrap();
    let all = GatewayFilter::default();
    let mut seen = Vec::new();
    let mut page = Page::first(2);
    loop {
        let listing = bed
            .store
            .list_gateways(&bed.tenant, &all, page)
            .await
            .unwrap();
        seen.extend(listing.items.iter().map(|gateway| gateway.agent_id));
        let Some(next) = listing.next else { break };
        page = Page::after(next, 2);
    }
    assert_eq!(seen, (1..=5).map(agent).collect::<Vec<_>>());
    let ids = async |filter| {
        let listing = bed
            .store
            .list_gateways(&bed.tenant, &filter, Page::first(10))
            .await
            .unwrap();
        listing
            .items
            .into_iter()
            .map(|gateway| gateway.agent_id)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ids(GatewayFilter {
            connected: Some(true),
            ..all.clone()
        })
        .await,
        [agent(2)]
    );
    assert_eq!(
        ids(GatewayFilter {
            revoked: Some(true),
            ..all
        })
        .await,
        [agent(5)]
    );
}

/// A certificate for gateway `n` with the key `key`.
pub(crate) fn new_certificate(n: u64, key: u8) -> NewCertificate {
    NewCertificate {
        agent_id: agent(n),
        spki: [key; 32],
        serial: "0a".to_owned(),
        not_after: at(1_000),
        fingerprint: [2; 32],
        issuer: Some([1; 32]),
    }
}

pub(crate) async fn a_key_is_registered_for_one_gateway_once(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    let certificate = |n| new_certificate(n, 1);
    let (tenant, actor) = (&bed.tenant, Actor::local("test"));
    bed.store
        .register_certificate(tenant, certificate(1), &actor, at(0))
        .await
        .unwrap();
    let twice = bed
        .store
        .register_certificate(tenant, certificate(2), &actor, at(0))
        .await;
    assert!(matches!(twice, Err(StoreError::Conflict { .. })));
    let unknown = bed
        .store
        .register_certificate(tenant, certificate(3), &actor, at(0))
        .await;
    assert!(matches!(unknown, Err(StoreError::Missing { .. })));
    let found = bed
        .store
        .certificate(tenant, agent(1), &[1; 32])
        .await
        .unwrap()
        .unwrap();
    assert!(!found.revoked && found.serial == "0a" && found.not_after == at(1_000));
    assert_eq!(
        bed.store
            .certificate(tenant, agent(2), &[1; 32])
            .await
            .unwrap(),
        None
    );
}

pub(crate) async fn a_certificate_of_a_revoked_gateway_is_revoked(bed: &Bed) {
    bed.gateway(1).await;
    let certificate = new_certificate(1, 1);
    let (tenant, actor) = (&bed.tenant, Actor::local("test"));
    bed.store
        .register_certificate(tenant, certificate, &actor, at(0))
        .await
        .unwrap();
    bed.store
        .revoke_gateway(tenant, agent(1), None, &actor, at(5))
        .await
        .unwrap()
        .unwrap();
    assert!(
        bed.store
            .certificate(tenant, agent(1), &[1; 32])
            .await
            .unwrap()
            .unwrap()
            .revoked
    );
}

/// However many ask at the same moment, and whatever is asked beside.
pub(crate) async fn keys_of_many_gateways_are_each_their_own(bed: &Bed) {
    const GATEWAYS: u8 = 12;
    let (tenant, actor) = (&bed.tenant, Actor::local("test"));
    for n in 1..=GATEWAYS {
        bed.gateway(n.into()).await;
        let mut certificate = new_certificate(n.into(), n);
        certificate.serial = format!("{n:02x}");
        let registered = bed
            .store
            .register_certificate(tenant, certificate, &actor, at(0));
        registered.await.unwrap();
    }
    // Their own, the next one's, and one that nobody has.
    let asked = (1..=GATEWAYS).flat_map(|n| [(n, n), (n, n + 1), (n, 0)]);
    let asked = asked.map(|(n, key)| async move {
        let spki = [key; 32];
        let known = bed.store.certificate(tenant, agent(n.into()), &spki);
        let serial = known.await.unwrap().map(|known| known.serial);
        assert_eq!(serial, (n == key).then(|| format!("{n:02x}")), "{n} {key}");
    });
    join_all(asked).await;
}

pub(crate) async fn labels_keep_their_source(bed: &Bed) {
    let mut new = new_gateway(1, "gw-1");
    new.labels = BTreeMap::from([("site".to_owned(), "berlin".to_owned())]);
    bed.store
        .create_gateway(&bed.tenant, new, &Actor::local("test"), at(0))
        .await
        .unwrap();
    for role in ["plc", "edge"] {
        let mut hello = bed.hello(1, 1, bed.gateway_now(1).await.confirmed);
        hello.labels = BTreeMap::from([
            ("site".to_owned(), "rome".to_owned()),
            ("role".to_owned(), role.to_owned()),
        ]);
        bed.open(hello).await;
    }
    let label = |key: &str, value: &str, source| Label {
        key: key.to_owned(),
        value: value.to_owned(),
        source,
    };
    let expected = [
        label("role", "edge", LabelSource::Gateway),
        label("site", "berlin", LabelSource::Operator),
        label("site", "rome", LabelSource::Gateway),
    ];
    assert_eq!(bed.gateway_now(1).await.labels, expected);
    let filter = GatewayFilter {
        label: Some(("role".to_owned(), "plc".to_owned())),
        ..GatewayFilter::default()
    };
    assert!(
        bed.store
            .list_gateways(&bed.tenant, &filter, Page::first(10))
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

pub(crate) async fn odd_text_is_kept(bed: &Bed) {
    let text = "a\u{1}b\u{1F600}\"\\";
    let mut new = new_gateway(1, "gw-1");
    new.labels = BTreeMap::from([(text.to_owned(), text.to_owned())]);
    bed.store
        .create_gateway(&bed.tenant, new, &Actor::local("test"), at(0))
        .await
        .unwrap();
    let labels = bed.gateway_now(1).await.labels;
    assert!(
        labels.len() == 1 && labels[0].key.starts_with('a'),
        "{labels:?}"
    );
    let mut hello = bed.hello(1, 1, 0);
    hello.agent_version = text.to_owned();
    hello.peer_address = text.to_owned();
    bed.open(hello).await;
    assert_eq!(
        bed.gateway_now(1).await.agent_version.as_deref(),
        Some(text)
    );
    let mut run = bed.new_run(&[1], false);
    run.reason = Some(text.to_owned());
    run.arguments
        .insert("unit".parse().unwrap(), text.to_owned());
    let run = bed.submit(run).await;
    assert!(run.reason.as_deref() == Some(text) && run.arguments.values().next().unwrap() == text);
}

fn entry(name: &str, title: &str) -> CatalogueEntry {
    CatalogueEntry {
        name: name.parse().unwrap(),
        title: title.to_owned(),
        risk: Risk::Read,
        idempotent: true,
        arguments: Vec::new(),
        timeout_ms: 1_000,
        output_bytes_max: 1_000,
        unavailable: None,
    }
}

pub(crate) async fn the_catalogue_is_known_by_its_digest(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    assert!(!session.admitted.catalogue_known);
    let (digest, entries) = ("0".repeat(64), vec![entry("sys.uptime", "Uptime")]);
    let epoch = session.holder.epoch;
    bed.store
        .save_catalogue(
            &bed.tenant,
            agent(1),
            epoch,
            &digest,
            entries.clone(),
            at(3),
        )
        .await
        .unwrap();
    let stored = bed
        .store
        .catalogue(&bed.tenant, agent(1))
        .await
        .unwrap()
        .unwrap();
    assert!(stored.entries == entries && stored.digest == digest && stored.reported_at == at(3));
    assert!(bed.session(1, 1).await.admitted.catalogue_known);
    let fenced = bed
        .store
        .save_catalogue(&bed.tenant, agent(1), epoch, &digest, entries, at(4))
        .await;
    assert!(matches!(fenced, Err(StoreError::Fenced)));
}

pub(crate) async fn reports_at_the_same_moment_are_stored_each_for_itself(bed: &Bed) {
    let mut sessions = Vec::new();
    for n in 1..=6 {
        bed.gateway(n).await;
        sessions.push((n, bed.session(n, n).await.holder.epoch));
    }
    // The first again and later, the second on behalf of a session that is no more, and nobody.
    sessions.extend([(1, 1), (2, 0), (99, 1)]);
    let title = |number: usize| format!("Report {number}");
    let saved = join_all(sessions.iter().enumerate().map(|(number, (n, epoch))| {
        let entries = vec![entry("sys.uptime", &title(number))];
        let digest = format!("{number:064}");
        async move {
            bed.store
                .save_catalogue(&bed.tenant, agent(*n), *epoch, &digest, entries, at(3))
                .await
        }
    }))
    .await;
    let pinned = join_all(sessions.iter().zip(1..).map(|((n, epoch), version)| {
        bed.store
            .report_pins(&bed.tenant, agent(*n), *epoch, version)
    }))
    .await;
    for answers in [saved, pinned] {
        let (good, bad) = answers.split_at(7);
        assert!(good.iter().all(Result::is_ok), "{good:?}");
        let fenced = |answer: &_| matches!(answer, Err(StoreError::Fenced));
        assert!(bad.iter().all(fenced), "{bad:?}");
    }
    for n in 1..=6 {
        let stored = bed.store.catalogue(&bed.tenant, agent(n)).await;
        let stored = stored.unwrap().unwrap();
        let version = bed.gateway_now(n).await.pin_set_version;
        // Of two at the same moment either is the later one.
        let candidates = sessions.iter().enumerate().take(7);
        let mut of_it = candidates.filter(|(_, (agent, _))| *agent == n);
        let whole = |number: usize| {
            stored.entries[0].title == title(number) && stored.digest == format!("{number:064}")
        };
        assert!(
            of_it.clone().any(|(number, _)| whole(number)),
            "{n}: {stored:?}"
        );
        let versions = |number: usize| version == u64::try_from(number).unwrap() + 1;
        assert!(of_it.any(|(number, _)| versions(number)), "{n}: {version}");
    }
}

pub(crate) async fn the_fleet_s_catalogue_counts_equal_entries(bed: &Bed) {
    for n in 1..=3 {
        bed.gateway(n).await;
        let session = bed.session(n, n).await;
        let title = if n == 3 { "Other" } else { "Same" };
        let entries = vec![entry("sys.uptime", title)];
        bed.store
            .save_catalogue(
                &bed.tenant,
                agent(n),
                session.holder.epoch,
                "d",
                entries,
                at(3),
            )
            .await
            .unwrap();
    }
    let first = Page::first(10);
    let merged = bed.store.merged_catalogue(&bed.tenant, first).await;
    let listing = merged.unwrap();
    let [merged] = &listing.items[..] else {
        panic!("{listing:?}");
    };
    assert_eq!(merged.entry.title, "Same");
    assert_eq!((merged.definitions, merged.available), (2, 3));
    assert_eq!((merged.risks[&Risk::Read], merged.idempotent), (3, true));
    let name = merged.entry.name.clone();
    let one = bed.store.merged_command(&bed.tenant, &name).await;
    assert_eq!(one.unwrap().as_ref(), Some(merged));
    let other = "sys.kernel".parse().unwrap();
    let none = bed.store.merged_command(&bed.tenant, &other).await;
    assert_eq!(none.unwrap(), None);

    // A gateway where the tool is missing has the same definition, and one of another risk has not.
    bed.gateway(4).await;
    let epoch = bed.session(4, 4).await.holder.epoch;
    let entries = [
        CatalogueEntry {
            unavailable: Some("no such program".to_owned()),
            ..entry("sys.uptime", "Same")
        },
        CatalogueEntry {
            risk: Risk::Danger,
            idempotent: false,
            ..entry("sys.uptime", "Same")
        },
    ];
    for (stored, counted) in entries.into_iter().zip([(2, 3, 1), (3, 4, 0)]) {
        let idempotent = stored.idempotent;
        let saved =
            bed.store
                .save_catalogue(&bed.tenant, agent(4), epoch, "d", vec![stored], at(4));
        saved.await.unwrap();
        let merged = bed.store.merged_command(&bed.tenant, &name).await;
        let merged = merged.unwrap().unwrap();
        let found = (merged.definitions, merged.available, merged.unavailable);
        assert_eq!(found, counted);
        assert_eq!(merged.idempotent, idempotent);
        assert_eq!(merged.entry.title, "Same");
        assert_eq!(merged.risks.contains_key(&Risk::Danger), !idempotent);
    }
}

pub(crate) async fn the_fleet_s_catalogue_is_read_in_pages_of_so_many_bytes(bed: &Bed) {
    const LARGE: usize = 10_000;
    for n in 1..=2 {
        bed.gateway(n).await;
        let epoch = bed.session(n, n).await.holder.epoch;
        let title = n.to_string().repeat(LARGE);
        let entries = (0..250).map(|number| entry(&format!("test.c{number:03}"), &title));
        let entries = entries.collect();
        let saved = bed
            .store
            .save_catalogue(&bed.tenant, agent(n), epoch, "d", entries, at(3));
        saved.await.unwrap();
    }
    let (mut page, mut seen) = (Page::first(1_000), Vec::new());
    loop {
        let merged = bed.store.merged_catalogue(&bed.tenant, page).await;
        let listing = merged.unwrap();
        let held = listing.items.len() * LARGE;
        assert!(held <= PAGE_BYTES_MAX + LARGE, "{held} bytes");
        for merged in listing.items {
            // A page never ends within a command.
            assert_eq!((merged.definitions, merged.available), (2, 2));
            seen.push(merged.entry.name.to_string());
        }
        match listing.next {
            Some(next) => page = Page::after(next, 1_000),
            None => break,
        }
    }
    let all: Vec<String> = (0..250)
        .map(|number| format!("test.c{number:03}"))
        .collect();
    assert_eq!(seen, all);
}

pub(crate) async fn targets_are_resolved_in_the_order_named(bed: &Bed) {
    for n in 1..=3 {
        bed.gateway(n).await;
    }
    let session = bed.session(2, 1).await;
    let entries = vec![entry("sys.uptime", "Uptime"), entry("sys.kernel", "Kernel")];
    bed.store
        .save_catalogue(
            &bed.tenant,
            agent(2),
            session.holder.epoch,
            "d",
            entries,
            at(3),
        )
        .await
        .unwrap();
    let named: Vec<GatewayRef> = ["gw-2", "gw-9", "gw-1"]
        .iter()
        .map(|name| name.parse().unwrap())
        .chain([GatewayRef::Id(agent(2))])
        .collect();
    let command = "sys.kernel".parse().unwrap();
    let targets = bed
        .store
        .resolve_targets(&bed.tenant, &TargetSelection::Gateways(named), &command)
        .await
        .unwrap();
    assert_eq!(targets.len(), 3, "{targets:?}");
    assert!(
        matches!(&targets[0], Target::Known { agent_id, report: Some(Report { entry: Some(entry), .. }), .. } if *agent_id == agent(2) && entry.title == "Kernel")
    );
    assert!(
        matches!(&targets[1], Target::Unknown(GatewayRef::Name(name)) if name.as_str() == "gw-9")
    );
    assert!(
        matches!(&targets[2], Target::Known { agent_id, report: None, .. } if *agent_id == agent(1))
    );
    bed.store
        .revoke_gateway(&bed.tenant, agent(3), None, &Actor::local("test"), at(4))
        .await
        .unwrap();
    let all = bed
        .store
        .resolve_targets(&bed.tenant, &TargetSelection::All, &command)
        .await
        .unwrap();
    assert_eq!(all.len(), 2);
}
