//! What waits: claimed, given back, begun at acceptance, swept, counted, and what becomes of it with its session.

use super::*;
use crate::policy::Suspensions;

/// Each with a fresh store.
pub async fn run<S: Subject>() {
    what_may_start_at_once_is_accepted_and_begun_in_one::<S>().await;
    only_who_has_claimed_a_send_begins_or_ends_it::<S>().await;
    claims_come_in_the_order_of_release::<S>().await;
    what_is_given_back_is_in_front_again::<S>().await;
    full_destinations_are_stepped_over::<S>().await;
    a_tenant_with_one_send_is_claimed_beside_anothers_many::<S>().await;
    the_store_moves_and_ends_the_sends_of_an_execution::<S>().await;
    submits_race_with_their_executions_end_and_none_stays_held::<S>().await;
    overdue_executions_are_released_oldest_first::<S>().await;
    what_waits_too_long_expires::<S>().await;
    what_is_suspended_ends::<S>().await;
    counts_follow_every_step::<S>().await;
    a_fenced_session_begins_nothing_and_ends_only_its_own::<S>().await;
    what_waits_is_claimed_after_a_crash::<S>().await;
}

fn ids(sends: &[Pending]) -> Vec<SendId> {
    sends.iter().map(|send| send.id).collect()
}

fn want(name: &str, room: usize) -> Want {
    Want { tenant: tenant(name), room, full: Vec::new() }
}

/// Accepts a send that waits for whoever claims it.
async fn left_waiting(store: &impl Store, session: &Session, draft: &Draft) -> SendId {
    let send = NewSend { course: Course::Wait, ..draft.send() };
    let id = send.id;
    accept_new(store, session, call(vec![send], None)).await;
    id
}

async fn claimed_of(store: &impl Store, session: &Session, wants: Vec<Want>) -> Vec<SendId> {
    ids(&store.claim(session, wants, 100).await.expect("claimed").sends)
}

async fn code_of(store: &impl Store, id: SendId) -> Option<Code> {
    record_of(store, id).await.ended.and_then(|ended| ended.error).map(|error| error.code)
}

async fn what_may_start_at_once_is_accepted_and_begun_in_one<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let draft = Draft { secret: Some("Bearer token"), ..draft() };
    let of = |course| NewSend { course, ..draft.clone().created(at(3)).send() };
    let sends = [of(Course::Begin), of(Course::Claim), of(Course::Begin), of(Course::Wait)];
    let [one, claimed_at_once, two, waits] = sends.clone().map(|send| send.id);
    let answer = store.accept(session, call(sends.to_vec(), None)).await.expect("accepted");
    let Accepted::New { indexes, started } = answer else { panic!("not new: {answer:?}") };
    assert_eq!(indexes, [None; 4]);
    let told: Vec<_> = started.iter().map(|started| (started.id(), started.at(), started.by().clone())).collect();
    assert_eq!(told, [(one, at(3), session.clone()), (two, at(3), session.clone())]);
    assert_eq!(started[0].spec(), &sends[0].spec, "secrets included");
    let states = [one, claimed_at_once, two, waits].map(|id| async move { record_of(store, id).await.state });
    let states = futures_util::future::join_all(states).await;
    assert_eq!(states, [State::Sending, State::Queued, State::Sending, State::Queued]);
    let again = begin_one(store, session, begin_of(one, &draft, at(4))).await;
    assert!(matches!(again, Err(StoreError::NoSuchSend)), "begun once");
    assert_eq!(claimed_of(store, session, vec![want("acme", 9)]).await, [waits]);
    store.finish(session, finished(one, 200, at(3))).await.expect("ended");

    // A held send is never begun with its acceptance.
    let held = NewSend { course: Course::Begin, ..draft.clone().in_execution("e").send() };
    let answer = store.accept(session, call(vec![held], Some("e"))).await.expect("accepted");
    assert_eq!(answer, Accepted::New { indexes: vec![Some(0)], started: Vec::new() });

    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    let recovered = store.recover(session, at(9)).await.expect("recovered");
    assert_eq!((recovered.interrupted, recovered.discarded, recovered.damage.len()), (1, 0, 0));
    assert_eq!(code_of(store, two).await, Some(Code::Interrupted));
    assert_eq!(claimed_of(store, session, vec![want("acme", 9)]).await, [claimed_at_once, waits]);
}

