//! `/openapi.json`: OpenAPI 3.1, gathered from the handlers and views themselves.
//!
//! What is read by hand rather than by serde (sends, queries) is described by the types below; tests hold them to
//! what the readers take.

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::openapi::schema::{Array, ArrayBuilder, Object, ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoParams, Modify, OpenApi, ToSchema};

use super::problem::ProblemCode;
use super::{batches, executions, explain, har, nodes, resend, sends, sources, stats, suspensions, tail, tunnels};
use crate::outcome::{Code, Outcome, Phase, Processed};
use crate::record::{BatchState, ExecutionState, FinishedBy, State, TunnelEnd};
use crate::send::{Explained, Method};
use crate::source::Verified;
use crate::store::stats::By;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "egressd",
        description = "Sends made once, from published addresses, within five seconds, and what came of them.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        sends::submit, sends::list, sends::one, resend::resend, har::har, tail::tail,
        executions::submit, executions::list, executions::one, executions::finish, executions::discard,
        explain::explain, stats::read, tunnels::list, batches::one,
        suspensions::list, suspensions::suspend, suspensions::lift, suspensions::tenants, sources::list, nodes::list,
        public_ips_text, public_ips_json, public_ips_atom, document_itself, inspector,
    ),
    tags(
        (name = "sends", description = "Submitting sends, and what came of them"),
        (name = "executions", description = "Sends held until the run they belong to has ended"),
        (name = "tunnels", description = "What went through the forward proxy"),
        (name = "policy", description = "What may be reached"),
        (name = "operators", description = "Stopping abuse, and seeing who is noisy"),
        (name = "addresses", description = "The addresses that sends leave from"),
    ),
    modifiers(&Finish),
    security(("token" = []), ()),
)]
struct Api;

/// What attributes cannot say.
struct Finish;

impl Modify for Finish {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let token = SecurityScheme::Http(
            HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .description(Some("A token of a configured client; without clients none is needed."))
                .build(),
        );
        document.components.get_or_insert_default().add_security_scheme("token", token);
    }
}

static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let mut document = serde_json::to_value(Api::openapi()).unwrap_or_default();
    mend(&mut document);
    document.to_string()
});

