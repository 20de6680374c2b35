//! Disks that are full.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use skiff_tests::drills::SmallDisk;
use skiff_tests::{TestCluster, has};

const MIB: u64 = 1 << 20;
/// Enough for one small image and a store.
const DATA_BYTES: u64 = 96 * MIB;
/// Too little for nginx, enough for busybox.
const IMAGE_BYTES: u64 = 20 * MIB;
/// Writes that are tried until one is refused; the store may have some pages left.
const MAX_WRITES: usize = 400;
const VALUE_BYTES: usize = 16 * 1024;

fn pod(name: &str, image: &str) -> String {
    // The disk of the store is the node's, which has other pods give way when it is full.
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: full}}}}\n\
         spec: {{priorityClassName: system-node-critical, terminationGracePeriodSeconds: 1, containers: [{{name: c, image: {image:?}, \
         command: [sh, -c, 'trap exit TERM; echo here; sleep 3600 & wait']}}]}}\n"
    )
}

fn map(n: usize) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(format!("full-{n:04}")),
            labels: Some([("story".to_owned(), "full".to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some([("value".to_owned(), "x".repeat(VALUE_BYTES))].into()),
        ..ConfigMap::default()
    }
}

/// Writes until the server refuses; answers how many were acknowledged, and the refusal.
async fn write_until_refused(maps: &Api<ConfigMap>, from: usize) -> Result<(usize, kube::core::Status)> {
    for n in from..from + MAX_WRITES {
        match maps.create(&PostParams::default(), &map(n)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) => return Ok((n, *status)),
            Err(error) => return Err(error).context("a refusal that is no Status"),
        }
    }
    anyhow::bail!("{MAX_WRITES} writes were taken by a full disk")
}

async fn names(maps: &Api<ConfigMap>) -> Result<Vec<String>> {
    let list = maps.list(&ListParams::default().labels("story=full")).await?;
    Ok(list.into_iter().filter_map(|map| map.metadata.name).collect())
}

#[test]
fn a_full_disk_refuses_writes_and_loses_none_that_it_took() -> Result<()> {
    let (cluster, disk) =
        TestCluster::start_prepared("drill-full", |data| SmallDisk::mount(data, DATA_BYTES))?;
    cluster.apply_text(&pod("before", "busybox:1.36"))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/before", "--timeout=60s"])?;
    let before = cluster.pods("app=full")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let maps: Api<ConfigMap> = Api::default_namespaced(runtime.block_on(cluster.client())?);
    for n in 0..10 {
        runtime.block_on(maps.create(&PostParams::default(), &map(n)))?;
    }

    let full = disk.fill()?;
    let (n_acknowledged, refusal) = runtime.block_on(write_until_refused(&maps, 10))?;
    full.take_rest()?;
    ensure!(refusal.code == 500 && refusal.reason == "InternalError", "{refusal:?}");
    has(&refusal.message, &["the disk under the database is full"])?;
    let acknowledged: Vec<String> = (0..n_acknowledged).map(|n| format!("full-{n:04}")).collect();
    ensure!(runtime.block_on(names(&maps))? == acknowledged, "reads differ from what was acknowledged");
    has(&cluster.kubectl(&["logs", "before"])?, &["here"])?;
    has(&cluster.kubectl(&["get", "pods"])?, &["before", "1/1", "Running"])?;
    // The same server is asked again and again: it says the same, and lives.
    let server = cluster.server_pid()?;
    for _ in 0..50 {
        let (n, _) = runtime.block_on(write_until_refused(&maps, n_acknowledged))?;
        ensure!(n == n_acknowledged, "a write was taken by a full disk");
    }
    ensure!(cluster.server_pid()? == server);

    drop(full);
    cluster.wait_for("a write to be taken again", || {
        Ok(runtime.block_on(maps.create(&PostParams::default(), &map(n_acknowledged))).ok())
    })?;
    let mut acknowledged = acknowledged;
    acknowledged.push(format!("full-{n_acknowledged:04}"));
    ensure!(runtime.block_on(names(&maps))? == acknowledged, "after there was space again");
    cluster.kill_server()?;
    ensure!(runtime.block_on(names(&maps))? == acknowledged, "after the server was killed");
    cluster.wait_for("the node to have no pressure", || {
        let nodes = cluster.kubectl(&["describe", "nodes"])?;
        Ok((nodes.contains("KubeletHasNoDiskPressure") && nodes.contains("Taints:             <none>"))
            .then_some(()))
    })?;
    ensure!(cluster.pods("app=full")? == before, "the pod was changed");
    cluster.apply_text(&pod("after", "busybox:1.36"))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/after", "--timeout=60s"])?;
    let ours = ListParams::default().labels("story=full");
    runtime.block_on(maps.delete_collection(&DeleteParams::default(), &ours))?;
    cluster.stop()
}

