//! Wasm components: pods of Skiff beside `wasmtime serve` without a cluster.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::sides::{Both, Side, Skiff, Tools, Who, peers_side, words};
use super::turns::Book;
use crate::command::output;
use crate::peers::{NODE_IP, Peers};

const TURN: Duration = Duration::from_secs(300);
const IMAGE: &str = "docker.io/skiff/wasm-http:v1";
const FIRST_PORT: usize = 8000;
const MANY: usize = 50;

/// The component as native code, which Skiff keeps as well: `wasmtime serve` would otherwise compile in each process.
fn compile(tools: &Tools) -> Result<PathBuf> {
    tools.programs.require("wasmtime")?;
    let code = tools.programs.dir.join("wasm-http.cwasm");
    let mut compile = Command::new(tools.programs.path("wasmtime"));
    output(compile.arg("compile").arg("-o").arg(&code).arg(tools.wasm_module()))?;
    Ok(code)
}

/// Starts `wasmtime serve` once for each of so many ports.
fn serve(tools: &Tools, peers: &mut Peers, code: &Path, count: usize) -> Result<Vec<String>> {
    let wasmtime = tools.programs.path("wasmtime");
    let addresses: Vec<String> = (0..count).map(|n| format!("{NODE_IP}:{}", FIRST_PORT + n)).collect();
    for address in &addresses {
        // The interfaces that the component uses, and that Skiff gives it too.
        let mut arguments = words(&format!("serve -Scli --allow-precompiled --addr {address}"));
        arguments.push(code.display().to_string());
        peers.run("wasmtime", &wasmtime, &arguments)?;
    }
    Ok(addresses)
}

pub(super) fn http(tools: &Tools, book: &mut Book) -> Result<()> {
    let code = compile(tools)?;
    let peers = Peers::prepare(&tools.programs, &[], Some(&tools.served))?;
    let mut both = Both { skiff: Skiff::up(tools)?, peers };
    let pod = both.skiff.side().ask(
        tools,
        TURN,
        &words(&format!("web-pods --namespace web --image {IMAGE} --count 1")),
    )?;
    let pod = pod["addresses"][0].as_str().context("the pod has no address")?.to_owned();
    let served = serve(tools, &mut both.peers, &code, 1)?.remove(0);
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
    let code = compile(tools)?;
    let mut peers = Peers::prepare(&tools.programs, &[], Some(&tools.served))?;
    let upstream = peers_side(&peers);
    let ready = |addresses: Vec<String>| {
        upstream.ask(tools, TURN, &[words("web-ready"), addresses].concat()).map(drop)
    };
    book.case(&format!("{MANY} components that have answered once"), "mib_each");
    book.take([Who::Skiff, Who::Upstream], |who, _| match who {
        Who::Skiff => dense_pods(tools),
        Who::Upstream => {
            let answer = weigh(tools, &upstream, || ready(serve(tools, &mut peers, &code, MANY)?));
            peers.end_others()?;
            answer
        }
    });
    peers.down()
}

/// Each turn is a cluster of its own: what earlier pods have made its server take and keep would be missing otherwise.
fn dense_pods(tools: &Tools) -> Result<Value> {
    let skiff = Skiff::up(tools)?;
    let side = skiff.side();
    let pods = |command: &str, namespace: &str, count: usize| {
        words(&format!("{command} --namespace {namespace} --image {IMAGE} --count {count}"))
    };
    // The image and its native code are there from then on. The process that ran it is not: it counts for what follows.
    for command in ["web-pods", "web-pods-end"] {
        side.ask(tools, TURN, &pods(command, "first", 1))?;
    }
    skiff.await_no_pods()?;
    let answer = weigh(tools, &side, || side.ask(tools, TURN, &pods("web-pods", "web", MANY)).map(drop));
    skiff.down()?;
    answer
}

/// What a side weighs more for what is started.
fn weigh(tools: &Tools, side: &Side, start: impl FnOnce() -> Result<()>) -> Result<Value> {
    let look = || side.ask(tools, TURN, &words("idle --seconds 2"));
    let pss = |answer: &Value| answer["values"]["pss_mib"].as_f64().context("no memory was measured");
    let before = look()?;
    let clock = Instant::now();
    start()?;
    let taken = clock.elapsed();
    let after = look()?;
    let each = (pss(&after)? - pss(&before)?) / MANY as f64;
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    let values = json!({"mib_each": rounded(each), "until_all_answer_s": rounded(taken.as_secs_f64())});
    Ok(json!({"values": values, "parts": after["parts"]}))
}
