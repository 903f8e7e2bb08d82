//! What only a store on disk can break.

mod copies;
mod hindered;
mod losses;
mod shares;

use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::outcome::Code;
use crate::record::FinishedBy;
use crate::store::conformance::*;
use crate::store::conformance::{self, Subject};

fn settings(directory: &Path) -> StoreSettings {
    StoreSettings {
        postgres: None,
        path: directory.join("store"),
        key_file: directory.join("key"),
        retention: Duration::from_secs(30 * 24 * 3600),
        body_retention: Duration::from_secs(3 * 24 * 3600),
        max_bytes: 50 << 30,
        body_max_bytes: 40 << 30,
        tenant_max_bytes: 50 << 30,
    }
}

/// All that waits, given back.
async fn waiting_again(store: &Embedded, session: &Session) -> Vec<SendId> {
    let ids = claimed(store, session).await;
    store.give_back(session, ids.clone()).await.expect("given back");
    ids
}

/// Its writer answers, however this is polled.
fn joined_at_once(store: &Embedded) -> Session {
    let mut joining = Box::pin(joined(store));
    let patience = Patience::begun();
    loop {
        patience.lasts();
        match (&mut joining).now_or_never() {
            Some(session) => return session,
            None => std::thread::yield_now(),
        }
    }
}

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Since when a test waits.
struct Patience(tokio::time::Instant);

impl Patience {
    fn begun() -> Self {
        Self(crate::clock::monotonic())
    }

    #[track_caller]
    fn lasts(&self) {
        assert!(self.0.elapsed() < PATIENCE, "it never comes");
    }
}

/// Waits until something holds that other threads bring about.
pub async fn until(mut holds: impl FnMut() -> bool) {
    let patience = Patience::begun();
    while !holds() {
        patience.lasts();
        tokio::task::yield_now().await;
    }
}

/// A store in a directory of its own.
pub struct OnDisk {
    store: Option<Embedded>,
    session: Option<Session>,
    directory: TempDir,
    limits: SegmentLimits,
}

impl OnDisk {
    pub fn with(limits: SegmentLimits) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut this = Self { store: None, session: None, directory, limits };
        this.open();
        this
    }

    pub fn limits() -> SegmentLimits {
        SegmentLimits::of(&settings(Path::new("/")))
    }

    fn open(&mut self) {
        let settings = settings(self.directory.path());
        let store = Embedded::open_with(&settings, conformance::NODE, self.limits).expect("it opens");
        self.session = Some(joined_at_once(&store));
        self.store = Some(store);
    }
}

impl Subject for OnDisk {
    type Store = Embedded;

    async fn fresh() -> Self {
        Self::with(Self::limits())
    }
    fn store(&self) -> &Embedded {
        self.store.as_ref().expect("it is open")
    }
    fn session(&self) -> &Session {
        self.session.as_ref().expect("joined")
    }
    async fn crash(mut self) -> Self {
        self.store = None;
        self.open();
        self
    }
}

/// The same with segments of a few sends, so that everything spans some.
struct InSmallSegments(OnDisk);

impl Subject for InSmallSegments {
    type Store = Embedded;

    async fn fresh() -> Self {
        Self(OnDisk::with(SegmentLimits { sends: 3, ..OnDisk::limits() }))
    }
    fn store(&self) -> &Embedded {
        self.0.store()
    }
    fn session(&self) -> &Session {
        self.0.session()
    }
    async fn crash(self) -> Self {
        Self(self.0.crash().await)
    }
}

#[tokio::test]
async fn the_store_passes_the_suite() {
    conformance::run::<OnDisk>().await;
    conformance::waiting::run::<OnDisk>().await;
}

#[tokio::test]
async fn the_store_passes_the_suite_in_small_segments() {
    conformance::run::<InSmallSegments>().await;
    conformance::waiting::run::<InSmallSegments>().await;
}

impl OnDisk {
    fn path(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// A file of the first segment.
    fn file(&self, name: &str) -> PathBuf {
        self.path().join("pieces/00000001").join(name)
    }

    fn shared(&self) -> &Shared {
        &self.store().shared
    }

    /// Dies, has its files changed, and comes back.
    async fn harmed(mut self, harm: impl FnOnce(&Self)) -> (Self, Recovered) {
        self.store = None;
        harm(&self);
        self.open();
        let recovered = self.store().recover(self.session(), at(1000)).await.expect("recovered");
        (self, recovered)
    }

    fn refuse(&self, faults: &[(Fault, io::ErrorKind)]) {
        *locked(&self.shared().faults.refusing) = faults.to_vec();
    }

    /// The first three segments.
    async fn until_checkpointed(&self) {
        until(|| self.shared().segments()[..3].iter().all(|segment| segment.is_checkpointed_for_good())).await;
    }

    /// Every segment but the newest.
    async fn until_all_checkpointed(&self) {
        until(|| self.shared().segments().iter().rev().skip(1).all(|segment| segment.is_checkpointed())).await;
    }

    async fn until_healthy(&self) {
        until(|| self.store().health().is_ok()).await;
    }

    async fn all(&self) -> Vec<SendId> {
        let page = self.store().list(Filter::of(Reach::All), None, 200).await.expect("a list");
        page.sends.into_iter().rev().map(|record| record.id).collect()
    }
}

/// On disk, of records and bodies.
fn bytes_of(store: &Embedded) -> u64 {
    let (records, bodies) = store.shared.bytes();
    records + bodies
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("readable");
    change(&mut bytes);
    fs::write(path, bytes).expect("writable");
}

/// Where the frames of a log begin, and its end.
fn frames(path: &Path) -> Vec<usize> {
    let bytes = fs::read(path).expect("readable");
    let mut at = 0;
    let mut starts = vec![0];
    while let Some(frame) = frame::parse(&bytes[at..]) {
        at += frame.length;
        starts.push(at);
    }
    starts
}

// Opening.

#[tokio::test]
async fn a_second_process_is_refused_with_the_pid_of_the_first() {
    let subject = OnDisk::fresh().await;
    let again = Embedded::open(&settings(subject.directory.path()), "another");
    let path = subject.path().display().to_string();
    assert_eq!(again.err(), Some(StoreError::InUse { path, pid: Some(std::process::id() as i32) }));
}

#[tokio::test]
async fn a_store_of_a_later_format_is_refused() {
    let mut subject = OnDisk::fresh().await;
    subject.store = None;
    fs::write(subject.path().join("format"), format!("egressd store, format {}\n", segment::FORMAT + 1)).unwrap();
    let error = Embedded::open(&settings(subject.directory.path()), "node").err();
    let path = subject.path().display().to_string();
    assert_eq!(error, Some(StoreError::TooNew { path, found: segment::FORMAT + 1, known: segment::FORMAT }));
}

#[tokio::test]
async fn another_key_file_is_refused_and_so_is_none() {
    let mut subject = OnDisk::fresh().await;
    subject.store = None;
    let settings = settings(subject.directory.path());
    let other = OnDisk::fresh().await;
    fs::copy(other.directory.path().join("key"), &settings.key_file).unwrap();
    let error = Embedded::open(&settings, "node").err();
    assert!(matches!(error, Some(StoreError::CannotRead(why)) if why.contains("not the one that the store")));
    fs::remove_file(&settings.key_file).unwrap();
    let error = Embedded::open(&settings, "node").err();
    assert!(matches!(error, Some(StoreError::CannotRead(why)) if why.contains("is gone")));
}

// What is sealed.

#[tokio::test]
async fn a_secret_is_never_in_the_clear_on_disk_and_unreadable_once_the_send_is_done() {
    let subject = OnDisk::fresh().await;
    let secret = Draft {
        secret: Some("Basic dG9wOnNlY3JldA=="),
        body: Some(bytes::Bytes::from_static(b"a body that is not kept")),
        keeps_body: false,
        ..draft()
    };
    let id = accept_one(subject.store(), subject.session(), &secret).await;
    let on_disk = |wanted: &[u8]| {
        let mut directories = vec![subject.path()];
        let mut found = false;
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    found |= fs::read(path).unwrap().windows(wanted.len()).any(|window| window == wanted);
                }
            }
        }
        found
    };
    assert!(on_disk(b"application/json"), "the search finds what is in the clear");
    for secret in [&b"dG9wOnNlY3JldA"[..], b"a body that is not kept"] {
        assert!(!on_disk(secret));
    }
    let started = begin_one(subject.store(), subject.session(), begin_of(id, &secret, at(1))).await.expect("begun");
    assert_eq!(started.spec(), &secret.send().spec);
    let slot = |subject: &OnDisk| {
        let segment = subject.shared().segments()[0].clone();
        let (_, row) = segment.row_of(id.0.as_u128()).unwrap().expect("it is there");
        let bytes = segment.frame(row.accepted).expect("the checksum does not cover the slot");
        bytes[bytes.len() - seal::SLOT_BYTES..].to_vec()
    };
    let wrapped = slot(&subject);
    assert!(wrapped.iter().any(|&byte| byte != 0));
    subject.store().finish(subject.session(), finished(id, 200, at(1))).await.expect("ended");
    assert!(slot(&subject).iter().all(|&byte| byte == 0));
    // Should the overwriting not have reached the disk, the next start does it.
    let (subject, _) = subject
        .harmed(|subject| {
            change(&subject.file("log"), |log| {
                let end = frames(&subject.file("log"))[2];
                log[end - seal::SLOT_BYTES..end].copy_from_slice(&wrapped);
            });
        })
        .await;
    assert!(slot(&subject).iter().all(|&byte| byte == 0));
}

