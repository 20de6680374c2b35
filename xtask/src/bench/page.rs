//! `docs/benchmarks.md` and its chart, from all that is stored.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::chart::{self, Bar};
use super::{ALL, Name, hollow, smoke, store};
use crate::command::root;

/// What a reader must know of a bench: what is timed, and what runs on each side.
fn about(name: Name) -> (&'static str, &'static str) {
    match name {
        Name::Start => (
            "From the first exec to the first running pod",
            "One cluster at a time, empty store, certificates of upstream made before; containers' images are imported into containerd before the clock \
             starts, while Skiff pulls its from a local registry within it. Upstream: etcd, kube-apiserver, containerd, \
             kubelet and kube-proxy are started at once, kube-controller-manager and kube-scheduler when the API answers. \
             A client asks from the first moment; the pod is made as soon as the API takes it.",
        ),
        Name::Idle => (
            "Memory, CPU and wear of everything, with nothing to do",
            "A whole cluster on either side, 30 s after a pod has come and gone. What is written is what the processes dirtied of \
             files on disks, scaled to a day. Upstream: etcd, kube-apiserver, \
             kube-controller-manager, kube-scheduler, containerd, kubelet, kube-proxy and CoreDNS.",
        ),
        Name::ApiCreate => (
            "Durable creates",
            "Each client has a connection of its own and waits for each answer. Upstream: etcd (fsync on) and kube-apiserver \
             only; Skiff's process also runs its controllers, scheduler, node and proxy, which see the pods.",
        ),
        Name::ApiList => (
            "Lists of many pods",
            "JSON, one page, one client that counts the items as they come. The answer's size shows by how much the stored objects \
             differ, as by the managedFields of those that keep them. Upstream: etcd and kube-apiserver only.",
        ),
        Name::ApiWatch => (
            "From a write to the event at each watcher",
            "One pod of 3 kB is patched, first twice a second, then back to back; every watcher notes how old each event is when \
             it comes. A watcher that is disconnected or misses an event fails the run. Upstream: etcd and kube-apiserver only.",
        ),
        Name::ApiAccess => (
            "Reads that a role allows",
            "A service account reads one small object by a Role of its namespace, from 16 connections; so many bindings of other users \
             lie in the namespace. Upstream: etcd and kube-apiserver with the authorizers Node and RBAC.",
        ),
        Name::ApiCrd => (
            "Custom resources",
            "Objects of 1 kB with a structural schema, defaults and four rules in CEL. Each create is reviewed by a webhook in the client's \
             process, which answers on loopback and admits all. CPU is of creates and lists together. Upstream: etcd and kube-apiserver only.",
        ),
        Name::ApiApply => (
            "Server-side apply",
            "16 Deployments that nobody runs; each is applied by four managers in turn, with other values each time, and all four own fields \
             in the end. Upstream: etcd and kube-apiserver only.",
        ),
        Name::Scheduler => (
            "Pods on nodes that are only objects",
            "From the first create to the last bind, by 16 clients; the API server and the client share the machine with the \
             scheduler. Upstream: etcd, kube-apiserver, and kube-scheduler without a limit on its requests. Skiff's node life \
             cycle taints such nodes before the clock starts, and a node a second to be emptied while it runs; the pods tolerate \
             all taints.",
        ),
        Name::PodStart => (
            "From the create to Running",
            "Image present, no service account token, runc on both sides; deleting the pods is in CPU and memory, not in the \
             times. Upstream: all but CoreDNS.",
        ),
        Name::ProxySync => (
            "From one more endpoint to the first connection it takes",
            "10,000 Services of one endpoint each; a client in the node's network namespace posts an EndpointSlice and connects \
             to the Service until the endpoint answers. kube-proxy in nftables mode with its own defaults, which let a \
             second pass between two syncs. Upstream: all but CoreDNS.",
        ),
        Name::Dns => (
            "Queries of Services' names",
            "UDP, from the node's network namespace, at the server's own address. Upstream: CoreDNS as kubeadm configures it, \
             with etcd and kube-apiserver.",
        ),
        Name::WasmHttp => (
            "Requests of one Wasm component",
            "samples/wasm/http over HTTP/1.1: a pod of Skiff beside `wasmtime serve` of the same version without a cluster, \
             both from native code that was made before. CPU and memory of Skiff's side are of the whole cluster.",
        ),
        Name::WasmDensity => (
            "Memory of many Wasm components",
            "50 pods of samples/wasm/http beside 50 processes of `wasmtime serve`: what each adds to its side's PSS once it \
             has answered. For Skiff that is the process that hosts them and all that the server keeps of the pods, each of \
             which has an address and a network namespace. Either side maps native code that was made before.",
        ),
        Name::Hollow => (
            "Latency of the API by verb, Skiff alone",
            "`skiff-hollow` plays the nodes: leases, statuses, and pods that become Running, in one process over the API and on \
             the same cores. Deployments make the pods, the scheduler binds them; probes of every verb go on meanwhile and for \
             a minute with all pods running. Times are of one request, sent to whole answer; WATCH is from an update to its \
             event. Requests that were refused were tried again, and are not in the times.",
        ),
        Name::Abuse | Name::Smoke | Name::All | Name::Page | Name::Clean => ("Skiff alone", ""),
    }
}