async fn only_who_has_claimed_a_send_begins_or_ends_it<S: Subject>() {
    let subject = S::fresh().await;
    let (store, old) = (subject.store(), subject.session());
    let draft = draft();
    let anothers = left_waiting(store, old, &draft).await;
    let begun_by_another = left_waiting(store, old, &draft).await;
    assert_eq!(claimed_of(store, old, vec![want("acme", 9)]).await, [anothers, begun_by_another]);
    begin_one(store, old, begin_of(begun_by_another, &draft, at(1))).await.expect("begun");

    let session = &joined(store).await;
    let given_back = left_waiting(store, session, &draft).await;
    assert_eq!(claimed_of(store, session, vec![want("acme", 9)]).await, [anothers, given_back]);
    store.give_back(session, vec![given_back, anothers]).await.expect("given back");
    let unclaimed = left_waiting(store, session, &draft).await;
    let held = draft.clone().in_execution("e").send();
    let held_id = held.id;
    accept_new(store, session, call(vec![NewSend { course: Course::Claim, ..held }], Some("e"))).await;
    let released = draft.clone().in_execution("released").send();
    let released_id = released.id;
    accept_new(store, session, call(vec![released], Some("released"))).await;
    let finish = Ending::Finish(FinishedBy::Call);
    end_execution(store, session, tenant("acme"), execution("released"), finish, at(2)).await.expect("ended");
    let discarded = draft.clone().in_execution("discarded").send();
    let discarded_id = discarded.id;
    accept_new(store, session, call(vec![discarded], Some("discarded"))).await;
    end_execution(store, session, tenant("acme"), execution("discarded"), Ending::Discard, at(2)).await.expect("ended");
    let mine = accept_one(store, session, &draft).await;

    let counts = store.waiting_of(&tenant("acme"));
    for (what, id) in [
        ("what another life of the node had claimed", anothers),
        ("what another life of the node has begun", begun_by_another),
        ("what was given back", given_back),
        ("what nobody has claimed", unclaimed),
        ("what is held", held_id),
        ("what was released, and nobody has claimed", released_id),
        ("what was discarded", discarded_id),
    ] {
        let before = record_of(store, id).await;
        let begins = vec![begin_of(id, &draft, at(3)), begin_of(id, &draft, at(3))];
        for answer in store.begin(session, begins).await.expect("an answer for each") {
            assert!(matches!(answer, Err(StoreError::NoSuchSend)), "{what}: {answer:?}");
        }
        let ended = store.finish(session, failed(id, Code::Expired, at(3))).await;
        assert_eq!(ended, Err(StoreError::NoSuchSend), "{what}");
        assert_eq!(record_of(store, id).await, before, "{what}");
        assert_eq!(store.waiting_of(&tenant("acme")), counts, "{what}");
    }
    // Refused among others, it costs them nothing.
    let begins = [unclaimed, mine, held_id].map(|id| begin_of(id, &draft, at(4)));
    let answers = store.begin(session, begins.to_vec()).await.expect("an answer for each");
    assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
    // And once claimed, it begins.
    assert_eq!(claimed_of(store, session, vec![want("acme", 9)]).await, [anothers, given_back, unclaimed, released_id]);
    for id in [anothers, given_back, unclaimed, released_id] {
        begin_one(store, session, begin_of(id, &draft, at(5))).await.expect("begun");
        store.finish(session, finished(id, 200, at(5))).await.expect("ended");
    }
}

