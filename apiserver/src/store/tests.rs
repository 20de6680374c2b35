//! The suite that every store must pass, run against each implementation.

use std::sync::Arc;
use std::time::Duration;

use super::*;

mod heartbeats;
#[path = "../../tests/etcd/process.rs"]
pub(super) mod process;

async fn create(store: &dyn Store, key: &str, value: &str) -> Revision {
    match store.write(Write::create(key, value.to_owned())).await.expect("write") {
        Written::Done { revision } => revision,
        Written::Mismatch { current } => panic!("{key} exists: {current:?}"),
    }
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    match store.write(Write::put(key, value.to_owned(), Expect::Any)).await.expect("write") {
        Written::Done { revision } => revision,
        Written::Mismatch { .. } => panic!("an unconditional put cannot mismatch"),
    }
}

async fn delete(store: &dyn Store, key: &str) -> Revision {
    match store.write(Write::delete(key, Expect::Any)).await.expect("delete") {
        Written::Done { revision } => revision,
        Written::Mismatch { .. } => panic!("an unconditional delete cannot mismatch"),
    }
}

async fn keys(store: &dyn Store, range: Range) -> Vec<String> {
    store.range(range).await.expect("range").items.iter().map(|kv| kv.key.to_string()).collect()
}

/// Reads the watch until it has seen `count` events.
async fn events(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let batch =
            tokio::time::timeout(Duration::from_secs(20), watch.next()).await.expect("an event in time");
        seen.extend(batch.expect("the watch goes on").expect("no error").events);
    }
    seen
}

async fn an_empty_store_is_at_revision_one(store: &dyn Store) {
    assert_eq!(store.revision().await.expect("revision"), 1);
    assert_eq!(create(store, "/a", "1").await, 2);
    assert_eq!(store.revision().await.expect("revision"), 2);
}

async fn a_create_fails_where_the_key_exists(store: &dyn Store) {
    let first = create(store, "/a", "1").await;
    let second = store.write(Write::create("/a", "2")).await.expect("write");
    let Written::Mismatch { current: Some(current) } = second else { panic!("{second:?}") };
    assert_eq!((current.value.as_ref(), current.mod_revision), (&b"1"[..], first));
    delete(store, "/a").await;
    let again = create(store, "/a", "3").await;
    let found = store.get("/a").await.expect("get").expect("exists");
    assert_eq!((found.create_revision, found.mod_revision), (again, again));
}

async fn a_put_compares_the_mod_revision(store: &dyn Store) {
    let first = create(store, "/a", "1").await;
    let second = store.write(Write::put("/a", "2", Expect::ModRevision(first))).await.expect("write");
    assert_eq!(second, Written::Done { revision: first + 1 });
    let stale = store.write(Write::put("/a", "3", Expect::ModRevision(first))).await.expect("write");
    assert!(matches!(stale, Written::Mismatch { current: Some(kv) } if kv.value.as_ref() == b"2"));
    let gone = store.write(Write::put("/b", "1", Expect::ModRevision(first))).await.expect("write");
    assert_eq!(gone, Written::Mismatch { current: None });
    let found = store.get("/a").await.expect("get").expect("exists");
    assert_eq!((found.create_revision, found.mod_revision), (first, first + 1));
}

async fn deleting_what_is_absent_changes_nothing(store: &dyn Store) {
    let before = create(store, "/a", "1").await;
    assert_eq!(delete(store, "/nothing").await, before);
    let stale = store.write(Write::delete("/a", Expect::ModRevision(before + 7))).await.expect("delete");
    assert!(matches!(stale, Written::Mismatch { current: Some(_) }));
    assert_eq!(delete(store, "/a").await, before + 1);
    assert_eq!(store.get("/a").await.expect("get"), None);
}

