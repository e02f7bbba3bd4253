//! The one table of routes: method, path, who may, which handler.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::MethodRouter;
use http::Method;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::RefOr;
use utoipa::openapi::path::Paths;
use utoipa::openapi::schema::Schema;
use utoipa_axum::routes;
use viworks_api::Scope;

use super::handlers::{
    agent_keys, apikeys, audit, authorities, catalogue, certificates, dead_letters, gateways,
    orphans, pins, probes, runs, telemetry, tickets,
};
use super::request::{
    authorise, finish, in_time, method_not_allowed, no_such_path, panicked, well_formed,
};
use super::{Shared, events};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Public,
    /// Whoever has this scope.
    Scope(Scope),
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The method.
    pub method: Method,
    /// The path, with `{…}` where a segment varies.
    pub path: String,
    /// Who may.
    pub access: Access,
}

/// How long an answer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Within the request timeout.
    Quick,
    /// The same, and it may read much: in its key's turn.
    Large,
    /// It bounds itself: waits and streams.
    Own,
}

/// How much a route may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// A few rows.
    Small,
    /// A page, or a catalogue.
    Large,
}

pub(super) type Documented = (Vec<(String, RefOr<Schema>)>, Paths, MethodRouter<Shared>);

pub(super) struct Row {
    pub(super) access: Access,
    pub(super) pace: Pace,
    pub(super) route: Documented,
}

/// The table.
pub(super) fn table() -> Vec<Row> {
    use Access::Public;
    use Pace::{Large, Own, Quick};

    let row = |access, pace, route| Row {
        access,
        pace,
        route,
    };
    let scope = Access::Scope;
    vec![
        row(Public, Quick, routes!(probes::livez)),
        row(Public, Quick, routes!(probes::readyz)),
        row(Public, Quick, routes!(probes::startupz)),
        row(Public, Quick, routes!(probes::openapi)),
        row(scope(Scope::MetricsRead), Quick, routes!(probes::metrics)),
        row(scope(Scope::HealthRead), Quick, routes!(probes::health)),
        row(scope(Scope::GatewaysRead), Large, routes!(gateways::list)),
        row(scope(Scope::GatewaysRead), Large, routes!(gateways::show)),
        row(scope(Scope::GatewaysRead), Large, routes!(gateways::forks)),
        row(
            scope(Scope::GatewaysWrite),
            Quick,
            routes!(gateways::revoke),
        ),
        row(
            scope(Scope::GatewaysWrite),
            Quick,
            routes!(gateways::resolve_fork),
        ),
        row(
            scope(Scope::GatewaysWrite),
            Quick,
            routes!(tickets::replace),
        ),
        row(
            scope(Scope::GatewaysRead),
            Large,
            routes!(certificates::list),
        ),
        row(
            scope(Scope::GatewaysWrite),
            Quick,
            routes!(certificates::revoke),
        ),
        row(
            scope(Scope::GatewaysWrite),
            Quick,
            routes!(agent_keys::rotate),
        ),
        row(scope(Scope::RunsRead), Large, routes!(orphans::list)),
        row(scope(Scope::RunsWrite), Quick, routes!(runs::submit)),
        row(scope(Scope::RunsWrite), Quick, routes!(runs::plan)),
        row(scope(Scope::RunsRead), Large, routes!(runs::list)),
        row(scope(Scope::RunsRead), Quick, routes!(runs::show)),
        row(scope(Scope::RunsRead), Large, routes!(runs::commands)),
        row(scope(Scope::RunsRead), Large, routes!(runs::skipped)),
        row(scope(Scope::RunsRead), Large, routes!(runs::command)),
        row(scope(Scope::RunsWrite), Quick, routes!(runs::cancel)),
        row(scope(Scope::RunsRead), Own, routes!(runs::wait)),
        row(scope(Scope::RunsRead), Own, routes!(events::stream)),
        row(scope(Scope::RunsRead), Large, routes!(dead_letters::list)),
        row(scope(Scope::RunsRead), Large, routes!(dead_letters::show)),
        row(scope(Scope::RunsWrite), Quick, routes!(dead_letters::retry)),
        row(
            scope(Scope::RunsWrite),
            Quick,
            routes!(dead_letters::discard),
        ),
        row(
            scope(Scope::TelemetryRead),
            Large,
            routes!(telemetry::records),
        ),
        row(
            scope(Scope::TelemetryRead),
            Large,
            routes!(telemetry::streams),
        ),
        row(scope(Scope::TelemetryRead), Large, routes!(telemetry::gaps)),
        row(
            scope(Scope::TelemetryRead),
            Large,
            routes!(telemetry::refusals),
        ),
        row(scope(Scope::CatalogueRead), Large, routes!(catalogue::list)),
        row(scope(Scope::CatalogueRead), Large, routes!(catalogue::show)),
        row(scope(Scope::AuditRead), Large, routes!(audit::list)),
        row(scope(Scope::ApikeysAdmin), Quick, routes!(apikeys::create)),
        row(scope(Scope::ApikeysAdmin), Large, routes!(apikeys::list)),
        row(scope(Scope::ApikeysAdmin), Quick, routes!(apikeys::revoke)),
        row(scope(Scope::TicketsWrite), Quick, routes!(tickets::create)),
        row(scope(Scope::TicketsRead), Large, routes!(tickets::list)),
        row(scope(Scope::TicketsRead), Large, routes!(tickets::show)),
        row(scope(Scope::TicketsWrite), Quick, routes!(tickets::revoke)),
        row(scope(Scope::PinsRead), Large, routes!(pins::show)),
        row(scope(Scope::PinsRead), Large, routes!(authorities::show)),
        row(scope(Scope::PinsWrite), Quick, routes!(pins::stage)),
        row(scope(Scope::PinsWrite), Quick, routes!(pins::promote)),
        row(scope(Scope::PinsWrite), Quick, routes!(pins::retire)),
    ]
}

/// Every endpoint, for tests that walk them all.
#[must_use]
pub fn endpoints() -> Vec<Endpoint> {
    let described = |row: Row| {
        let Row { access, route, .. } = row;
        route.1.paths.into_iter().flat_map(move |(path, item)| {
            [
                (Method::GET, item.get.is_some()),
                (Method::POST, item.post.is_some()),
                (Method::PUT, item.put.is_some()),
                (Method::PATCH, item.patch.is_some()),
                (Method::DELETE, item.delete.is_some()),
            ]
            .into_iter()
            .filter(|(_method, there)| *there)
            .map(move |(method, _there)| Endpoint {
                method,
                path: path.clone(),
                access,
            })
        })
    };
    table().into_iter().flat_map(described).collect()
}

pub(super) fn build(state: Shared) -> Router {
    let mut router = Router::new();
    for Row {
        access,
        pace,
        route: (_schemas, paths, mut handler),
    } in table()
    {
        if let Access::Scope(scope) = access {
            let weight = match pace {
                Pace::Large => Weight::Large,
                Pace::Quick | Pace::Own => Weight::Small,
            };
            let guard = (state.clone(), scope, weight);
            handler = handler.route_layer(from_fn_with_state(guard, authorise));
        }
        if pace != Pace::Own {
            handler = handler.route_layer(from_fn_with_state(state.clone(), in_time));
        }
        for path in paths.paths.keys() {
            router = router.route(path, handler.clone());
        }
    }
    router
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(no_such_path)
        .layer(DefaultBodyLimit::max(state.limits.body_bytes_max))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(well_formed))
        .layer(from_fn_with_state(state.clone(), finish))
        .with_state(state)
}