async fn claims_come_in_the_order_of_release<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let held = draft().in_execution("e").created(at(1));
    let sends = vec![held.send(), held.send()];
    let released = [sends[0].id, sends[1].id];
    accept_new(store, session, call(sends, Some("e"))).await;
    let first = left_waiting(store, session, &draft().created(at(2))).await;
    let refused = left_waiting(store, session, &draft().to("not a url").created(at(3))).await;
    let finish = Ending::Finish(FinishedBy::Call);
    let end = end_execution(store, session, tenant("acme"), execution("e"), finish, at(4)).await;
    assert_eq!(end, Ok(ExecutionEnd::Done { count: 2, first: true }));
    let last = left_waiting(store, session, &draft().in_workflow("w").created(at(5))).await;

    assert_eq!(claimed_of(store, session, vec![want("other", 9)]).await, []);
    let few = store.claim(session, vec![want("acme", 3)], 100).await.expect("claimed").sends;
    assert_eq!(ids(&few), [first, refused, released[0]]);
    assert_eq!((few[0].released_at, few[2].released_at), (at(2), at(4)));
    assert_eq!((few[2].created_at, few[0].expires_in), (at(1), Duration::from_secs(60)));
    assert!(few[0].destination.is_some() && few[1].destination.is_none());
    let rest = store.claim(session, vec![want("acme", 9)], 1).await.expect("claimed");
    assert_eq!((ids(&rest.sends), rest.more), (vec![released[1]], true), "the limit is of all wants together");
    let rest = store.claim(session, vec![want("acme", 9)], 9).await.expect("claimed");
    assert_eq!((ids(&rest.sends), rest.more), (vec![last], false));
    assert_eq!(rest.sends[0].workflow.as_deref(), Some("w"));
    assert_eq!(claimed_of(store, session, vec![want("acme", 9)]).await, []);
    begin_one(store, session, begin_of(released[0], &held, at(6))).await.expect("begun");
}

async fn what_is_given_back_is_in_front_again<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let mut all = Vec::new();
    for second in 0..6 {
        let to = if second % 2 == 0 { "https://a.example.com/" } else { "https://b.example.com/" };
        all.push(left_waiting(store, session, &draft().to(to).created(at(second))).await);
    }
    assert_eq!(claimed_of(store, session, vec![want("acme", 4)]).await, all[..4]);
    begin_one(store, session, begin_of(all[1], &draft(), at(9))).await.expect("begun");
    // In any order; what is begun, not claimed or not known is passed over.
    store.give_back(session, vec![all[3], all[1], all[0], all[5], id_at(at(0))]).await.expect("given back");
    assert_eq!(store.waiting_of(&tenant("acme")).unclaimed, 4);
    assert_eq!(claimed_of(store, session, vec![want("acme", 9)]).await, [all[0], all[3], all[4], all[5]]);
    begin_one(store, session, begin_of(all[3], &draft(), at(9))).await.expect("claimed again, and begun");
}

async fn full_destinations_are_stepped_over<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let to = |host: &str| format!("https://{host}.example.com/");
    let mut of = HashMap::from([("a", Vec::new()), ("b", Vec::new()), ("c", Vec::new())]);
    for second in 0..12 {
        let host = ["a", "a", "b", "a", "c", "a"][second as usize % 6];
        let id = left_waiting(store, session, &draft().to(&to(host)).created(at(second))).await;
        of.get_mut(host).expect("one of them").push(id);
    }
    let destination = |host: &str| CheckedUrl::parse(&to(host)).expect("a URL").destination().clone();
    let full = |hosts: &[&str], room| {
        vec![Want { tenant: tenant("acme"), room, full: hosts.iter().map(|host| destination(host)).collect() }]
    };
    assert_eq!(claimed_of(store, session, full(&["a", "b"], 1)).await, [of["c"][0]]);
    assert_eq!(claimed_of(store, session, full(&["a", "b", "c"], 9)).await, []);
    assert_eq!(claimed_of(store, session, full(&["a"], 2)).await, [of["b"][0], of["b"][1]], "in front of c's second");
    assert_eq!(store.waiting_of(&tenant("acme")).unclaimed, 9);
    let rest = claimed_of(store, session, full(&[], 99)).await;
    assert_eq!(rest, [&of["a"][..7], &of["c"][1..], &of["a"][7..]].concat(), "those stepped over keep their places");
}

