//! The types of metrics that all parts have.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

pub(crate) type Count = Counter<u64, AtomicU64>;
pub(super) type Level = Gauge<i64, AtomicI64>;
/// How those of a family are made.
pub(super) type Histograms = fn() -> Histogram;
