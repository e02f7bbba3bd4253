//! The API's description, made from the table of routes.

use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::response::Response;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr};
use viworks_common::api::{FieldProblem, PROBLEM_MEDIA_TYPE, Problem};

use super::router::{Access, Row, table};

/// The name of the one way to authenticate.
const BEARER: &str = "apiKey";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "ViWorkS operator API",
        description = "Runs allow-listed commands on gateways and reads what they deliver. Every refusal is a problem document (RFC 9457) with a stable code.",
        version = "1",
    ),
    components(schemas(Problem, FieldProblem))
)]
struct Base;

/// The document as JSON text.
///
/// # Panics
/// Never: the description has string keys only.
#[must_use]
pub fn document() -> String {
    let mut api = Base::openapi();
    let mut components = api.components.take().unwrap_or_default();
    components.add_security_scheme(
        BEARER,
        SecurityScheme::Http(
            Http::builder()
                .scheme(HttpAuthScheme::Bearer)
                .bearer_format("vwk_…")
                .description(Some(
                    "An API key; the roles of a requirement are the key's scopes",
                ))
                .build(),
        ),
    );
    for Row { access, route, .. } in table() {
        let (schemas, paths, _handler) = route;
        components.schemas.extend(schemas);
        for (path, mut item) in paths.paths {
            for operation in operations(&mut item) {
                declare(operation, access);
            }
            match api.paths.paths.get_mut(&path) {
                Some(known) => known.merge_operations(item),
                None => {
                    api.paths.paths.insert(path, item);
                }
            }
        }
    }
    api.components = Some(components);
    let mut text = serde_json::to_string_pretty(&api)
        .expect("an OpenAPI document has string keys and finite numbers");
    text.push('\n');
    text
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        item.get.as_mut(),
        item.post.as_mut(),
        item.put.as_mut(),
        item.patch.as_mut(),
        item.delete.as_mut(),
    ]
    .into_iter()
    .flatten()
}

/// Says who may, and what a refusal looks like.
fn declare(operation: &mut Operation, access: Access) {
    operation.security = Some(match access {
        Access::Public => Vec::new(),
        Access::Scope(scope) => vec![SecurityRequirement::new(BEARER, [scope.name()])],
    });
    let refusals: &[(&str, &str)] = match access {
        Access::Public => &[("default", "A problem")],
        Access::Scope(_) => &[
            ("401", "No credential that is accepted"),
            ("403", "The credential lacks the scope"),
            (
                "429",
                "The key has no requests left for the moment: wait as `Retry-After` says. `RateLimit` and `RateLimit-Policy` come with every answer to a key",
            ),
            ("default", "A problem"),
        ],
    };
    for (status, description) in refusals {
        operation
            .responses
            .responses
            .entry((*status).to_owned())
            .or_insert_with(|| RefOr::T(problem(description)));
    }
}

fn problem(description: &str) -> Response {
    Response::builder()
        .description(description)
        .content(
            PROBLEM_MEDIA_TYPE,
            Content::new(Some(RefOr::Ref(Ref::from_schema_name("Problem")))),
        )
        .build()
}