/// Median, least and most of one figure on one side.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Spread { median, min, max })
    }

    fn text(self) -> String {
        format!("{} ({}–{})", number(self.median), number(self.min), number(self.max))
    }
}

pub(super) fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => grouped(value.round() as i64),
        small if small < 1.0 => trimmed(&format!("{value:.3}")),
        _ => trimmed(&format!("{value:.1}")),
    }
}

fn trimmed(text: &str) -> String {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    }
}

fn grouped(value: i64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) && digits.as_bytes()[at - 1] != b'-' {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Figures that describe what was done, and are neither good nor bad.
const NEUTRAL: [&str; 3] = ["answer_mb", "processes", "nodes"];

fn is_more_better(figure: &str) -> bool {
    figure.ends_with("_per_s")
}

/// `create_p50_ms` as people read it.
fn label(figure: &str) -> String {
    if let Some(rate) = figure.strip_suffix("_per_s") {
        return format!("{}/s", rate.replace('_', " "));
    }
    match figure {
        "cpu_s" => return "CPU, s".into(),
        "kib_per_object" => return "PSS for each object, KiB".into(),
        "peak_pss_mib" => return "peak PSS, MiB".into(),
        "pss_mib" => return "PSS, MiB".into(),
        "mib_each" => return "PSS of each, MiB".into(),
        "percent_of_a_core" => return "CPU, % of a core".into(),
        "answer_mb" => return "answer, MB".into(),
        "written_mb_a_day" => return "written to the disk, MB a day".into(),
        _ => {}
    }
    match figure.rsplit_once('_') {
        Some((name, unit @ ("ms" | "s"))) => format!("{}, {unit}", name.replace('_', " ")),
        _ => figure.replace('_', " "),
    }
}

/// The figures of one side in one case, one for each pair.
fn figures(lines: &[Value], case: &Value, side: &str, figure: &str) -> Vec<f64> {
    let own = lines.iter().filter(|line| line["case"] == *case && line["side"] == side);
    own.filter_map(|line| line["values"][figure].as_f64()).collect()
}

/// How many times better Skiff is than upstream, pair by pair.
fn ratio(lines: &[Value], case: &Value, figure: &str) -> Option<Spread> {
    if NEUTRAL.contains(&figure) {
        return None;
    }
    let skiff = figures(lines, case, "skiff", figure);
    let upstream = figures(lines, case, "upstream", figure);
    let pairs = skiff.iter().zip(&upstream).filter(|(a, b)| **a > 0.0 && **b > 0.0);
    Spread::of(pairs.map(|(a, b)| if is_more_better(figure) { a / b } else { b / a }).collect())
}

fn times(ratio: Spread) -> String {
    format!("× {} ({}–{})", short(ratio.median), short(ratio.min), short(ratio.max))
}

fn short(value: f64) -> String {
    if value < 10.0 { trimmed(&format!("{value:.2}")) } else { trimmed(&format!("{value:.0}")) }
}

/// The headline first, then the times, then what they cost.
fn figure_names(lines: &[Value], case: &Value) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for line in lines.iter().filter(|line| line["case"] == case["name"]) {
        for name in line["values"].as_object().into_iter().flat_map(|values| values.keys()) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    }
    let cost = |name: &str| name == "cpu_s" || name.contains("pss") || NEUTRAL.contains(&name);
    names.sort_by_key(|name| (case["headline"] != name.as_str(), cost(name), name.clone()));
    names
}

