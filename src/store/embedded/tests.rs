//! What only a store on disk can break.

mod copies;
mod damage;
mod disks;
mod dying;
mod executions;
mod hashes;
mod hindered;
mod keys;
mod large;
mod losses;
mod retention;
mod shares;
mod stats;

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
    conformance::batches::run::<OnDisk>().await;
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

    fn file_of_newest(&self, name: &str) -> PathBuf {
        self.shared().segments().last().expect("there is one").directory.join(name)
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
        let segment::RowOf::Found(_, row) = segment.row_of(id.0.as_u128()).unwrap() else { panic!("it is there") };
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