// Torn, cut and changed files.

#[tokio::test]
async fn a_log_torn_at_any_byte_keeps_every_whole_call_before_it() {
    let subject = OnDisk::fresh().await;
    let one = accept_one(subject.store(), subject.session(), &draft()).await;
    let call_of_three = call((0..3).map(|_| draft().in_execution("e").send()).collect(), Some("e"));
    let three: Vec<_> = call_of_three.sends.iter().map(|send| send.id).collect();
    accept_new(subject.store(), subject.session(), call_of_three).await;
    let last = accept_one(subject.store(), subject.session(), &draft()).await;
    let (subject, _) = subject.harmed(|_| {}).await;
    let whole = fs::read(subject.file("log")).unwrap();
    let ends = frames(&subject.file("log"));
    assert_eq!(ends.len(), 7, "a head and five sends");
    let ids = [&[one][..], &three, &[last]].concat();
    let mut subject = subject;
    for cut in (ends[1]..whole.len()).step_by(7).chain(ends[1..].iter().copied()) {
        let (torn, recovered) = subject
            .harmed(|subject| {
                fs::write(subject.file("log"), &whole[..cut]).unwrap();
                // The tables had not reached the disk either.
                fs::write(subject.file("table"), []).unwrap();
            })
            .await;
        let frames = ends.iter().filter(|&&end| end <= cut).count() - 2;
        let calls = [0, 1, 1, 1, 4, 5][frames];
        assert_eq!(torn.all().await, ids[..calls], "cut at {cut}");
        assert_eq!(recovered.damage, Vec::<String>::new(), "cut at {cut}");
        assert_eq!(fs::metadata(torn.file("log")).unwrap().len(), ends[1 + calls] as u64, "cut at {cut}");
        subject = torn;
    }
}

#[tokio::test]
async fn a_changed_byte_is_told_with_file_and_extent_and_the_rest_is_kept() {
    let subject = OnDisk::fresh().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(accept_one(subject.store(), subject.session(), &draft().in_execution("e")).await);
    }
    subject.store().finish(subject.session(), finished(ids[4], 200, at(1))).await.expect("ended");
    let (subject, recovered) = subject
        .harmed(|subject| {
            let starts = frames(&subject.file("log"));
            change(&subject.file("log"), |log| log[starts[3] + 40] ^= 1);
        })
        .await;
    let starts = 4;
    assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
    assert!(recovered.damage[0].contains("00000001/log is unreadable at bytes "), "{:?}", recovered.damage);
    assert_eq!(subject.all().await, [ids[0], ids[1], ids[3], ids[4]]);
    let record = subject.store().record(Reach::All, ids[4], true).await.unwrap().unwrap();
    assert_eq!(record.response.map(|answer| answer.status), Some(200));
    assert_eq!(claimed(subject.store(), subject.session()).await, [ids[0], ids[1], ids[3]]);
    let indexes =
        accept_new(subject.store(), subject.session(), call(vec![draft().in_execution("e").send()], None)).await;
    assert_eq!(indexes, [Some(starts)], "the four that are left have indexes 0, 1, 3 and 4");
}

/// A store in which everything has happened to a send that may: the ids that wait, and those that may never go out.
async fn eventful() -> (OnDisk, Vec<SendId>, Vec<SendId>) {
    // In memory: it is opened some thousand times, and each would wait for syncs.
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let mut subject = OnDisk { store: None, session: None, directory, limits: OnDisk::limits() };
    subject.open();
    let (store, session) = (subject.store(), subject.session());
    let draft = draft();
    let held = |name: &str| draft.clone().in_execution(name);
    let hold = async |name: &str| {
        let send = held(name).send();
        let id = send.id;
        accept_new(store, session, call(vec![send], Some(name))).await;
        id
    };
    let end = async |name: &str, ending| {
        let ended = end_execution(store, session, draft.tenant.clone(), execution(name), ending, at(2)).await;
        ended.expect("ended");
    };
    let begin = async |id| drop(begin_one(store, session, begin_of(id, &draft, at(3))).await.expect("begun"));
    let finish = async |id| assert!(store.finish(session, finished(id, 200, at(3))).await.is_ok());

    let [delivered, flying, expired, queued] = [
        accept_one(store, session, &draft).await,
        accept_one(store, session, &draft).await,
        accept_one(store, session, &draft).await,
        accept_one(store, session, &draft).await,
    ];
    let [open, released, released_and_made, discarded, discarded_by_halves] =
        [hold("open").await, hold("released").await, hold("made").await, hold("discarded").await, hold("halves").await];
    begin(delivered).await;
    finish(delivered).await;
    begin(flying).await;
    finish(expired).await;
    end("released", Ending::Finish(FinishedBy::Call)).await;
    end("made", Ending::Finish(FinishedBy::Call)).await;
    claimed(store, session).await;
    begin(released_and_made).await;
    finish(released_and_made).await;
    end("discarded", Ending::Discard).await;
    // Its process died before the sends got their ends.
    let (tenant, name) = (draft.tenant.clone(), execution("halves"));
    let hash = store.shared.keys.execution(tenant.as_str(), name.as_str());
    let job = EndJob { by: session.clone(), hash, tenant, execution: name, ending: Ending::Discard, at: at(2) };
    store.ask(|answer| Job::End(job, answer)).await.expect("ended");
    // What is behind a loss shows that it is one, and not the end of what was written.
    let last = accept_one(store, session, &draft).await;
    let over = vec![delivered, flying, expired, released_and_made, discarded, discarded_by_halves];
    (subject, vec![queued, open, released, last], over)
}

