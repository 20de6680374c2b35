//! What the API has acknowledged is kept, whatever happens to the server.

use anyhow::{Result, ensure};
use skiff_tests::TestCluster;
use skiff_tests::writers::{Found, Known, Writers, clear, stored};

const N_KILLS: usize = 50;
const N_WRITERS: usize = 8;
/// Acknowledged before each kill, which falls among those that follow.
const MIN_WRITES: usize = 40;

#[test]
fn every_acknowledged_write_outlives_fifty_killed_servers_and_none_is_there_twice() -> Result<()> {
    let cluster = TestCluster::start("story-durable")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let client = runtime.block_on(cluster.client())?;
    let (mut known, mut found) = (Known::default(), Found::default());
    for kill in 0..N_KILLS {
        let writers = Writers::start(&runtime, &client, kill, N_WRITERS);
        let enough = || Ok((writers.n_acknowledged() >= MIN_WRITES).then_some(()));
        cluster.wait_for("writes before a kill", enough)?;
        cluster.server()?.kill()?;
        runtime.block_on(writers.end(&mut known))?;
        cluster.up()?;
        found.add(&known.compare(runtime.block_on(stored(&client))?));
    }
    ensure!(known.n_acknowledged() >= N_KILLS * MIN_WRITES, "{} writes", known.n_acknowledged());
    ensure!((found.n_lost, found.n_twice, found.n_strange) == (0, 0, 0), "{found:?}");
    runtime.block_on(clear(&client))?;
    cluster.stop()
}
