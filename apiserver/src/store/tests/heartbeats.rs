//! Writes that need not be durable at once.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::super::*;
use super::{create, delete, events};

const KEY: &str = "/registry/leases/kube-node-lease/n1";

/// A store that does nothing by itself, and where it lies.
fn open(folder: &Path) -> SqliteStore {
    let mut options = SqliteOptions::new(folder.join("state.db"));
    options.expiry_interval = Duration::from_secs(3600);
    SqliteStore::open(options).expect("opens")
}

fn beat(value: &str, expect: Expect) -> Write {
    Write::put(KEY, value.to_owned(), expect).with_durability(Durability::Soon)
}

async fn renew(store: &dyn Store, value: &str) -> Revision {
    match store.write(beat(value, Expect::Any)).await.expect("write") {
        Written::Done { revision } => revision,
        Written::Mismatch { .. } => panic!("an unconditional put cannot mismatch"),
    }
}

/// A key with one heartbeat, which reserved revisions for more.
async fn beating(store: &dyn Store) {
    create(store, KEY, "made").await;
    renew(store, "first").await;
}

async fn value(store: &dyn Store) -> String {
    let found = store.get(KEY).await.expect("get").expect("exists");
    String::from_utf8(found.value.to_vec()).expect("text")
}

/// What is on the disk, as a process that is killed now leaves it.
fn as_killed(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(folder).expect("reads") {
        let path = entry.expect("an entry").path();
        // The index of the WAL is shared memory, made anew.
        if path.extension().is_some_and(|extension| extension != "db-shm") {
            fs::copy(&path, copy.path().join(path.file_name().expect("a name"))).expect("copies");
        }
    }
    copy
}

fn wal_bytes(folder: &Path) -> u64 {
    fs::metadata(folder.join("state.db-wal")).expect("exists").len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_is_seen_at_once_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    beating(&store).await;
    let before = store.revision().await.expect("revision");
    let mut watch = store.watch("/registry/", before).await.expect("watch");
    let wal = wal_bytes(folder.path());
    for n in 1..=500 {
        assert_eq!(renew(&store, &n.to_string()).await, before + n);
    }
    assert_eq!(wal_bytes(folder.path()), wal, "heartbeats were written");

    assert_eq!(value(&store).await, "500");
    assert_eq!(store.revision().await.expect("revision"), before + 500);
    let ranged = store.range(Range::prefix("/registry/")).await.expect("range");
    assert_eq!((ranged.revision, ranged.items[0].mod_revision), (before + 500, before + 500));
    assert_eq!(ranged.items[0].value.as_ref(), b"500");
    let seen = events(&mut watch, 1).await;
    assert!(seen.iter().all(|event| event.mod_revision > before));
    // One that begins before what is held finds the newest of it.
    let mut late = store.watch("/registry/", before).await.expect("watch");
    let last = events(&mut late, 1).await.pop().expect("an event");
    assert_eq!((last.mod_revision, last.value.as_deref()), (before + 500, Some(&b"500"[..])));
}

#[tokio::test]
async fn a_heartbeat_is_compared_with_what_is_held() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    beating(&store).await;
    let held = renew(&store, "held").await;
    let stale = store.write(beat("stale", Expect::ModRevision(held - 1))).await.expect("write");
    let Written::Mismatch { current: Some(current) } = stale else { panic!("{stale:?}") };
    assert_eq!((current.value.as_ref(), current.mod_revision), (&b"held"[..], held));
    let next = store.write(beat("next", Expect::ModRevision(held))).await.expect("write");
    assert_eq!(next, Written::Done { revision: held + 1 });
    // One that is durable is compared with it as well.
    let stale = store.write(Write::delete(KEY, Expect::ModRevision(held))).await.expect("write");
    assert!(matches!(&stale, Written::Mismatch { current: Some(kv) } if kv.value.as_ref() == b"next"));
    delete(&store, KEY).await;
    assert_eq!(store.get(KEY).await.expect("get"), None);
    let gone = store.write(beat("gone", Expect::ModRevision(held + 1))).await.expect("write");
    assert_eq!(gone, Written::Mismatch { current: None });
}