#[tokio::test]
async fn no_changed_byte_lets_a_send_go_out_that_was_made_ended_or_called_off() {
    let (mut subject, waiting, over) = eventful().await;
    subject.store = None;
    let (log, table) = (fs::read(subject.file("log")).unwrap(), fs::read(subject.file("table")).unwrap());
    let starts = frames(&subject.file("log"));
    let last = starts[starts.len() - 2];
    // Each part of a frame's header and of what it is about, and some way into the rest.
    let parts = [0, 4, 5, 8, 12, 17, 33, 37, 41, 75];
    let bytes = starts.iter().flat_map(|start| parts.map(|part| start + part)).filter(|byte| *byte < last);
    let harms = bytes.map(|byte| (byte, 1 << (byte % 8)));
    let cuts = [last / 3, last / 2, last * 4 / 5];
    // With the table, as after the death of the process, and without, as after a loss of power.
    for (harm, with_table) in harms.map(Ok).chain(cuts.map(Err)).zip([true, false, false].into_iter().cycle()) {
        let with_table = with_table || harm.is_err();
        let mut harmed = log.clone();
        match harm {
            Ok((byte, bit)) => harmed[byte] ^= bit,
            Err(cut) => harmed.truncate(cut),
        }
        fs::remove_dir_all(subject.path().join("pieces")).unwrap();
        fs::create_dir_all(subject.file("log").parent().unwrap()).unwrap();
        fs::write(subject.file("log"), harmed).unwrap();
        fs::write(subject.file("bodies"), "").unwrap();
        if with_table {
            fs::write(subject.file("table"), &table).unwrap();
        }
        subject.open();
        let (store, session) = (subject.store(), subject.session());
        let recovered = store.recover(session, at(1000)).await.expect("recovered");
        let mut pending = claimed(store, session).await;
        let held = store.list(Filter::of(Reach::All), None, 200).await.unwrap().sends.into_iter();
        pending.extend(held.filter(|record| record.state == crate::record::State::Held).map(|record| record.id));
        pending.sort();
        let gone: Vec<_> = pending.iter().filter(|id| over.contains(id)).collect();
        assert!(gone.is_empty(), "{harm:?}, table: {with_table}: {gone:?} would be made: {:?}", recovered.damage);
        let told = recovered.damage.iter().any(|line| !line.contains("/bodies "));
        assert!(told || pending == waiting, "{harm:?}, table: {with_table}: {pending:?} wait and nothing was told");
        subject.store = None;
    }
}

#[tokio::test]
async fn a_log_that_lost_its_end_is_told_by_its_table() {
    let subject = OnDisk::fresh().await;
    let first = accept_one(subject.store(), subject.session(), &draft()).await;
    accept_one(subject.store(), subject.session(), &draft()).await;
    accept_one(subject.store(), subject.session(), &draft()).await;
    let (subject, recovered) = subject
        .harmed(|subject| {
            let starts = frames(&subject.file("log"));
            change(&subject.file("log"), |log| log.truncate(starts[2] + 20));
        })
        .await;
    assert_eq!(recovered.damage.len(), 2, "{:?}", recovered.damage);
    assert!(recovered.damage[0].contains("the last 2 sends that were accepted: they are lost"));
    assert!(recovered.damage[1].contains("1 sends that wait may have been made by what is lost"));
    assert_eq!(recovered.interrupted, 1, "its begin may have stood there");
    assert_eq!(subject.all().await, [first]);
    accept_one(subject.store(), subject.session(), &draft()).await;
}

#[tokio::test]
async fn a_lost_body_is_told_and_its_record_stays() {
    let subject = OnDisk::fresh().await;
    let first = accept_one(subject.store(), subject.session(), &draft()).await;
    let second = accept_one(subject.store(), subject.session(), &draft()).await;
    let (subject, recovered) =
        subject.harmed(|subject| change(&subject.file("bodies"), |bodies| bodies.truncate(bodies.len() - 3))).await;
    assert!(recovered.damage[0].contains("00000001/bodies ends at byte"), "{:?}", recovered.damage);
    let whole = subject.store().record(Reach::All, first, true).await.unwrap().unwrap();
    assert_eq!(whole.request.body.and_then(|body| body.bytes), draft().body);
    let lost =
        subject.store().record(Reach::All, second, true).await.unwrap().unwrap().request.body.expect("it had one");
    assert_eq!((lost.bytes, lost.truncated), (None, true));
    assert!(subject.store().damage().last().unwrap().contains("00000001/bodies is unreadable at bytes"));
    let told = subject.store().damage().len();
    assert!(subject.store().record(Reach::All, second, true).await.unwrap().is_some());
    assert_eq!(subject.store().damage().len(), told, "each place is told once");
    let begun = begin_one(subject.store(), subject.session(), begin_of(second, &draft(), at(1))).await;
    assert!(matches!(begun, Err(StoreError::Damaged(_))), "half a request is not sent");
}

/// Three checkpointed segments of two sends each, all done but the last, and the newest segment.
async fn checkpointed() -> (OnDisk, Vec<SendId>) {
    let subject = OnDisk::with(SegmentLimits { sends: 2, ..OnDisk::limits() });
    let mut ids = Vec::new();
    for turn in 0..6 {
        let draft = draft().in_execution(&format!("e{turn}")).in_workflow("w").created(at(turn));
        ids.push(accept_one(subject.store(), subject.session(), &draft).await);
        if turn < 5 {
            subject
                .store()
                .finish(subject.session(), finished(ids[turn as usize], 200, at(turn)))
                .await
                .expect("ended");
        }
    }
    // Segments with a send that waits are checkpointed once enough newer ones are there.
    for _ in 0..10 {
        let id = accept_one(subject.store(), subject.session(), &draft()).await;
        subject.store().finish(subject.session(), finished(id, 200, at(100))).await.expect("ended");
    }
    subject.until_checkpointed().await;
    (subject, ids)
}

