//! Wasm components: pods of Skiff beside `wasmtime serve` without a cluster.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::sides::{Both, Side, Skiff, Tools, Who, words};
use super::turns::Book;
use crate::peers::{NODE_IP, Peers};

const TURN: Duration = Duration::from_secs(300);
const IMAGE: &str = "docker.io/skiff/wasm-http:v1";
const FIRST_PORT: usize = 8000;
const MANY: usize = 50;

fn up(tools: &Tools) -> Result<Both<'_>> {
    tools.programs.require("wasmtime")?;
    let peers = Peers::prepare(&tools.programs, &[], &tools.served)?;
    Ok(Both { skiff: Skiff::up(tools)?, peers })
}

/// Starts `wasmtime serve` once for each of so many ports.
fn serve(tools: &Tools, peers: &mut Peers, count: usize) -> Result<Vec<String>> {
    let wasmtime = tools.programs.path("wasmtime");
    let addresses: Vec<String> = (0..count).map(|n| format!("{NODE_IP}:{}", FIRST_PORT + n)).collect();
    for address in &addresses {
        // The interfaces that the component uses, and that Skiff gives it too.
        let mut arguments = words(&format!("serve -Scli --addr {address}"));
        arguments.push(tools.wasm_module().display().to_string());
        peers.run("wasmtime", &wasmtime, &arguments)?;
    }
    Ok(addresses)
}

pub(super) fn http(tools: &Tools, book: &mut Book) -> Result<()> {
    let mut both = up(tools)?;
    let pod = both.skiff.side().ask(
        tools,
        TURN,
        &words(&format!("web-pods --namespace web --image {IMAGE} --count 1")),
    )?;
    let pod = pod["addresses"][0].as_str().context("the pod has no address")?.to_owned();
    let served = serve(tools, &mut both.peers, 1)?.remove(0);
    book.case("hello world, 32 connections", "requests_per_s");
    book.alternate(tools, &both.sides(), TURN, |side, _| {
        let address = match side.who {
            Who::Skiff => format!("{pod}:80"),
            Who::Upstream => served.clone(),
        };
        words(&format!("web --address {address} --clients 32 --seconds 5"))
    });
    both.peers.end_others()?;
    both.down()
}

pub(super) fn density(tools: &Tools, book: &mut Book) -> Result<()> {
    let mut both = up(tools)?;
    let [skiff, upstream] = both.sides();
    book.case(&format!("{MANY} components that have answered once"), "mib_each");
    let peers = &mut both.peers;
    book.take([Who::Skiff, Who::Upstream], |who, pair| match who {
        Who::Skiff => {
            let pods = format!("--namespace web-{pair} --image {IMAGE} --count {MANY}");
            let answer = weigh(tools, &skiff, || {
                skiff.ask(tools, TURN, &words(&format!("web-pods {pods}"))).map(drop)
            });
            skiff.ask(tools, TURN, &words(&format!("web-pods-end {pods}")))?;
            answer
        }
        Who::Upstream => {
            let answer = weigh(tools, &upstream, || {
                let addresses = serve(tools, peers, MANY)?;
                let asked = [words("web-ready"), addresses].concat();
                upstream.ask(tools, TURN, &asked).map(drop)
            });
            peers.end_others()?;
            answer
        }
    });
    both.down()
}

/// What a side weighs more for what is started.
fn weigh(tools: &Tools, side: &Side, start: impl FnOnce() -> Result<()>) -> Result<Value> {
    let pss = || -> Result<f64> {
        let answer = side.ask(tools, TURN, &words("idle --seconds 2"))?;
        answer["values"]["pss_mib"].as_f64().context("no memory was measured")
    };
    let before = pss()?;
    let clock = Instant::now();
    start()?;
    let taken = clock.elapsed();
    let each = (pss()? - before) / MANY as f64;
    let rounded = |value: f64| (value * 100.0).round() / 100.0;
    Ok(json!({"values": {"mib_each": rounded(each), "until_all_answer_s": rounded(taken.as_secs_f64())}}))
}
