//! `egressd tail`: follows finished sends, one line each. A lost connection is taken up where it broke off.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context as _;
use http::Method;
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::Value;
use url::form_urlencoded;

use super::client::{ApiArgs, ApiClient, Refused};
use super::out::{reader_gone, say, tell};
use super::show::{Style, header, line};
use super::{OK, block_on};
use crate::clock;
use crate::config::file::parse_duration;

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
    /// First those accepted since then that have ended: 10m, 2h, or an instant like 2026-11-22T03:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<Timestamp>,
    /// Print one JSON record a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

/// Between a lost connection and the next try.
const AGAIN: Duration = Duration::from_secs(1);
/// They are put in order in memory before the first is shown.
const EARLIER_MAX: usize = 10_000;

pub fn run(args: Args) -> u8 {
    block_on(async move {
        tokio::select! {
            followed = follow(&args) => followed,
            stopped = super::stop_signal() => { stopped?; Ok(OK) }
            () = reader_gone() => Ok(OK),
        }
    })
}

async fn follow(args: &Args) -> anyhow::Result<u8> {
    let client = ApiClient::new(&args.api)?;
    let path = format!("/v1/tail?{}", query(args));
    let style = Style::of_stdout();
    let show = |record: &Value, written: Option<&str>| match (args.json, written) {
        (false, _) => say!("{}", line(record, style)),
        // As the API wrote it.
        (true, Some(written)) => say!("{written}"),
        (true, None) => say!("{record}"),
    };
    if !args.json && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        say!("{}", header(style));
    }
    let mut last: Option<String> = None;
    // Those that were shown already, and may come once more as events.
    let mut before: Option<HashSet<String>> = None;
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
        // Now that the tail stands: what ends from here on is an event.
        if let (Some(since), None) = (args.since, &before) {
            let earlier = earlier(&client, args, since).await?;
            for record in &earlier {
                show(record, None);
            }
            before = Some(earlier.iter().filter_map(id_of).collect());
        }
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
                let record: Value = serde_json::from_str(&event.data).context("an event of the tail is not JSON")?;
                let again = before.as_mut().zip(id_of(&record)).is_some_and(|(before, id)| before.remove(&id));
                if !again {
                    show(&record, Some(&event.data));
                }
            }
        }
        if last.as_deref() == Some("") {
            last = None;
        }
        tell!("egressd: the tail broke off; following again");
        tokio::time::sleep(AGAIN).await;
    }
}

fn id_of(record: &Value) -> Option<String> {
    record.get("id")?.as_str().map(str::to_owned)
}

/// What was accepted since then and has ended, in the order of ending; of more than [`EARLIER_MAX`] the latest.
async fn earlier(client: &ApiClient, args: &Args, since: Timestamp) -> anyhow::Result<Vec<Value>> {
    let mut found: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    let filters = query(args);
    loop {
        let path = format!("/v1/sends?{filters}&since={since}&limit=200{cursor}");
        let page = client.json(Method::GET, &path, None).await?;
        let sends = page.get("sends").and_then(Value::as_array).context("the API's answer has no sends")?;
        found.extend(sends.iter().filter(|send| send["state"] == "done").cloned());
        match page.get("next").and_then(Value::as_str) {
            Some(next) if found.len() < EARLIER_MAX => {
                cursor = format!("&cursor={}", form_urlencoded::byte_serialize(next.as_bytes()).collect::<String>());
            }
            next => {
                if next.is_some() {
                    tell!("egressd: more than {EARLIER_MAX} sends have ended since {since}: the latest are shown");
                }
                break;
            }
        }
    }
    found.sort_by(|a, b| a["finished_at"].as_str().cmp(&b["finished_at"].as_str()));
    Ok(found)
}

/// `10m` ago, or an instant as RFC 3339 has it.
fn since(text: &str) -> Result<Timestamp, String> {
    let ago = parse_duration(text).ok().and_then(|ago| clock::wall().checked_sub(ago).ok());
    let bad = || format!("{text:?} is neither a duration, like 10m, nor an instant, like 2026-11-22T03:00:00Z");
    ago.or_else(|| text.parse().ok()).ok_or_else(bad)
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
    fn since_is_a_duration_or_an_instant() {
        let now = clock::wall();
        let ago = now.duration_since(since("10m").unwrap()).as_secs();
        assert!((500..=700).contains(&ago), "{ago} s");
        assert_eq!(since("2026-11-22T03:00:00Z").unwrap(), "2026-11-22T03:00:00Z".parse().unwrap());
        for wrong in ["", "yesterday", "10", "-5m", "2026-11-22", "99999999999d"] {
            assert!(since(wrong).is_err(), "{wrong}");
        }
    }

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