/// One bench, from its stored lines.
pub(super) fn section(lines: &[Value]) -> Result<String> {
    let head = lines.first().context("no line about the run")?;
    let bench = head["bench"].as_str().unwrap_or_default();
    let name = ALL.into_iter().find(|name| name.text() == bench);
    let (title, text) = name.map_or(("", ""), about);
    let mut out = String::new();
    writeln!(out, "## {bench}: {}\n", lower_first(title))?;
    writeln!(out, "{text}\n")?;
    writeln!(out, "{}\n", provenance(head))?;
    if name == Some(Name::Hollow) {
        for line in lines.iter().filter(|line| line["report"].is_object()) {
            writeln!(out, "{}", hollow::table(&line["report"])?)?;
        }
        return Ok(out);
    }
    writeln!(out, "| case | figure | Skiff | upstream | Skiff is better |")?;
    writeln!(out, "|---|---|---|---|---|")?;
    let cases = head["cases"].as_array().cloned().unwrap_or_default();
    for case in &cases {
        let mut title = case["name"].as_str().unwrap_or_default().to_owned();
        for figure in figure_names(lines, case) {
            let side = |side| {
                let all = figures(lines, &case["name"], side, &figure);
                Spread::of(all).map_or_else(|| "–".to_owned(), Spread::text)
            };
            let ratio = ratio(lines, &case["name"], &figure).map_or_else(String::new, times);
            writeln!(
                out,
                "| {title} | {} | {} | {} | {ratio} |",
                label(&figure),
                side("skiff"),
                side("upstream")
            )?;
            title.clear();
        }
    }
    for line in lines.iter().filter(|line| line["refused"].is_string()) {
        let why = line["refused"].as_str().unwrap_or_default();
        let why: Vec<&str> = why.split_whitespace().collect();
        let word = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        writeln!(out, "\n{}, {}: cannot. {}", word("case"), word("side"), why.join(" "))?;
    }
    if let Some(parts) = parts(lines) {
        writeln!(out, "\n{parts}")?;
    }
    out.push('\n');
    Ok(out)
}

