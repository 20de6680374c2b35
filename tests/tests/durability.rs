//! What the API has acknowledged is kept, whatever happens to the server.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use skiff_tests::TestCluster;
use tokio::sync::Semaphore;

const N_KILLS: usize = 50;
const N_WRITERS: usize = 8;
/// Writes that must have been acknowledged between two kills, and those that may be tried: the kill falls among them.
const MIN_WRITES: usize = 40;
const MAX_WRITES: usize = 160;

/// What one writer has seen.
#[derive(Default)]
struct Written {
    acknowledged: Vec<String>,
    /// Sent, but the answer was lost: it may be there, once, or not.
    unknown: Vec<String>,
}

#[test]
fn every_acknowledged_write_outlives_fifty_killed_servers_and_none_is_there_twice() -> Result<()> {
    let cluster = TestCluster::start("story-durable")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let n_acknowledged = Arc::new(AtomicUsize::new(0));
    let turns = Arc::new(Semaphore::new(0));
    let client = runtime.block_on(cluster.client())?;
    let writers: Vec<_> = (0..N_WRITERS)
        .map(|n| runtime.spawn(write(client.clone(), n, turns.clone(), n_acknowledged.clone())))
        .collect();
    for _ in 0..N_KILLS {
        turns.add_permits(MAX_WRITES);
        let before = n_acknowledged.load(Ordering::Relaxed);
        let enough = || Ok((n_acknowledged.load(Ordering::Relaxed) >= before + MIN_WRITES).then_some(()));
        cluster.wait_for("writes between two kills", enough)?;
        cluster.kill_server()?;
    }
    turns.close();
    let mut written = Written::default();
    for writer in writers {
        let one = runtime.block_on(writer)??;
        written.acknowledged.extend(one.acknowledged);
        written.unknown.extend(one.unknown);
    }
    let mut found: HashMap<String, usize> = HashMap::new();
    for value in runtime.block_on(stored(&client))? {
        *found.entry(value).or_default() += 1;
    }
    ensure!(written.acknowledged.len() >= N_KILLS * MIN_WRITES, "{} writes", written.acknowledged.len());
    for value in &written.acknowledged {
        let n = found.remove(value).unwrap_or_default();
        ensure!(n == 1, "{value} was acknowledged and is there {n} times");
    }
    for value in &written.unknown {
        let n = found.remove(value).unwrap_or_default();
        ensure!(n <= 1, "{value} is there {n} times");
    }
    ensure!(found.is_empty(), "nobody wrote {found:?}");
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let ours = ListParams::default().labels("story=durable");
    runtime.block_on(maps.delete_collection(&DeleteParams::default(), &ours))?;
    cluster.stop()
}

/// Creates objects whose names the server makes up, so that a write done twice would be there twice.
async fn write(
    client: Client,
    writer: usize,
    turns: Arc<Semaphore>,
    n_acknowledged: Arc<AtomicUsize>,
) -> Result<Written> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let mut written = Written::default();
    let mut n = 0;
    while let Ok(turn) = turns.acquire().await {
        turn.forget();
        n += 1;
        let value = format!("{writer}-{n}");
        let map = ConfigMap {
            metadata: ObjectMeta {
                generate_name: Some("durable-".into()),
                labels: Some([("story".to_owned(), "durable".to_owned())].into()),
                ..ObjectMeta::default()
            },
            data: Some([("value".to_owned(), value.clone())].into()),
            ..ConfigMap::default()
        };
        match maps.create(&PostParams::default(), &map).await {
            Ok(_) => {
                written.acknowledged.push(value);
                n_acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(kube::Error::Api(status)) if status.code < 500 => return Err(kube::Error::Api(status).into()),
            Err(_) => written.unknown.push(value),
        }
    }
    Ok(written)
}

async fn stored(client: &Client) -> Result<Vec<String>> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let list = maps.list(&ListParams::default().labels("story=durable")).await?;
    list.into_iter()
        .map(|map| map.data.and_then(|mut d| d.remove("value")).context("a map without its value"))
        .collect()
}
