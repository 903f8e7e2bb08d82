//! `egressd send`: submits one send through the API, and waits for its record where asked.

use anyhow::{Context as _, bail};
use http::Method;
use serde_json::{Map, Value, json, value::RawValue};

use super::client::{ApiArgs, ApiClient};
use super::out::{print, say, tell};
use super::show::{Style, block};
use super::{NO, OK, block_on};

#[derive(clap::Args)]
pub struct Args {
    /// GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS
    method: String,
    /// An absolute http or https URL
    url: String,
    /// The body: as JSON where it is an object, an array or a number, else as text; `@FILE` reads it, `@-` from stdin
    #[arg(short, long, value_name = "DATA")]
    data: Option<String>,
    /// A header; may be repeated
    #[arg(short = 'H', long = "header", value_name = "K: V")]
    headers: Vec<String>,
    /// A query parameter; may be repeated
    #[arg(short, long = "param", value_name = "K=V")]
    params: Vec<String>,
    /// HTTP Basic credentials
    #[arg(short, long, value_name = "USER:PASS")]
    user: Option<String>,
    /// The execution that this send belongs to (it is not held)
    #[arg(long, value_name = "E")]
    execution: Option<String>,
    /// Wait for the end and print the record
    #[arg(long)]
    wait: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

pub fn run(args: Args) -> u8 {
    block_on(async move {
        let body = call_body(&args)?;
        let client = ApiClient::new(&args.api)?;
        let mut record = client.json(Method::POST, "/v1/sends", Some(body)).await?;
        if args.wait {
            let id = record.get("id").and_then(Value::as_str).context("the API's answer has no id")?.to_owned();
            while record.get("state").and_then(Value::as_str) != Some("done") {
                record = client.json(Method::GET, &format!("/v1/sends/{id}?wait=30"), None).await?;
            }
        }
        if args.json {
            say!("{}", serde_json::to_string_pretty(&record)?);
        } else if args.wait {
            print(format_args!("{}", block(&record, Style::of_stdout())));
        } else {
            say!("{}", record.get("id").and_then(Value::as_str).unwrap_or_default());
        }
        let delivered = record.get("outcome").and_then(Value::as_str) == Some("delivered");
        Ok(if !args.wait || delivered { OK } else { NO })
    })
}

/// The call's body. Data that is JSON goes in as it was typed, so that a signature over it holds.
fn call_body(args: &Args) -> anyhow::Result<Vec<u8>> {
    let mut send = Map::new();
    send.insert("method".to_owned(), json!(args.method));
    send.insert("url".to_owned(), json!(args.url));
    let mut headers = Map::new();
    for header in &args.headers {
        let Some((name, value)) = header.split_once(':') else {
            bail!("-H {header:?} has no colon: write it as 'Name: value'");
        };
        push(&mut headers, name.trim(), value.trim());
    }
    let mut params = Map::new();
    for param in &args.params {
        let Some((name, value)) = param.split_once('=') else {
            bail!("-p {param:?} has no equals sign: write it as name=value");
        };
        push(&mut params, name, value);
    }
    for (key, map) in [("headers", headers), ("params", params)] {
        if !map.is_empty() {
            send.insert(key.to_owned(), map.into());
        }
    }
    if let Some(user) = &args.user {
        let Some((username, password)) = user.split_once(':') else {
            bail!("-u has no colon: write it as user:password");
        };
        send.insert("auth".to_owned(), json!({ "username": username, "password": password }));
    }
    if let Some(execution) = &args.execution {
        send.insert("context".to_owned(), json!({ "execution": execution }));
    }
    let mut body = serde_json::to_string(&send)?;
    if let Some(data) = &args.data {
        let data = read_data(data)?;
        let raw = match serde_json::from_str::<&RawValue>(data.trim()) {
            Ok(raw) if raw.get().starts_with(|first: char| "{[-".contains(first) || first.is_ascii_digit()) => {
                raw.get().to_owned()
            }
            parsed => {
                if let Some(problem) = spoilt_json(&data, parsed.err()) {
                    tell!("egressd: -d begins like JSON and is none ({problem}): it goes as text");
                }
                serde_json::to_string(&data)?
            }
        };
        body.pop();
        body += &format!(",\"data\":{raw}}}");
    }
    Ok(body.into_bytes())
}

/// What is wrong with data that was meant to be JSON by its looks: it begins like an object or an array.
fn spoilt_json(data: &str, error: Option<serde_json::Error>) -> Option<String> {
    data.trim_start().starts_with(['{', '[']).then_some(error)?.map(|error| error.to_string())
}

fn read_data(data: &str) -> anyhow::Result<String> {
    match data.strip_prefix('@') {
        None => Ok(data.to_owned()),
        Some("-") => std::io::read_to_string(std::io::stdin()).context("stdin is not text: -d sends text only"),
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("-d @{path} cannot be read as text")),
    }
}

/// A name given twice becomes a list.
fn push(map: &mut Map<String, Value>, name: &str, value: &str) {
    match map.get_mut(name) {
        None => {
            map.insert(name.to_owned(), json!(value));
        }
        Some(Value::Array(values)) => values.push(json!(value)),
        Some(one) => *one = json!([one.clone(), value]),
    }
}