#[tokio::test]
async fn checkpointed_segments_answer_as_they_did_and_without_their_index_too() {
    let (subject, ids) = checkpointed().await;
    let check = async |subject: &OnDisk, when: &str| {
        for (turn, &id) in ids.iter().enumerate() {
            let name = execution(&format!("e{turn}"));
            let seen = subject.store().execution(tenant("acme"), name, None, 10).await.unwrap().expect(when);
            assert_eq!(seen.sends.iter().map(|record| record.id).collect::<Vec<_>>(), [id], "{when}");
            assert_eq!(seen.delivered, u64::from(turn < 5), "{when}");
        }
        let filter = Filter { workflow: Some("w".to_owned()), ..Filter::of(Reach::All) };
        let page = subject.store().list(filter, None, 10).await.unwrap();
        assert_eq!(page.sends.iter().rev().map(|record| record.id).collect::<Vec<_>>(), ids, "{when}");
        assert_eq!(subject.store().waiting_in_all().queued, 1, "{when}");
        let (items, _) = subject.store().finished_after(TailPlace::START, Filter::of(Reach::All), 3).await.unwrap();
        assert_eq!(items.iter().map(|item| item.record.id).collect::<Vec<_>>(), ids[..3], "{when}");
    };
    check(&subject, "checkpointed").await;
    let (subject, recovered) = subject.harmed(|_| {}).await;
    assert_eq!(recovered, Recovered::default());
    check(&subject, "opened again").await;
    let (subject, recovered) = subject.harmed(|subject| fs::remove_file(subject.file("index")).unwrap()).await;
    assert_eq!(recovered, Recovered::default());
    check(&subject, "without an index").await;
    subject.until_checkpointed().await;
    let (subject, recovered) = subject.harmed(|subject| change(&subject.file("index"), |index| index[20] ^= 1)).await;
    assert_eq!(recovered, Recovered::default());
    check(&subject, "with a changed index").await;
    subject.until_checkpointed().await;
    let (subject, recovered) = subject.harmed(|subject| fs::write(subject.file("table"), b"").unwrap()).await;
    assert_eq!(recovered, Recovered::default());
    check(&subject, "with its table emptied").await;
}

/// Flips a bit of a row while the store has the file open.
fn flip_in_table(path: &Path, row: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("it is there");
    let at = row * table::ROW_BYTES as u64 + 50;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("readable");
    file.write_all_at(&[byte[0] ^ 4], at).expect("writable");
}

#[tokio::test]
async fn a_damaged_row_of_a_send_that_waits_costs_nobody_anything() {
    let (subject, ids) = checkpointed().await;
    let table = subject.path().join("pieces/00000003/table");
    // Damaged while it was closed: made anew from the log.
    let (subject, recovered) = subject.harmed(|_| flip_in_table(&table, 1)).await;
    assert_eq!(recovered, Recovered::default());
    assert_eq!(waiting_again(subject.store(), subject.session()).await, ids[5..]);
    subject.until_checkpointed().await;

    // Damaged while it is open: its send goes its way, and so does everyone's.
    flip_in_table(&table, 1);
    let want = Want { tenant: draft().tenant, room: 9, full: Vec::new() };
    let claimed = subject.store().claim(subject.session(), vec![want], 9).await.expect("claimed").sends;
    assert_eq!(claimed.iter().map(|send| send.id).collect::<Vec<_>>(), ids[5..]);
    let begin = Begin { spec: Some(draft().send().spec), ..begin_of(ids[5], &draft(), at(200)) };
    begin_one(subject.store(), subject.session(), begin).await.expect("begun");
    subject.store().finish(subject.session(), finished(ids[5], 200, at(200))).await.expect("ended");
    assert!(subject.store().health().is_ok());
    let next = accept_one(subject.store(), subject.session(), &draft()).await;
    subject.store().finish(subject.session(), finished(next, 200, at(201))).await.expect("ended");
    assert!(subject.store().damage().last().expect("told").contains("00000003/table is unreadable at bytes 96 to 192"));
    let (subject, recovered) = subject.harmed(|_| {}).await;
    assert_eq!(recovered, Recovered::default());
    for id in [ids[5], next] {
        let record = subject.store().record(Reach::All, id, false).await.unwrap().expect("known");
        assert_eq!(record.ended.map(|ended| ended.outcome), Some(Outcome::Delivered));
    }
    let filter = Filter { workflow: Some("w".to_owned()), outcome: Some(Outcome::Delivered), ..Filter::of(Reach::All) };
    let page = subject.store().list(filter, None, 10).await.unwrap();
    assert_eq!(page.sends.iter().rev().map(|record| record.id).collect::<Vec<_>>(), ids);
}

#[tokio::test]
async fn a_damaged_row_is_told_and_hides_no_other_from_lists_and_the_tail() {
    let (subject, ids) = checkpointed().await;
    flip_in_table(&subject.file("table"), 1);
    let seen = async |subject: &OnDisk| {
        let filter = Filter { workflow: Some("w".to_owned()), ..Filter::of(Reach::All) };
        let page = subject.store().list(filter, None, 10).await.unwrap();
        let listed: Vec<_> = page.sends.iter().rev().map(|record| record.id).collect();
        let (items, _) = subject.store().finished_after(TailPlace::START, Filter::of(Reach::All), 3).await.unwrap();
        (listed, items.iter().map(|item| item.record.id).collect::<Vec<_>>())
    };
    let (listed, followed) = seen(&subject).await;
    assert_eq!(listed, [&ids[..1], &ids[2..]].concat());
    assert_eq!(followed, [ids[0], ids[2], ids[3]]);
    assert!(subject.store().damage().last().expect("told").contains("00000001/table is unreadable at bytes 96 to 192"));
    let (subject, recovered) = subject.harmed(|_| {}).await;
    assert_eq!(recovered, Recovered::default());
    assert_eq!(seen(&subject).await, (ids.clone(), ids[..3].to_vec()), "the next start has it again");
}

/// What the log of a segment says behind the head of the next does not count, so nothing may be answered for there.
#[tokio::test]
async fn a_segment_that_cannot_get_its_name_costs_nothing() {
    let subject = OnDisk::with(SegmentLimits { sends: 2, ..OnDisk::limits() });
    let refuse = |subject: &OnDisk| subject.refuse(&[(Fault::Name, io::ErrorKind::StorageFull)]);
    let mut ids = vec![accept_one(subject.store(), subject.session(), &draft()).await];
    refuse(&subject);
    ids.push(accept_one(subject.store(), subject.session(), &draft()).await);
    for _ in 0..3 {
        let refused = subject.store().accept(subject.session(), call(vec![draft().send()], None)).await;
        assert!(matches!(refused, Err(StoreError::CannotWrite(_))), "{refused:?}");
    }
    assert!(subject.store().health().is_err());
    // It dies there and then.
    let (subject, _) = subject.harmed(|_| {}).await;
    assert_eq!((subject.all().await, subject.store().damage()), (ids.clone(), vec![]));
    // It goes on once the disk does.
    ids.push(accept_one(subject.store(), subject.session(), &draft()).await);
    refuse(&subject);
    ids.push(accept_one(subject.store(), subject.session(), &draft()).await);
    assert!(subject.store().accept(subject.session(), call(vec![draft().send()], None)).await.is_err());
    subject.refuse(&[]);
    subject.until_healthy().await;
    for _ in 0..5 {
        ids.push(accept_one(subject.store(), subject.session(), &draft()).await);
    }
    let (subject, _) = subject.harmed(|_| {}).await;
    assert_eq!((subject.all().await, subject.store().damage()), (ids, vec![]));
}