#[tokio::test]
async fn a_revision_that_a_crash_lost_is_not_given_out_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    beating(&store).await;
    let kept = store.revision().await.expect("revision");
    let lost = renew(&store, "lost").await;

    let copy = as_killed(folder.path());
    let store = open(copy.path());
    assert_eq!(value(&store).await, "first");
    let begins = store.revision().await.expect("revision");
    assert!(begins > lost, "{begins} after {lost}");
    let watched = store.watch("/registry/", lost).await.expect("watch").next().await;
    assert!(matches!(watched, Some(Err(StoreError::Compacted { .. }))), "{watched:?}");
    let then = Range { revision: Some(lost), ..Range::prefix("/registry/") };
    let ranged = store.range(then).await;
    assert!(matches!(ranged, Err(StoreError::Compacted { .. })), "{ranged:?}");
    // Nothing is missing of what is older, or newer.
    for after in [kept, begins] {
        let mut watch = store.watch("/registry/", after).await.expect("watch");
        let next = create(&store, &format!("/registry/pods/a/{after}"), "1").await;
        let seen = events(&mut watch, 1).await.pop().expect("an event");
        assert!(seen.mod_revision > begins && seen.mod_revision <= next);
    }

    // And once more, at once: neither what the first nor what the second one lost.
    let again = renew(&store, "lost, too").await;
    renew(&store, "and this").await;
    let copy = as_killed(copy.path());
    let store = open(copy.path());
    assert!(store.revision().await.expect("revision") > again + 1);
    for lost in [lost, again + 1] {
        let watched = store.watch("/registry/", lost).await.expect("watch").next().await;
        assert!(matches!(watched, Some(Err(StoreError::Compacted { .. }))), "{lost}: {watched:?}");
    }
}

#[tokio::test]
async fn the_last_revision_that_was_reserved_is_not_given_out_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    beating(&store).await;
    let wal = wal_bytes(folder.path());
    let mut last = 0;
    for n in 0..10_000 {
        last = renew(&store, &n.to_string()).await;
    }
    assert_eq!(wal_bytes(folder.path()), wal);
    let copy = as_killed(folder.path());
    renew(&store, "of the next that are reserved").await;
    assert!(wal_bytes(folder.path()) > wal);
    let store = open(copy.path());
    assert!(store.revision().await.expect("revision") > last, "{last} was given out");
    assert!(create(&store, "/registry/pods/a/b", "1").await > last);
}

#[tokio::test]
async fn a_clean_end_loses_no_heartbeat_and_no_revision() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    beating(&store).await;
    let last = renew(&store, "last").await;
    store.close().await;
    assert!(matches!(store.get(KEY).await, Err(StoreError::Closed)));
    drop(store);
    let store = open(folder.path());
    assert_eq!(value(&store).await, "last");
    assert_eq!(store.revision().await.expect("revision"), last);
    assert_eq!(renew(&store, "next").await, last + 1);
}

#[tokio::test]
async fn a_durable_write_takes_the_heartbeats_before_it_along() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    beating(&store).await;
    renew(&store, "before").await;
    let durable = create(&store, "/registry/pods/a/b", "1").await;
    assert_eq!(value(&store).await, "before");
    let killed = as_killed(folder.path());
    let copy = open(killed.path());
    assert_eq!(value(&copy).await, "before");
    let pod = copy.get("/registry/pods/a/b").await.expect("get").expect("exists");
    assert_eq!(pod.mod_revision, durable);
}

async fn rows_once_closed(store: SqliteStore, folder: &Path) -> u32 {
    store.close().await;
    drop(store);
    let connection = rusqlite::Connection::open(folder.join("state.db")).expect("opens");
    connection.query_row("SELECT count(*) FROM kv", [], |row| row.get(0)).expect("counts")
}

#[tokio::test]
async fn heartbeats_are_on_the_disk_after_a_look_at_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    beating(&store).await;
    renew(&store, "one").await;
    let last = renew(&store, "two").await;
    store.tend().await.expect("tends");
    let killed = as_killed(folder.path());
    assert_eq!(value(&open(killed.path())).await, "two");
    // What each of them superseded goes with compaction, be it held or logged.
    store.compact(last).await.expect("compacts");
    assert_eq!(rows_once_closed(store, folder.path()).await, 1);
}

#[tokio::test]
async fn a_compaction_before_heartbeats_are_logged_leaves_no_row_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    beating(&store).await;
    let held = renew(&store, "held").await;
    store.compact(held).await.expect("compacts");
    store.tend().await.expect("tends");
    let last = store.revision().await.expect("revision");
    store.compact(last).await.expect("compacts");
    assert_eq!(rows_once_closed(store, folder.path()).await, 1);
}

