//! What only a store on disk can break.

use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::store::conformance::{self, Subject};

fn settings(directory: &Path) -> StoreSettings {
    StoreSettings {
        path: directory.join("store"),
        key_file: directory.join("key"),
        retention: Duration::from_secs(30 * 24 * 3600),
        body_retention: Duration::from_secs(3 * 24 * 3600),
        max_bytes: 50 << 30,
        body_max_bytes: 40 << 30,
    }
}

/// A store in a directory of its own.
struct OnDisk {
    store: Option<Embedded>,
    directory: TempDir,
    limits: PieceLimits,
}

impl OnDisk {
    fn with(limits: PieceLimits) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut this = Self { store: None, directory, limits };
        this.open();
        this
    }

    fn limits() -> PieceLimits {
        PieceLimits::of(&settings(Path::new("/")))
    }

    fn open(&mut self) {
        let settings = settings(self.directory.path());
        self.store = Some(Embedded::open_with(&settings, conformance::NODE, self.limits).expect("it opens"));
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
    async fn crash(mut self) -> Self {
        self.store = None;
        self.open();
        self
    }
}

/// The same with pieces of a few sends, so that everything spans some.
struct InSmallPieces(OnDisk);

impl Subject for InSmallPieces {
    type Store = Embedded;

    async fn fresh() -> Self {
        Self(OnDisk::with(PieceLimits { sends: 3, ..OnDisk::limits() }))
    }
    fn store(&self) -> &Embedded {
        self.0.store()
    }
    async fn crash(self) -> Self {
        Self(self.0.crash().await)
    }
}

#[tokio::test]
async fn the_store_passes_the_suite() {
    conformance::run::<OnDisk>().await;
}

#[tokio::test]
async fn the_store_passes_the_suite_in_small_pieces() {
    conformance::run::<InSmallPieces>().await;
}