async fn a_tenant_with_one_send_is_claimed_beside_anothers_many<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    for _ in 0..40 {
        left_waiting(store, session, &draft().of("many")).await;
    }
    let one = left_waiting(store, session, &draft().of("one")).await;
    let wants = vec![want("many", 4), want("one", 4), want("nobody", 4)];
    let sends = store.claim(session, wants, 100).await.expect("claimed").sends;
    assert_eq!((sends.len(), sends[4].id), (5, one));
    let mut waiting = store.waiting();
    waiting.sort_by(|one, other| one.0.cmp(&other.0));
    let counts: Vec<_> = waiting.iter().map(|(who, count)| (who.as_str(), count.queued, count.unclaimed)).collect();
    assert_eq!(counts, [("many", 40, 36), ("one", 1, 0)]);
}

async fn the_store_moves_and_ends_the_sends_of_an_execution<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let many = 1500;
    let hold = |name: &'static str| {
        let draft = draft().in_execution(name).created(at(1));
        Accept { sends_per_execution: 10_000, ..call((0..many).map(|_| draft.send()).collect(), Some(name)) }
    };
    let ids_of = |call: &Accept| call.sends.iter().map(|send| send.id).collect::<Vec<_>>();
    let (kept, dropped) = (hold("kept"), hold("dropped"));
    let (kept_ids, dropped_ids) = (ids_of(&kept), ids_of(&dropped));
    accept_new(store, session, kept).await;
    accept_new(store, session, dropped).await;
    // Another life of the node ends them: whoever accepted them.
    let session = &joined(store).await;
    let before = store.newest_place().await.expect("a place");
    let answer = store.end_execution(session, tenant("acme"), execution("dropped"), Ending::Discard, at(2)).await;
    let answer = answer.expect("ended");
    assert_eq!(answer.end, ExecutionEnd::Done { count: many, first: true });
    assert_eq!(answer.ended.iter().map(|end| end.id).collect::<Vec<_>>(), dropped_ids);
    assert!(answer.ended.iter().all(|end| end.code == Code::Discarded && end.tenant == tenant("acme")));
    assert!(answer.ended.iter().map(|end| end.place).is_sorted() && answer.ended[0].place > before);
    assert_eq!(code_of(store, dropped_ids[1499]).await, Some(Code::Discarded));
    let again = store.end_execution(session, tenant("acme"), execution("dropped"), Ending::Discard, at(3)).await;
    let done = ExecutionEnd::Done { count: many, first: false };
    assert_eq!(again, Ok(ExecutionAnswer { end: done, ended: Vec::new() }));

    let finish = Ending::Finish(FinishedBy::Call);
    let answer = store.end_execution(session, tenant("acme"), execution("kept"), finish, at(4)).await.expect("ended");
    assert_eq!(answer, ExecutionAnswer { end: ExecutionEnd::Done { count: many, first: true }, ended: Vec::new() });
    let count = store.waiting_of(&tenant("acme"));
    assert_eq!((count.held, count.queued, count.unclaimed, count.oldest), (0, many, many, Some(at(4))));
    let mut sends = Vec::new();
    while sends.len() < kept_ids.len() {
        let some = store.claim(session, vec![want("acme", 1000)], 1000).await.expect("claimed").sends;
        assert!(!some.is_empty(), "{} of {many}", sends.len());
        sends.extend(ids(&some));
    }
    assert_eq!(sends, kept_ids, "in call order");
}

