//! A process that writes is killed again and again; what it was told is written stays written.
//!
//! The test runs itself as the child: with the environment variable set it opens the store and writes from
//! several tasks, and prints each acknowledged key, after the acknowledgement, on its standard output.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use skiff_apiserver::store::{Range, SqliteOptions, SqliteStore, Store, Write, Written};

const CHILD_ENV: &str = "SKIFF_DURABILITY_CHILD";
const KILLS: usize = 50;
const WRITERS: usize = 16;

#[test]
fn an_acknowledged_write_survives_kill_nine() {
    if let Ok(child) = std::env::var(CHILD_ENV) {
        let (round, path) = child.split_once(':').expect("<round>:<path>");
        return write_until_killed(round, Path::new(path));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.db");
    let mut acknowledged: HashMap<String, u64> = HashMap::new();
    for round in 0..KILLS {
        for (key, revision) in run_and_kill(round, &path) {
            assert!(acknowledged.insert(key.clone(), revision).is_none(), "{key} was acknowledged twice");
        }
    }
    assert!(acknowledged.len() > KILLS * WRITERS, "only {} writes", acknowledged.len());
    verify(&path, &acknowledged);
}

/// Lets a child write a number of keys that differs from round to round, and kills it in the middle of more.
fn run_and_kill(round: usize, path: &Path) -> Vec<(String, u64)> {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "an_acknowledged_write_survives_kill_nine", "--nocapture", "--test-threads=1"])
        .env(CHILD_ENV, format!("{round}:{}", path.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the child starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let wanted = 20 + (round * 37) % 200;
    let mut acknowledged = Vec::new();
    let read = |line: String| {
        let mut words = line.split_ascii_whitespace();
        let ("ack", key, revision) = (words.next()?, words.next()?, words.next()?) else { return None };
        // The newline came with the line: a torn one has no end mark.
        (words.next() == Some(".")).then(|| (key.to_owned(), revision.parse().expect("a revision")))
    };
    for line in lines.by_ref() {
        acknowledged.extend(read(line.expect("a line")));
        if acknowledged.len() >= wanted {
            break;
        }
    }
    child.kill().expect("the child is killed");
    // What it said before it died counts as well.
    acknowledged.extend(lines.map_while(Result::ok).filter_map(read));
    child.wait().expect("the child is reaped");
    assert!(acknowledged.len() >= wanted, "round {round}: the child stopped by itself");
    acknowledged
}

fn write_until_killed(round: &str, path: &Path) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = Arc::new(SqliteStore::open(SqliteOptions::new(path)).expect("the store opens"));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (store, round) = (store.clone(), round.to_owned());
                tokio::spawn(async move {
                    for n in 0.. {
                        let key = format!("/k/{round}-{writer}-{n}");
                        let written = store.write(Write::create(&*key, key.clone())).await.expect("writes");
                        let Written::Done { revision } = written else { panic!("{key} exists already") };
                        // One write of the whole line, so that lines never mix.
                        let line = format!("\nack {key} {revision} .\n");
                        std::io::stdout().lock().write_all(line.as_bytes()).expect("the pipe is open");
                        std::io::stdout().lock().flush().expect("the pipe is open");
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.expect("writes until it is killed");
        }
    });
}

/// Every acknowledged key is there, once, with the revision it was acknowledged with; and revisions are unique.
fn verify(path: &Path, acknowledged: &HashMap<String, u64>) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = SqliteStore::open(SqliteOptions::new(path)).expect("the store opens");
        let found = store.range(Range::prefix("/k/")).await.expect("reads").items;
        let mut stored: HashMap<String, u64> = HashMap::new();
        let mut revisions: HashMap<u64, String> = HashMap::new();
        for kv in found {
            assert_eq!(kv.value.as_ref(), kv.key.as_bytes());
            assert_eq!(kv.create_revision, kv.mod_revision, "{} was written twice", kv.key);
            let twice = revisions.insert(kv.mod_revision, kv.key.to_string());
            assert_eq!(twice, None, "two keys have revision {}", kv.mod_revision);
            assert_eq!(stored.insert(kv.key.to_string(), kv.mod_revision), None);
        }
        for (key, revision) in acknowledged {
            assert_eq!(stored.get(key), Some(revision), "{key}");
        }
        // What was written but not acknowledged when the child died: at most one a writer and round.
        let unacknowledged = stored.len() - acknowledged.len();
        assert!(unacknowledged <= KILLS * WRITERS, "{unacknowledged} writes without an acknowledgement");
        store.close().await;
    });
}