/// What the derives cannot say: a parameter that is left out is not `null`, an empty array of sends is none, a
/// request has one body at most, and every call may be refused by the browser guard.
fn mend(document: &mut Value) {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    let operations = paths.into_iter().flat_map(|paths| paths.values_mut()).filter_map(Value::as_object_mut);
    for operation in operations.flat_map(|path| path.values_mut()) {
        let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
        for kind in parameters.into_iter().flatten().filter_map(|one| one.pointer_mut("/schema/type")) {
            let not_null = kind.as_array().and_then(|kinds| kinds.iter().find(|kind| **kind != "null").cloned());
            if let Some(not_null) = not_null {
                *kind = not_null;
            }
        }
        let choices = operation.pointer_mut("/requestBody/content/application~1json/schema/oneOf");
        for choice in choices.and_then(Value::as_array_mut).into_iter().flatten() {
            if choice.get("type").is_some_and(|kind| kind == "array") {
                choice["minItems"] = 1.into();
            }
        }
        let takes_a_body = operation.get("requestBody").is_some();
        if let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) {
            let problem = |description: &str| {
                let schema = json!({"schema": {"$ref": "#/components/schemas/Problem"}});
                json!({"description": description, "content": {"application/problem+json": schema}})
            };
            responses.entry("403").or_insert_with(|| problem("A page of another origin asks"));
            if takes_a_body {
                responses.entry("408").or_insert_with(|| problem("The body did not arrive in time"));
            }
            responses.entry("421").or_insert_with(|| problem("While there are no clients: the Host is not loopback's"));
        }
    }
    let given = |names: &[&str]| {
        let not_null = |name: &&str| ((*name).to_owned(), json!({"not": {"type": "null"}}));
        json!({"required": names, "properties": names.iter().map(not_null).collect::<serde_json::Map<_, _>>()})
    };
    let both = given(&["data", "data_base64"]);
    let absent = |name: &&str| json!({"not": given(&[*name])});
    if let Some(send) = document.pointer_mut("/components/schemas/Send") {
        let of_request: Vec<Value> = REQUEST_KEYS.iter().map(absent).collect();
        send["oneOf"] = json!([
            {"allOf": [given(&["method", "url"]), absent(&"email"), absent(&"s3"), absent(&"sql")]},
            {"allOf": [given(&["email"]), absent(&"s3"), absent(&"sql"), {"allOf": of_request}]},
            {"allOf": [given(&["s3"]), absent(&"email"), absent(&"sql"), {"allOf": of_request}]},
            {"allOf": [given(&["sql"]), absent(&"email"), absent(&"s3"), {"allOf": of_request}]},
        ]);
        let head = json!({"required": ["method"], "properties": {"method": {"const": "HEAD"}}});
        let body = json!({"anyOf": [given(&["data"]), given(&["data_base64"])]});
        send["allOf"] = json!([{"not": both}, {"not": {"allOf": [head, body]}}]);
    }
    if let Some(resend) = document.pointer_mut("/components/schemas/Resend") {
        resend["not"] = both;
    }
    if let Some(explain) = document.pointer_mut("/components/schemas/Explain") {
        explain["oneOf"] = json!([
            {"allOf": [given(&["method", "url"]), absent(&"email"), absent(&"s3"), absent(&"sql")]},
            {"allOf": [given(&["email"]), absent(&"s3"), absent(&"sql"), absent(&"method"), absent(&"url")]},
            {"allOf": [given(&["s3"]), absent(&"email"), absent(&"sql"), absent(&"method"), absent(&"url")]},
            {"allOf": [given(&["sql"]), absent(&"email"), absent(&"s3"), absent(&"method"), absent(&"url")]},
        ]);
    }
    if let Some(email) = document.pointer_mut("/components/schemas/Email") {
        email["anyOf"] = json!([given(&["text"]), given(&["html"])]);
    }
    for of in ["Send", "Resend"] {
        if let Some(headers) = document.pointer_mut(&format!("/components/schemas/{of}/properties/headers")) {
            headers["propertyNames"] = json!({"pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"});
        }
    }
    if let Some(suspend) = document.pointer_mut("/components/schemas/Suspend") {
        suspend["oneOf"] = json!([
            {"allOf": [given(&["tenant"]), absent(&"host")]},
            {"allOf": [given(&["host"]), absent(&"tenant"), absent(&"workflow")]},
        ]);
    }
}

/// What a send has where it is a request, and only there.
const REQUEST_KEYS: [&str; 7] = ["method", "url", "data", "data_base64", "headers", "params", "auth"];

/// The document as served.
pub fn text() -> &'static str {
    &DOCUMENT
}

pub(super) async fn document() -> Response {
    ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-cache")], text()).into_response()
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "addresses", operation_id = "openapi", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = HashMap<String, serde_json::Value>)))]
#[allow(dead_code, reason = "described here, served by the router")]
fn document_itself() {}

/// The inspector: a page that asks this API.
#[utoipa::path(get, path = "/", tag = "sends", operation_id = "inspector", security(()),
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/html"),
        (status = 404, body = super::problem::ProblemView<'static>, content_type = "application/problem+json", description = "Built without it"),
    ))]
#[allow(dead_code, reason = "described here, served by `page`")]
fn inspector() {}

/// The published addresses, one per line: announced, active and retiring ones alike.
#[utoipa::path(get, path = "/public-ips.txt", tag = "addresses", security(()),
    responses(
        (status = 200, description = "One address per line", body = String, content_type = "text/plain",
            headers(("etag" = String), ("last-modified" = String), ("cache-control" = String))),
        (status = 304, description = "Not changed since"),
    ))]
#[allow(dead_code, reason = "described here, served by the list of addresses")]
fn public_ips_text() {}

/// The published addresses with their dates, in the shape of Google's list.
#[utoipa::path(get, path = "/public-ips.json", tag = "addresses", security(()),
    responses(
        (status = 200, description = "The list", body = PublicIps,
            headers(("etag" = String), ("last-modified" = String), ("cache-control" = String))),
        (status = 304, description = "Not changed since"),
    ))]
#[allow(dead_code, reason = "described here, served by the list of addresses")]
fn public_ips_json() {}

/// Changes of the published addresses, for feed readers.
#[utoipa::path(get, path = "/public-ips.atom", tag = "addresses", security(()),
    responses(
        (status = 200, description = "An Atom feed", body = String, content_type = "application/atom+xml",
            headers(("etag" = String), ("cache-control" = String))),
        (status = 304, description = "Not changed since"),
    ))]