async fn submits_race_with_their_executions_end_and_none_stays_held<S: Subject>() {
    const CALLS: usize = 6;
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let (mut released, mut discarded) = (Vec::new(), Vec::new());
    for (turn, ending) in
        (0..=CALLS).flat_map(|turn| [(turn, Ending::Discard), (turn, Ending::Finish(FinishedBy::Call))])
    {
        let name = format!("{turn} {}", ending.state().label());
        let draft = draft().in_execution(&name);
        let submit = async || {
            let sends = vec![draft.send(), draft.send()];
            let ids = [sends[0].id, sends[1].id];
            match store.accept(session, call(sends, Some(&name))).await {
                Ok(Accepted::New { .. }) => ids.to_vec(),
                Ok(Accepted::Ended(state)) if state == ending.state() => Vec::new(),
                other => panic!("{name}: {other:?}"),
            }
        };
        // Each is asked in turn, and none waits for the one before.
        let before = futures_util::future::join_all((0..turn).map(|_| submit()));
        let after = futures_util::future::join_all((turn..CALLS).map(|_| submit()));
        let end = end_execution(store, session, tenant("acme"), execution(&name), ending, at(2));
        let (before, end, after) = tokio::join!(before, end, after);
        let accepted: Vec<SendId> = before.into_iter().chain(after).flatten().collect();
        assert_eq!(end, Ok(ExecutionEnd::Done { count: accepted.len() as u64, first: true }), "{name}");
        let kept = if ending == Ending::Discard { &mut discarded } else { &mut released };
        kept.extend(accepted);
    }
    assert!(!released.is_empty() && !discarded.is_empty());
    assert_eq!(store.waiting_in_all().held, 0);
    for id in discarded {
        assert_eq!(code_of(store, id).await, Some(Code::Discarded));
    }
    let mut claimed = claimed_of(store, session, vec![want("acme", 1000)]).await;
    claimed.sort();
    released.sort();
    assert_eq!(claimed, released);
}

async fn overdue_executions_are_released_oldest_first<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    for (name, second) in [("c", 30), ("a", 10), ("b", 20), ("late", 40), ("ended", 5)] {
        let draft = draft().in_execution(name).created(at(second));
        accept_new(store, session, call(vec![draft.send(), draft.send()], Some(name))).await;
        // Later ones do not make an execution younger.
        let later = draft.created(at(50));
        accept_new(store, session, call(vec![later.send()], Some(name))).await;
    }
    end_execution(store, session, tenant("acme"), execution("ended"), Ending::Discard, at(6)).await.expect("ended");
    let names = |released: &Released| {
        released.executions.iter().map(|(_, name, count)| (name.to_string(), *count)).collect::<Vec<_>>()
    };
    let named = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 3)).collect::<Vec<_>>();
    let mut released = Vec::new();
    loop {
        let some = store.release_overdue(session, SignedDuration::from_secs(20), at(60), 2).await.expect("released");
        released.extend(names(&some));
        if !some.more {
            break;
        }
    }
    assert_eq!(released, named(&["a", "b", "c"]), "opened before then, and no later");
    let count = store.waiting_of(&tenant("acme"));
    assert_eq!((count.held, count.unclaimed, count.oldest), (3, 9, Some(at(60))));
    let execution = store.execution(tenant("acme"), execution("a"), None, 10).await.unwrap().unwrap();
    assert_eq!((execution.state, execution.finished_by), (ExecutionState::Finished, Some(FinishedBy::HoldLimit)));
    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    store.recover(session, at(70)).await.expect("recovered");
    let rest = store.release_overdue(session, SignedDuration::from_secs(29), at(70), 10).await.expect("released");
    assert_eq!((names(&rest), rest.more), (named(&["late"]), false), "also after a crash");
}

