//! Keys of calls whose frames are damaged: no call is made twice for it.

use super::*;
use crate::store::NewSend;
use crate::store::embedded::frame::HEADER_BYTES;

fn key(name: &str) -> IdempotencyKey {
    IdempotencyKey { tenant: tenant("acme"), path: "/v1/sends".to_owned(), key: name.to_owned(), fingerprint: [1; 32] }
}

/// A call with a key that its receiver has answered, among others; what waits before and behind it.
struct Keyed {
    disk: OnDisk,
    key: IdempotencyKey,
    ids: Vec<SendId>,
    waits: Vec<SendId>,
    /// Where its frames begin: its sends', its begins', and its key's second place.
    frames: Vec<usize>,
}

impl Keyed {
    async fn of(sends: usize, begun: bool) -> Self {
        // In memory: many are made, and each would wait for syncs.
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let mut disk = OnDisk { store: None, session: None, directory, limits: OnDisk::limits() };
        disk.open();
        let (store, session) = (disk.store(), disk.session());
        let before = accept_one(store, session, &draft()).await;
        let from = frames(&disk.file("log")).len() - 1;
        let course = if begun { Course::Begin } else { Course::Wait };
        let sends = (0..sends).map(|_| NewSend { course, ..draft().send() }).collect();
        let accept = Accept { idempotency: Some(key("its-own-key")), ..call(sends, None) };
        let ids: Vec<SendId> = accept.sends.iter().map(|send| send.id).collect();
        accept_new(store, session, accept).await;
        let starts = frames(&disk.file("log"))[from..].to_vec();
        if begun {
            for &id in &ids {
                store.finish(session, finished(id, 200, at(1))).await.expect("ended");
            }
        }
        let behind = accept_one(store, session, &draft()).await;
        Self { disk, key: key("its-own-key"), ids, waits: vec![before, behind], frames: starts }
    }

    /// Whatever became of the records, the key is known as that of these sends, and the same call is not accepted.
    async fn is_known(&self, name: &str) {
        let (store, session) = (self.disk.store(), self.disk.session());
        let replayed = Accepted::Replayed(self.ids.clone());
        assert_eq!(store.replay(self.key.clone(), at(3)).await, Ok(Some(replayed)), "{name}");
        let again = || Accept { idempotency: Some(self.key.clone()), ..call(vec![draft().send()], None) };
        let answer = store.accept(session, again()).await;
        assert_eq!(answer, Ok(Accepted::Replayed(self.ids.clone())), "{name}");
        let mut other = again();
        other.idempotency = Some(IdempotencyKey { fingerprint: [2; 32], ..self.key.clone() });
        assert_eq!(store.accept(session, other).await, Ok(Accepted::Mismatch), "{name}");
        assert_eq!(store.replay(key("another"), at(3)).await, Ok(None), "{name}: a new key is nobody's");
    }
}

#[tokio::test]
async fn no_frame_that_is_lost_takes_a_calls_key_with_it() {
    // Of a frame: its magic, its kind, its length, its checksum, its head; and what it says.
    let parts = [0, 4, 9, 12, HEADER_BYTES + 2];
    for (sends, begun) in [(1, true), (1, false), (3, true)] {
        let begins = if begun { sends } else { 0 };
        for frame in 0..sends + begins + 1 {
            for (turn, part) in parts.into_iter().map(Some).chain([None]).enumerate() {
                let subject = Keyed::of(sends, begun).await;
                let (from, to) = (subject.frames[frame], subject.frames[frame + 1]);
                let name = format!("{sends} sends, begun: {begun}, frame {frame}, byte {part:?}");
                // The key, the URL, or a number, whatever comes last.
                let byte = part.map_or(to - 3, |part| from + part);
                let Keyed { disk, key, mut ids, waits, frames } = subject;
                if turn % 2 == 0 {
                    disk.store().close().await.expect("closed");
                }
                let harm = |disk: &OnDisk| {
                    change(&disk.file("log"), |log| log[byte] ^= 0x04);
                    if turn % 3 == 0 {
                        // As after a loss of power.
                        fs::write(disk.file("table"), []).unwrap();
                    }
                };
                let (disk, recovered) = disk.harmed(harm).await;
                assert!(!recovered.damage.is_empty(), "{name}: it is told");
                if (1..sends).contains(&frame) {
                    // Of a call whose first send is whole the others are told as they are: this one is lost.
                    ids.remove(frame);
                }
                let subject = Keyed { disk, key, ids, waits, frames };
                // One whose header does not say what it was may have said anything.
                if frame == sends + begins && part.is_none_or(|part| part >= 12) {
                    assert_eq!(recovered.damage.len(), 1, "{name}: {:?}", recovered.damage);
                    let again = waiting_again(subject.disk.store(), subject.disk.session()).await;
                    let waiting =
                        [&subject.waits[..1], if begun { &[] } else { &subject.ids[..] }, &subject.waits[1..]];
                    assert_eq!(again, waiting.concat(), "{name}: nothing is in doubt for it");
                }
                subject.is_known(&name).await;
                let Keyed { disk, key, ids, waits, frames } = subject;
                let subject = Keyed { disk: disk.crash().await, key, ids, waits, frames };
                subject.is_known(&name).await;
            }
        }
    }
}

