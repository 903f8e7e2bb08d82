use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::BodyExt as _;

use super::*;
use crate::api::cursors::{Cursors, TAIL_ID_CHARS};
use crate::store::TailPlace;

/// Reads events off a tail as they come.
struct Reader {
    body: Body,
    text: String,
    /// The id that a client would resume after: of the last block that had one, event or not.
    last: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Event {
    id: String,
    send: String,
}

impl Desk {
    /// What is behind an id of the tail.
    #[track_caller]
    fn place(&self, id: &str) -> u64 {
        let place = Cursors::new(&self.ledger.store.redact_key()).tail_place(id);
        place.unwrap_or_else(|| panic!("{id} is no id of ours")).to_bits()
    }
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
                self.last = field("id").or(self.last.take());
                let Some(data) = field("data") else { continue };
                assert_eq!(field("event").as_deref(), Some("send"));
                let record: Value = serde_json::from_str(&data).expect("a record");
                let id = field("id").expect("an id");
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
    let places: Vec<u64> = seen.iter().map(|id| desk.place(id)).collect();
    assert!(places.is_sorted(), "{places:?}");
    drop(tail);
    desk.answer("default", ids[4], 200).await;
    let mut resumed = Reader::open(&desk, "/v1/tail", &[("last-event-id", &seen[1])]).await;
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
    for (path, headers) in [("/v1/tail?limit=1", &[][..]), ("/v1/tail?outcome=x", &[])] {
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
            desk.ledger.store.newest_place().await.expect("a place").to_bits()
        };
        tokio::select! {
            event = tail.next() => panic!("nothing matches {event:?}"),
            newest = finishing => newest,
        }
    };
    let moved = desk.place(tail.last.as_deref().expect("it says where it began"));
    assert!(moved + 10 >= newest && moved > 10, "a client would resume after {moved}, the newest is {newest}");
    // With nothing finishing either, up to the very last.
    tail.quiet_for(limits::TAIL_KEEP_ALIVE * 2).await;
    assert_eq!(tail.last.as_deref().map(|id| desk.place(id)), Some(newest));

    // Who is cut off before anything came begins again where it began.
    let mut tail = Reader::open(&desk, "/v1/tail", &[]).await;
    tail.quiet_for(Duration::from_secs(1)).await;
    let place = tail.last.take().expect("it says where it began");
    drop(tail);
    let missed = Desk::accepted(&desk.post("/v1/sends", SEND).await);
    desk.answer("default", missed, 200).await;
    let mut resumed = Reader::open(&desk, "/v1/tail", &[("last-event-id", &place)]).await;
    assert_eq!(resumed.next().await.map(|event| event.send), Some(missed.to_string()));
}