async fn what_waits_too_long_expires<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let within = |seconds, draft: Draft| NewSend {
        expires_in: Duration::from_secs(seconds),
        course: Course::Wait,
        ..draft.send()
    };
    let sends: Vec<_> = [10, 90, 5, 10, 3600].into_iter().map(|seconds| within(seconds, draft())).collect();
    let all: Vec<_> = sends.iter().map(|send| send.id).collect();
    accept_new(store, session, call(sends, None)).await;
    let held = within(20, draft().in_execution("e"));
    let held_id = held.id;
    accept_new(store, session, call(vec![held], Some("e"))).await;
    let mine = claimed_of(store, session, vec![want("acme", 1)]).await;
    assert_eq!(mine, all[..1]);

    let ended = async |store: &S::Store, session: &Session, second| {
        let mut ended = Vec::new();
        loop {
            let swept = store.expire(session, at(second), 2).await.expect("swept");
            ended.extend(swept.ended.iter().map(|end| end.id));
            assert!(swept.ended.iter().all(|end| end.code == Code::Expired));
            if swept.next.is_none() {
                ended.sort();
                return ended;
            }
        }
    };
    assert_eq!(ended(store, session, 4).await, []);
    assert_eq!(ended(store, session, 5).await, all[2..3], "from the very second on");
    assert_eq!(ended(store, session, 89).await, all[3..4], "not what is claimed, nor what is held");
    assert_eq!(code_of(store, all[3]).await, Some(Code::Expired));
    let finish = Ending::Finish(FinishedBy::Call);
    end_execution(store, session, tenant("acme"), execution("e"), finish, at(100)).await.expect("ended");
    assert_eq!(ended(store, session, 119).await, all[1..2], "of a held one it counts from its release");
    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    store.recover(session, at(119)).await.expect("recovered");
    assert_eq!(ended(store, session, 119).await, all[..1], "its claim went with its session");
    assert_eq!(ended(store, session, 120).await, [held_id]);
    assert_eq!(store.waiting_in_all().queued, 1);
    assert_eq!(claimed_of(store, session, vec![want("acme", 9)]).await, all[4..]);
}

async fn what_is_suspended_ends<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let mut all = HashMap::new();
    for (name, draft) in [
        ("tenant", draft().of("bad")),
        ("workflow", draft().in_workflow("w")),
        ("other workflow", draft().in_workflow("v")),
        ("host", draft().to("https://victim.example.com/")),
        ("address", draft().to("http://192.0.2.7/")),
        ("under", draft().to("http://a.b.elsewhere.example.com/")),
        ("another's workflow", draft().of("good").in_workflow("w")),
        ("refused", draft().to("not a url")),
    ] {
        all.insert(name, left_waiting(store, session, &draft).await);
    }
    let held = draft().in_workflow("w").in_execution("e").send();
    all.insert("held", held.id);
    accept_new(store, session, call(vec![held], Some("e"))).await;
    let mine = accept_one(store, session, &draft().of("bad")).await;

    let why: Arc<str> = Arc::from("spam");
    let mut suspensions = Suspensions::default();
    suspensions.tenants.insert(tenant("bad"), why.clone());
    suspensions.workflows.insert((tenant("acme"), Arc::from("w")), why.clone());
    for host in ["victim.example.com", "192.0.2.0/24", "*.elsewhere.example.com"] {
        suspensions.stop_host(host, why.clone());
    }
    let suspensions = Arc::new(suspensions);
    let mut ended = Vec::new();
    let mut from = None;
    loop {
        let swept = store.end_suspended(session, suspensions.clone(), from, at(9), 2).await.expect("swept");
        assert!(swept.ended.iter().all(|end| end.code == Code::Suspended));
        ended.extend(swept.ended.iter().map(|end| end.id));
        from = swept.next;
        if from.is_none() {
            break;
        }
    }
    ended.sort();
    let mut wanted = ["tenant", "workflow", "host", "address", "under", "held"].map(|name| all[name]);
    wanted.sort();
    assert_eq!(ended, wanted);
    let record = record_of(store, all["held"]).await;
    assert_eq!((record.ended.map(|ended| ended.outcome), record.released_at), (Some(Outcome::Blocked), None));
    assert_eq!(record_of(store, mine).await.state, State::Queued, "what is claimed is its session's to end");
    let count = store.waiting_of(&tenant("acme"));
    assert_eq!((count.held, count.queued, count.unclaimed), (0, 2, 2));
    assert_eq!(claimed_of(store, session, vec![want("bad", 9), want("good", 9)]).await, [all["another's workflow"]]);
    let none = end_execution(store, session, tenant("acme"), execution("e"), Ending::Discard, at(10)).await;
    assert_eq!(none, Ok(ExecutionEnd::Done { count: 0, first: true }), "what ended while held is not discarded");
}