/// The others do not wait for it, and it is told with its file.
#[tokio::test]
async fn an_index_that_cannot_be_read_when_it_is_to_be_written_again_is_told_and_holds_up_none() {
    // The third segment has a send that waits, so its index is written again once that has ended.
    let (subject, ids) = checkpointed().await;
    change(&subject.path().join("pieces/00000003/index"), |index| {
        let length = index.len();
        index[length - 60..].fill(0xff);
    });
    subject.store().finish(subject.session(), finished(ids[5], 200, at(200))).await.expect("ended");
    let mut latest = ids[5];
    for _ in 0..4 {
        latest = accept_one(subject.store(), subject.session(), &draft()).await;
        subject.store().finish(subject.session(), finished(latest, 200, at(201))).await.expect("ended");
    }
    let segments = subject.shared().segments();
    until(|| segments[..segments.len() - 1].iter().all(|segment| segment.is_checkpointed_for_good())).await;
    let told = subject.store().damage();
    assert!(told.len() == 1 && told[0].contains("00000003/index is unreadable"), "{told:?}");
    let (subject, _) = subject.harmed(|_| {}).await;
    assert_eq!(subject.store().damage(), [""; 0]);
    let filter = Filter { status: Some(200), ..Filter::of(Reach::All) };
    let page = subject.store().list(filter, None, 50).await.expect("a page");
    assert_eq!((page.sends.len(), page.sends[0].id), (20, latest));
}

#[tokio::test]
async fn an_index_that_cannot_be_written_yet_is_no_damage() {
    let (subject, ids) = checkpointed().await;
    let in_the_way = subject.path().join("pieces/00000003/index.new");
    fs::create_dir(&in_the_way).expect("made");
    subject.store().finish(subject.session(), finished(ids[5], 200, at(200))).await.expect("ended");
    let third = subject.shared().segments()[2].clone();
    // Long enough for some tries.
    std::thread::sleep(Duration::from_millis(300));
    assert!(!third.is_checkpointed_for_good());
    assert_eq!(subject.store().damage(), [""; 0]);
    fs::remove_dir(&in_the_way).expect("removed");
    until(|| third.is_checkpointed_for_good()).await;
    assert_eq!(subject.store().damage(), [""; 0]);
    assert!(subject.path().join("pieces/00000003/index").exists());
}

#[tokio::test]
async fn an_index_is_not_taken_for_that_of_another_segment() {
    let (subject, ids) = checkpointed().await;
    let harm = |subject: &OnDisk| {
        fs::copy(subject.path().join("pieces/00000002/index"), subject.file("index")).expect("copied");
    };
    let (subject, _) = subject.harmed(harm).await;
    for (turn, &id) in ids.iter().enumerate() {
        let name = execution(&format!("e{turn}"));
        let seen = subject.store().execution(tenant("acme"), name, None, 10).await.unwrap().expect("known");
        assert_eq!(seen.sends.iter().map(|record| record.id).collect::<Vec<_>>(), [id]);
    }
}

#[tokio::test]
async fn past_so_many_segments_only_records_make_another() {
    let few = SegmentLimits { sends: 4, bodies_bytes: 1, many: 5, ..OnDisk::limits() };
    let subject = OnDisk::with(few);
    let draft = draft();
    let accept = async || {
        accept_one(subject.store(), subject.session(), &draft).await;
        // The writer makes room before it looks at what comes next.
        let unknown = draft.send();
        let begin = Begin { spec: Some(unknown.spec.clone()), ..begin_of(unknown.id, &draft, at(1)) };
        assert!(matches!(begin_one(subject.store(), subject.session(), begin).await, Err(StoreError::NoSuchSend)));
        subject.shared().segments().len()
    };
    for turn in 1..5 {
        assert_eq!(accept().await, turn + 1, "each body fills a segment");
    }
    for _ in 0..3 {
        assert_eq!(accept().await, 5);
    }
    assert_eq!(accept().await, 6, "four sends fill one in any case");
}

/// Where the shares stand in an index, and what follows them.
fn shares_of_index(index: &[u8]) -> usize {
    let (_, at) = index.split_last_chunk().expect("a number");
    u64::from_le_bytes(*at) as usize
}

#[tokio::test]
async fn an_index_from_before_it_had_shares_is_taken_as_it_is_and_gets_them() {
    for with_pairs in [false, true] {
        let (subject, ids) = checkpointed().await;
        let (subject, _) = subject
            .harmed(|subject| {
                change(&subject.file("index"), |index| {
                    let at = shares_of_index(index);
                    index.truncate(at);
                    if with_pairs {
                        // As it was when it had the pairs of terms there.
                        frame::append(
                            index,
                            frame::FrameKind::Pairs,
                            &[&wire::encode(&Some(vec![7_u64; 9]), Vec::new())],
                            None,
                        );
                        index.extend_from_slice(&(at as u64).to_le_bytes());
                    }
                });
                // Whoever replays the log meets this.
                let starts = frames(&subject.file("log"));
                change(&subject.file("log"), |log| log[starts[1] + 100] ^= 1);
            })
            .await;
        assert_eq!(subject.store().damage(), [""; 0]);
        until(|| subject.shared().segments()[0].is_checkpointed_for_good()).await;
        let index = fs::read(subject.file("index")).expect("readable");
        assert!(
            frame::length_at(&fs::File::open(subject.file("index")).unwrap(), shares_of_index(&index) as u64)
                .is_ok_and(|length| length.is_some())
        );
        for (status, wanted) in [(200, &ids[..5]), (503, &[])] {
            let filter = Filter { workflow: Some("w".to_owned()), status: Some(status), ..Filter::of(Reach::All) };
            let page = subject.store().list(filter, None, 10).await.expect("a page");
            assert_eq!(page.sends.iter().rev().map(|record| record.id).collect::<Vec<_>>(), wanted);
        }
    }
}

