//! A process that is killed at any moment.

use super::hashes::{TENANTS, with_known_key};
use super::*;

/// Where the child keeps its store; without it the child has nothing to do.
const CHILD: &str = "EGRESSD_TEST_STORE";
/// Set: bodies go after this many milliseconds, so that what waits is moved on all the time.
const BODIES_GO: &str = "EGRESSD_TEST_BODIES_GO";

/// Accepts, begins and ends sends as fast as it can, and tells of each once it was answered. It is killed.
#[test]
fn the_child_that_is_killed() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let limits = SegmentLimits { sends: 50, ..OnDisk::limits() };
        let mut settings = settings(Path::new(&directory));
        let bodies_go = std::env::var(BODIES_GO).ok().and_then(|millis| millis.parse().ok());
        settings.body_retention = bodies_go.map_or(settings.body_retention, Duration::from_millis);
        let store = Arc::new(Embedded::open_with(&settings, "child", limits).unwrap());
        let session = joined(&*store).await;
        let session = &session;
        store.recover(session, clock()).await.unwrap();
        for pending in claimed(&*store, session).await {
            tell(format!("pending {pending}"));
        }
        tell("open".to_owned());
        if bodies_go.is_some() {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..u64::MAX {
                    store.retain(clock()).await.unwrap();
                    tokio::task::yield_now().await;
                }
            });
        }
        let tasks: Vec<_> = (0..4).map(|task| tokio::spawn(child_task(store.clone(), session.clone(), task))).collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

fn clock() -> Timestamp {
    crate::clock::wall()
}

fn tell(line: String) {
    let mut out = io::stdout().lock();
    writeln!(out, "ledger {line}").and_then(|()| out.flush()).expect("the parent listens");
}

async fn child_task(store: Arc<Embedded>, session: Session, task: usize) {
    let (store, session) = (&*store, &session);
    for turn in 0..u64::MAX {
        // Two tenants of one hash have executions of one name, and end them in different ways.
        let owner = &TENANTS[task % 2];
        let name = format!("{}-{}-{turn}", std::process::id(), task / 2);
        let held = turn % 3 == 0;
        let draft = Draft { secret: Some("Basic c2VjcmV0"), ..draft() }.of(owner).in_execution(&name).created(clock());
        let told = format!("{owner}/{name}");
        let sends: Vec<_> = (0..3).map(|_| draft.send()).collect();
        let ids: Vec<_> = sends.iter().map(|send| send.id).collect();
        accept_new(store, session, call(sends, held.then_some(name.as_str()))).await;
        tell(format!("accepted {} {} {} {}", ids[0], ids[1], ids[2], if held { &told } else { "-" }));
        if held {
            let ending = if turn % 2 == task as u64 % 2 { Ending::Finish(FinishedBy::Call) } else { Ending::Discard };
            tell(format!("ending {told} {}", ending.state().label()));
            end_execution(store, session, tenant(owner), execution(&name), ending, clock()).await.expect("ended");
            tell(format!("ended {told}"));
            if ending == Ending::Discard {
                continue;
            }
            // Those of the other tasks too: they are one session. One claim at a time, so that nobody's are on their way.
            static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
            let _one = ONE.lock().await;
            claimed(store, session).await;
        }
        for &id in &ids[..2] {
            tell(format!("begins {id}"));
            let spec = begin_one(store, session, begin_of(id, &draft, clock())).await.expect("begun").spec().clone();
            assert_eq!(*spec, *draft.send().spec);
            tell(format!("begun {id}"));
            store.finish(session, finished(id, 200, clock())).await.expect("finished");
            tell(format!("finished {id}"));
        }
    }
}

/// What the killed children had told.
#[derive(Default)]
struct Ledger {
    accepted: Vec<(String, Option<String>)>,
    began: std::collections::HashSet<String>,
    begun: std::collections::HashSet<String>,
    finished: std::collections::HashSet<String>,
    ending: HashMap<String, String>,
    ended: std::collections::HashSet<String>,
}