#[tokio::test]
async fn a_replay_names_each_send_of_its_call_whatever_row_is_damaged() {
    // The call's rows stand behind one other.
    for row in 1..4 {
        let subject = Keyed::of(3, true).await;
        let table = fs::OpenOptions::new().write(true).open(subject.disk.file("table")).expect("it is there");
        let at = row * table::ROW_BYTES as u64;
        let all = [0; table::ROW_BYTES];
        for (name, bytes, at) in [("a byte of the id", &[0xa5][..], at + 3), ("the whole row", &all[..], at)] {
            table.write_all_at(bytes, at).expect("writable");
            subject.is_known(&format!("{name} {row}")).await;
        }
    }
}

#[tokio::test]
async fn a_key_stands_in_two_places_and_is_known_by_one_where_none_is_damaged() {
    let subject = Keyed::of(3, true).await;
    let stored = |disk: &OnDisk| disk.shared().stored_by(disk.shared().keys.tenant("acme"));
    let before = stored(&subject.disk);
    let Keyed { disk, key, ids, waits, frames } = subject;
    let (disk, recovered) = disk.harmed(|_| {}).await;
    assert_eq!(recovered.damage, Vec::<String>::new());
    assert_eq!(stored(&disk), before, "the second place counts, and as it did before");
    let calls = disk.shared().segments()[0].all_calls().expect("readable");
    assert_eq!(calls.iter().map(|(_, first, count)| (*first, *count)).collect::<Vec<_>>(), [(1, 3)]);
    let subject = Keyed { disk, key, ids, waits, frames };
    subject.is_known("nothing is damaged").await;
}

#[tokio::test]
async fn a_key_whose_call_is_lost_lives_on_in_an_index_and_past_its_segment() {
    for lose_index in [false, true] {
        let disk = OnDisk::with(SegmentLimits { sends: 3, ..OnDisk::limits() });
        let (store, session) = (disk.store(), disk.session());
        let accept = Accept { idempotency: Some(key("k")), ..call(vec![draft().send()], None) };
        let ids = vec![accept.sends[0].id];
        accept_new(store, session, accept).await;
        let known = Ok(Some(Accepted::Replayed(ids.clone())));
        let sent = frames(&disk.file("log"))[1];
        let (disk, _) = disk.harmed(|disk| change(&disk.file("log"), |log| log[sent + 70] ^= 1)).await;
        assert_eq!(disk.store().replay(key("k"), at(3)).await, known);
        for _ in 0..12 {
            let id = accept_one(disk.store(), disk.session(), &draft()).await;
            disk.store().finish(disk.session(), finished(id, 200, at(2))).await.expect("ended");
        }
        disk.until_checkpointed().await;
        assert_eq!(disk.store().replay(key("k"), at(3)).await, known);
        let lose = |disk: &OnDisk| {
            if lose_index {
                fs::remove_file(disk.file("index")).unwrap();
            }
        };
        let (disk, _) = disk.harmed(lose).await;
        assert_eq!(disk.store().replay(key("k"), at(3)).await, known, "index lost: {lose_index}");
    }
}
