use std::collections::BTreeSet;

use super::*;
use crate::api::access::Tenants;
use crate::api::query;
use crate::redact::RedactKey;
use crate::send::TenantId;
use crate::send::parse::{self, Bounds, Mail};

fn document() -> Value {
    serde_json::from_str(text()).expect("JSON")
}

/// Every operation with its path and method.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            all.push((path.clone(), method.clone(), operation.clone()));
        }
    }
    all
}

#[test]
fn every_call_of_the_contract_is_described() {
    let document = document();
    let found: BTreeSet<String> =
        operations(&document).into_iter().map(|(path, method, _)| format!("{method} {path}")).collect();
    let expected = [
        "get /",
        "get /openapi.json",
        "get /public-ips.atom",
        "get /public-ips.json",
        "get /public-ips.txt",
        "get /v1/batches/{id}",
        "get /v1/executions",
        "get /v1/executions/{execution}",
        "get /v1/nodes",
        "get /v1/sends",
        "get /v1/sends/{id}",
        "get /v1/sends/{id}/har",
        "get /v1/sources",
        "get /v1/stats",
        "get /v1/suspensions",
        "get /v1/tail",
        "get /v1/tenants",
        "get /v1/tunnels",
        "delete /v1/suspensions/{id}",
        "post /v1/executions/{execution}/discard",
        "post /v1/executions/{execution}/finish",
        "post /v1/executions/{execution}/sends",
        "post /v1/explain",
        "post /v1/sends",
        "post /v1/sends/{id}/resend",
        "post /v1/suspensions",
    ];
    assert_eq!(found, expected.into_iter().map(str::to_owned).collect());
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn operations_have_names_words_and_answers_of_their_own() {
    let document = document();
    let mut names = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let name = operation["operationId"].as_str().expect("an id").to_owned();
        assert!(names.insert(name.clone()), "{name} stands twice");
        assert!(operation["summary"].is_string(), "{method} {path}");
        let responses = operation["responses"].as_object().expect("responses");
        assert!(responses.keys().any(|status| status.starts_with('2')), "{method} {path}");
        for (status, response) in responses {
            if status.starts_with(['4', '5']) {
                let problem = &response["content"]["application/problem+json"]["schema"]["$ref"];
                assert_eq!(problem, "#/components/schemas/Problem", "{method} {path} {status}");
            }
        }
        if path.starts_with("/v1/") {
            assert!(responses.contains_key("401"), "{method} {path}");
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    found.insert(reference.clone());
                }
                members.values().for_each(|member| walk(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = BTreeSet::new();
    walk(&document, &mut found);
    assert!(found.len() > 20, "{found:?}");
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("of this document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[test]
fn closed_lists_are_the_codes_own() {
    let document = document();
    let listed = |pointer: &str| -> Vec<String> {
        let values = document.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("{pointer}"));
        values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let labels = |all: Vec<&'static str>| all.into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        listed("/components/schemas/Problem/properties/code/enum"),
        labels(ProblemCode::ALL.iter().map(|one| one.label()).collect())
    );
    assert_eq!(
        listed("/components/schemas/Record/properties/outcome/enum"),
        labels(Outcome::ALL.iter().map(|one| one.label()).collect())
    );
    assert_eq!(
        listed("/components/schemas/RecordError/properties/code/enum"),
        labels(Code::ALL.iter().map(|one| one.label()).collect())
    );
    assert_eq!(listed("/components/schemas/Send/properties/method/enum").len(), Method::ALL.len());
}

#[test]
fn a_record_requires_every_key() {
    let document = document();
    for (name, keys) in [
        ("Record", 20),
        ("RecordEmail", 7),
        ("RecordRequest", 9),
        ("RecordResponse", 8),
        ("RecordConnection", 8),
        ("RecordTimings", 9),
        ("Batch", 13),
        ("BatchAttempt", 7),
        ("RecordS3", 5),
        ("RecordSql", 4),
        ("RecordContext", 5),
        ("RecordError", 4),
        ("Explanation", 10),
        ("Execution", 7),
        ("ExecutionSummary", 10),
        ("Executions", 2),
        ("Stats", 6),
        ("Figures", 4),
        ("Percentiles", 3),
    ] {
        let schema = &document["components"]["schemas"][name];
        let mut required: BTreeSet<_> =
            schema["required"].as_array().expect(name).iter().filter_map(Value::as_str).collect();
        // What a send is, where it is no request, stands beside `request`.
        if name == "Record" {
            for key in ["email", "s3", "sql", "batch"] {
                assert!(required.insert(key), "a record of a request has no {key}");
            }
        }
        let properties: BTreeSet<_> =
            schema["properties"].as_object().expect(name).keys().map(String::as_str).collect();
        assert_eq!(required, properties, "{name}");
        assert_eq!(properties.len(), keys, "{name}");
    }
}

/// What the document says a query takes is what the reader takes.
#[test]
fn described_parameters_are_taken() {
    let document = document();
    let names = |path: &str| -> Vec<(String, Value)> {
        let parameters = document["paths"][path]["get"]["parameters"].as_array().expect("parameters").clone();
        let in_query = parameters.into_iter().filter(|one| one["in"] == "query");
        in_query.map(|one| (one["name"].as_str().expect("a name").to_owned(), one)).collect()
    };
    let value_of = |name: &str| match name {
        "outcome" => "delivered",
        "code" => "timeout",
        "status" => "200",
        "source_ip" => "198.51.100.10",
        "since" | "until" => "2026-11-22T00:00:00Z",
        "limit" => "200",
        "host" => "example.com",
        "state" => "held",
        "method" => "POST",
        "path" => "/orders",
        "bucket" => "1d",
        "by" => "host",
        _ => "x",
    };
    let now = "2026-11-22T12:00:00Z".parse().expect("an instant");
    for (path, count) in [("/v1/sends", 17), ("/v1/tail", 14), ("/v1/executions", 7), ("/v1/stats", 5)] {
        let names = names(path);
        assert_eq!(names.len(), count, "{path}");
        for (name, parameter) in names {
            let value = if (path, &*name) == ("/v1/executions", "state") { "open" } else { value_of(&name) };
            let text = format!("{name}={value}");
            let taken = match path {
                "/v1/tail" => query::tail(Some(&text), Tenants::All, true).is_ok(),
                "/v1/stats" => query::stats(Some(&text), Tenants::All, now).is_ok(),
                "/v1/executions" => query::executions(Some(&text), Tenants::All).is_ok(),
                _ => query::list(Some(&text), Tenants::All, true).is_ok(),
            };
            assert!(taken, "{path} {text}");
            assert!(parameter["required"] != true, "{name}");
            assert!(parameter["schema"]["type"].is_string(), "{name}: {parameter}");
        }
    }
    assert!(query::list(Some("tenant=x"), Tenants::One(TenantId::new("a")), true).is_err());
}

#[test]
fn examples_are_taken_by_the_readers() {
    let (key, tenant) = (RedactKey::new(b"a key for tests"), TenantId::new("acme"));
    let bounds =
        Bounds { request_body: 1 << 20, sends_per_request: 1000, mail: relay(), s3: Some(store()), sql: warehouse() };
    let mut seen = 0;
    for (path, method, operation) in operations(&document()) {
        let content = &operation["requestBody"]["content"]["application/json"];
        let mut examples: Vec<Value> = content.get("example").cloned().into_iter().collect();
        if let Some(named) = content["examples"].as_object() {
            examples.extend(named.values().map(|example| example["value"].clone()));
        }
        for example in examples {
            let raw = bytes::Bytes::from(example.to_string());
            let problems = match path.as_str() {
                "/v1/sends" | "/v1/executions/{execution}/sends" => {
                    parse::call(&raw, &bounds, key.of(&tenant), None).err()
                }
                "/v1/sends/{id}/resend" => {
                    // The example's ellipsis stands for a token.
                    let raw = bytes::Bytes::from(example.to_string().replace('…', "token"));
                    parse::supplied(&raw, &bounds, None).err()
                }
                "/v1/explain" => parse::outline(&raw, &bounds).err(),
                "/v1/suspensions" => parse::strings(&raw, &["tenant", "workflow", "host", "reason"], 1024).err(),
                _ => panic!("{method} {path} has an example that nobody reads"),
            };
            assert_eq!(problems, None, "{method} {path} {example}");
            seen += 1;
        }
    }
    assert!(seen >= 6, "{seen}");
}

/// The described shape and the reader agree on which keys a send has.
#[test]
fn a_described_send_is_one_that_the_reader_takes() {
    let full = json!({
        "method": "POST", "url": "https://example.com/", "data": {"a": [1]}, "data_base64": null,
        "headers": {"X-A": "1", "X-B": 2, "X-C": ["3", "4"]}, "params": {"a": 1, "b": [true, "x", null], "c": null},
        "auth": {"username": "u", "password": "p"},
        "context": {"workflow": "w", "execution": "e", "step": null}, "expires_in": 60
    });
    assert!(serde_json::from_value::<SendBody>(full.clone()).is_ok());
    let raw = bytes::Bytes::from(full.to_string());
    let bounds =
        Bounds { request_body: 1000, sends_per_request: 1, mail: relay(), s3: Some(store()), sql: warehouse() };
    let read = |raw| parse::call(&raw, &bounds, RedactKey::new(b"k").of(&TenantId::new("acme")), None).is_ok();
    assert!(read(raw));
    let mail = json!({
        "email": {"subject": "s", "text": "t", "html": "h", "include_collaborators": true},
        "context": {"workflow": "w"}, "expires_in": 60
    });
    assert!(serde_json::from_value::<SendBody>(mail.clone()).is_ok());
    assert!(read(mail.to_string().into()));
    let event = json!({"s3": {"bucket": "logs", "prefix": "p", "payload": {"a": 1}}, "expires_in": 60});
    assert!(serde_json::from_value::<SendBody>(event.clone()).is_ok());
    assert!(read(event.to_string().into()));
    let row = json!({"sql": {"table": "orders", "payload": {"a": 1}}});
    assert!(serde_json::from_value::<SendBody>(row.clone()).is_ok());
    assert!(read(row.to_string().into()));
    let document = document();
    let described = |name: &str| -> BTreeSet<String> {
        let properties = document["components"]["schemas"][name]["properties"].as_object().expect("properties");
        properties.keys().cloned().collect()
    };
    let keys = |of: &Value| -> BTreeSet<String> { of.as_object().expect("an object").keys().cloned().collect() };
    assert_eq!(
        described("Send"),
        keys(&full).into_iter().chain(keys(&mail)).chain(keys(&event)).chain(keys(&row)).collect()
    );
    assert_eq!(described("Email"), keys(&mail["email"]));
    assert_eq!(described("S3"), keys(&event["s3"]));
    for name in REQUEST_KEYS {
        let mut both = mail.clone();
        both[name] = full[name].clone();
        assert_eq!(read(both.to_string().into()), full[name].is_null(), "{name} beside email");
        let mut both = event.clone();
        both[name] = full[name].clone();
        assert_eq!(read(both.to_string().into()), full[name].is_null(), "{name} beside s3");
    }
}

fn store() -> std::sync::Arc<crate::config::S3Settings> {
    use crate::policy::{Destination, Host, Scheme};
    std::sync::Arc::new(crate::config::S3Settings {
        endpoint: Destination { scheme: Scheme::Https, host: Host::Name("s3.example.net".into()), port: 443 },
        path_style: false,
        region: "us-east-1".to_owned(),
        credentials_file: Default::default(),
        buckets: Vec::new(),
        gathering: Default::default(),
    })
}

fn warehouse() -> parse::Sql {
    use crate::policy::{Destination, Host, Scheme};
    let host = Host::Name("warehouse.example.net".into());
    parse::Sql::Server(Destination { scheme: Scheme::PostgresTls, host, port: 5432 })
}

fn relay() -> Mail {
    use crate::policy::{Destination, Host, Scheme};
    Mail::Relay(Destination { scheme: Scheme::Smtps, host: Host::Name("relay.example.net".into()), port: 465 })
}
