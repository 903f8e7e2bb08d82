//! Calls and answers whose size is a caller's choice: who works on them, and what they make us hold.

use futures_util::FutureExt;
use http_body::Body as _;

use super::*;

/// CPU that this thread has used: the one that would deliver.
fn cpu() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux says").into()
}

/// What reading so much JSON takes at least, here and now.
fn reading(bytes: usize) -> Duration {
    let text = format!("[{}1]", "1,".repeat(bytes / 2));
    let before = cpu();
    std::hint::black_box(serde_json::from_str::<&serde_json::value::RawValue>(&text).expect("JSON"));
    cpu() - before
}

/// Many times what is worked on at once.
const LARGE: usize = 256 << 10;

#[tokio::test]
async fn what_is_large_of_a_call_is_not_worked_on_where_deliveries_are() {
    let desk = Desk::working(
        Apart::new("test"),
        budget::BYTES,
        "[redact]\njson_pointers = [\"/password\", \"/card/number\", \"/secrets/0\", \"/items/0/pin\"]\n\
         [limits]\nrequest_body = \"2MiB\"\n",
    );
    let numbers = format!("[{}1]", "1,".repeat(LARGE / 2));
    let text = "x".repeat(LARGE);
    let send = |data: &str| format!(r#"{{"method":"POST","url":"https://example.com/","data":{data}}}"#);
    let of_numbers = send(&numbers);
    let id = Desk::accepted(&desk.post("/v1/sends", &send(&format!("\"{text}\""))).await);
    let fat: Vec<String> = (0..9).map(|n| format!("\"x-{n}\":\"{}\"", "v".repeat(3000))).collect();
    let fat = format!(r#"{{"method":"GET","url":"https://example.com/","headers":{{{}}}}}"#, fat.join(","));
    desk.post("/v1/executions/fat/sends", &format!("[{}]", vec![fat; 60].join(","))).await.ok(202);
    let sought = vec![send(&format!("\"{}\"", "x".repeat(7 * LARGE))); 5];
    desk.post("/v1/executions/sought/sends", &format!("[{}]", sought.join(","))).await.ok(202);
    let unknown: Vec<String> = (0..2_000).map(|n| format!("\"{n:0>100}\":1")).collect();
    let unknown = format!("{{{}}}", unknown.join(","));
    let key = [("idempotency-key", "k")];

    for (what, method, path, headers, body, status) in [
        ("one send", "POST", "/v1/sends".to_owned(), &[][..], of_numbers.clone(), 202),
        ("with a key", "POST", "/v1/sends".to_owned(), &key[..], of_numbers.clone(), 202),
        ("again with it", "POST", "/v1/sends".to_owned(), &key[..], of_numbers.clone(), 202),
        ("several", "POST", "/v1/sends".to_owned(), &[][..], format!("[{of_numbers},{of_numbers}]"), 202),
        ("held", "POST", "/v1/executions/e/sends".to_owned(), &[][..], of_numbers.clone(), 202),
        ("white space", "POST", "/v1/sends".to_owned(), &[][..], format!("{}{of_numbers}", " ".repeat(LARGE)), 202),
        ("all that is wrong", "POST", "/v1/sends".to_owned(), &[][..], unknown.clone(), 400),
        ("explained", "POST", "/v1/explain".to_owned(), &[][..], send(&numbers).replace("\"data\"", "\"url\""), 400),
        (
            "a URL to explain",
            "POST",
            "/v1/explain".to_owned(),
            &[][..],
            format!(r#"{{"method":"GET","url":"http://u:p@{text}"}}"#),
            200,
        ),
        ("nothing known to explain", "POST", "/v1/explain".to_owned(), &[][..], unknown.clone(), 400),
        ("a resend", "POST", format!("/v1/sends/{id}/resend"), &[][..], format!(r#"{{"data":{numbers}}}"#), 202),
        ("nothing known to resend", "POST", format!("/v1/sends/{id}/resend"), &[][..], unknown.clone(), 400),
        (
            "a reason",
            "POST",
            "/v1/suspensions".to_owned(),
            &[][..],
            format!(r#"{{"tenant":"a","reason":"{text}"}}"#),
            400,
        ),
        ("no body", "POST", "/v1/executions/e/finish".to_owned(), &[][..], " ".repeat(LARGE), 400),
        ("a record", "GET", format!("/v1/sends/{id}"), &[][..], String::new(), 200),
        ("its HAR", "GET", format!("/v1/sends/{id}/har"), &[][..], String::new(), 200),
        ("a page", "GET", "/v1/sends?execution=fat&limit=60".to_owned(), &[][..], String::new(), 200),
        ("a text in bodies", "GET", "/v1/sends?execution=sought&text=nowhere".to_owned(), &[][..], String::new(), 200),
        ("an execution", "GET", "/v1/executions/fat?limit=60".to_owned(), &[][..], String::new(), 200),
    ] {
        let size = match path.contains("text=") {
            // Much more is searched, and to make the search takes some milliseconds without optimization.
            true => 3 * LARGE,
            false if body.is_empty() => LARGE,
            false => body.len(),
        };
        let (before, least) = (cpu(), reading(size));
        let call = request(method, &path, headers, &body);
        let before = before.max(cpu());
        let answer = desk.request(call).await;
        let spent = cpu() - before;
        assert_eq!(answer.status.as_u16(), status, "{what}: {:?}", &answer.body[..answer.body.len().min(300)]);
        assert!(spent < least / 2, "{what}: {spent:?} of this thread's time, where reading it once takes {least:?}");
    }
}

/// Refused with more words than it had itself, and none of them read.
#[tokio::test]
async fn what_a_refusal_says_counts_until_it_was_read() {
    const SHARES: budget::Shares = budget::Shares { all: 16 << 20, reserve: 2 << 20, one: 2 << 20, reading_one_in: 2 };
    let unknown: Vec<String> = (0..2_000).map(|n| format!("\"k{n}\":1")).collect();
    let unknown = format!("{{{}}}", unknown.join(","));
    let desk = Desk::sharing(SHARES, "");
    let id = Desk::accepted(&desk.post("/v1/sends", SEND).await);
    for path in
        ["/v1/sends", "/v1/executions/e/sends", "/v1/explain", "/v1/suspensions", &format!("/v1/sends/{id}/resend")]
    {
        let mut unread = Vec::new();
        let held = loop {
            let call = request("POST", path, &[], &unknown);
            let response = desk.router.clone().oneshot(call).await.expect("the router answers everything");
            if response.status() != 400 {
                assert_eq!(response.status(), 503, "{path}");
                break unread
                    .iter()
                    .map(|response: &Response| response.body().size_hint().lower() as usize)
                    .sum::<usize>();
            }
            unread.push(response);
            assert!(unread.len() < 200, "{path}: nothing bounds what is held");
        };
        // The client of all, without clients, has two shares.
        assert!((SHARES.one / 2..=2 * SHARES.one).contains(&held), "{path}: {held} bytes in {}", unread.len());
    }
}

#[tokio::test]
async fn a_turn_is_free_again_when_its_caller_has_hung_up() {
    let turns = Turns::new(budget::Budget::new(budget::BYTES));
    let holder = budget::Holder::tenant("acme", false);
    let turn = || {
        Box::pin(async {
            let Ok(turn) = turns.turn(&holder, 0).await else { panic!("there is room") };
            turn
        })
    };
    let mut kept = Vec::new();
    for _ in 0..limits::API_ANSWERS_BUILT_FOR_ONE {
        kept.push(turn().await);
    }
    let (mut first, mut second) = (turn(), turn());
    assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
    // Whoever waits in line and hangs up is in nobody's way.
    drop(first);
    kept.pop();
    kept.push(second.await);

    // What is read is read to its end, whoever hangs up; then its turn is the next one's.
    let (end, ended) = tokio::sync::oneshot::channel();
    let read = kept.pop().expect("a turn").reading(async { Ok(ended.await) });
    assert!(Box::pin(read).now_or_never().is_none());
    let mut next = turn();
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert!(next.as_mut().now_or_never().is_none(), "the store still reads");
    }
    end.send(()).expect("it is still read");
    next.await;
}

#[tokio::test]
async fn however_many_search_nobody_who_reads_waits_for_their_turns() {
    let turns = Turns::new(budget::Budget::new(budget::BYTES));
    let of = |n: usize| budget::Holder::tenant(&format!("t{n}"), false);
    let holders: Vec<_> = (0..limits::API_ANSWERS_BUILT).map(of).collect();
    let mut searching: Vec<_> = holders.iter().map(|holder| Box::pin(turns.turn_to_search(holder, 0))).collect();
    let found: Vec<_> = searching.iter_mut().filter_map(|turn| turn.as_mut().now_or_never()).collect();
    assert_eq!(found.iter().filter(|turn| turn.is_ok()).count(), limits::API_SEARCHES);
    assert_eq!(found.len(), limits::API_SEARCHES, "the others wait");
    // As many as there are turns, whoever else searches.
    let reader = |n: usize| of(limits::API_ANSWERS_BUILT + n);
    let mut reading = Vec::new();
    for n in 0..limits::API_ANSWERS_BUILT {
        let holder = reader(n);
        let turn = Box::pin(turns.turn(&holder, 0)).now_or_never();
        reading.push(turn.expect("nobody waits").unwrap_or_else(|_| panic!("there is room")));
    }
    reading.clear();
    // Nor does it itself, which a client that may name any tenant is for all of them.
    for _ in 0..limits::API_ANSWERS_BUILT_FOR_ONE {
        let turn = Box::pin(turns.turn(&holders[0], 0)).now_or_never();
        reading.push(turn.expect("it does not wait").unwrap_or_else(|_| panic!("there is room")));
    }
    drop(found);
    let next = searching.get_mut(limits::API_SEARCHES).expect("one waits");
    assert!(next.as_mut().now_or_never().is_some_and(|turn| turn.is_ok()), "the next one's");
}

#[tokio::test]
async fn a_large_call_whose_caller_hung_up_gives_its_room_back() {
    let shares = budget::Shares { one: 8 * LARGE, ..budget::BYTES };
    let desk = Desk::working(Apart::new("test"), shares, "");
    let call = || {
        let body = format!(r#"{{"method":"POST","url":"https://example.com/","data":"{}"}}"#, "x".repeat(LARGE));
        Box::pin(desk.router.clone().oneshot(request("POST", "/v1/sends", &[], &body)))
    };
    // Far more than fit at once. Each is worked on elsewhere when its caller goes.
    for _ in 0..100 {
        let _ = call().now_or_never();
    }
    for _ in 0..10_000 {
        match call().await.expect("the router answers everything").status().as_u16() {
            202 => return,
            status => assert_eq!(status, 503),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("what they held does not come back");
}

#[tokio::test]
async fn what_changes_something_goes_on_without_its_caller_and_a_defect_in_it_is_answered() {
    let (go_on, may_go_on) = tokio::sync::oneshot::channel::<()>();
    let (done, is_done) = tokio::sync::oneshot::channel();
    let work = in_full(async move {
        let _ = may_go_on.await;
        let _ = done.send("written");
    });
    assert!(Box::pin(work).now_or_never().is_none(), "its caller has hung up by then");
    go_on.send(()).expect("somebody works on it");
    assert_eq!(is_done.await, Ok("written"));

    let broken: Result<(), Problem> = in_full(async { panic!("a defect") }).await;
    let Err(problem) = broken else { panic!("it was not done") };
    assert_eq!(problem.into_response().status(), StatusCode::INTERNAL_SERVER_ERROR);
}
