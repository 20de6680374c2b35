//! Prometheus' text format, with the time at which a sample was taken.

use std::fmt::{Display, Write as _};

use axum::http::header;
use axum::response::{IntoResponse, Response};

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn answer(text: String) -> Response {
    ([(header::CONTENT_TYPE, TEXT)], text).into_response()
}

/// One metric: its head (the help begins with how stable it is), and then a line for each sample.
pub(super) struct Metric<'o> {
    out: &'o mut String,
    name: &'static str,
}

impl Metric<'_> {
    pub(super) fn begin<'o>(out: &'o mut String, name: &'static str, kind: &str, help: &str) -> Metric<'o> {
        // Writing to a string cannot fail; nor below.
        _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Metric { out, name }
    }

    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display, at_ms: Option<i64>) {
        self.out.push_str(self.name);
        for (number, (label, value)) in labels.iter().enumerate() {
            let open = if number == 0 { '{' } else { ',' };
            // The names of pods and containers have nothing that would have to be escaped.
            _ = write!(self.out, "{open}{label}=\"{value}\"");
        }
        self.out.push_str(if labels.is_empty() { "" } else { "}" });
        _ = match at_ms {
            Some(at) => writeln!(self.out, " {value} {at}"),
            None => writeln!(self.out, " {value}"),
        };
    }
}
