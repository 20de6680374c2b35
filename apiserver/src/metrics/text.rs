//! The two formats of the page: OpenMetrics, for who asks for it, and Prometheus' older text.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::ACCEPT;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

const OPEN_METRICS: &str = "application/openmetrics-text";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    OpenMetrics,
    Text,
}

impl Format {
    pub(crate) fn of(headers: &HeaderMap) -> Format {
        let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut types =
            accepted.flat_map(|value| value.split(',')).map(|one| one.split(';').next().unwrap_or(one));
        if types.any(|one| one.trim() == OPEN_METRICS) { Format::OpenMetrics } else { Format::Text }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
        }
    }

    pub(super) fn encode(self, registry: &Registry) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        _ = encode(&mut out, registry);
        match self {
            Format::OpenMetrics => out,
            Format::Text => older(&out),
        }
    }
}

/// Counters that upstream calls by no more than their own name.
const WITHOUT_SUFFIX: [&str; 2] =
    ["apiserver_admission_webhook_rejection_count", "apiserver_admission_webhook_fail_open_count"];

/// The older text has no end, and a counter is called there as its samples are.
fn older(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["#", "EOF"] | ["#", "UNIT", ..] => continue,
            // The type stands below.
            ["#", "HELP", name, help] => {
                let suffix = lines.peek().map_or("", |next| suffix(name, next));
                out.push_str(&format!("# HELP {name}{suffix} {help}"));
            }
            ["#", "TYPE", name, kind] => {
                let kind = if *kind == "info" { "gauge" } else { kind };
                out.push_str(&format!("# TYPE {name}{} {kind}", suffix(name, line)));
            }
            _ => out.push_str(&sample(line)),
        }
        out.push('\n');
    }
    out
}

fn suffix(name: &str, type_line: &str) -> &'static str {
    if WITHOUT_SUFFIX.contains(&name) {
        return "";
    }
    match type_line.rsplit(' ').next() {
        Some("counter") => "_total",
        Some("info") => "_info",
        _ => "",
    }
}

fn sample(line: &str) -> Cow<'_, str> {
    for name in WITHOUT_SUFFIX {
        if let Some(rest) = line.strip_prefix(name).and_then(|rest| rest.strip_prefix("_total")) {
            return Cow::Owned(format!("{name}{rest}"));
        }
    }
    Cow::Borrowed(line)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_older_text_calls_counters_as_their_samples() {
        let open = "# HELP a A count.\n# TYPE a counter\na_total{x=\"y\"} 1\n# HELP b B.\n# TYPE b gauge\n# UNIT b s\nb 2\n\
                    # HELP c C.\n# TYPE c info\nc_info{v=\"1\"} 1\n# EOF\n";
        let text = "# HELP a_total A count.\n# TYPE a_total counter\na_total{x=\"y\"} 1\n# HELP b B.\n# TYPE b gauge\nb 2\n\
                    # HELP c_info C.\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n";
        assert_eq!(older(open), text);
    }

    #[test]
    fn who_asks_for_open_metrics_is_given_it() {
        let of = |accept: &'static str| {
            Format::of(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]))
        };
        assert_eq!(of("application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1"), Format::OpenMetrics);
        assert_eq!(of("*/*"), Format::Text);
        assert_eq!(Format::of(&HeaderMap::new()), Format::Text);
    }
}