async fn a_range_reads_one_revision(store: &dyn Store) {
    for key in ["/r/a", "/r/b", "/r/c", "/s/d"] {
        create(store, key, "1").await;
    }
    let at = store.revision().await.expect("revision");
    delete(store, "/r/b").await;
    put(store, "/r/a", "2").await;
    create(store, "/r/z", "1").await;
    assert_eq!(keys(store, Range::prefix("/r/")).await, ["/r/a", "/r/c", "/r/z"]);
    let then = Range { revision: Some(at), ..Range::prefix("/r/") };
    assert_eq!(keys(store, then.clone()).await, ["/r/a", "/r/b", "/r/c"]);
    let page = store.range(Range { limit: Some(2), ..then.clone() }).await.expect("range");
    assert!(page.more && page.revision == at && page.items[0].value.as_ref() == b"1");
    let rest = store.range(Range { start: Some("/r/b\0".into()), ..then }).await.expect("range");
    assert!(!rest.more);
    assert_eq!(rest.items.iter().map(|kv| &*kv.key).collect::<Vec<_>>(), ["/r/c"]);
    let future = store.range(Range { revision: Some(999), ..Range::prefix("/r/") }).await;
    assert!(matches!(future, Err(StoreError::Future { requested: 999, .. })), "{future:?}");
}

async fn a_watch_replays_and_then_follows(store: &dyn Store) {
    let start = store.revision().await.expect("revision");
    create(store, "/w/a", "1").await;
    create(store, "/other", "1").await;
    put(store, "/w/a", "2").await;
    let mut watch = store.watch("/w/", start).await.expect("watch");
    delete(store, "/w/a").await;
    create(store, "/w/b", "1").await;
    let seen = events(&mut watch, 4).await;
    let short: Vec<_> = seen.iter().map(|e| (&*e.key, e.value.as_deref(), e.mod_revision - start)).collect();
    assert_eq!(
        short,
        [
            ("/w/a", Some(&b"1"[..]), 1),
            ("/w/a", Some(&b"2"[..]), 3),
            ("/w/a", None, 4),
            ("/w/b", Some(&b"1"[..]), 5)
        ]
    );
}

async fn a_lagging_watch_loses_nothing(store: &dyn Store) {
    let start = store.revision().await.expect("revision");
    let mut watch = store.watch("/w/", start).await.expect("watch");
    for n in 0..1500 {
        put(store, &format!("/w/{}", n % 7), &n.to_string()).await;
    }
    let seen = events(&mut watch, 1500).await;
    for (n, event) in seen.iter().enumerate() {
        assert_eq!(event.value.as_deref(), Some(n.to_string().as_bytes()));
    }
}

async fn compaction_forgets_history_but_no_state(store: &dyn Store) {
    create(store, "/c/kept", "1").await;
    let old = create(store, "/c/changed", "1").await;
    put(store, "/c/changed", "2").await;
    create(store, "/c/gone", "1").await;
    let last = delete(store, "/c/gone").await;
    store.compact(last).await.expect("compact");
    assert_eq!(keys(store, Range::prefix("/c/")).await, ["/c/changed", "/c/kept"]);
    assert_eq!(store.revision().await.expect("revision"), last);
    let early = store.range(Range { revision: Some(old), ..Range::prefix("/c/") }).await;
    assert!(matches!(early, Err(StoreError::Compacted { .. })), "{early:?}");
    let early = store.watch("/c/", old).await.map(|_| ());
    assert!(matches!(early, Err(StoreError::Compacted { .. })), "{early:?}");
    assert_eq!(create(store, "/c/gone", "2").await, last + 1);
    let mut watch = store.watch("/c/", last).await.expect("a watch from the compacted revision on");
    assert_eq!(events(&mut watch, 1).await[0].mod_revision, last + 1);
}

async fn a_key_with_a_ttl_expires(store: &dyn Store) {
    let start = store.revision().await.expect("revision");
    let mut watch = store.watch("/t/", start).await.expect("watch");
    let short = Duration::from_millis(30);
    store.write(Write::create("/t/expires", "1").with_ttl(short)).await.expect("write");
    store.write(Write::create("/t/renewed", "1").with_ttl(short)).await.expect("write");
    put(store, "/t/renewed", "2").await;
    let seen = events(&mut watch, 4).await;
    assert!(seen[3].value.is_none() && &*seen[3].key == "/t/expires", "{seen:?}");
    assert!(store.get("/t/renewed").await.expect("get").is_some());
}

