//! EndpointSlices for the Endpoints that people write themselves, of Services without a selector: who reads slices need
//! not know which of the two forms was written.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine, is_terminating};
use crate::lookup::Slices;

mod plan;

pub(crate) struct Mirrors {
    client: Client,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Slices,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
}

impl Mirrors {
    pub(crate) fn new(context: &Context) -> Self {
        let informers = &context.informers;
        let (services, endpoints) = (informers.of::<Service>(), informers.of::<Endpoints>());
        let slices =
            Slices::new(informers, |slice| plan::service_of(slice).filter(|_| plan::is_ours(slice)).cloned());
        let queue = WorkQueue::default();
        let wake = queue.clone();
        services.on_change(move |change| {
            let without = |s: &Option<Arc<Service>>| {
                s.as_ref().map(|s| s.spec.as_ref().is_none_or(|s| s.selector.is_none()))
            };
            let (old, new) = (without(&change.old), without(&change.new));
            if let Some(service) = change.object().filter(|_| old != new) {
                wake.add(key_of(&**service));
            }
        });
        let wake = queue.clone();
        endpoints.on_change(move |change| {
            if let Some(endpoints) = change.object() {
                wake.add(key_of(&**endpoints));
            }
        });
        // Somebody else's hand in our slices is undone.
        let wake = queue.clone();
        slices.all().on_change(move |change| {
            for slice in [&change.old, &change.new].into_iter().flatten().filter(|s| plan::is_ours(s)) {
                let namespace = slice.metadata.namespace.clone().unwrap_or_default();
                if let Some(service) = plan::service_of(slice) {
                    wake.add(ObjectKey::new(namespace, service));
                }
            }
        });
        let events = context.events("endpoint-slice-mirroring-controller");
        Mirrors { client: context.client.clone(), services, endpoints, slices, events, queue }
    }

    /// What there should be; nothing unless the Service is there and the Endpoints are a person's.
    fn wanted(&self, key: &ObjectKey) -> Vec<EndpointSlice> {
        let is_there = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            meta.deletion_timestamp.is_none()
        };
        let Some(endpoints) = self.endpoints.get(key).filter(|e| is_there(&e.metadata)) else {
            return Vec::new();
        };
        let Some(service) = self.services.get(key) else { return Vec::new() };
        if !plan::should_mirror(&endpoints, &service) {
            return Vec::new();
        }
        let mirrored = plan::slices(&endpoints);
        if mirrored.n_invalid > 0 {
            let message = format!(
                "Skipped {} invalid IP addresses when mirroring to EndpointSlices",
                mirrored.n_invalid
            );
            self.events.event(&*endpoints, EventType::Warning, "InvalidIPAddress", &message);
        }
        if mirrored.n_surplus > 0 {
            let message = format!(
                "A max of {} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
                plan::MAX_PER_SUBSET,
                mirrored.n_surplus + mirrored.n_invalid
            );
            self.events.event(&*endpoints, EventType::Warning, "TooManyAddressesToMirror", &message);
        }
        mirrored.slices
    }

    async fn write(&self, key: &ObjectKey) -> Result<(), kube::Error> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        let ours = self.slices.of_service(key);
        let mut have: BTreeMap<String, Arc<EndpointSlice>> =
            ours.into_iter().map(|s| (s.metadata.name.clone().unwrap_or_default(), s)).collect();
        for mut wanted in self.wanted(key) {
            let name = wanted.metadata.name.clone().unwrap_or_default();
            match have.remove(&name) {
                None => drop(api.create(&PostParams::default(), &wanted).await?),
                Some(old) if plan::same(&old, &wanted) => {}
                Some(old) => {
                    wanted.metadata.resource_version = old.metadata.resource_version.clone();
                    api.replace(&name, &PostParams::default(), &wanted).await?;
                }
            }
        }
        for name in have.keys() {
            gone_is_fine(api.delete(name, &DeleteParams::default()).await)?;
        }
        Ok(())
    }
}

impl Controller for Mirrors {
    const NAME: &'static str = "endpointslicemirroring";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.services.synced().await;
        self.endpoints.synced().await;
        self.slices.all().synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        match self.write(key).await {
            Err(error) if is_terminating(&error) => Ok(Outcome::Done),
            other => other.map(|()| Outcome::Done),
        }
    }
}
