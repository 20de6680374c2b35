//! What the suite of all stores does not ask: members that go away, several servers, and limits of etcd.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::super::tests::opened;
use super::super::tests::process::{Disk, Etcd};
use super::*;

const IN_TIME: Duration = Duration::from_secs(30);

async fn open(etcd: &Etcd) -> EtcdStore {
    opened(EtcdOptions::new([etcd.url()])).await
}

async fn put(store: &EtcdStore, key: &str, value: impl Into<Bytes>) -> Revision {
    match store.write(Write::put(key, value, Expect::Any)).await.expect("writes") {
        Written::Done { revision } => revision,
        Written::Mismatch { .. } => panic!("nothing was expected"),
    }
}

/// Events until there are so many.
async fn events(watch: &mut Watch, count: usize) -> Vec<(String, Revision)> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let batch = timeout(IN_TIME, watch.next()).await.expect("an event in time");
        let batch = batch.expect("the watch goes on").expect("no error");
        seen.extend(batch.events.into_iter().map(|event| (event.key.to_string(), event.mod_revision)));
    }
    seen
}

/// Calls until it succeeds.
async fn until<T, F: Future<Output = Result<T, StoreError>>>(mut call: impl FnMut() -> F) -> T {
    let end = Instant::now() + IN_TIME;
    loop {
        match call().await {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < end, "{error:?}"),
        }
    }
}

/// A way to etcd that a test can close.
struct Relay {
    address: SocketAddr,
    is_open: tokio::sync::watch::Sender<bool>,
}