#[allow(dead_code, reason = "described here, served by the list of addresses")]
fn public_ips_atom() {}

#[derive(ToSchema)]
#[allow(dead_code, non_snake_case, reason = "a description; the list of addresses writes it")]
struct PublicIps {
    /// The Unix second of the last change; never falls.
    #[schema(example = "1795300000")]
    syncToken: String,
    creationTime: String,
    prefixes: Vec<Prefix>,
}

/// One address: `ipv4Prefix` or `ipv6Prefix`.
#[derive(ToSchema)]
#[allow(dead_code, non_snake_case, reason = "a description; the list of addresses writes it")]
struct Prefix {
    #[schema(example = "203.0.113.12/32", nullable = false)]
    ipv4Prefix: Option<String>,
    #[schema(example = "2001:db8::1/128", nullable = false)]
    ipv6Prefix: Option<String>,
    #[schema(schema_with = address_status)]
    status: String,
    announced: Option<String>,
    active: Option<String>,
    retires: Option<String>,
}

/// Which tenant the call is for.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "a description; `access` reads it")]
pub(super) struct Tenant {
    /// The tenant; `*` on reading calls: all of them, with the scope `operate`. Left out by clients of one tenant.
    #[param(
        rename = "egressd-tenant",
        min_length = 1,
        max_length = 128,
        pattern = "^[!-~]([ -~]*[!-~])?$",
        example = "default"
    )]
    tenant: Option<String>,
}

/// Makes a submit safe to repeat for 24 hours.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "a description; `sends` reads it")]
pub(super) struct Idempotency {
    /// The same key with the same body answers the first call's sends as they are now.
    #[param(rename = "idempotency-key", min_length = 1, max_length = 255, pattern = "^[!-~]([ -~]*[!-~])?$")]
    key: Option<String>,
}

/// How much the answer tells.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "a description; `sends` reads it")]
pub(super) struct Prefer {
    /// `return=minimal` (RFC 7240): of each send its `id` and `state` alone.
    #[param(example = "return=minimal")]
    prefer: Option<String>,
}

/// The caller's trace.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "a description; `sends` reads it")]
pub(super) struct Trace {
    /// As W3C Trace Context has it: each send is a span of it, where `[telemetry] otlp` is set. One that cannot be read
    /// counts as none.
    #[param(example = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
    traceparent: Option<String>,
}

/// What a list or a tail shows.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "a description; `query` reads it")]
pub(super) struct Filters {
    /// Only where `Egressd-Tenant: *` was asked for.
    #[param(min_length = 1, max_length = 128)]
    tenant: Option<String>,
    workflow: Option<String>,
    execution: Option<String>,
    step: Option<String>,
    /// Host of the URL; `*.example.com` are all names below that one.
    #[param(example = "hooks.example.com")]
    host: Option<String>,
    /// May stand several times, as `code` and `status` may: any of them will do.
    #[param(schema_with = outcomes)]
    outcome: Option<Vec<String>>,
    #[param(schema_with = codes)]
    code: Option<Vec<String>>,
    /// A status code, or a class such as `5xx`.
    #[param(schema_with = statuses)]
    status: Option<Vec<String>>,
    #[param(schema_with = state)]
    state: Option<String>,
    #[param(schema_with = method)]
    method: Option<String>,
    /// What the path of the URL begins with.
    #[param(pattern = "^/", example = "/orders")]
    path: Option<String>,
    /// Public address that it left from; with the scope `operate` the bound one, too.
    #[param(example = "198.51.100.10")]
    source_ip: Option<String>,
    /// From this instant on: of `created_at`, or of `started_at` where `source_ip` is given.
    #[param(format = DateTime)]
    since: Option<String>,
    /// Before this instant.
    #[param(format = DateTime)]
    until: Option<String>,
}

/// What is looked for in bodies.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "a description; `query` reads it")]
pub(super) struct Text {
    /// Stands in the body of the request or of the response, as far as these are kept, in small letters or large. What is
    /// searched for one page is bounded in time and bytes: `searched` says how far it went, and `next` goes on from there.
    #[param(min_length = 1, max_length = 256, example = "order 42")]
    text: Option<String>,
}