/// Neither what an id looks like nor that two differ tells what others do: ids differ where nothing happened.
#[tokio::test(start_paused = true)]
async fn a_tenant_does_not_see_how_much_others_send() {
    let desk = Desk::new();
    let other = [("egressd-tenant", "other")];
    let mut tail = Reader::open(&desk, "/v1/tail", &[]).await;
    let mut seen = Vec::new();
    for theirs in [0, 0, 1, 500, 0] {
        for _ in 0..theirs {
            let id = Desk::accepted(&desk.call("POST", "/v1/sends", &other, SEND).await);
            desk.answer("other", id, 200).await;
        }
        let ours = Desk::accepted(&desk.post("/v1/sends", SEND).await);
        desk.answer("default", ours, 200).await;
        let event = tail.next().await.expect("an event");
        assert_eq!(event.send, ours.to_string());
        seen.push(event.id);
    }
    let places: Vec<u64> = seen.iter().map(|id| desk.place(id)).collect();
    let between: Vec<u64> = places.windows(2).map(|pair| pair[1] - pair[0] - 1).collect();
    assert_eq!(between, [0, 1, 500, 0], "the numbers behind the ids would tell");
    // Where the stream begins, asked for again and again: nothing finishes in between, and no two are the same.
    for _ in 0..20 {
        let mut again = Reader::open(&desk, "/v1/tail", &[]).await;
        again.quiet_for(Duration::from_millis(1)).await;
        seen.push(again.last.expect("it says where it began"));
    }
    let bits = |id: &str| URL_SAFE_NO_PAD.decode(id).expect("base64url");
    for (at, one) in seen.iter().enumerate() {
        assert_eq!(one.len(), TAIL_ID_CHARS);
        for other in &seen[at + 1..] {
            let differing: u32 = bits(one).iter().zip(bits(other)).map(|(one, other)| (one ^ other).count_ones()).sum();
            // Of 288 bits, as between random ones: 144, give or take 9 standard deviations.
            assert!((68..=220).contains(&differing), "{one} {other}");
        }
    }

    // What is not an id, or was one, or is one of another store: refused, and a number too, which would be a way to
    // count by asking.
    let altered = |at: usize| {
        let mut id = seen[0].clone().into_bytes();
        id[at] = if id[at] == b'x' { b'y' } else { b'x' };
        String::from_utf8(id).expect("ASCII")
    };
    let elsewhere = Cursors::new(&crate::redact::RedactKey::new(b"another store"))
        .tail(TailPlace::from_bits(places[0]))
        .expect("an id");
    let mut wrong = vec![elsewhere, seen[0][1..].to_owned(), format!("{}{}", seen[0], seen[1]), seen[0].to_lowercase()];
    wrong.extend((0..TAIL_ID_CHARS).map(altered));
    wrong.extend(["0", "1", "-1", "500", "18446744073709551615", "x"].map(str::to_owned));
    wrong.push(format!("{:048}", places[0]));
    for id in wrong {
        let told = desk.call("GET", "/v1/tail", &[("last-event-id", &id)], "").await.problem(400, "shape");
        assert!(told.contains("Last-Event-ID") && told.contains("leave it out"), "{id}: {told}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_does_not_say_how_much_others_send() {
    let desk = Desk::new();
    let other = [("egressd-tenant", "other")];
    let named = r#"{"method":"GET","url":"https://example.com/","context":{"execution":"e"}}"#;
    for theirs in [0, 1, 30] {
        for _ in 0..theirs {
            desk.call("POST", "/v1/sends", &other, SEND).await.ok(202);
        }
        desk.post("/v1/sends", named).await.ok(202);
    }
    let places = Cursors::new(&desk.ledger.store.redact_key());
    for path in ["/v1/sends", "/v1/executions/e"] {
        let mut nexts = Vec::new();
        for _ in 0..3 {
            let page = desk.get(&format!("{path}?limit=1")).await.ok(200);
            nexts.push(page["next"].as_str().expect("more").to_owned());
        }
        // Where the list goes on is the same, and nobody can tell.
        let cursors: Vec<_> = nexts.iter().map(|next| places.list_cursor(next).expect("a cursor")).collect();
        assert!(cursors.iter().all(|cursor| *cursor == cursors[0]), "{cursors:?}");
        assert!(nexts[0] != nexts[1] && nexts[1] != nexts[2] && nexts[0] != nexts[2], "{nexts:?}");
        let mut damaged = nexts[0].clone();
        damaged.replace_range(5..6, if damaged[5..].starts_with('x') { "y" } else { "x" });
        for wrong in [&damaged, &cursors[0], "0", "1", "l0.1", "e0.1"] {
            let told = desk.get(&format!("{path}?limit=1&cursor={wrong}")).await.problem(400, "shape");
            assert!(told.contains("start without one"), "{told}");
        }
    }
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
    let desk = Desk::with(&clients(&[
        ("a", "a", "read"),
        ("a-too", "a", "read"),
        ("b", "b", "read"),
        ("nodes", "*", "read"),
        ("operator", "*", "read operate"),
    ]));
    let open = async |name: &str, tenant: &str, most: usize| {
        let token = format!("Bearer {name}");
        let headers = [("authorization", token.as_str()), ("egressd-tenant", tenant)];
        let mut open = Vec::new();
        for _ in 0..most {
            open.push(Reader::open(&desk, "/v1/tail", &headers).await);
        }
        let refused = desk.call("GET", "/v1/tail", &headers, "").await;
        refused.problem(503, "node_full");
        assert_eq!(refused.header("retry-after"), "1");
        open
    };
    // One tenant has its share, with all of its tokens; another has its own; and operators have what nobody else can take.
    let mut of_a = open("a", "", limits::TAILS_OF_ONE).await;
    drop(open("a-too", "", 0).await);
    let of_b = open("b", "", limits::TAILS_OF_ONE).await;
    let of_many = open("nodes", "c", limits::TAILS - limits::TAILS_RESERVE - 2 * limits::TAILS_OF_ONE).await;
    let of_operators = open("operator", "*", limits::TAILS_RESERVE).await;
    drop((of_operators, of_many, of_b));
    of_a.pop();
    drop(open("a-too", "", 1).await);
}