#[test]
fn an_image_that_does_not_fit_fails_its_pull_and_nothing_else() -> Result<()> {
    let prepare = |data: &std::path::Path| SmallDisk::mount(&data.join("images"), IMAGE_BYTES);
    let (cluster, disk) = TestCluster::start_prepared("drill-images", prepare)?;
    let free = disk.free_bytes()?;
    cluster.apply_text(&pod("large", "nginx:alpine"))?;
    cluster.wait_for("the pull's failure", || {
        let events = cluster.kubectl(&["get", "events", "--field-selector", "reason=Failed"])?;
        let failed = events.contains("Failed to pull image \"nginx:alpine\"")
            && events.contains("No space left on device");
        Ok(failed.then_some(()))
    })?;
    has(&cluster.kubectl(&["get", "pod", "large"])?, &["0/1"])?;
    // What was fetched in vain is gone: there is room for what fits.
    ensure!(disk.free_bytes()? > free / 2, "{} of {free} bytes are left", disk.free_bytes()?);
    cluster.apply_text(&pod("small", "busybox:1.36"))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/small", "--timeout=60s"])?;
    has(&cluster.kubectl(&["get", "nodes"])?, &[" Ready "])?;

    disk.resize(16 * IMAGE_BYTES)?;
    // The image has no shell that would do what busybox does, and need not: it is pulled and its program is started.
    cluster.wait_for("the image to be pulled after all", || {
        let events = cluster.kubectl(&["get", "events", "--field-selector", "reason=Pulled"])?;
        Ok(events.contains("Successfully pulled image \"nginx:alpine\"").then_some(()))
    })?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/large", "--timeout=60s"])?;
    cluster.stop()
}

/// A pod that keeps what `script` writes to `/data`.
fn writer(name: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: full}}}}\n\
         spec: {{terminationGracePeriodSeconds: 1, volumes: [{{name: data, emptyDir: {{}}}}], \
         containers: [{{name: c, image: 'busybox:1.36', volumeMounts: [{{name: data, mountPath: /data}}], \
         command: [sh, -c, '{script}; sleep 3600']}}]}}\n"
    )
}

#[test]
fn a_pod_that_fills_the_disk_of_its_node_gives_way_and_its_neighbour_stays() -> Result<()> {
    let prepare = |data: &std::path::Path| SmallDisk::mount(&data.join("nodelet"), DATA_BYTES);
    let (cluster, disk) = TestCluster::start_prepared("drill-evict", prepare)?;
    cluster.apply_text(&writer("modest", "dd if=/dev/zero of=/data/f bs=64k count=16"))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/modest", "--timeout=60s"])?;
    cluster.apply_text(&writer("greedy", "dd if=/dev/zero of=/data/f bs=64k"))?;
    cluster.wait_for("the pod that filled the disk to be evicted", || {
        let said = "jsonpath={.status.phase} {.status.reason} {.status.message}";
        let greedy = cluster.kubectl(&["get", "pod", "greedy", "-o", said])?;
        Ok(greedy
            .starts_with("Failed Evicted The node was low on resource: ephemeral-storage.")
            .then_some(()))
    })?;
    has(
        &cluster.kubectl(&["get", "events"])?,
        &["Attempting to reclaim ephemeral-storage", "NodeHasDiskPressure"],
    )?;
    cluster.wait_for("the disk to have room again", || {
        Ok((disk.free_bytes()? > DATA_BYTES / 2).then_some(()))
    })?;
    cluster.wait_for("the node to have no pressure", || {
        let nodes = cluster.kubectl(&["describe", "nodes"])?;
        let is_free =
            nodes.contains("KubeletHasNoDiskPressure") && nodes.contains("Taints:             <none>");
        Ok(is_free.then_some(()))
    })?;
    has(&cluster.kubectl(&["get", "pod", "modest"])?, &["1/1", "Running"])?;
    cluster.stop()
}