impl Relay {
    async fn to(target: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let is_open = tokio::sync::watch::Sender::new(true);
        let opened = is_open.subscribe();
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let mut opened = opened.clone();
                if !*opened.borrow() {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(mut to) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                        _ = opened.wait_for(|is_open| !is_open) => {}
                    }
                });
            }
        });
        Relay { address, is_open }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_killed_etcd_and_a_watch_goes_on_after_it() {
    let Some(mut etcd) = Etcd::start(Disk::Synced, &[]) else { return };
    let store = Arc::new(open(&etcd).await);
    let start = store.revision().await.expect("revision");
    let mut watch = store.watch("/k/", start).await.expect("watches");
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let (written, mut heard) = mpsc::channel(4096);
        let ended = CancellationToken::new();
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let (store, written, ended) = (store.clone(), written.clone(), ended.clone());
                tokio::spawn(async move {
                    for n in 0.. {
                        let key = format!("/k/{round}-{writer}-{n}");
                        match store.write(Write::create(&*key, key.clone())).await {
                            Ok(Written::Done { revision }) => {
                                written.send((key, revision)).await.expect("is heard")
                            }
                            Ok(mismatch) => panic!("{key} exists already: {mismatch:?}"),
                            Err(_) if ended.is_cancelled() => return,
                            Err(StoreError::Away { .. } | StoreError::TimedOut { .. }) => {}
                            Err(error) => panic!("{error:?}"),
                        }
                        if ended.is_cancelled() {
                            return;
                        }
                    }
                })
            })
            .collect();
        drop(written);
        for _ in 0..100 + round * 37 {
            acknowledged.push(timeout(IN_TIME, heard.recv()).await.expect("in time").expect("writes"));
        }
        etcd.kill();
        ended.cancel();
        for writer in writers {
            writer.await.expect("ends");
        }
        while let Some(one) = heard.recv().await {
            acknowledged.push(one);
        }
        etcd.restart();
        until(|| store.revision()).await;
    }
    let ranged = store.range(Range::prefix("/k/")).await.expect("range");
    let stored: Vec<_> = ranged.items.iter().map(|kv| (kv.key.to_string(), kv.mod_revision)).collect();
    for one in &acknowledged {
        assert!(stored.contains(one), "{one:?} was acknowledged");
    }
    // Each once, in order, over all three ends.
    let mut in_order = stored.clone();
    in_order.sort_by_key(|(_, revision)| *revision);
    assert_eq!(events(&mut watch, stored.len()).await, in_order);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_go_on_without_one() {
    let Some(mut members) = Etcd::start_three() else { return };
    let options = EtcdOptions::new(members.iter().map(Etcd::url));
    let store = opened(options).await;
    let start = put(&store, "/m/first", "1").await;
    let mut watch = store.watch("/m/", start).await.expect("watches");
    // Whichever leads: two are left, and then the first is back.
    for (at, member) in members.iter_mut().enumerate() {
        member.kill();
        let key = format!("/m/{at}");
        let revision = until(|| store.write(Write::put(&*key, "1", Expect::Any))).await;
        let Written::Done { revision } = revision else { panic!("{revision:?}") };
        let mut seen = events(&mut watch, 1).await;
        // One that was not acknowledged may have happened.
        while seen.last() != Some(&(key.clone(), revision)) {
            seen.extend(events(&mut watch, 1).await);
        }
        assert!(until(|| store.revision()).await >= revision);
        member.restart();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_away_is_said_to_be_and_a_call_takes_the_next_one() {
    let Some(mut etcd) = Etcd::start(Disk::Fast, &[]) else { return };
    let nobody = "http://127.0.0.1:1".to_owned();
    let both = opened(EtcdOptions::new([nobody.clone(), etcd.url()])).await;
    put(&both, "/a", "1").await;
    let none = EtcdStore::open(EtcdOptions::new([nobody])).await.map(|_| ());
    assert!(
        matches!(&none, Err(StoreError::Away { endpoints, .. }) if endpoints == "http://127.0.0.1:1"),
        "{none:?}"
    );
    etcd.kill();
    let refused = both.write(Write::create("/b", "1")).await;
    assert!(matches!(refused, Err(StoreError::Away { .. })), "{refused:?}");
    assert!(matches!(both.revision().await, Err(StoreError::Away { .. })));
    assert!(matches!(both.size_bytes().await, Err(StoreError::Away { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stands_still_costs_a_time_out_and_no_more() {
    let Some(etcd) = Etcd::start(Disk::Fast, &[]) else { return };
    let store = open(&etcd).await;
    put(&store, "/a", "1").await;
    etcd.stop();
    let written = timeout(IN_TIME, store.write(Write::put("/a", "2", Expect::Any))).await.expect("ends");
    etcd.go_on();
    assert!(matches!(written, Err(StoreError::TimedOut { operation: "write", .. })), "{written:?}");
    until(|| store.get("/a")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_missed_what_was_compacted_ends_with_that() {
    let Some(etcd) = Etcd::start(Disk::Fast, &[]) else { return };
    let relay = Relay::to(etcd.address).await;
    let far = opened(EtcdOptions::new([format!("http://{}", relay.address)])).await;
    let near = open(&etcd).await;
    let start = put(&near, "/c/a", "1").await;
    let mut watch = far.watch("/c/", start).await.expect("watches");
    let second = put(&near, "/c/a", "2").await;
    assert_eq!(events(&mut watch, 1).await, [("/c/a".to_owned(), second)]);

    relay.is_open.send_replace(false);
    assert!(matches!(until_away(&far).await, StoreError::Away { .. }));
    for n in 0..5 {
        put(&near, "/c/a", n.to_string()).await;
    }
    let newest = put(&near, "/c/b", "1").await;
    near.compact(newest).await.expect("compacts");
    relay.is_open.send_replace(true);
    let ended = timeout(IN_TIME, watch.next()).await.expect("ends in time");
    assert!(
        matches!(ended, Some(Err(StoreError::Compacted { requested, .. })) if requested == second),
        "{ended:?}"
    );
    assert!(timeout(IN_TIME, watch.next()).await.expect("is over").is_none());
}

async fn until_away(store: &EtcdStore) -> StoreError {
    loop {
        if let Err(error) = store.revision().await {
            return error;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_went_back_is_a_revision_from_the_future() {
    let Some(etcd) = Etcd::start(Disk::Fast, &[]) else { return };
    let store = open(&etcd).await;
    let newest = put(&store, "/a", "1").await;
    let watched = store.watch("/", newest + 7).await.map(|_| ());
    assert!(
        matches!(watched, Err(StoreError::Future { requested, current }) if requested == newest + 7 && current == newest),
        "{watched:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_are_exact_though_two_servers_write() {
    let Some(etcd) = Etcd::start(Disk::Fast, &[]) else { return };
    let stores = [Arc::new(open(&etcd).await), Arc::new(open(&etcd).await)];
    put(&stores[0], "/n", "0").await;
    let wins = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..8)
        .map(|task: usize| {
            let (store, wins) = (stores[task % 2].clone(), wins.clone());
            tokio::spawn(async move {
                for _ in 0..60 {
                    let now = store.get("/n").await.expect("reads").expect("exists");
                    let value: usize =
                        std::str::from_utf8(&now.value).expect("text").parse().expect("a number");
                    let next =
                        Write::put("/n", (value + 1).to_string(), Expect::ModRevision(now.mod_revision));
                    match store.write(next).await.expect("writes") {
                        Written::Done { .. } => _ = wins.fetch_add(1, Ordering::SeqCst),
                        Written::Mismatch { current } => {
                            assert!(current.expect("exists").mod_revision > now.mod_revision);
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("joins");
    }
    let last = stores[1].get("/n").await.expect("reads").expect("exists");
    let wins = wins.load(Ordering::SeqCst).to_string();
    assert_eq!(std::str::from_utf8(&last.value), Ok(&*wins));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_of_one_server_is_no_older_than_what_another_acknowledged() {
    let Some(etcd) = Etcd::start(Disk::Fast, &[]) else { return };
    let (a, b) = (open(&etcd).await, open(&etcd).await);
    let mut watch = b.watch("/w/", b.revision().await.expect("revision")).await.expect("watches");
    let mut reached = 0;
    for n in 0..200 {
        let written = put(&a, "/w/x", n.to_string()).await;
        let newest = b.revision().await.expect("revision");
        assert!(newest >= written, "{newest} before {written}");
        while reached < newest {
            let batch =
                timeout(IN_TIME, watch.next()).await.expect("in time").expect("goes on").expect("no error");
            reached = batch.revision;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_expire_together_share_a_lease() {
    let Some(etcd) = Etcd::start(Disk::Fast, &[]) else { return };
    let store = open(&etcd).await;
    let hour = Duration::from_secs(3600);
    futures::future::try_join_all(
        (0..40).map(|n| store.write(Write::create(format!("/e/{n}"), "1").with_ttl(hour))),
    )
    .await
    .expect("writes");
    let request = RangeRequest { key: "/e/".into(), range_end: "/e0".into(), ..RangeRequest::default() };
    let found: RangeResponse = store.cluster.call(RANGE, request, Repeat::Harmless).await.expect("reads");
    let lease = found.kvs[0].lease;
    assert!(lease != 0 && found.kvs.len() == 40 && found.kvs.iter().all(|kv| kv.lease == lease), "{found:?}");

    // One that an operator took away is replaced, and nobody notices.
    store.leases.forget(lease).await;
    let gone = store.leases.lease(&store.cluster, hour).await.expect("is granted");
    let revoke = wire::LeaseRevokeRequest { id: gone };
    let _: wire::LeaseRevokeResponse =
        store.cluster.call(wire::LEASE_REVOKE, revoke, Repeat::No).await.expect("is revoked");
    let written = store.write(Write::create("/e/later", "1").with_ttl(hour)).await.expect("writes");
    assert!(matches!(written, Written::Done { .. }), "{written:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_take_turns_in_compacting() {
    let Some(etcd) = Etcd::start(Disk::Fast, &[]) else { return };
    let store = open(&etcd).await;
    let (mut one, mut other) = (Compactor::default(), Compactor::default());
    let cluster = &store.cluster;
    let turn = async |who: &mut Compactor| who.turn(cluster).await.expect("takes its turn");
    let old = put(&store, "/x", "1").await;
    // The first only begins; the second is told that somebody else is at it.
    assert_eq!(turn(&mut one).await, None);
    assert_eq!(turn(&mut other).await, None);
    put(&store, "/x", "2").await;
    let done = turn(&mut one).await.expect("it is its turn");
    assert!(done > old);
    assert_eq!(turn(&mut other).await, None, "it was done meanwhile");
    assert_eq!(store.compacted().await.expect("is told"), done);
    let early = store.range(Range { revision: Some(old), ..Range::prefix("/x") }).await;
    assert!(matches!(early, Err(StoreError::Compacted { .. })), "{early:?}");
    // Where the first is gone, the other goes on after an interval.
    put(&store, "/x", "3").await;
    assert!(turn(&mut other).await.is_some_and(|next| next > done));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_that_is_reached_is_a_full_store() {
    let Some(etcd) = Etcd::start(Disk::Fast, &["--quota-backend-bytes=4194304".into()]) else { return };
    let store = open(&etcd).await;
    let mut refused = None;
    for n in 0..200 {
        if let Err(error) = store.write(Write::create(format!("/f/{n}"), vec![b'x'; 100_000])).await {
            refused = Some(error);
            break;
        }
    }
    assert!(
        matches!(&refused, Some(StoreError::Full { remedy, .. }) if remedy.contains("quota")),
        "{refused:?}"
    );
    store.get("/f/0").await.expect("reads").expect("exists");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcd_finds_too_large_is_too_large() {
    let Some(etcd) = Etcd::start(Disk::Fast, &[]) else { return };
    let store = open(&etcd).await;
    // With what is around it, it is more than a request may have.
    let refused = store.write(Write::create("/big", vec![b'x'; MAX_VALUE_BYTES])).await;
    assert!(
        matches!(&refused, Err(StoreError::TooLarge { key, bytes: MAX_VALUE_BYTES }) if key == "/big"),
        "{refused:?}"
    );
    assert_eq!(store.get("/big").await.expect("reads"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_too_long_is_asked_for_in_parts() {
    let Some(etcd) = Etcd::start(Disk::Fast, &[]) else { return };
    let store = open(&etcd).await;
    let start = store.revision().await.expect("revision");
    for n in 0..12 {
        put(&store, &format!("/l/{n:02}"), vec![b'x'; 1_400_000]).await;
    }
    const { assert!(12 * 1_400_000 > connection::MAX_ANSWER_BYTES) };
    let all = store.range(Range::prefix("/l/")).await.expect("reads");
    assert_eq!(all.items.len(), 12);
    assert!(all.items.iter().all(|kv| kv.value.len() == 1_400_000));
    // And so does what a watch has missed.
    let mut watch = store.watch("/l/", start).await.expect("watches");
    assert_eq!(events(&mut watch, 12).await.len(), 12);
}

mod tls {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::store::EtcdTls;

    struct Files {
        folder: tempfile::TempDir,
        ca: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    }

    impl Files {
        fn new() -> Files {
            let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let key = rcgen::KeyPair::generate().expect("a key");
            let ca = rcgen::CertifiedIssuer::self_signed(params, key).expect("a CA");
            Files { folder: tempfile::tempdir().expect("a folder"), ca }
        }

        fn issue(&self) -> (String, String) {
            let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
            let key = rcgen::KeyPair::generate().expect("a key");
            let certificate = params.signed_by(&key, &self.ca).expect("a certificate");
            (certificate.pem(), key.serialize_pem())
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, text).expect("writes");
            path
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn certificates_are_shown_and_looked_at() {
        let files = Files::new();
        let (certificate, key) = files.issue();
        let ca = files.write("ca.crt", &files.ca.pem());
        let etcd =
            Etcd::start_with_tls(&ca, &files.write("s.crt", &certificate), &files.write("s.key", &key));
        let Some(etcd) = etcd else { return };
        let url = format!("https://{}", etcd.address);
        let with = |ca: String, client: Option<(String, String)>| EtcdOptions {
            tls: Some(EtcdTls {
                ca_pem: Some(ca.into()),
                client_pem: client.map(|(certificate, key)| (certificate.into(), key.into())),
            }),
            ..EtcdOptions::new([url.clone()])
        };
        let store = opened(with(files.ca.pem(), Some(files.issue()))).await;
        put(&store, "/a", "1").await;

        let stranger = Files::new();
        let refused = EtcdStore::open(with(stranger.ca.pem(), Some(files.issue()))).await.map(|_| ());
        assert!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");
        for client in [None, Some(stranger.issue())] {
            // With TLS 1.3 a client learns of it when the connection is made already.
            let refused = EtcdStore::open(with(files.ca.pem(), client)).await.map(|_| ());
            assert!(
                matches!(refused, Err(StoreError::Refused { .. } | StoreError::Away { .. })),
                "{refused:?}"
            );
        }
    }
}

#[test]
fn versions_whose_reports_of_progress_run_ahead_are_too_old() {
    for version in ["3.3.27", "3.4.30", "3.5.12", "2.3.0", "nonsense"] {
        assert!(is_too_old(version), "{version}");
    }
    for version in ["3.4.31", "3.5.13", "3.6.0", "3.7.3", "4.0.0-rc.0"] {
        assert!(!is_too_old(version), "{version}");
    }
}