/// Which executions a list shows.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "a description; `query` reads it")]
pub(super) struct ExecutionFilters {
    /// Only where `Egressd-Tenant: *` was asked for.
    #[param(min_length = 1, max_length = 128)]
    tenant: Option<String>,
    /// Of the first send that is left.
    workflow: Option<String>,
    #[param(schema_with = execution_state)]
    state: Option<String>,
    /// From this instant on: of when the first send that is left was accepted.
    #[param(format = DateTime)]
    since: Option<String>,
    /// Before this instant.
    #[param(format = DateTime)]
    until: Option<String>,
}

/// Which tunnels a list shows.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "a description; `query` reads it")]
pub(super) struct TunnelFilters {
    /// Only where `Egressd-Tenant: *` was asked for.
    #[param(min_length = 1, max_length = 128)]
    tenant: Option<String>,
    /// Where it leads; `*.example.com` are all names below that one.
    #[param(example = "api.example.com")]
    host: Option<String>,
    /// Public address that it left from; with the scope `operate` the bound one, too.
    #[param(example = "198.51.100.10")]
    source_ip: Option<String>,
    /// May stand several times, as `code` may: any of them will do. Those that are open have none.
    #[param(schema_with = tunnel_ends)]
    end: Option<Vec<String>>,
    #[param(schema_with = codes)]
    code: Option<Vec<String>>,
    /// Those that were there at this instant or later, whenever they began.
    #[param(format = DateTime)]
    since: Option<String>,
    /// Those that began before this instant.
    #[param(format = DateTime)]
    until: Option<String>,
}

/// What statistics are asked for.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "a description; `query` reads it")]
pub(super) struct StatsParameters {
    /// Only where `Egressd-Tenant: *` was asked for.
    #[param(min_length = 1, max_length = 128)]
    tenant: Option<String>,
    /// From the bucket on that holds this instant; a day before `until` by default. It is of when sends ended.
    #[param(format = DateTime)]
    since: Option<String>,
    /// Up to the bucket that holds what comes before this instant; now by default.
    #[param(format = DateTime)]
    until: Option<String>,
    /// How long one is; by default the shortest of which there are no more than 100. At most 750 fit into one answer.
    #[param(schema_with = bucket)]
    bucket: Option<String>,
    /// What sends are told apart by; the outcome by default.
    #[param(schema_with = by)]
    by: Option<String>,
}

/// Which page.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "a description; `query` reads it")]
pub(super) struct Paging {
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// The `next` of the page before.
    #[param(min_length = 1)]
    cursor: Option<String>,
}

/// One send, or several in order.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "a description; `send::parse` reads it")]
pub(super) enum Submission {
    One(Box<SendBody>),
    Several(Vec<SendBody>),
}

/// One send, or several in order.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "a description; `view` writes it")]
pub(super) enum SubmissionAnswer {
    One(super::view::AcceptedView<'static>),
    Several(super::view::SendsView<'static>),
}

/// What to do once: an HTTP request (`method`, `url` and what follows them), or in their place a message (`email`) or an event
/// for a bucket (`s3`) or a table (`sql`).
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Send)]
#[allow(dead_code, reason = "a description; `send::parse` reads it")]
pub(super) struct SendBody {
    #[schema(schema_with = method)]
    method: Option<String>,
    /// An absolute `http` or `https` URL; anything else is accepted and ends `blocked`.
    #[schema(example = "https://hooks.example.com/orders", nullable = false)]
    url: Option<String>,
    /// The body: an object, array, number or boolean goes out as JSON, byte for byte as it stands here; a string as
    /// it is; a flat object as a form where the content type is `application/x-www-form-urlencoded`.
    data: Option<serde_json::Value>,
    /// The body as bytes, instead of `data`.
    #[schema(
        content_encoding = "base64",
        pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw](==)?|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=?)?$"
    )]
    data_base64: Option<String>,
    /// Values are strings, numbers, or arrays of strings (one line each). Framing and hop-by-hop headers are dropped.
    #[schema(schema_with = header_values)]
    headers: Option<HashMap<String, serde_json::Value>>,
    /// Added to the query; a key given here replaces the URL's own. `null` is left out, an array repeats its key.
    #[schema(schema_with = param_values)]
    params: Option<HashMap<String, serde_json::Value>>,
    auth: Option<Auth>,
    email: Option<EmailBody>,
    s3: Option<S3Body>,
    sql: Option<SqlBody>,
    context: Option<Context>,
    /// Whole seconds from release or acceptance; not started by then, it ends `expired`.
    #[schema(minimum = 1, maximum = 31_622_400)]
    expires_in: Option<u32>,
}