async fn one_of_many_racing_creates_wins(store: Arc<dyn Store>) {
    let racers: Vec<_> = (0..64)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(
                async move { store.write(Write::create("/race", n.to_string())).await.expect("write") },
            )
        })
        .collect();
    let mut winners = 0;
    for racer in racers {
        winners += usize::from(matches!(racer.await.expect("joins"), Written::Done { .. }));
    }
    assert_eq!(winners, 1);
}

async fn a_value_that_is_too_large_is_refused(store: &dyn Store) {
    let refused = store.write(Write::create("/big", vec![b'x'; MAX_VALUE_BYTES + 1])).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })));
    assert_eq!(store.revision().await.expect("revision"), 1);
}

async fn a_closed_store_refuses(store: &dyn Store) {
    create(store, "/a", "1").await;
    store.close().await;
    assert!(matches!(store.write(Write::create("/b", "1")).await, Err(StoreError::Closed)));
}

async fn a_heartbeat_is_seen_at_once_and_compared_like_any_write(store: &dyn Store) {
    let made = create(store, "/h/node", "made").await;
    let mut watch = store.watch("/h/", made).await.expect("watch");
    let beat = |value: &str, expect| {
        Write::put("/h/node", value.to_owned(), expect).with_durability(Durability::Soon)
    };
    let first = store.write(beat("first", Expect::ModRevision(made))).await.expect("write");
    assert_eq!(first, Written::Done { revision: made + 1 });
    assert_eq!(store.get("/h/node").await.expect("get").expect("exists").value.as_ref(), b"first");
    let stale = store.write(beat("stale", Expect::ModRevision(made))).await.expect("write");
    assert!(
        matches!(&stale, Written::Mismatch { current: Some(kv) } if kv.mod_revision == made + 1),
        "{stale:?}"
    );
    let seen = events(&mut watch, 1).await;
    assert_eq!((seen[0].mod_revision, seen[0].value.as_deref()), (made + 1, Some(&b"first"[..])));
    let full = Write::put("/h/node", "full", Expect::Any).with_durability(Durability::Preferably);
    assert_eq!(store.write(full).await.expect("write"), Written::Done { revision: made + 2 });
}

async fn a_range_without_a_limit_is_whole(store: &dyn Store) {
    for n in 0..1203 {
        create(store, &format!("/l/{n:05}"), "1").await;
    }
    let all = keys(store, Range::prefix("/l/")).await;
    assert_eq!(all.len(), 1203);
    assert!(all.is_sorted());
    let (mut paged, mut start) = (Vec::new(), None);
    let at = store.revision().await.expect("revision");
    delete(store, "/l/00700").await;
    loop {
        let range = Range { start, revision: Some(at), limit: Some(601), ..Range::prefix("/l/") };
        let page = store.range(range).await.expect("range");
        assert!(page.items.len() <= 601 && page.revision == at);
        paged.extend(page.items.iter().map(|kv| kv.key.to_string()));
        start = page.items.last().map(|kv| format!("{}\0", kv.key));
        if !page.more {
            break;
        }
    }
    assert_eq!(paged, all);
}

/// What is not among the keys of a watch moves it forward all the same, once somebody asks how far the store is.
async fn a_watch_reaches_what_others_wrote(store: &dyn Store) {
    let start = create(store, "/p/a", "1").await;
    let mut watch = store.watch("/p/", start).await.expect("watch");
    for n in 0..3 {
        let other = put(store, "/other", &n.to_string()).await;
        let newest = store.revision().await.expect("revision");
        assert_eq!(newest, other);
        let mut reached = 0;
        while reached < newest {
            let next =
                tokio::time::timeout(Duration::from_secs(20), watch.next()).await.expect("progress in time");
            let batch = next.expect("the watch goes on").expect("no error");
            assert_eq!(batch.events, []);
            reached = batch.revision;
        }
        assert_eq!(reached, newest);
    }
}