#[tokio::test]
async fn a_lost_index_is_made_anew_from_its_own_segment_alone() {
    let key = IdempotencyKey {
        tenant: tenant("acme"),
        path: "/v1/sends".to_owned(),
        key: "k".to_owned(),
        fingerprint: [1; 32],
    };
    for (what, is_whole) in [("index", true), ("table", false), ("a row", false), ("ends", false), ("log", false)] {
        // The first segment has a keyed call of an execution that was finished, and a send that waits.
        let subject = OnDisk::with(SegmentLimits { sends: 3, ..OnDisk::limits() });
        let (store, session) = (subject.store(), subject.session());
        let mut keyed = call(vec![draft().in_execution("e").send(), draft().in_execution("e").send()], Some("e"));
        keyed.idempotency = Some(key.clone());
        let ids: Vec<SendId> = keyed.sends.iter().map(|send| send.id).collect();
        accept_new(store, session, keyed).await;
        store
            .end_execution(subject.session(), tenant("acme"), execution("e"), Ending::Finish(FinishedBy::Call), at(1))
            .await
            .expect("ended");
        assert_eq!(claimed(store, session).await, ids);
        for &id in &ids {
            store.finish(session, finished(id, 200, at(2))).await.expect("ended");
        }
        let waits = accept_one(store, session, &draft()).await;
        for _ in 0..10 {
            let id = accept_one(store, session, &draft()).await;
            store.finish(session, finished(id, 200, at(100))).await.expect("ended");
        }
        subject.until_checkpointed().await;
        let harm = |subject: &OnDisk| {
            change(&subject.file("index"), |index| index[20] ^= 1);
            match what {
                "table" | "ends" => change(&subject.file(what), |bytes| bytes[8] ^= 1),
                "a row" => change(&subject.file("table"), |table| table.truncate(2 * table::ROW_BYTES)),
                "log" => {
                    let starts = frames(&subject.file("log"));
                    change(&subject.file("log"), |log| log[starts[1] + 100] ^= 1);
                }
                _ => {}
            }
            // Whoever replays the second log meets this.
            let second = subject.path().join("pieces/00000002/log");
            let starts = frames(&second);
            change(&second, |log| log[starts[1] + 100] ^= 1);
        };
        let (subject, _) = subject.harmed(harm).await;
        let told = subject.store().damage();
        assert_eq!(told.is_empty(), is_whole, "{what}: {told:?}");
        for when in ["at once", "checkpointed"] {
            let store = subject.store();
            if is_whole {
                let seen = store.execution(tenant("acme"), execution("e"), None, 10).await.unwrap().expect(when);
                assert_eq!(
                    (seen.total, seen.delivered, seen.state),
                    (2, 2, crate::record::ExecutionState::Finished),
                    "{when}"
                );
                let replayed = store.replay(key.clone(), at(3)).await;
                assert_eq!(replayed, Ok(Some(Accepted::Replayed(ids.clone()))), "{when}");
                let (items, _) = store.finished_after(TailPlace::START, Filter::of(Reach::All), 2).await.unwrap();
                assert_eq!(items.iter().map(|item| item.record.id).collect::<Vec<_>>(), ids, "{when}");
                let page = store.list(Filter { status: Some(200), ..Filter::of(Reach::All) }, None, 50).await.unwrap();
                assert_eq!(page.sends.len(), 12, "{when}");
            }
            assert_eq!(waiting_again(store, subject.session()).await, [waits], "{what}, {when}");
            subject.until_checkpointed().await;
        }
        let (subject, recovered) = subject.harmed(|_| {}).await;
        assert_eq!(recovered, Recovered::default(), "{what}");
        assert_eq!(claimed(subject.store(), subject.session()).await, [waits], "it waits still");
        subject.store().finish(subject.session(), finished(waits, 200, at(200))).await.expect("ended");
    }
}

#[tokio::test]
async fn a_list_does_without_a_damaged_index() {
    let (subject, ids) = checkpointed().await;
    // The rows of the terms stand before the shares, and are not looked at when the store opens.
    let harm = |subject: &OnDisk| {
        change(&subject.file("index"), |index| {
            let shares = shares_of_index(index);
            index[shares - 40..shares].fill(0xff);
        });
    };
    let (subject, _) = subject.harmed(harm).await;
    for filter in [
        Filter { workflow: Some("w".to_owned()), ..Filter::of(Reach::All) },
        Filter { workflow: Some("w".to_owned()), status: Some(200), ..Filter::of(Reach::All) },
        Filter { reach: Reach::One(tenant("acme")), until: Some(at(10)), ..Filter::of(Reach::All) },
    ] {
        let page = subject.store().list(filter.clone(), None, 50).await.unwrap();
        let found: Vec<_> =
            page.sends.iter().rev().map(|record| record.id).filter(|id| ids[..2].contains(id)).collect();
        assert_eq!(found, ids[..2], "{filter:?}");
    }
}

#[tokio::test]
async fn a_damaged_record_of_a_checkpointed_segment_is_told_and_does_not_hide_the_others() {
    let (subject, ids) = checkpointed().await;
    let (subject, recovered) = subject
        .harmed(|subject| {
            let starts = frames(&subject.file("log"));
            change(&subject.file("log"), |log| log[starts[1] + 100] ^= 1);
        })
        .await;
    assert_eq!(recovered, Recovered::default(), "checkpointed segments are not read at the start");
    let error = subject.store().record(Reach::All, ids[0], false).await;
    assert!(matches!(error, Err(StoreError::Damaged(why)) if why.contains("00000001/log is unreadable at bytes")));
    let filter = Filter { workflow: Some("w".to_owned()), ..Filter::of(Reach::All) };
    let page = subject.store().list(filter, None, 10).await.unwrap();
    assert_eq!(page.sends.iter().rev().map(|record| record.id).collect::<Vec<_>>(), ids);
    let shown = page.sends.last().expect("six of them");
    assert!(shown.request.url.starts_with("unreadable: "), "{}", shown.request.url);
    assert_eq!(shown.ended.as_ref().map(|ended| ended.outcome), Some(Outcome::Delivered));
}

#[tokio::test]
async fn a_waiting_send_whose_request_is_damaged_gets_its_end() {
    let (subject, ids) = checkpointed().await;
    let (subject, recovered) = subject
        .harmed(|subject| {
            let log = subject.path().join("pieces/00000003/log");
            let starts = frames(&log);
            // The last frame is the send that filled the segment.
            change(&log, |log| log[starts[starts.len() - 2] + 100] ^= 1);
        })
        .await;
    assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
    assert!(recovered.damage[0].contains("00000003/log is unreadable at bytes"));
    assert_eq!(subject.store().waiting_in_all().queued, 0);
    let page = subject.store().list(Filter::of(Reach::All), None, 200).await.unwrap();
    let shown = page.sends.iter().find(|record| record.id == ids[5]).expect("listed");
    assert_eq!(shown.ended.as_ref().map(|ended| ended.outcome), Some(Outcome::Failed));
}

// A disk that refuses.

#[tokio::test]
async fn what_the_disk_refuses_is_not_accepted_and_it_goes_on_when_the_disk_does() {
    for (place, kind, fix) in [
        (Fault::Write, io::ErrorKind::StorageFull, "free some space"),
        (Fault::Write, io::ErrorKind::ReadOnlyFilesystem, "mount it writable"),
        (Fault::Sync, io::ErrorKind::StorageFull, "free some space"),
        (Fault::Sync, io::ErrorKind::Other, "look at the disk"),
    ] {
        let subject = OnDisk::fresh().await;
        let before = accept_one(subject.store(), subject.session(), &draft()).await;
        subject.refuse(&[(place, kind)]);
        for _ in 0..3 {
            let refused = subject.store().accept(subject.session(), call(vec![draft().send()], None)).await;
            assert!(matches!(&refused, Err(StoreError::CannotWrite(why)) if why.contains(fix)), "{refused:?}");
        }
        let begun = begin_one(subject.store(), subject.session(), begin_of(before, &draft(), at(1))).await;
        assert!(matches!(begun, Err(StoreError::CannotWrite(_))), "{place:?}");
        let ended = subject.store().finish(subject.session(), finished(before, 200, at(1))).await;
        assert!(matches!(ended, Err(StoreError::CannotWrite(_))), "{place:?}");
        assert!(subject.store().health().is_err(), "{place:?}");
        assert_eq!(subject.all().await, [before], "what is there can be read all the while");
        subject.refuse(&[]);
        subject.until_healthy().await;
        let after = accept_one(subject.store(), subject.session(), &draft()).await;
        begin_one(subject.store(), subject.session(), begin_of(before, &draft(), at(1)))
            .await
            .expect("it was not begun");
        assert_eq!(subject.all().await, [before, after], "{place:?}");
        let (subject, recovered) = subject.harmed(|_| {}).await;
        assert_eq!(recovered, Recovered { interrupted: 1, ..Recovered::default() }, "{place:?}");
        assert_eq!(subject.all().await, [before, after], "{place:?}");
    }
}

