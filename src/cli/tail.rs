//! `egressd tail`: follows finished sends, one line each. A lost connection is taken up where it broke off.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use http::Method;
use http_body_util::BodyExt;
use serde_json::Value;
use url::form_urlencoded;

use super::client::{ApiArgs, ApiClient, Refused};
use super::show::{Style, header, line};
use super::{OK, block_on};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    workflow: Option<String>,
    #[arg(long)]
    execution: Option<String>,
    #[arg(long)]
    step: Option<String>,
    /// Host of the URL
    #[arg(long)]
    host: Option<String>,
    /// delivered, rejected, failed, blocked, expired, discarded or interrupted
    #[arg(long)]
    outcome: Option<String>,
    /// An error code, such as timeout or policy_address
    #[arg(long)]
    code: Option<String>,
    /// Status of the response
    #[arg(long)]
    status: Option<u16>,
    /// Address that the delivery left from
    #[arg(long)]
    source_ip: Option<String>,
    /// Print one JSON record a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

/// Between a lost connection and the next try.
const AGAIN: Duration = Duration::from_secs(1);

pub fn run(args: Args) -> ExitCode {
    block_on(async move {
        tokio::select! {
            followed = follow(&args) => followed,
            stopped = super::stop_signal() => { stopped?; Ok(OK) }
        }
    })
}

async fn follow(args: &Args) -> anyhow::Result<u8> {
    let client = ApiClient::new(&args.api)?;
    let path = format!("/v1/tail?{}", query(args));
    let style = Style::of_stdout();
    if !args.json && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        println!("{}", header(style));
    }
    let mut last: Option<String> = None;
    loop {
        let headers: Vec<(&str, &str)> = last.iter().map(|id| ("last-event-id", id.as_str())).collect();
        let answer = client.call(Method::GET, &path, None, &headers).await;
        let mut body = match answer {
            Ok(response) => response.into_body(),
            // A refusal will not change; a lost node may come back once something was seen of it.
            Err(error) if last.is_none() || error.is::<Refused>() => return Err(error),
            Err(_) => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        last.get_or_insert_default();
        let mut events = Events::default();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            for event in events.feed(&data) {
                if !event.id.is_empty() {
                    last = Some(event.id);
                }
                if event.data.is_empty() {
                    continue;
                }
                if args.json {
                    println!("{}", event.data);
                } else {
                    let record: Value =
                        serde_json::from_str(&event.data).context("an event of the tail is not JSON")?;
                    println!("{}", line(&record, style));
                }
            }
        }
        if last.as_deref() == Some("") {
            last = None;
        }
        eprintln!("egressd: the tail broke off; following again");
        tokio::time::sleep(AGAIN).await;
    }
}

fn query(args: &Args) -> String {
    let status = args.status.map(|status| status.to_string());
    let filters = [
        ("workflow", &args.workflow),
        ("execution", &args.execution),
        ("step", &args.step),
        ("host", &args.host),
        ("outcome", &args.outcome),
        ("code", &args.code),
        ("status", &status),
        ("source_ip", &args.source_ip),
    ];
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in filters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    query.finish()
}

/// Server-Sent Events as they come in pieces (WHATWG HTML section 9.2.6).
#[derive(Default)]
struct Events {
    rest: Vec<u8>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    id: String,
    data: String,
}

impl Events {
    fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.rest.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = self.rest.drain(..end + 2).collect();
            let mut event = Event::default();
            for line in String::from_utf8_lossy(&block).lines() {
                let (field, value) = line.split_once(':').unwrap_or((line, ""));
                let value = value.strip_prefix(' ').unwrap_or(value);
                match field {
                    "id" => value.clone_into(&mut event.id),
                    "data" if event.data.is_empty() => value.clone_into(&mut event.data),
                    "data" => {
                        event.data.push('\n');
                        event.data += value;
                    }
                    _ => {}
                }
            }
            if event != Event::default() {
                events.push(event);
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let stream = b"retry: 1000\n: hello\nid: 5\n\n: still here\nid: 6\n\nid: 7\nevent: send\ndata: {\"a\":\ndata: 1}\n\nid: 8\ndata: x\n\n";
        let whole = Events::default().feed(stream);
        let place = |id: &str| Event { id: id.to_owned(), data: String::new() };
        assert_eq!(whole.len(), 4);
        assert_eq!(whole[..2], [place("5"), place("6")]);
        assert_eq!(whole[2], Event { id: "7".to_owned(), data: "{\"a\":\n1}".to_owned() });
        for cut in 0..stream.len() {
            let mut events = Events::default();
            let mut all = events.feed(&stream[..cut]);
            all.extend(events.feed(&stream[cut..]));
            assert_eq!(all, whole, "cut at {cut}");
        }
    }
}