/// Each claim against a fresh store, where there is one.
macro_rules! suite {
    ($($claim:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                if let Some((store, _guard)) = open().await {
                    super::$claim(store.as_ref()).await;
                }
            }
        )*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn one_of_many_racing_creates_wins() {
            if let Some((store, _guard)) = open().await {
                super::one_of_many_racing_creates_wins(store).await;
            }
        }
    };
}

/// The suite, for a store that `open` opens.
macro_rules! whole_suite {
    () => {
        suite!(
            an_empty_store_is_at_revision_one,
            a_create_fails_where_the_key_exists,
            a_put_compares_the_mod_revision,
            deleting_what_is_absent_changes_nothing,
            a_range_reads_one_revision,
            a_range_without_a_limit_is_whole,
            a_watch_replays_and_then_follows,
            a_watch_reaches_what_others_wrote,
            a_lagging_watch_loses_nothing,
            compaction_forgets_history_but_no_state,
            a_key_with_a_ttl_expires,
            a_heartbeat_is_seen_at_once_and_compared_like_any_write,
            a_value_that_is_too_large_is_refused,
            a_closed_store_refuses,
        );
    };
}

mod etcd {
    use std::sync::Arc;

    use super::super::*;
    use super::process::{Disk, Etcd};

    async fn open() -> Option<(Arc<dyn Store>, Etcd)> {
        let etcd = Etcd::start(Disk::Fast, &[])?;
        let store = super::opened(EtcdOptions::new([etcd.url()])).await;
        Some((Arc::new(store), etcd))
    }

    whole_suite!();
}

/// A store over members that have only just begun.
pub(super) async fn opened(options: EtcdOptions) -> EtcdStore {
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let opened = match EtcdStore::open(options.clone()).await {
            // There is no leader yet.
            Ok(store) => store.revision().await.map(|_| store),
            Err(error) => Err(error),
        };
        match opened {
            Ok(store) => return store,
            Err(error) => assert!(tokio::time::Instant::now() < end, "{error:?}"),
        }
    }
}

mod sqlite {
    use std::fs;
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::*;