#[tokio::test]
async fn a_disk_that_failed_and_then_the_power_leave_nothing_that_was_refused() {
    let subject = OnDisk::fresh().await;
    let before = accept_one(subject.store(), subject.session(), &draft()).await;
    let log = fs::read(subject.file("log")).unwrap();
    subject.refuse(&[(Fault::Sync, io::ErrorKind::Other)]);
    assert!(subject.store().accept(subject.session(), call(vec![draft().send()], None)).await.is_err());
    assert_eq!(fs::read(subject.file("log")).unwrap(), log, "it was cut off again");
    subject.refuse(&[]);
    subject.until_healthy().await;
    // After a failed sync another log is written to, and what may have reached the disk behind the old one's end
    // is not taken for anything.
    let after = accept_one(subject.store(), subject.session(), &draft()).await;
    let (subject, recovered) = subject
        .harmed(|subject| {
            change(&subject.file("log"), |log| {
                let starts = frames(&subject.file("log"));
                let copy = log[starts[1]..starts[2]].to_vec();
                log.extend_from_slice(&copy);
            });
        })
        .await;
    assert_eq!(recovered, Recovered::default());
    assert_eq!(subject.all().await, [before, after]);
}

#[tokio::test]
async fn what_is_durable_is_shown_once_the_tables_can_be_written() {
    let subject = OnDisk::fresh().await;
    subject.refuse(&[(Fault::Table, io::ErrorKind::StorageFull)]);
    let accepted = accept_one(subject.store(), subject.session(), &draft()).await;
    assert!(subject.store().health().is_err());
    assert!(subject.store().accept(subject.session(), call(vec![draft().send()], None)).await.is_err());
    // It is neither denied nor taken for done: what is asked about it waits until it is known.
    let asked = subject.store().record(Reach::All, accepted, true).await;
    assert!(matches!(asked, Err(StoreError::CannotWrite(_))), "{asked:?}");
    let begun = begin_one(subject.store(), subject.session(), begin_of(accepted, &draft(), at(1))).await;
    assert!(matches!(begun, Err(StoreError::CannotWrite(_))), "{begun:?}");
    let ended = subject.store().finish(subject.session(), finished(accepted, 200, at(1))).await;
    assert!(matches!(ended, Err(StoreError::CannotWrite(_))), "{ended:?}");
    subject.refuse(&[]);
    // Calls that come all the while, so that one of them finds the disk well again.
    let patience = Patience::begun();
    let next = loop {
        patience.lasts();
        let send = draft().send();
        let id = send.id;
        if subject.store().accept(subject.session(), call(vec![send], None)).await.is_ok() {
            break id;
        }
    };
    assert_eq!(subject.all().await, [accepted, next]);
    begin_one(subject.store(), subject.session(), begin_of(accepted, &draft(), at(1))).await.expect("begun");
    let (subject, recovered) = subject.harmed(|_| {}).await;
    assert_eq!(recovered, Recovered { interrupted: 1, ..Recovered::default() });
    assert_eq!(subject.all().await, [accepted, next]);
}

// Retention.

/// A store with segments of two sends, six done sends a day apart, and one that waits in the newest.
async fn aged(change: impl FnOnce(&mut StoreSettings)) -> (OnDisk, Vec<SendId>) {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = settings(directory.path());
    change(&mut settings);
    let limits = SegmentLimits { sends: 2, ..OnDisk::limits() };
    let store = Embedded::open_with(&settings, conformance::NODE, limits).unwrap();
    let session = Some(joined_at_once(&store));
    let subject = OnDisk { store: Some(store), session, directory, limits };
    let mut ids = Vec::new();
    for day in 0..6 {
        let id = accept_one(subject.store(), subject.session(), &draft().created(days(day))).await;
        subject.store().finish(subject.session(), finished(id, 200, days(day))).await.expect("ended");
        ids.push(id);
    }
    ids.push(accept_one(subject.store(), subject.session(), &draft().created(days(6))).await);
    (subject, ids)
}

fn days(days: i64) -> Timestamp {
    at(days * 24 * 3600)
}

async fn has_bodies(subject: &OnDisk, id: SendId) -> bool {
    let record = subject.store().record(Reach::All, id, true).await.unwrap().expect("kept");
    record.request.body.is_some_and(|body| body.bytes.is_some())
}

#[tokio::test]
async fn records_and_bodies_go_by_age_segment_by_segment() {
    let (subject, ids) = aged(|_| {}).await;
    subject.store().retain(days(6)).await.expect("retained");
    assert_eq!(subject.all().await, ids, "records are young");
    for (day, &id) in ids.iter().enumerate() {
        assert_eq!(has_bodies(&subject, id).await, day >= 2, "three days and the rest of their segment: day {day}");
    }
    let older = subject.store().record(Reach::All, ids[0], true).await.unwrap().unwrap();
    assert_eq!(older.response.map(|answer| (answer.body.bytes, answer.body.total)), Some((None, 9)));
    let before = bytes_of(subject.store());
    subject.store().retain(days(32)).await.expect("retained");
    assert_eq!(subject.all().await, ids[2..], "the first segment is past thirty days");
    assert!(bytes_of(subject.store()) < before);
    assert!(!subject.file("log").exists());
    let (items, _) = subject.store().finished_after(TailPlace::START, Filter::of(Reach::All), 10).await.unwrap();
    assert_eq!(items.iter().map(|item| item.record.id).collect::<Vec<_>>(), ids[2..6]);
    let (subject, recovered) = subject.harmed(|_| {}).await;
    assert_eq!(recovered, Recovered::default());
    assert_eq!(subject.all().await, ids[2..]);
}

#[tokio::test]
async fn a_segment_with_a_send_that_waits_is_kept_with_all_behind_it() {
    let subject = OnDisk::with(SegmentLimits { sends: 2, ..OnDisk::limits() });
    let waiting = accept_one(subject.store(), subject.session(), &draft().created(days(0))).await;
    for day in 1..6 {
        let id = accept_one(subject.store(), subject.session(), &draft().created(days(day))).await;
        subject.store().finish(subject.session(), finished(id, 200, days(day))).await.expect("ended");
    }
    subject.store().retain(days(100)).await.expect("retained");
    assert_eq!(subject.all().await.len(), 6);
    assert!(has_bodies(&subject, waiting).await);
    subject.store().finish(subject.session(), failed(waiting, Code::Expired, days(100))).await.expect("ended");
    subject.store().retain(days(100)).await.expect("retained");
    assert_eq!(subject.all().await, [waiting; 0], "all segments but the newest are past their time");
}