async fn counts_follow_every_step<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let count = |store: &S::Store| {
        let count = store.waiting_of(&tenant("acme"));
        assert_eq!(count, store.waiting_in_all());
        assert_eq!(store.waiting().len(), usize::from(count != WaitingCount::default()));
        (count.held, count.queued, count.unclaimed)
    };
    assert_eq!(count(store), (0, 0, 0));
    let of = |course| NewSend { course, ..draft().send() };
    let sends = vec![of(Course::Begin), of(Course::Claim), of(Course::Wait), of(Course::Wait)];
    let all: Vec<_> = sends.iter().map(|send| send.id).collect();
    accept_new(store, session, call(sends, None)).await;
    let held = draft().in_execution("e");
    let held_sends = vec![held.send(), held.send()];
    let held_id = held_sends[0].id;
    accept_new(store, session, call(held_sends, Some("e"))).await;
    assert_eq!(count(store), (2, 3, 2));
    assert_eq!(claimed_of(store, session, vec![want("acme", 1)]).await, [all[2]]);
    assert_eq!(count(store), (2, 3, 1));
    begin_one(store, session, begin_of(all[2], &draft(), at(1))).await.expect("begun");
    assert_eq!(count(store), (2, 2, 1));
    store.finish(session, finished(all[2], 200, at(1))).await.expect("ended");
    store.finish(session, failed(all[1], Code::Expired, at(1))).await.expect("ended without having begun");
    assert_eq!(count(store), (2, 1, 1));
    let finish = Ending::Finish(FinishedBy::Call);
    end_execution(store, session, tenant("acme"), execution("e"), finish, at(2)).await.expect("ended");
    assert_eq!(count(store), (0, 3, 3));
    assert_eq!(claimed_of(store, session, vec![want("acme", 2)]).await, [all[3], held_id]);
    let subject = subject.crash().await;
    assert_eq!(
        count(subject.store()),
        (0, 3, 3),
        "claims are gone with their session, and what had begun waits no more"
    );
}