/// A message to the tenant's own address, which the operator has configured, with `text`, `html` or both. Where that is not
/// so, it is a 400.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Email)]
#[allow(dead_code, reason = "a description; `send::parse` reads it")]
struct EmailBody {
    #[schema(max_length = 500, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")]
    subject: Option<String>,
    #[schema(pattern = "^[^\\u0000]*$")]
    text: Option<String>,
    #[schema(pattern = "^[^\\u0000]*$")]
    html: Option<String>,
    /// Whether it goes to the collaborators that the operator has configured, too.
    include_collaborators: Option<bool>,
}

/// An event for a bucket of the store that the operator has configured: it gathers with others of its tenant for the same
/// place, and they are put there as one object. Where there is no store, it is a 400.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = S3)]
#[allow(dead_code, reason = "a description; `send::parse` reads it")]
struct S3Body {
    #[schema(pattern = "^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$|^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", example = "logs")]
    bucket: String,
    /// At most 512 bytes, with or without its last `/`.
    #[schema(max_length = 512, example = "orders")]
    prefix: String,
    /// One line of the object: an object or an array as it stands here, a string as its text.
    #[schema(schema_with = payload)]
    payload: serde_json::Value,
}

/// An event for a table of the tenant's schema in the database that the operator has configured: it gathers with others of
/// its tenant for the same table, and they are written in one transaction. Where there is no database, it is a 400.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Sql)]
#[allow(dead_code, reason = "a description; `send::parse` reads it")]
struct SqlBody {
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9_]{0,62}$", example = "orders")]
    table: String,
    /// The column `event`, of the type jsonb.
    #[schema(schema_with = payload)]
    payload: serde_json::Value,
}

/// HTTP Basic; wins over an `Authorization` header.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "a description; `send::parse` reads it")]
struct Auth {
    #[schema(pattern = "^[^:]*$")]
    username: String,
    password: String,
}

/// For finding the record again.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "a description; `send::parse` reads it")]
struct Context {
    #[schema(max_length = 256)]
    workflow: Option<String>,
    #[schema(max_length = 256)]
    execution: Option<String>,
    #[schema(max_length = 256)]
    step: Option<String>,
}

/// What a resend supplies of what the record no longer holds.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Resend)]
#[allow(dead_code, reason = "a description; `send::parse` reads it")]
pub(super) struct ResendBody {
    auth: Option<Auth>,
    #[schema(schema_with = header_values)]
    headers: Option<HashMap<String, serde_json::Value>>,
    data: Option<serde_json::Value>,
    #[schema(
        content_encoding = "base64",
        pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw](==)?|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=?)?$"
    )]
    data_base64: Option<String>,
    /// The message anew, where the original is one; then nothing else is.
    email: Option<EmailBody>,
    /// The same of an event.
    s3: Option<S3Body>,
    sql: Option<SqlBody>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Explain)]
#[allow(dead_code, reason = "a description; `send::parse` reads it")]
pub(super) struct ExplainBody {
    #[schema(schema_with = explained)]
    method: Option<String>,
    /// Of `CONNECT`: `host:port`.
    #[schema(nullable = false)]
    url: Option<String>,
    /// In place of both.
    email: Option<EmailBody>,
    /// As well.
    s3: Option<S3Body>,
    sql: Option<SqlBody>,
}

/// `{tenant, workflow?, reason}` or `{host, reason}`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Suspend)]
#[allow(dead_code, reason = "a description; `suspensions` reads it")]
pub(super) struct SuspendBody {
    #[schema(min_length = 1, max_length = 128)]
    tenant: Option<String>,
    #[schema(min_length = 1, max_length = 256)]
    workflow: Option<String>,
    #[schema(min_length = 1)]
    host: Option<String>,
    #[schema(min_length = 1, max_length = 1024)]
    reason: String,
}

/// HAR 1.2.
#[derive(ToSchema)]
#[allow(dead_code, reason = "a description; `har` writes it")]
pub(super) struct Har {
    log: HashMap<String, serde_json::Value>,
}

