//! Tenants, executions and destinations that a short hash does not tell apart are each their own.

use std::hash::{BuildHasher, Hash};
use std::os::unix::fs::PermissionsExt;
use std::sync::LazyLock;

use super::*;
use crate::policy::CheckedUrl;
use crate::record::{ExecutionState, State};
use crate::store::NewSend;

/// Of every store here, so that what collides is searched for once.
const KEY: [u8; 32] = [7; 32];

/// Makes it the key of a store that is made next.
pub fn with_known_key(key_file: &Path) {
    fs::write(key_file, KEY).expect("written");
    fs::set_permissions(key_file, fs::Permissions::from_mode(0o600)).expect("made private");
}

/// Two texts of one hash.
pub fn of_one_hash<H: Hash + Eq>(text: impl Fn(u32) -> String, hash: impl Fn(&str) -> H) -> [String; 2] {
    let mut known = HashMap::new();
    for number in 0.. {
        let text = text(number);
        if let Some(other) = known.insert(hash(&text), text.clone()) {
            return [other, text];
        }
    }
    unreachable!("there are fewer hashes than texts")
}

/// Tenants whose rows have one hash of them.
pub static TENANTS: LazyLock<[String; 2]> =
    LazyLock::new(|| of_one_hash(|number| format!("tenant-{number}"), |name| keys().short(Asked::Tenant, name)));

/// Tenants whose rows have one hash of their executions of this name.
static OF_NIGHTLY: LazyLock<[String; 2]> =
    LazyLock::new(|| of_one_hash(|number| format!("owner-{number}"), |name| keys().execution(name, NIGHTLY).hash));
const NIGHTLY: &str = "nightly";

fn keys() -> &'static Keys {
    static KEYS: LazyLock<Keys> = LazyLock::new(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let key = directory.path().join("key");
        with_known_key(&key);
        Keys::load(&key, false).expect("a key")
    });
    &KEYS
}

fn fresh() -> OnDisk {
    let directory = tempfile::tempdir().expect("a directory");
    with_known_key(&settings(directory.path()).key_file);
    let limits = SegmentLimits { sends: 4, ..OnDisk::limits() };
    let mut subject = OnDisk { store: None, session: None, directory, limits };
    subject.open();
    subject
}

/// What a store knows what it knows from.
const SOURCES: [&str; 4] = ["as it came about", "the indexes", "indexes made anew", "the logs alone"];

/// The same store, that knows what it knows from there.
async fn from(subject: OnDisk, source: &str) -> OnDisk {
    if source == SOURCES[0] {
        return subject;
    }
    subject.until_all_checkpointed().await;
    let segments = subject.shared().segments();
    let indexes: Vec<_> = segments.iter().map(|segment| segment.directory.join("index")).collect();
    let full = indexes.len() - 1;
    drop(segments);
    let lost = match source {
        "the indexes" => 0,
        // But that of the last full segment, which says that the others need not be read whole.
        "indexes made anew" => full - 1,
        _ => full,
    };
    let (subject, recovered) = subject
        .harmed(|_| indexes[..lost].iter().for_each(|index| fs::remove_file(index).expect("it was there")))
        .await;
    assert_eq!(recovered, Recovered::default(), "from {source}");
    subject
}

/// Sends of nobody else's that are done, so that the segments before are full.
async fn fill(subject: &OnDisk) {
    for _ in 0..8 {
        let id = accept_one(subject.store(), subject.session(), &draft().of("another")).await;
        subject.store().finish(subject.session(), finished(id, 200, at(1))).await.expect("ended");
    }
}

async fn hold(subject: &OnDisk, name: &str, second: i64, most: u32) -> (SendId, Accepted) {
    let send = draft().of(name).in_execution(NIGHTLY).created(at(second)).send();
    let id = send.id;
    let one = Accept { sends_per_execution: most, ..call(vec![send], Some(NIGHTLY)) };
    (id, subject.store().accept(subject.session(), one).await.expect("answered"))
}

fn new_at(index: u32) -> Accepted {
    Accepted::New { indexes: vec![Some(index)], started: Vec::new() }
}

/// What sends each of two tenants should have in its execution, and how that stands.
type Own = ([Vec<SendId>; 2], [ExecutionState; 2]);