impl Ledger {
    fn add(&mut self, line: &str) {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let word = words.get(1).cloned().unwrap_or_default();
        match words[0].as_str() {
            "accepted" => {
                let hold = (words[4] != "-").then(|| words[4].clone());
                self.accepted.extend(words[1..4].iter().map(|id| (id.clone(), hold.clone())));
            }
            "begins" => drop(self.began.insert(word)),
            "begun" => drop(self.begun.insert(word)),
            "finished" => drop(self.finished.insert(word)),
            "ending" => drop(self.ending.insert(word, words[2].clone())),
            "ended" => drop(self.ended.insert(word)),
            "pending" => assert!(!self.begun.contains(&word), "{word} was begun, and is offered again"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn killed_at_any_moment_it_loses_nothing_and_begins_nothing_twice() {
    killed_at_any_moment(None).await;
}

#[tokio::test]
async fn killed_while_it_moves_on_what_waits_it_loses_nothing_and_begins_nothing_twice() {
    killed_at_any_moment(Some("50")).await;
}

async fn killed_at_any_moment(bodies_go: Option<&str>) {
    use std::io::BufRead;
    use std::os::unix::process::ExitStatusExt;
    let seed = 0x5eed_u64;
    let mut random = seed;
    let directory = tempfile::tempdir().unwrap();
    with_known_key(&settings(directory.path()).key_file);
    let mut ledger = Ledger::default();
    for _ in 0..12 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let lines = (random >> 33) % 400;
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::embedded::tests::dying::the_child_that_is_killed", "--nocapture"])
            .env(CHILD, directory.path())
            .envs(bodies_go.map(|millis| (BODIES_GO, millis)))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = 0;
        for line in io::BufReader::new(child.stdout.take().unwrap()).split(b'\n') {
            // Only whole lines count: what was being written when it died was not told.
            let Ok(line) = String::from_utf8(line.unwrap()) else { continue };
            if let Some(line) = line.strip_prefix("ledger ") {
                ledger.add(line);
                told += u64::from(line != "open");
                if told == lines {
                    child.kill().unwrap();
                }
            }
        }
        let ended = child.wait().unwrap();
        assert_eq!(ended.signal(), Some(9), "seed {seed}: it came to its end before it was killed: {ended}");
    }
    let store = Embedded::open(&settings(directory.path()), "parent").unwrap();
    let session = &joined(&store).await;
    let recovered = store.recover(session, clock()).await.unwrap();
    assert_eq!(recovered.damage, Vec::<String>::new());
    let mut seen = 0;
    for (id, hold) in &ledger.accepted {
        let record =
            store.record(Reach::All, id.parse().unwrap(), true).await.unwrap().expect("accepted, so it is there");
        let outcome = record.ended.as_ref().map(|ended| ended.outcome);
        let ending = hold.as_ref().and_then(|hold| ledger.ending.get(hold)).map(String::as_str);
        let ended = hold.as_ref().is_some_and(|hold| ledger.ended.contains(hold));
        if bodies_go.is_none() || outcome.is_none() {
            assert_eq!(record.request.body.clone().and_then(|body| body.bytes), draft().body, "seed {seed}");
        }
        if ledger.finished.contains(id) {
            assert_eq!(outcome, Some(Outcome::Delivered), "{id}, seed {seed}");
        } else if ledger.begun.contains(id) {
            assert!(matches!(outcome, Some(Outcome::Interrupted | Outcome::Delivered)), "{id}, seed {seed}");
        } else if ledger.began.contains(id) {
            assert!(matches!(outcome, None | Some(Outcome::Interrupted)), "{id}, seed {seed}");
        } else if ending == Some("discarded") {
            assert!(!ended || outcome == Some(Outcome::Discarded), "{id}, seed {seed}");
        } else {
            assert_eq!(outcome, None, "{id}, seed {seed}");
        }
        seen += 1;
    }
    assert!(seen > 100, "the children came to something: {seen}");
    let of =
        |segment: &Arc<Segment>| (0..segment.row_count()).any(|row| segment.row(row).is_ok_and(|row| row.is_carried()));
    let carried = store.shared.segments().iter().any(of);
    assert_eq!(carried, bodies_go.is_some(), "sends were moved");
    let mut listed = 0;
    let mut cursor = None;
    loop {
        let page = store.list(Filter::of(Reach::All), cursor, 200).await.unwrap();
        listed += page.sends.len();
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert!(listed >= seen, "what was accepted is listed, and what was being accepted may be");
}