fn text_of(values: impl Iterator<Item = &'static str>, or_null: bool) -> Object {
    let mut values: Vec<Value> = values.map(Value::from).collect();
    let kind = if or_null {
        values.push(Value::Null);
        SchemaType::from_iter([Type::String, Type::Null])
    } else {
        SchemaType::new(Type::String)
    };
    ObjectBuilder::new().schema_type(kind).enum_values(Some(values)).build()
}

fn any_of(item: Object) -> Array {
    ArrayBuilder::new().items(item).build()
}

pub(super) fn outcomes() -> Array {
    any_of(outcome())
}

pub(super) fn codes() -> Array {
    any_of(code())
}

pub(super) fn statuses() -> Array {
    any_of(ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[1-9]([0-9]{2}|xx)$")).build())
}

pub(super) fn method() -> Object {
    text_of(Method::ALL.iter().map(|one| one.label()), false)
}

pub(super) fn explained() -> Object {
    text_of(Explained::labels(), false)
}

pub(super) fn explained_or_null() -> Object {
    text_of(Explained::labels(), true)
}

pub(super) fn state() -> Object {
    text_of(State::ALL.iter().map(|one| one.label()), false)
}

pub(super) fn batch_state() -> Object {
    text_of(BatchState::ALL.iter().map(|one| one.label()), false)
}

pub(super) fn state_or_gone() -> Object {
    text_of(State::ALL.iter().map(|one| one.label()).chain(["gone"]), false)
}

pub(super) fn outcome() -> Object {
    text_of(Outcome::ALL.iter().map(|one| one.label()), false)
}

pub(super) fn outcome_or_null() -> Object {
    text_of(Outcome::ALL.iter().map(|one| one.label()), true)
}

pub(super) fn code() -> Object {
    text_of(Code::ALL.iter().map(|one| one.label()), false)
}

pub(super) fn code_or_null() -> Object {
    text_of(Code::ALL.iter().map(|one| one.label()), true)
}

pub(super) fn tunnel_ends() -> Array {
    any_of(text_of(TunnelEnd::ALL.iter().map(|one| one.label()), false))
}

pub(super) fn tunnel_end_or_null() -> Object {
    text_of(TunnelEnd::ALL.iter().map(|one| one.label()), true)
}

pub(super) fn verified() -> Object {
    text_of(Verified::ALL.iter().map(|one| one.label()), false)
}

pub(super) fn phase_or_null() -> Object {
    text_of(Phase::ALL.iter().map(|one| one.label()), true)
}

pub(super) fn processed() -> Object {
    text_of(Processed::ALL.iter().map(|one| one.label()), false)
}

pub(super) fn encoding_or_null() -> Object {
    text_of(["utf8", "base64"].into_iter(), true)
}

pub(super) fn bucket() -> Object {
    text_of(super::query::BUCKETS.iter().map(|(label, _)| *label), false)
}

pub(super) fn by() -> Object {
    text_of(By::ALL.iter().map(|one| one.label()), false)
}

pub(super) fn execution_state() -> Object {
    text_of(ExecutionState::ALL.iter().map(|one| one.label()), false)
}

pub(super) fn finished_by_or_null() -> Object {
    text_of(FinishedBy::ALL.iter().map(|one| one.label()), true)
}

pub(super) fn explained_verdict() -> Object {
    text_of(["allowed", "blocked", "failed"].into_iter(), false)
}

pub(super) fn problem_code() -> Object {
    text_of(ProblemCode::ALL.iter().map(|one| one.label()), false)
}

fn address_status() -> Object {
    text_of(["announced", "active", "retiring"].into_iter(), false)
}

/// An object or null, its values one of several forms.
fn open_object(values: Value) -> Value {
    json!({"type": ["object", "null"], "additionalProperties": values})
}

fn described(schema: Value) -> Schema {
    serde_json::from_value(schema).unwrap_or_else(|_| ObjectBuilder::new().build().into())
}

fn header_values() -> Schema {
    let line = json!({"type": "string", "pattern": "^[ -~]*$"});
    described(open_object(json!({"oneOf": [line, {"type": "number"}, {"type": "array", "items": line}]})))
}

fn payload() -> Schema {
    described(json!({"type": ["object", "array", "string"]}))
}

fn param_values() -> Schema {
    let plain = json!({"type": ["string", "number", "boolean", "null"]});
    described(open_object(json!({"oneOf": [plain, {"type": "array", "items": plain}]})))
}

#[cfg(test)]
mod tests;