    async fn open() -> Option<(Arc<dyn Store>, tempfile::TempDir)> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut options = SqliteOptions::new(folder.path().join("state.db"));
        options.expiry_interval = Duration::from_millis(20);
        Some((Arc::new(SqliteStore::open(options).expect("opens")), folder))
    }

    whole_suite!();

    #[tokio::test]
    async fn a_reopened_store_goes_on_from_its_revision_even_if_the_last_change_was_compacted() {
        let folder = tempfile::tempdir().expect("a folder");
        let options = SqliteOptions::new(folder.path().join("state.db"));
        let store = SqliteStore::open(options.clone()).expect("opens");
        super::create(&store, "/a", "1").await;
        let last = super::delete(&store, "/a").await;
        store.compact(last).await.expect("compacts");
        store.close().await;
        drop(store);
        let store = SqliteStore::open(options).expect("opens again");
        assert_eq!(store.revision().await.expect("revision"), last);
        assert_eq!(super::create(&store, "/b", "1").await, last + 1);
    }

    #[tokio::test]
    async fn a_second_process_cannot_open_the_database() {
        let folder = tempfile::tempdir().expect("a folder");
        let options = SqliteOptions::new(folder.path().join("state.db"));
        let _first = SqliteStore::open(options.clone()).expect("opens");
        assert!(matches!(SqliteStore::open(options), Err(StoreError::InUse { .. })));
    }

    #[tokio::test]
    async fn a_corrupt_database_is_one_clear_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        fs::write(&path, "this is no database, whatever its name says".repeat(100)).expect("writes");
        let opened = SqliteStore::open(SqliteOptions::new(&path)).map(|_| ());
        assert!(matches!(&opened, Err(StoreError::Corrupt { .. })), "{opened:?}");

        fs::remove_file(&path).expect("removes");
        let store = SqliteStore::open(SqliteOptions::new(&path)).expect("opens");
        for n in 0..500 {
            super::create(&store, &format!("/k/{n}"), &"x".repeat(500)).await;
        }
        store.close().await;
        drop(store);
        let mut bytes = fs::read(&path).expect("reads");
        let middle = bytes.len() / 2;
        bytes[middle..middle + 8192].fill(0xff);
        fs::write(&path, bytes).expect("writes");
        let opened = SqliteStore::open(SqliteOptions::new(&path)).map(|_| ());
        assert!(matches!(&opened, Err(StoreError::Corrupt { .. })), "{opened:?}");
    }

    #[tokio::test]
    async fn compaction_returns_space() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        let store = SqliteStore::open(SqliteOptions::new(&path)).expect("opens");
        for n in 0..400 {
            super::put(&store, "/k", &format!("{n}").repeat(8000)).await;
        }
        store.compact(store.revision().await.expect("revision")).await.expect("compacts");
        store.close().await;
        let size_bytes = fs::metadata(&path).expect("exists").len();
        assert!(size_bytes < 400_000, "still {size_bytes} bytes");
    }

    /// A store that looks for expired keys only when it is told to.
    fn open_still(path: &std::path::Path) -> SqliteStore {
        let mut options = SqliteOptions::new(path);
        options.expiry_interval = Duration::from_secs(3600);
        SqliteStore::open(options).expect("opens")
    }

    #[tokio::test]
    async fn expiry_keeps_pace_with_creation() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open_still(&folder.path().join("state.db"));
        let create = |n| store.write(Write::create(format!("/e/{n}"), "1").with_ttl(Duration::ZERO));
        futures::future::try_join_all((0..1000).map(create)).await.expect("writes");
        store.expire().await.expect("expires");
        assert_eq!(super::keys(&store, Range::prefix("/e/")).await, Vec::<String>::new(), "in one round");
        // And what came after the times that are done with.
        futures::future::try_join_all((1000..1300).map(create)).await.expect("writes");
        store.expire().await.expect("expires");
        assert_eq!(super::keys(&store, Range::prefix("/e/")).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_damaged_value_is_never_taken_for_what_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        let store = SqliteStore::open(SqliteOptions::new(&path)).expect("opens");
        let first = super::create(&store, "/d/a", "{\"replicas\": 1}").await;
        super::create(&store, "/d/b", "{}").await;
        store.close().await;
        drop(store);
        let connection = rusqlite::Connection::open(&path).expect("opens");
        // Still valid JSON, and a valid database.
        let flip = "UPDATE kv SET value = CAST('{\"replicas\": 9}' AS BLOB) WHERE key = '/d/a'";
        assert_eq!(connection.execute(flip, []).expect("writes"), 1);
        drop(connection);
        assert_eq!(SqliteStore::damaged(&path).expect("reads"), ["/d/a"]);
        let store = SqliteStore::open(SqliteOptions::new(&path)).expect("opens");
        let in_use = SqliteStore::damaged(&path);
        assert!(matches!(in_use, Err(StoreError::InUse { .. })), "{in_use:?}");
        let found = store.get("/d/a").await.expect("get").expect("exists");
        assert_eq!(found.integrity, Integrity::Damaged);
        let ranged = store.range(Range::prefix("/d/")).await.expect("range");
        let seen: Vec<_> = ranged.items.iter().map(|kv| (&*kv.key, kv.integrity)).collect();
        assert_eq!(seen, [("/d/a", Integrity::Damaged), ("/d/b", Integrity::Sound)]);
        let mut watch = store.watch("/d/", first - 1).await.expect("watch");
        assert_eq!(super::events(&mut watch, 2).await[0].integrity, Integrity::Damaged);
    }

    #[tokio::test]
    async fn damage_to_any_column_is_damage_to_one_row_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        for change in [
            "UPDATE kv SET checksum = 1099511627776 WHERE key = '/d/a'",
            "UPDATE kv SET checksum = 'text' WHERE key = '/d/a'",
            "UPDATE kv SET value = 7 WHERE key = '/d/a'",
        ] {
            let store = SqliteStore::open(SqliteOptions::new(&path)).expect("opens");
            for key in ["/d/a", "/d/b"] {
                super::put(&store, key, "{}").await;
            }
            store.close().await;
            let connection = rusqlite::Connection::open(&path).expect("opens");
            assert!(connection.execute(change, []).expect("writes") > 0);
            drop(connection);
            let store = SqliteStore::open(SqliteOptions::new(&path)).expect("opens");
            let ranged = store.range(Range::prefix("/d/")).await.expect("range");
            let seen: Vec<_> = ranged.items.iter().map(|kv| (&*kv.key, kv.integrity)).collect();
            assert_eq!(seen, [("/d/a", Integrity::Damaged), ("/d/b", Integrity::Sound)], "{change}");
            store.close().await;
        }
    }

    #[tokio::test]
    async fn a_database_that_has_been_further_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        let store = SqliteStore::open(SqliteOptions::new(&path)).expect("opens");
        super::create(&store, "/a", "1").await;
        store.close().await;
        drop(store);
        let copy = fs::read(&path).expect("reads");
        let store = SqliteStore::open(SqliteOptions::new(&path)).expect("opens");
        super::create(&store, "/b", "1").await;
        store.close().await;
        drop(store);

        fs::write(&path, copy).expect("an older copy");
        let opened = SqliteStore::open(SqliteOptions::new(&path)).map(|_| ());
        assert!(matches!(&opened, Err(StoreError::RolledBack { found: 2, recorded: 3, .. })), "{opened:?}");
        fs::remove_file(&path).expect("removes");
        let opened = SqliteStore::open(SqliteOptions::new(&path)).map(|_| ());
        assert!(matches!(&opened, Err(StoreError::RolledBack { found: 1, recorded: 3, .. })), "{opened:?}");

        fs::remove_file(folder.path().join("state.revision")).expect("removes");
        SqliteStore::open(SqliteOptions::new(&path)).expect("goes on with what there is");
    }

    #[tokio::test]
    async fn a_database_of_the_first_version_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        let connection = rusqlite::Connection::open(&path).expect("opens");
        connection
            .execute_batch(
                "PRAGMA user_version = 1;
                 CREATE TABLE kv (revision INTEGER PRIMARY KEY, key TEXT NOT NULL, deleted INTEGER NOT NULL,
                     create_revision INTEGER NOT NULL, prev_revision INTEGER NOT NULL, expires_ms INTEGER,
                     value BLOB NOT NULL);
                 CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
                 INSERT INTO meta VALUES ('compacted', 1);
                 INSERT INTO kv VALUES (2, '/a', 0, 2, 0, NULL, CAST('1' AS BLOB));",
            )
            .expect("an old database");
        drop(connection);
        let store = SqliteStore::open(SqliteOptions::new(&path)).expect("opens");
        let found = store.get("/a").await.expect("get").expect("exists");
        assert_eq!((found.integrity, found.value.as_ref()), (Integrity::Sound, &b"1"[..]));
        assert_eq!(super::create(&store, "/b", "1").await, 3);
    }

    #[tokio::test]
    async fn a_clean_end_leaves_nothing_in_the_wal() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        let store = SqliteStore::open(SqliteOptions::new(&path)).expect("opens");
        super::create(&store, "/a", "1").await;
        let wal = folder.path().join("state.db-wal");
        assert!(fs::metadata(&wal).expect("exists").len() > 0);
        store.get("/a").await.expect("a reader was used");
        store.close().await;
        assert_eq!(fs::metadata(&wal).map_or(0, |m| m.len()), 0);
    }
}
