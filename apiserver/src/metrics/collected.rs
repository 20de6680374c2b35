//! What the caches hold.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::cache::Caches;

pub(super) struct Objects(pub(super) Arc<Caches>);

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Objects")
    }
}

impl Collector for Objects {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut all: Vec<_> = self.0.all();
        all.sort_by(|a, b| {
            let name = |kind: &skiff_api::Kind| (kind.group.clone(), kind.plural.clone());
            name(a.kind()).cmp(&name(b.kind()))
        });
        let mut family = encoder.encode_descriptor(
            "apiserver_resource_objects",
            "Objects that are stored",
            None,
            MetricType::Gauge,
        )?;
        for cache in &all {
            let labels = [("group", cache.kind().group.as_str()), ("resource", cache.kind().plural.as_str())];
            let (objects, _) = cache.size();
            ConstGauge::new(i64::try_from(objects).unwrap_or(i64::MAX))
                .encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "apiserver_terminated_watchers",
            "Watchers that were dropped because they were too slow",
            None,
            MetricType::Counter,
        )?;
        for cache in all.iter().filter(|cache| cache.dropped() > 0) {
            let labels = [("group", cache.kind().group.as_str()), ("resource", cache.kind().plural.as_str())];
            ConstCounter::new(cache.dropped()).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