async fn check(subject: &OnDisk, tenants: &[String; 2], (ids, states): &Own, told: &str) {
    let store = subject.store();
    let page = store.executions(ExecutionFilter::of(Reach::All), None, 9).await.expect("a page");
    for ((name, ids), &state) in tenants.iter().zip(ids).zip(states) {
        let told = format!("{name}, {state:?}, {told}");
        let many = ids.len() as u64;
        let count = store.waiting_of(&tenant(name));
        let (held, queued, of_sends) = match state {
            ExecutionState::Open => (many, 0, State::Held),
            ExecutionState::Finished => (0, many, State::Queued),
            ExecutionState::Discarded => (0, 0, State::Done),
        };
        assert_eq!((count.held, count.queued, count.unclaimed), (held, queued, queued), "{told}");
        let read = store.execution(tenant(name), execution(NIGHTLY), None, 9).await.expect("readable").expect(&told);
        let read_ids: Vec<_> = read.sends.iter().map(|send| send.id).collect();
        assert_eq!((read.state, read.total, &read_ids[..]), (state, many, &ids[..]), "{told}");
        assert!(read.sends.iter().all(|send| send.state == of_sends), "{told}");
        let listed = page.executions.iter().filter(|one| one.tenant == tenant(name));
        let listed: Vec<_> = listed.map(|one| (one.state, one.total)).collect();
        assert_eq!(listed, [(state, many)], "{told}");
    }
}

/// Each of the two holds sends of one execution's name; the first one's ends, and later the other's the other way.
async fn each_ends_its_own(tenants: &[String; 2]) {
    let [one, other] = [&*tenants[0], &*tenants[1]];
    for ending in [Ending::Finish(FinishedBy::Call), Ending::Discard, Ending::Finish(FinishedBy::HoldLimit)] {
        let mut subject = fresh();
        let mut ids = [Vec::new(), Vec::new()];
        for index in 0..3 {
            for (which, second) in [(0, 0), (1, 100)] {
                // With those of the other it would be full.
                let (id, accepted) = hold(&subject, &tenants[which], second, 3).await;
                assert_eq!(accepted, new_at(index), "{ending:?} of {which}");
                ids[which].push(id);
            }
        }
        fill(&subject).await;
        let mut own = (ids, [ExecutionState::Open; 2]);
        for source in SOURCES {
            subject = from(subject, source).await;
            check(&subject, tenants, &own, source).await;
        }

        let (store, session) = (subject.store(), subject.session());
        if ending == Ending::Finish(FinishedBy::HoldLimit) {
            let released =
                store.release_overdue(session, SignedDuration::from_secs(150), at(200), 9).await.expect("released");
            assert_eq!(released.executions, [(tenant(one), execution(NIGHTLY), 3)]);
        } else {
            let answer = store.end_execution(session, tenant(one), execution(NIGHTLY), ending, at(200)).await;
            let answer = answer.expect("ended");
            assert_eq!(answer.end, ExecutionEnd::Done { count: 3, first: true }, "{ending:?}");
            let ended: Vec<_> = answer.ended.iter().map(|end| (end.tenant.as_str(), end.id)).collect();
            let discarded: Vec<_> =
                own.0[0].iter().filter(|_| ending == Ending::Discard).map(|&id| (one, id)).collect();
            assert_eq!(ended, discarded, "{ending:?}");
        }
        let state = ending.state();
        own.1[0] = state;
        for source in SOURCES {
            subject = from(subject, source).await;
            check(&subject, tenants, &own, &format!("ended, from {source}")).await;
        }

        // The first takes no more, and the other does.
        assert_eq!(hold(&subject, one, 201, 9).await.1, Accepted::Ended(state));
        let (id, accepted) = hold(&subject, other, 201, 4).await;
        assert_eq!(accepted, new_at(3));
        own.0[1].push(id);
        assert_eq!(hold(&subject, other, 202, 4).await.1, Accepted::ExecutionFull);
        let (store, session) = (subject.store(), subject.session());
        let again = end_execution(store, session, tenant(one), execution(NIGHTLY), ending, at(203)).await;
        assert_eq!(again, Ok(ExecutionEnd::Done { count: 3, first: false }));
        let other_way = match ending {
            Ending::Discard => Ending::Finish(FinishedBy::Call),
            Ending::Finish(_) => Ending::Discard,
        };
        let ended = end_execution(store, session, tenant(other), execution(NIGHTLY), other_way, at(204)).await;
        assert_eq!(ended, Ok(ExecutionEnd::Done { count: 4, first: true }), "not in conflict with the first one's");
        own.1[1] = other_way.state();
        fill(&subject).await;
        for source in SOURCES {
            subject = from(subject, source).await;
            let told = format!("both ended, from {source}");
            check(&subject, tenants, &own, &told).await;
            let finished = usize::from(ending == Ending::Discard);
            assert_eq!(waiting_again(subject.store(), subject.session()).await, own.0[finished], "{told}");
        }
    }
}