#[tokio::test]
async fn the_oldest_go_while_all_are_too_large() {
    let (subject, ids) = aged(|settings| settings.body_max_bytes = 0).await;
    subject.store().retain(days(0)).await.expect("retained");
    assert_eq!(subject.all().await, ids);
    assert!(!has_bodies(&subject, ids[0]).await);
    assert!(has_bodies(&subject, ids[6]).await, "never the newest segment's");

    let (subject, ids) = aged(|settings| settings.max_bytes = 4096).await;
    subject.store().retain(days(0)).await.expect("retained");
    let kept = subject.all().await;
    assert!(kept.len() < ids.len() && ids.ends_with(&kept), "{} of {}", kept.len(), ids.len());
    assert!(bytes_of(subject.store()) <= 4096 || kept.len() == 1);
}

// Dying.

/// Where the child keeps its store; without it the child has nothing to do.
const CHILD: &str = "EGRESSD_TEST_STORE";

/// Accepts, begins and ends sends as fast as it can, and tells of each once it was answered. It is killed.
#[test]
fn the_child_that_is_killed() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let limits = SegmentLimits { sends: 50, ..OnDisk::limits() };
        let store = Arc::new(Embedded::open_with(&settings(Path::new(&directory)), "child", limits).unwrap());
        let session = joined(&*store).await;
        let session = &session;
        store.recover(session, clock()).await.unwrap();
        for pending in claimed(&*store, session).await {
            tell(format!("pending {pending}"));
        }
        tell("open".to_owned());
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
        let name = format!("{}-{task}-{turn}", std::process::id());
        let held = turn % 3 == 0;
        let draft = Draft { secret: Some("Basic c2VjcmV0"), ..draft() }.in_execution(&name).created(clock());
        let sends: Vec<_> = (0..3).map(|_| draft.send()).collect();
        let ids: Vec<_> = sends.iter().map(|send| send.id).collect();
        accept_new(store, session, call(sends, held.then_some(name.as_str()))).await;
        tell(format!("accepted {} {} {} {}", ids[0], ids[1], ids[2], if held { &name } else { "-" }));
        if held {
            let ending = if turn % 2 == 0 { Ending::Finish(crate::record::FinishedBy::Call) } else { Ending::Discard };
            tell(format!("ending {name} {}", ending.state().label()));
            end_execution(store, session, tenant("acme"), execution(&name), ending, clock()).await.expect("ended");
            tell(format!("ended {name}"));
            if ending == Ending::Discard {
                continue;
            }
            // Those of the other tasks too: they are one session.
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
    use std::io::BufRead;
    let seed = 0x5eed_u64;
    let mut random = seed;
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::default();
    for _ in 0..12 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let lines = (random >> 33) % 400;
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::embedded::tests::the_child_that_is_killed", "--nocapture"])
            .env(CHILD, directory.path())
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
        child.wait().unwrap();
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
        assert_eq!(record.request.body.clone().and_then(|body| body.bytes), draft().body, "seed {seed}");
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

// A disk that is really full: a file system of its own in a mount namespace of its own.

/// Where the child finds its small file system.
const SMALL_DISK: &str = "EGRESSD_TEST_SMALL_DISK";

#[test]
fn a_full_disk_is_told_and_outlived() {
    on_a_small_disk("the_child_on_a_small_disk");
}

#[test]
fn a_full_disk_is_freed_by_retention() {
    on_a_small_disk("the_child_whose_records_grow_old");
}

/// Runs one of the tests below where it finds a file system of 4 MiB.
fn on_a_small_disk(child: &str) {
    let directory = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    let script = "mount -t tmpfs -o size=4m tmpfs \"$EGRESSD_TEST_SMALL_DISK\" && exec \"$0\" --exact \
                  \"store::embedded::tests::$1\" --nocapture";
    let status = std::process::Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script])
        .arg(program)
        .arg(child)
        .env(SMALL_DISK, directory.path())
        .status()
        .expect("unshare (util-linux) is installed");
    assert!(status.success(), "the child failed, or this system lets nobody mount a tmpfs in a namespace: {status}");
}

#[test]
fn the_child_on_a_small_disk() {
    let Some(directory) = std::env::var_os(SMALL_DISK) else { return };
    let directory = PathBuf::from(directory);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let settings = settings(&directory);
        let store = Embedded::open(&settings, "child").unwrap();
        let session = &joined(&store).await;
        fs::write(directory.join("ballast"), vec![1; 1 << 20]).unwrap();
        let large = Draft { body: Some(bytes::Bytes::from(vec![7; 20_000])), ..draft() };
        let mut accepted = Vec::new();
        let refused = loop {
            let send = large.send();
            let id = send.id;
            match store.accept(session, call(vec![send], None)).await {
                Ok(_) => accepted.push(id),
                Err(error) => break error,
            }
            assert!(accepted.len() < 10_000, "the disk never filled");
        };
        assert!(matches!(&refused, StoreError::CannotWrite(why) if why.contains("free some space")), "{refused}");
        assert!(store.health().is_err());
        fs::remove_file(directory.join("ballast")).unwrap();
        until(|| store.health().is_ok()).await;
        accepted.push(accept_one(&store, session, &large).await);

        drop(store);
        let store = Embedded::open(&settings, "child").unwrap();
        let session = &joined(&store).await;
        let recovered = store.recover(session, at(1)).await.unwrap();
        assert_eq!(recovered, Recovered::default());
        assert_eq!(claimed(&store, session).await, accepted);
    });
}

#[test]
fn the_child_whose_records_grow_old() {
    let Some(directory) = std::env::var_os(SMALL_DISK) else { return };
    let directory = PathBuf::from(directory);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let now = crate::clock::wall();
        let later = |days: i64| now + jiff::SignedDuration::from_hours(24 * days);
        let store = Embedded::open(&settings(&directory), "child").unwrap();
        let session = &joined(&store).await;
        let large = |at| Draft { body: Some(bytes::Bytes::from(vec![7; 20_000])), ..draft() }.created(at);
        let mut old = Vec::new();
        for _ in 0..10 {
            let id = accept_one(&store, session, &large(now)).await;
            store.finish(session, finished(id, 200, now)).await.expect("ended");
            old.push(id);
        }
        store.retain(later(2)).await.expect("a new segment");
        let mut waiting = Vec::new();
        while store.health().is_ok() {
            let send = large(later(2)).send();
            let id = send.id;
            if store.accept(session, call(vec![send], None)).await.is_ok() {
                waiting.push(id);
            }
            assert!(waiting.len() < 10_000, "the disk never filled");
        }
        let mut ballast = fs::File::create(directory.join("ballast")).unwrap();
        while ballast.write_all(&[1; 512]).is_ok() {}
        // By then another segment would be due, for which there is no room before this.
        store.retain(later(31)).await.expect("the old segment goes");
        assert_eq!(store.record(Reach::All, old[0], false).await, Ok(None));
        until(|| store.health().is_ok()).await;
        waiting.push(accept_one(&store, session, &large(later(31))).await);
        store.give_back(session, waiting.clone()).await.expect("given back");
        assert_eq!(claimed(&store, session).await, waiting);
    });
}