async fn a_fenced_session_begins_nothing_and_ends_only_its_own<S: Subject>() {
    let subject = S::fresh().await;
    let (store, old) = (subject.store(), subject.session());
    let draft = draft();
    let mut all = Vec::new();
    for second in 0..5 {
        all.push(left_waiting(store, old, &draft.clone().created(at(second))).await);
    }
    assert_eq!(claimed_of(store, old, vec![want("acme", 4)]).await, all[..4]);
    for &id in &all[..3] {
        begin_one(store, old, begin_of(id, &draft, at(6))).await.expect("begun");
    }
    store.finish(old, finished(all[0], 200, at(6))).await.expect("ended");

    let new = &joined(store).await;
    assert_ne!(old, new);
    let fenced = |answer: Option<StoreError>| assert!(matches!(answer, Some(StoreError::Fenced(_))), "{answer:?}");
    fenced(store.accept(old, call(vec![draft.send()], None)).await.err());
    fenced(store.claim(old, vec![want("acme", 9)], 9).await.err());
    fenced(begin_one(store, old, begin_of(all[3], &draft, at(7))).await.err());
    fenced(store.give_back(old, vec![all[3]]).await.err());
    fenced(store.recover(old, at(7)).await.err());
    fenced(end_execution(store, old, tenant("acme"), execution("e"), Ending::Discard, at(7)).await.err());
    fenced(store.release_overdue(old, SignedDuration::from_secs(0), at(7), 9).await.err());
    fenced(store.expire(old, at(7), 9).await.err());
    fenced(store.end_suspended(old, Arc::default(), None, at(7), 9).await.err());
    let never_claimed = store.finish(old, failed(all[4], Code::Internal, at(7))).await;
    assert_eq!(never_claimed, Err(StoreError::NoSuchSend));
    assert_eq!(store.finish(old, failed(all[3], Code::Internal, at(7))).await, Err(StoreError::NoSuchSend));
    assert_eq!(store.record(Reach::All, all[4], false).await.unwrap().unwrap().state, State::Queued);

    // What it had begun it may end, once, and nobody else may.
    let anothers = store.finish(new, finished(all[1], 500, at(7))).await;
    assert_eq!(anothers, Err(StoreError::NoSuchSend));
    store.finish(old, finished(all[1], 200, at(7))).await.expect("its own");
    assert_eq!(store.finish(old, finished(all[1], 200, at(7))).await, Err(StoreError::NoSuchSend));
    let recovered = store.recover(new, at(8)).await.expect("recovered");
    assert_eq!((recovered.interrupted, recovered.discarded, recovered.damage.len()), (1, 0, 0));
    assert_eq!(code_of(store, all[2]).await, Some(Code::Interrupted));
    let late = store.finish(old, finished(all[2], 200, at(9))).await;
    assert_eq!(late, Err(StoreError::NoSuchSend), "it has an end by now");
    assert_eq!(claimed_of(store, new, vec![want("acme", 9)]).await, all[3..], "what it had claimed waits in front");
    begin_one(store, new, begin_of(all[3], &draft, at(9))).await.expect("begun");
    // In force, it interrupts nothing of its own.
    assert_eq!(store.recover(new, at(9)).await, Ok(Recovered::default()));
    store.finish(new, finished(all[3], 200, at(9))).await.expect("ended");
}

async fn what_waits_is_claimed_after_a_crash<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let mut all = Vec::new();
    for number in 0..20 {
        let draft = draft().of(if number % 2 == 0 { "a" } else { "b" });
        all.push((left_waiting(store, session, &draft.clone()).await, draft));
        let held = draft_in(number);
        accept_new(store, session, call(vec![held.send()], Some(&format!("e{number}")))).await;
    }
    for (id, draft) in &all[..6] {
        claimed_of(store, session, vec![want(draft.tenant.as_str(), 1)]).await;
        if id != &all[5].0 {
            begin_one(store, session, begin_of(*id, draft, at(2))).await.expect("begun");
            store.finish(session, finished(*id, 200, at(2))).await.expect("ended");
        }
    }
    let finish = Ending::Finish(FinishedBy::Call);
    end_execution(store, session, tenant("held"), execution("e3"), finish, at(30)).await.expect("ended");
    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    store.recover(session, at(40)).await.expect("recovered");
    let of =
        |remainder: usize| all.iter().skip(5).map(|(id, _)| *id).enumerate().filter(move |(n, _)| n % 2 == remainder);
    let expected: Vec<_> = of(1).chain(of(0)).map(|(_, id)| id).collect();
    let sends = claimed_of(store, session, vec![want("a", 99), want("b", 99)]).await;
    assert_eq!(sends, expected);
    let count = store.waiting_of(&tenant("held"));
    assert_eq!((count.held, count.unclaimed, count.oldest), (19, 1, Some(at(30))));
    assert_eq!(claimed_of(store, session, vec![want("held", 99)]).await.len(), 1);
}

fn draft_in(number: usize) -> Draft {
    draft().of("held").in_execution(&format!("e{number}"))
}