#[tokio::test]
async fn a_full_disk_can_be_told_of_and_keeps_what_was_said_once_it_has_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    beating(&store).await;
    store.fill(true).await.expect("fills");
    let large = || "full".repeat(20_000);
    let refused = store.write(Write::put(KEY, large(), Expect::Any)).await;
    assert!(matches!(refused, Err(StoreError::Full { .. })), "{refused:?}");
    assert_eq!(value(&store).await, "first");
    let before = store.revision().await.expect("revision");
    let said = Write::put(KEY, large(), Expect::Any).with_durability(Durability::Preferably);
    assert_eq!(store.write(said).await.expect("held"), Written::Done { revision: before + 1 });
    assert_eq!(value(&store).await, large());
    let created = store.write(Write::create("/new", large()).with_durability(Durability::Preferably)).await;
    assert!(matches!(created, Err(StoreError::Full { .. })), "what is new is not held: {created:?}");

    store.fill(false).await.expect("has room");
    create(&store, "/new", "1").await;
    let killed = as_killed(folder.path());
    assert_eq!(value(&open(killed.path())).await, large());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_beside_heartbeats_never_see_an_older_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Arc::new(open(folder.path()));
    create(&*store, KEY, "0").await;
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 1..=400 {
                renew(&*store, &n.to_string()).await;
                if n % 7 == 0 {
                    create(&*store, &format!("/registry/pods/a/{n}"), "1").await;
                }
            }
        })
    };
    let (mut value_before, mut revision_before) = (0, 0);
    while value_before < 400 {
        let newest = store.revision().await.expect("revision");
        let ranged = store.range(Range::prefix("/registry/leases/")).await.expect("range");
        let item = &ranged.items[0];
        let value: u64 = std::str::from_utf8(&item.value).expect("text").parse().expect("a number");
        assert!(ranged.revision >= newest && ranged.revision >= revision_before, "{newest}: {ranged:?}");
        assert!(value >= value_before, "{value} after {value_before}");
        let found = store.get(KEY).await.expect("get").expect("exists");
        assert!(found.mod_revision >= item.mod_revision);
        (value_before, revision_before) = (value, ranged.revision);
    }
    writer.await.expect("writes");
}

/// A store, and what it must hold.
struct Modelled {
    store: SqliteStore,
    folder: tempfile::TempDir,
    /// Value and last change, by key.
    now: BTreeMap<String, (String, Revision)>,
    /// The same, as a crash leaves it.
    durable: BTreeMap<String, (String, Revision)>,
    /// The newest revision that was ever given out.
    given: Revision,
    /// Whether heartbeats are held, or durable because they reserve revisions for the next.
    holds: bool,
}

impl Modelled {
    fn new() -> Modelled {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(folder.path());
        Modelled { store, folder, now: BTreeMap::new(), durable: BTreeMap::new(), given: 1, holds: false }
    }

    async fn write(&mut self, write: Write) {
        let (key, op, durability) = (write.key.clone(), write.op.clone(), write.durability);
        let is_held = durability == Durability::Soon && self.holds && self.now.contains_key(&key);
        let written = self.store.write(write).await.expect("writes");
        let Written::Done { revision } = written else { panic!("an unconditional write cannot mismatch") };
        let is_change = matches!(op, Op::Put { .. }) || self.now.contains_key(&key);
        if is_change {
            assert!(revision > self.given, "{revision} was given out, up to {}", self.given);
            self.given = revision;
        }
        match op {
            Op::Put { value, .. } => {
                let value = String::from_utf8(value.to_vec()).expect("text");
                self.now.insert(key, (value, revision));
            }
            Op::Delete => _ = self.now.remove(&key),
        }
        if !is_held {
            self.durable = self.now.clone();
            self.holds |= durability == Durability::Soon;
        }
    }

    async fn crash(&mut self) {
        self.folder = as_killed(self.folder.path());
        self.store = open(self.folder.path());
        self.now = self.durable.clone();
        self.holds = false;
    }

    async fn restart(&mut self) {
        self.store.close().await;
        self.store = open(self.folder.path());
        self.durable = self.now.clone();
        self.holds = false;
    }

    async fn check(&self) {
        let ranged = self.store.range(Range::prefix("/")).await.expect("range");
        let found = ranged.items.into_iter().map(|kv| {
            let value = String::from_utf8(kv.value.to_vec()).expect("text");
            (kv.key.to_string(), (value, kv.mod_revision))
        });
        assert_eq!(found.collect::<BTreeMap<_, _>>(), self.now);
        assert!(ranged.revision >= self.given, "{} before {}", ranged.revision, self.given);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_no_revision_is_given_out_twice_and_nothing_durable_is_lost() {
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut modelled = Modelled::new();
        for step in 0..80 {
            let key = format!("/k/{}", random.random_range(0..4));
            let put = || Write::put(key.clone(), format!("{seed}-{step}"), Expect::Any);
            match random.random_range(0..20) {
                0..9 => modelled.write(put().with_durability(Durability::Soon)).await,
                9..12 => modelled.write(put()).await,
                12..14 => modelled.write(Write::delete(key.clone(), Expect::Any)).await,
                14 => {
                    modelled.store.tend().await.expect("tends");
                    modelled.durable = modelled.now.clone();
                }
                15 => modelled.store.compact(modelled.given).await.expect("compacts"),
                16..18 => modelled.restart().await,
                _ => modelled.crash().await,
            }
            modelled.check().await;
        }
    }
}