fn lower_first(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

fn provenance(head: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let versions = head["versions"].as_object().into_iter().flatten();
    let versions: Vec<String> = versions.map(|(name, version)| format!("{name} {}", text(version))).collect();
    let upstream = if versions.is_empty() { String::new() } else { format!("; {}", versions.join(", ")) };
    let machine = &head["machine"];
    let turns = head["pairs"].as_u64().map_or_else(|| "One run".into(), |pairs| format!("{pairs} pairs"));
    format!(
        "Again: `cargo xtask bench {}`. {turns} in {} s on {}, {} cores ({}), {} GiB, Linux {}; Skiff {}{upstream}.",
        text(&head["bench"]),
        head["seconds"],
        text(&head["date"]),
        machine["cores"],
        text(&machine["cpu"]),
        machine["memory_gib"],
        text(&machine["kernel"]),
        text(&head["commit"]),
    )
}

/// Memory by program, of the last turns that have it.
fn parts(lines: &[Value]) -> Option<String> {
    let of = |side: &str| -> Option<String> {
        let line = lines.iter().rev().find(|line| line["side"] == side && line["parts"].is_object())?;
        let parts = line["parts"].as_object()?;
        Some(parts.iter().map(|(name, mib)| format!("{name} {mib}")).collect::<Vec<_>>().join(", "))
    };
    Some(format!("PSS by program, MiB, last turn. Skiff: {}. Upstream: {}.", of("skiff")?, of("upstream")?))
}

fn bars(lines: &[Value]) -> Vec<Bar> {
    let Some(head) = lines.first() else { return Vec::new() };
    let cases = head["cases"].as_array().into_iter().flatten();
    let bar = |case: &Value| {
        let figure = case["headline"].as_str()?;
        let ratio = ratio(lines, &case["name"], figure)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = format!("{}: {}", text(&head["bench"]), text(&case["name"]));
        Some(Bar { name, figure: label(figure), median: ratio.median, min: ratio.min, max: ratio.max })
    };
    cases.filter_map(bar).collect()
}

/// Draws both anew.
pub(super) fn render() -> Result<()> {
    let stored: Vec<Vec<Value>> =
        ALL.iter().filter_map(|name| store::read(&name.text()).transpose()).collect::<Result<_>>()?;
    let smoke = store::read("smoke")?;
    let folder = root().join("docs");
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    put("benchmarks.svg", &chart::draw(&stored.iter().flat_map(|lines| bars(lines)).collect::<Vec<_>>()))?;
    put("benchmarks.md", &page(&stored, smoke.as_deref())?)
}

fn page(stored: &[Vec<Value>], smoke_lines: Option<&[Value]>) -> Result<String> {
    let mut out = String::from(
        "# Benchmarks\n\n\
         Skiff beside upstream's own programs, in one run on one machine: both sides run at once and are asked in turns,\n\
         A B A B, by the same client on the same cores. Medians over the turns, with minimum and maximum; the last column\n\
         is how many times better Skiff was, as the median, least and most of the pairs (below 1: worse). CPU and PSS are of\n\
         all processes of a side. Figures differ between machines; ratios less so.\n\n\
         Written by `cargo xtask bench` from `docs/benchmarks/*.jsonl`, which hold every number; not edited by hand.\n\n\
         ![How many times better Skiff is than upstream](benchmarks.svg)\n\n",
    );
    for lines in stored {
        out += &section(lines)?;
    }
    let missing: Vec<String> = ALL
        .iter()
        .map(|name| name.text())
        .filter(|name| !stored.iter().any(|lines| lines[0]["bench"] == **name))
        .collect();
    if !missing.is_empty() {
        writeln!(out, "Not run yet: {}.\n", missing.join(", "))?;
    }
    if let Some(line) = smoke_lines.and_then(<[Value]>::first) {
        let date = line["date"].as_str().unwrap_or_default();
        writeln!(out, "## smoke: Skiff alone\n\nAgain: `cargo xtask bench smoke`. Measured on {date}.\n")?;
        out += &smoke::table(&line["report"])?;
    }
    Ok(out.trim_end().to_owned() + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run() -> Vec<Value> {
        let line = |side: &str, pair: u32, rate: f64, cpu: f64| json!({"case": "c", "side": side, "pair": pair, "values": {"creates_per_s": rate, "cpu_s": cpu}});
        vec![
            json!({"bench": "api-create", "pairs": 3, "cases": [{"name": "c", "headline": "creates_per_s"}]}),
            line("skiff", 1, 4000.0, 1.0),
            line("upstream", 1, 500.0, 4.0),
            line("skiff", 2, 5000.0, 2.0),
            line("upstream", 2, 1000.0, 4.0),
            line("skiff", 3, 6000.0, 1.0),
            line("upstream", 3, 600.0, 0.0),
        ]
    }

    #[test]
    fn a_ratio_is_of_pairs_and_says_how_many_times_better() {
        let rate = ratio(&run(), &json!("c"), "creates_per_s").expect("pairs");
        assert_eq!(rate, Spread { median: 8.0, min: 5.0, max: 10.0 });
        let cpu = ratio(&run(), &json!("c"), "cpu_s").expect("pairs");
        assert_eq!((cpu.min, cpu.max), (2.0, 4.0), "less is better, and nothing is no measurement");
        assert_eq!(ratio(&run(), &json!("c"), "processes"), None);
    }

    #[test]
    fn a_section_shows_each_figure_once_with_its_headline_first() {
        let text = section(&run()).expect("it is sound");
        assert!(
            text.contains("| c | creates/s | 5,000 (4,000–6,000) | 600 (500–1,000) | × 8 (5–10) |"),
            "{text}"
        );
        assert!(text.contains("|  | CPU, s | 1 (1–2) | 4 (0–4) | × 3 (2–4) |"), "{text}");
    }

    #[test]
    fn what_a_side_cannot_do_is_said() {
        let mut lines = run();
        lines.push(json!({"case": "c", "side": "skiff", "refused": "not\nbuilt"}));
        assert!(section(&lines).expect("it is sound").contains("c, skiff: cannot. not built"));
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (1_234_567.0, "1,234,567"),
            (99.96, "100"),
            (12.34, "12.3"),
            (0.123_4, "0.123"),
            (0.0, "0"),
            (2.0, "2"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn figures_are_named_for_people() {
        assert_eq!(label("create_p50_ms"), "create p50, ms");
        assert_eq!(label("burst_deliveries_per_s"), "burst deliveries/s");
        assert_eq!(label("until_all_are_gone_s"), "until all are gone, s");
    }
}
