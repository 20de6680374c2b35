//! What goes on at each priority level: metrics under upstream's names, and upstream's table of levels.

use std::fmt::Write as _;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use skiff_flow::{Control, LevelReport, SchemaReport};

pub(crate) struct Collected(pub(super) Arc<Control>);

impl std::fmt::Debug for Collected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Collected")
    }
}

/// A name, what it is, and the value of a level.
type OfLevel = (&'static str, &'static str, fn(&LevelReport) -> f64);
type OfSchema = (&'static str, &'static str, fn(&SchemaReport) -> u64);

const OF_LEVELS: &[OfLevel] = &[
    ("nominal_limit_seats", "Seats of the level by its shares", |level| level.nominal),
    ("lower_limit_seats", "Seats that the level does not lend", |level| level.min),
    ("upper_limit_seats", "Seats that the level has with all it may borrow", |level| level.max),
    ("current_limit_seats", "Seats of the level at present", |level| level.current),
];

const OF_SCHEMAS: &[OfSchema] = &[
    ("current_inqueue_requests", "Requests that wait for a seat", |schema| schema.waiting),
    ("current_executing_requests", "Requests that have a seat", |schema| schema.serving),
];

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let levels = self.0.report();
        for (name, help, value) in OF_LEVELS {
            let name = format!("apiserver_flowcontrol_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for level in &levels {
                let labels = [("priority_level", level.name.as_str())];
                let one = family.encode_family(&labels)?;
                ConstGauge::new(value(level)).encode(one)?;
            }
        }
        let schemas =
            || levels.iter().flat_map(|level| level.schemas.iter().map(move |schema| (level, schema)));
        fn labels<'r>(level: &'r LevelReport, schema: &'r SchemaReport) -> [(&'static str, &'r str); 2] {
            [("priority_level", &level.name), ("flow_schema", &schema.name)]
        }
        for (name, help, value) in OF_SCHEMAS {
            let name = format!("apiserver_flowcontrol_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for (level, schema) in schemas() {
                let labels = labels(level, schema);
                let one = family.encode_family(&labels)?;
                ConstGauge::new(i64::try_from(value(schema)).unwrap_or(i64::MAX)).encode(one)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "apiserver_flowcontrol_dispatched_requests",
            "Requests that were given a seat",
            None,
            MetricType::Counter,
        )?;
        for (level, schema) in schemas() {
            let labels = labels(level, schema);
            let one = family.encode_family(&labels)?;
            ConstCounter::new(schema.dispatched).encode(one)?;
        }
        let mut family = encoder.encode_descriptor(
            "apiserver_flowcontrol_rejected_requests",
            "Requests that were refused",
            None,
            MetricType::Counter,
        )?;
        for (level, schema) in schemas() {
            for (reason, refusals) in schema.rejected.iter().filter(|(_, refusals)| *refusals > 0) {
                let [of_level, of_schema] = labels(level, schema);
                let labels = [of_level, of_schema, ("reason", *reason)];
                let one = family.encode_family(&labels)?;
                ConstCounter::new(*refusals).encode(one)?;
            }
        }
        Ok(())
    }
}

/// One of upstream's pages for debugging; those of queues and of single requests are not built.
pub(crate) fn dump(path: &str, levels: &[LevelReport]) -> Option<String> {
    const HEADS: [&str; 10] = [
        "PriorityLevelName",
        "ActiveQueues",
        "IsIdle",
        "IsQuiescing",
        "WaitingRequests",
        "ExecutingRequests",
        "DispatchedRequests",
        "RejectedRequests",
        "TimedoutRequests",
        "CancelledRequests",
    ];
    if path != "/debug/api_priority_and_fairness/dump_priority_levels" {
        return None;
    }
    let row = |level: &LevelReport| {
        let sum = |of: fn(&SchemaReport) -> u64| level.schemas.iter().map(of).sum::<u64>().to_string();
        let is_idle = level.waiting == 0 && level.serving == 0;
        [
            level.name.clone(),
            level.active_queues.to_string(),
            is_idle.to_string(),
            false.to_string(),
            level.waiting.to_string(),
            level.serving.to_string(),
            sum(|schema| schema.dispatched),
            sum(|schema| schema.rejected.iter().map(|(_, refusals)| refusals).sum()),
            // As upstream counts: who waited for too long is among the cancelled.
            0.to_string(),
            sum(|schema| schema.rejected[2].1),
        ]
    };
    let mut rows = vec![HEADS.map(str::to_owned)];
    rows.extend(levels.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].len() + 2).max().unwrap_or_default().max(8);
    let widths: [usize; HEADS.len()] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string cannot fail.
            _ = write!(text, "{:width$}", format!("{cell},"));
        }
        text.push('\n');
    }
    Some(text)
}
