use http_body_util::BodyExt as _;

use super::*;

/// Reads events off a tail as they come.
struct Reader {
    body: Body,
    text: String,
    /// The id that a client would resume after: of the last block that had one, event or not.
    last: Option<u64>,
}

#[derive(Debug, PartialEq, Eq)]
struct Event {
    id: u64,
    send: String,
}

impl Reader {
    async fn open(desk: &Desk, path: &str, headers: &[(&str, &str)]) -> Self {
        let response = desk.router.clone().oneshot(request("GET", path, headers, "")).await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), text: String::new(), last: None }
    }

    /// Reads on for so long; no event may come.
    async fn quiet_for(&mut self, time: Duration) {
        tokio::select! {
            event = self.next() => panic!("nothing was to come, and it was {event:?}"),
            () = tokio::time::sleep(time) => {}
        }
    }

    /// The next event; `None`: the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
                };
                self.last = field("id").map(|id| id.parse().expect("an id")).or(self.last);
                let Some(data) = field("data") else { continue };
                assert_eq!(field("event").as_deref(), Some("send"));
                let record: Value = serde_json::from_str(&data).expect("a record");
                let id = field("id").and_then(|id| id.parse().ok()).expect("an id");
                return Some(Event { id, send: record["id"].as_str().expect("an id").to_owned() });
            }
            let frame = self.body.frame().await?.expect("no error");
            let data = frame.into_data().expect("no trailers");
            self.text.push_str(std::str::from_utf8(&data).expect("UTF-8"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_tail_shows_sends_as_they_finish_and_resumes() {
    let desk = Desk::new();
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(Desk::accepted(&desk.post("/v1/sends", SEND).await));
    }
    desk.answer("default", ids[0], 200).await;
    let mut tail = Reader::open(&desk, "/v1/tail", &[]).await;
    // Finished before it was opened: not shown. In the order of finishing, not of accepting.
    for n in [3, 1, 2] {
        desk.answer("default", ids[n], 200).await;
    }
    let mut seen = Vec::new();
    for n in [3, 1, 2] {
        let event = tail.next().await.expect("an event");
        assert_eq!(event.send, ids[n].to_string());
        seen.push(event.id);
    }
    assert!(seen.is_sorted());
    drop(tail);
    desk.answer("default", ids[4], 200).await;
    let after = seen[1].to_string();
    let mut resumed = Reader::open(&desk, "/v1/tail", &[("last-event-id", &after)]).await;
    for n in [2, 4] {
        assert_eq!(resumed.next().await.map(|event| event.send), Some(ids[n].to_string()));
    }
    desk.answer("default", ids[5], 200).await;
    assert_eq!(resumed.next().await.map(|event| event.send), Some(ids[5].to_string()));
    desk.closing.send_replace(true);
    assert_eq!(resumed.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_tail_filters_and_keeps_to_its_tenant() {
    let desk = Desk::new();
    let other = [("egressd-tenant", "other")];
    let ours = Desk::accepted(&desk.post("/v1/sends", SEND).await);
    let rejected = Desk::accepted(&desk.post("/v1/sends", SEND).await);
    let theirs = Desk::accepted(&desk.call("POST", "/v1/sends", &other, SEND).await);
    let mut delivered = Reader::open(&desk, "/v1/tail?outcome=delivered", &[]).await;
    let mut all = Reader::open(&desk, "/v1/tail", &[("egressd-tenant", "*")]).await;
    desk.answer("default", rejected, 500).await;
    desk.answer("other", theirs, 200).await;
    desk.answer("default", ours, 200).await;
    assert_eq!(delivered.next().await.map(|event| event.send), Some(ours.to_string()));
    for id in [rejected, theirs, ours] {
        assert_eq!(all.next().await.map(|event| event.send), Some(id.to_string()));
    }
    for (path, headers) in [
        ("/v1/tail?limit=1", &[][..]),
        ("/v1/tail?outcome=x", &[]),
        ("/v1/tail", &[("last-event-id", "x")]),
        ("/v1/tail", &[("last-event-id", "-1")]),
        ("/v1/tail", &[("last-event-id", "18446744073709551615")]),
    ] {
        desk.call("GET", path, headers, "").await.problem(400, "shape");
    }
}

#[tokio::test(start_paused = true)]
async fn a_filter_that_nothing_matches_still_moves_on() {
    let desk = Desk::new();
    let first = Desk::accepted(&desk.post("/v1/sends", SEND).await);
    desk.answer("default", first, 200).await;
    let mut tail = Reader::open(&desk, "/v1/tail?outcome=expired", &[]).await;
    // Nothing matches, and something finishes all the time: for longer than a sign of life may take.
    let newest = {
        let finishing = async {
            for _ in 0..limits::TAIL_KEEP_ALIVE.as_secs() + 5 {
                let id = Desk::accepted(&desk.post("/v1/sends", SEND).await);
                desk.answer("default", id, 200).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            desk.ledger.store.last_seq().await.expect("a place")
        };
        tokio::select! {
            event = tail.next() => panic!("nothing matches {event:?}"),
            newest = finishing => newest,
        }
    };
    let moved = tail.last.expect("it says where it began");
    assert!(moved + 10 >= newest && moved > 10, "a client would resume after {moved}, the newest is {newest}");
    // With nothing finishing either, up to the very last.
    tail.quiet_for(limits::TAIL_KEEP_ALIVE * 2).await;
    assert_eq!(tail.last, Some(newest));

    // Who is cut off before anything came begins again where it began.
    let mut tail = Reader::open(&desk, "/v1/tail", &[]).await;
    tail.quiet_for(Duration::from_secs(1)).await;
    let place = tail.last.expect("it says where it began").to_string();
    drop(tail);
    let missed = Desk::accepted(&desk.post("/v1/sends", SEND).await);
    desk.answer("default", missed, 200).await;
    let mut resumed = Reader::open(&desk, "/v1/tail", &[("last-event-id", &place)]).await;
    assert_eq!(resumed.next().await.map(|event| event.send), Some(missed.to_string()));
}

#[tokio::test(start_paused = true)]
async fn more_than_a_page_of_events_comes_through() {
    let desk = Desk::new();
    let mut tail = Reader::open(&desk, "/v1/tail", &[]).await;
    let count = limits::TAIL_ITEMS + 10;
    for _ in 0..count {
        let id = Desk::accepted(&desk.post("/v1/sends", SEND).await);
        desk.answer("default", id, 200).await;
    }
    for _ in 0..count {
        assert!(tail.next().await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_tail_ends_when_its_token_is_withdrawn() {
    let desk = Desk::with(&clients(&[("reader", "acme", "read submit")]));
    let headers = [("authorization", "Bearer reader")];
    let id = Desk::accepted(&desk.call("POST", "/v1/sends", &headers, SEND).await);
    let mut tail = Reader::open(&desk, "/v1/tail", &headers).await;
    desk.reload(&clients(&[("another", "acme", "read")]));
    desk.answer("acme", id, 200).await;
    assert_eq!(tail.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_tails_is_bounded() {
    let desk = Desk::new();
    let mut open = Vec::new();
    for _ in 0..limits::TAILS {
        open.push(Reader::open(&desk, "/v1/tail", &[]).await);
    }
    let refused = desk.get("/v1/tail").await;
    refused.problem(503, "node_full");
    assert_eq!(refused.header("retry-after"), "1");
    open.pop();
    Reader::open(&desk, "/v1/tail", &[]).await;
}
