//! The API's description, made from the table of routes.

use serde_json::Value;
use utoipa::OpenApi;
use utoipa::openapi::header::Header;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, Required};
use viworks_api::{
    FieldProblem, IDEMPOTENCY_REPLAYED, PROBLEM_MEDIA_TYPE, Problem, ProblemCode, REQUEST_ID,
};

use super::problem::ApiError;
use super::router::{Access, Row, table};

/// The name of the one way to authenticate.
const BEARER: &str = "apiKey";

/// The operation that says what another one would do.
const PLAN: &str = "planRun";

/// An example of every body and of every parameter; the tests hold them against schemas, types and the backend.
const EXAMPLES: &str = include_str!("examples.json");

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
/// Never: the examples are JSON, and the description has string keys only.
#[must_use]
pub fn document() -> String {
    let examples: Value = serde_json::from_str(EXAMPLES).expect("the examples are JSON");
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
            for (operation, writes) in operations(&mut item) {
                refusals(operation, access, writes);
                headers(operation, access);
                illustrate(operation, &examples);
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

/// The operations at a path, and whether each writes.
fn operations(item: &mut PathItem) -> impl Iterator<Item = (&mut Operation, bool)> {
    [
        (item.get.as_mut(), false),
        (item.post.as_mut(), true),
        (item.put.as_mut(), true),
        (item.patch.as_mut(), true),
        (item.delete.as_mut(), true),
    ]
    .into_iter()
    .filter_map(|(operation, writes)| Some((operation?, writes)))
    .map(|(operation, writes)| {
        let only_looks = operation.operation_id.as_deref() == Some(PLAN);
        (operation, writes && !only_looks)
    })
}

/// Who may, and every way to be refused that follows from the operation's shape: each handler declares only what is
/// its own.
fn refusals(operation: &mut Operation, access: Access, writes: bool) {
    let names_an_object = operation
        .parameters
        .iter_mut()
        .flatten()
        .filter_map(inline)
        .any(|parameter| match parameter.parameter_in {
            ParameterIn::Path => true,
            ParameterIn::Query => parameter.name == "gateway",
            ParameterIn::QueryString | ParameterIn::Header | ParameterIn::Cookie => false,
        });
    let mut codes = vec![
        ProblemCode::InvalidParameter,
        ProblemCode::BadRequest,
        ProblemCode::UnsupportedMediaType,
    ];
    operation.security = Some(match access {
        Access::Public => Vec::new(),
        Access::Scope(scope) => {
            codes.extend([
                ProblemCode::Unauthenticated,
                ProblemCode::Forbidden,
                ProblemCode::RateLimited,
                ProblemCode::Internal,
                ProblemCode::Unavailable,
            ]);
            vec![SecurityRequirement::new(BEARER, [scope.name()])]
        }
    });
    if names_an_object {
        codes.push(ProblemCode::NotFound);
    }
    if operation.request_body.is_some() {
        codes.push(ProblemCode::BodyTooLarge);
    }
    if writes {
        codes.push(ProblemCode::StorageFull);
    }
    for code in codes {
        operation
            .responses
            .responses
            .entry(ApiError::new(code, "").status().as_u16().to_string())
            .or_insert_with(|| RefOr::T(problem(code)));
    }
}

fn problem(code: ProblemCode) -> Response {
    Response::builder()
        .description(format!("{}: {}", code.title(), code.advice()))
        .content(
            PROBLEM_MEDIA_TYPE,
            Content::new(Some(RefOr::Ref(Ref::from_schema_name("Problem")))),
        )
        .build()
}

fn responses(operation: &mut Operation) -> impl Iterator<Item = (&str, &mut Response)> {
    operation
        .responses
        .responses
        .iter_mut()
        .filter_map(|(status, response)| Some((status.as_str(), inline(response)?)))
}

/// What stands in its place, and not elsewhere.
const fn inline<T>(part: &mut RefOr<T>) -> Option<&mut T> {
    match part {
        RefOr::T(part) => Some(part),
        RefOr::Ref(_) => None,
    }
}

/// The headers that come with each answer.
fn headers(operation: &mut Operation, access: Access) {
    let submits = matches!(
        operation.operation_id.as_deref(),
        Some("submitRun" | "retryDeadLetter")
    );
    for (status, response) in responses(operation) {
        let mut add = |name: &str, description: &str| {
            let header = Header::builder()
                .schema(Some(ObjectBuilder::new().schema_type(Type::String).build()))
                .description(Some(description))
                .build();
            response.headers.insert(name.to_owned(), RefOr::T(header));
        };
        add(
            REQUEST_ID,
            "Names this request in the log and the audit trail",
        );
        if access != Access::Public && status != "401" {
            add(
                "ratelimit",
                "What the key has left: requests, and the seconds until it has all of them again",
            );
            add(
                "ratelimit-policy",
                "What the key may ask for: requests, and the seconds they are counted over",
            );
        }
        match status {
            "401" => add("www-authenticate", "The way to authenticate"),
            "429" | "503" => add("retry-after", "Whole seconds to wait"),
            "200" | "201" | "202" if submits => add("location", "The run"),
            _ => {}
        }
        if submits && status == "202" {
            add("link", "Where to wait on: `rel=\"monitor\"`");
        }
        if submits && status == "200" {
            add(
                IDEMPOTENCY_REPLAYED,
                "`true`: answered with the run of the first submission",
            );
        }
    }
}

/// Adds the examples.
fn illustrate(operation: &mut Operation, examples: &Value) {
    let id = operation.operation_id.clone().unwrap_or_default();
    for parameter in operation.parameters.iter_mut().flatten().filter_map(inline) {
        let optional = matches!(parameter.parameter_in, ParameterIn::Header);
        let own = format!("{id}.{}", parameter.name);
        let parameters = &examples["parameters"];
        let example = parameters
            .get(own)
            .or_else(|| parameters.get(&parameter.name));
        let mut built = ParameterBuilder::from(std::mem::take(parameter)).example(example.cloned());
        if optional {
            // A header that is absent is no `null`, which is what an `Option` would be described as.
            built = built.required(Required::False);
        }
        *parameter = built.build();
    }
    if let Some(body) = operation.request_body.as_mut().and_then(inline) {
        for content in body.content.values_mut().filter_map(inline) {
            content.example = of_schema(content, examples);
        }
    }
    for (status, response) in responses(operation) {
        for (media_type, content) in &mut response.content {
            let Some(content) = inline(content) else {
                continue;
            };
            content.example = if media_type == PROBLEM_MEDIA_TYPE {
                refusal_with(status)
            } else {
                of_schema(content, examples)
                    .or_else(|| examples["texts"][media_type].get(status).cloned())
            };
        }
    }
}

fn of_schema(content: &Content, examples: &Value) -> Option<Value> {
    let RefOr::Ref(reference) = content.schema.as_ref()? else {
        return None;
    };
    let (_folder, name) = reference.ref_location.rsplit_once('/')?;
    examples["schemas"].get(name).cloned()
}

/// A problem document as it comes with a status.
fn refusal_with(status: &str) -> Option<Value> {
    let of_status = |code: &&ProblemCode| ApiError::new(**code, "").status().as_str() == status;
    let code = *ProblemCode::ALL.iter().find(of_status)?;
    let error = ApiError::new(code, code.title());
    serde_json::to_value(error.document("req_01940f5e8a0f70008000000000000001")).ok()
}
