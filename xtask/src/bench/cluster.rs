//! Whole clusters: a control plane and a node on either side.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde_json::Value;

use super::sides::{Both, Skiff, Tools, Who, api_ready, peers_side, words};
use super::turns::Book;
use crate::peers::{NODE_IP, Part, Peers};

const NODE: [Part; 7] = [
    Part::Etcd,
    Part::ApiServer,
    Part::Containerd,
    Part::Kubelet,
    Part::Proxy,
    Part::ControllerManager,
    Part::Scheduler,
];
const WHOLE: [Part; 8] = [
    Part::Etcd,
    Part::ApiServer,
    Part::Containerd,
    Part::Kubelet,
    Part::Proxy,
    Part::ControllerManager,
    Part::Scheduler,
    Part::Dns,
];
const TURN: Duration = Duration::from_secs(300);
const FILL: Duration = Duration::from_secs(600);
/// The same name on either side; upstream's has it imported, Skiff's pulls it from the local registry.
const IMAGE: &str = "docker.io/library/busybox:1.36";
/// What starting has left to do is over by then.
const SETTLE: Duration = Duration::from_secs(30);

/// A pod has run on both, so that nothing is timed that only the first one needs.
fn warm(tools: &Tools, both: &Both<'_>) -> Result<()> {
    both.prepare(tools, TURN, &words(&format!("pods --namespace warm --image {IMAGE} --singles 1")))
}

pub(super) fn idle(tools: &Tools, book: &mut Book) -> Result<()> {
    let both = Both::up(tools, &WHOLE)?;
    warm(tools, &both)?;
    std::thread::sleep(SETTLE);
    // Long enough for what is written once a minute.
    book.case("no pods, 60 s a turn", "pss_mib");
    book.alternate(tools, &both.sides(), TURN, |_, _| words("idle --seconds 60"));
    both.down()
}

/// Each turn is a cluster of its own, from an empty store.
pub(super) fn start(tools: &Tools, book: &mut Book) -> Result<()> {
    // Programs and images are there before the first clock runs.
    Peers::prepare(&tools.programs, &NODE, Some(&tools.served))?.down()?;
    book.case("empty store", "first_pod_running_ms");
    book.take([Who::Skiff, Who::Upstream], |who, _| match who {
        Who::Skiff => start_skiff(tools),
        Who::Upstream => start_upstream(tools),
    });
    Ok(())
}

fn question() -> Vec<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    words(&format!("start --image {IMAGE} --since-ms {now}"))
}

fn start_skiff(tools: &Tools) -> Result<Value> {
    let skiff = Skiff::prepare(tools)?;
    let later = skiff.side().ask_later(tools, TURN, &question())?;
    skiff.launch()?;
    let answer = later.answer();
    skiff.down()?;
    answer
}

fn start_upstream(tools: &Tools) -> Result<Value> {
    let mut peers = Peers::prepare(&tools.programs, &NODE, Some(&tools.served))?;
    let side = peers_side(&peers);
    let later = side.ask_later(tools, TURN, &question())?;
    peers.launch(&NODE, || api_ready(tools, &side))?;
    let answer = later.answer();
    peers.down()?;
    answer
}

pub(super) fn pod_start(tools: &Tools, book: &mut Book) -> Result<()> {
    let both = Both::up(tools, &NODE)?;
    warm(tools, &both)?;
    book.case("5 pods, one after the other", "create_to_running_p50_ms");
    book.alternate(tools, &both.sides(), TURN, |_, pair| {
        words(&format!("pods --namespace single-{pair} --image {IMAGE} --singles 5"))
    });
    book.case("100 pods at once", "pods_per_s");
    book.alternate(tools, &both.sides(), TURN, |_, pair| {
        words(&format!("pods --namespace burst-{pair} --image {IMAGE} --burst 100"))
    });
    both.down()
}

pub(super) fn proxy_sync(tools: &Tools, book: &mut Book) -> Result<()> {
    let both = Both::up(tools, &NODE)?;
    both.prepare(tools, FILL, &words("proxy-fill --namespace services --services 10000"))?;
    let turn =
        |count: usize| words(&format!("proxy --namespace services --address {NODE_IP} --count {count}"));
    // Also waits for the rules of all that was made.
    both.prepare(tools, FILL, &turn(1))?;
    book.case("one more endpoint among 10,000 Services", "endpoint_to_connection_p50_ms");
    book.alternate(tools, &both.sides(), TURN, |_, _| turn(5));
    both.down()
}