#[tokio::test]
async fn executions_of_one_name_and_one_hash_end_each_on_its_own() {
    each_ends_its_own(&OF_NIGHTLY).await;
}

#[tokio::test]
async fn executions_of_one_name_of_tenants_of_one_hash_end_each_on_its_own() {
    each_ends_its_own(&TENANTS).await;
}

#[tokio::test]
async fn what_waits_of_tenants_of_one_hash_is_counted_claimed_and_swept_as_each_ones() {
    let [one, other] = [&*TENANTS[0], &*TENANTS[1]];
    for source in SOURCES {
        let subject = fresh();
        let mut ids = [Vec::new(), Vec::new()];
        for which in [0, 1, 1, 0, 1] {
            let send = NewSend { course: Course::Wait, ..draft().of(&TENANTS[which]).send() };
            ids[which].push(send.id);
            accept_new(subject.store(), subject.session(), call(vec![send], None)).await;
        }
        let held = hold(&subject, other, 0, 9).await.0;
        fill(&subject).await;
        let subject = from(subject, source).await;
        let (store, session) = (subject.store(), subject.session());
        let counts = |store: &Embedded| [one, other].map(|name| store.waiting_of(&tenant(name)));
        let counted: Vec<_> = counts(store).iter().map(|count| (count.held, count.unclaimed)).collect();
        assert_eq!(counted, [(0, 2), (1, 3)], "{source}");
        for which in [0, 1] {
            let want = Want { tenant: tenant(&TENANTS[which]), room: 9, full: Vec::new() };
            let claimed = store.claim(session, vec![want], 9).await.expect("claimed").sends;
            let claimed: Vec<_> = claimed.iter().map(|send| send.id).collect();
            assert_eq!(claimed, ids[which], "{source}");
            store.give_back(session, claimed).await.expect("given back");
        }
        let mut suspensions = Suspensions::default();
        suspensions.tenants.insert(tenant(other), Arc::from("spam"));
        let swept = store.end_suspended(session, Arc::new(suspensions), None, at(5), 9).await.expect("swept");
        let mut ended: Vec<_> = swept.ended.iter().map(|end| (end.tenant.as_str(), end.id)).collect();
        ended.sort_unstable();
        let mut wanted: Vec<_> = ids[1].iter().chain([&held]).map(|&id| (other, id)).collect();
        wanted.sort_unstable();
        assert_eq!(ended, wanted, "{source}");
        assert_eq!(counts(store).map(|count| (count.held, count.queued)), [(0, 2), (0, 0)], "{source}");
        let swept = store.expire(session, at(1000), 9).await.expect("swept");
        let ended: Vec<_> = swept.ended.iter().map(|end| (end.tenant.as_str(), end.id)).collect();
        assert_eq!(ended, [(one, ids[0][0]), (one, ids[0][1])], "{source}");
        assert_eq!(counts(store), [WaitingCount::default(); 2], "{source}");
    }
}

#[tokio::test]
async fn a_full_destination_holds_up_none_that_a_short_hash_takes_for_it() {
    let subject = fresh();
    let (store, session) = (subject.store(), subject.session());
    let url = |host: &str| format!("https://{host}/");
    let destination = |host: &str| {
        let Ok(url) = CheckedUrl::parse(&url(host)) else { panic!("{host} is a host") };
        url.destination().clone()
    };
    let short = |host: &str| subject.shared().hasher.hash_one(destination(host)) as u32;
    let hosts = of_one_hash(|number| format!("h{number}.example"), short);
    let mut ids = Vec::new();
    for host in hosts.iter().chain([&hosts[0]]) {
        let send = NewSend { course: Course::Wait, ..draft().to(&url(host)).send() };
        ids.push(send.id);
        accept_new(store, session, call(vec![send], None)).await;
    }
    // Twice: what was put aside is where it belongs, too.
    for (full, expected) in [(0, vec![ids[1]]), (1, vec![ids[0], ids[2]]), (0, vec![ids[1]])] {
        let want = Want { tenant: tenant("acme"), room: 9, full: vec![destination(&hosts[full])] };
        let claimed = store.claim(session, vec![want], 9).await.expect("claimed").sends;
        let claimed: Vec<_> = claimed.iter().map(|send| send.id).collect();
        assert_eq!(claimed, expected);
        store.give_back(session, claimed).await.expect("given back");
    }
}
