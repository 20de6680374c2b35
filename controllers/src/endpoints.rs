//! EndpointSlices, and the older Endpoints, for every Service with a selector.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use skiff_client::view::Pod;
use skiff_client::{Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine, is_terminating};
use crate::lookup::{Pods, Selecting, Slices, required};

mod packing;
mod plan;

pub(crate) struct EndpointSlices {
    client: Client,
    /// Who writes Endpoints is somebody else upstream.
    endpoints_client: Client,
    services: Informer<Service>,
    pods: Pods,
    slices: Slices,
    endpoints: Informer<Endpoints>,
    queue: WorkQueue<ObjectKey>,
}

impl EndpointSlices {
    pub(crate) fn new(context: &Context) -> Self {
        let informers = &context.informers;
        let (services, endpoints) = (informers.of::<Service>(), informers.of::<Endpoints>());
        let slices = Slices::new(informers, |slice| plan::is_ours(slice).then(|| plan::service_of(slice)));
        let queue = WorkQueue::default();
        let wake = queue.clone();
        services.on_change(move |change| {
            if let Some(service) = change.object() {
                wake.add(key_of(&**service));
            }
        });
        let selecting = Selecting::new(&services, plan::selector);
        let wake = queue.clone();
        context.pods.all().on_change(move |change| {
            if !plan::matters(change.old.as_deref(), change.new.as_deref()) {
                return;
            }
            for pod in [&change.old, &change.new].into_iter().flatten() {
                let selecting = selecting.of(&pod.metadata, |service| plan::selects(service, pod));
                selecting.iter().for_each(|service| wake.add(key_of(&**service)));
            }
        });
        // Somebody else's hand in our slices is undone.
        let wake = queue.clone();
        slices.all().on_change(move |change| {
            if let Some(slice) = change.object().filter(|s| plan::is_ours(s)) {
                let service = plan::service_of(slice);
                wake.add(ObjectKey::new(slice.metadata.namespace.clone().unwrap_or_default(), service));
            }
        });
        let (client, pods) = (context.client.clone(), context.pods.clone());
        let endpoints_client = context.credentials.client("endpoint-controller");
        EndpointSlices { client, endpoints_client, services, pods, slices, endpoints, queue }
    }

    async fn write_slices(
        &self,
        key: &ObjectKey,
        service: &Service,
        pods: &[Arc<Pod>],
    ) -> Result<(), kube::Error> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        let packed = packing::pack(service, pods, &self.slices.of_service(key));
        for slice in &packed.create {
            api.create(&PostParams::default(), slice).await?;
        }
        for slice in &packed.update {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            api.replace(name, &PostParams::default(), slice).await?;
        }
        for name in &packed.delete {
            gone_is_fine(api.delete(name, &DeleteParams::default()).await)?;
        }
        Ok(())
    }

    async fn write_endpoints(
        &self,
        key: &ObjectKey,
        service: &Service,
        pods: &[Arc<Pod>],
    ) -> Result<(), kube::Error> {
        let api: Api<Endpoints> = Api::namespaced(self.endpoints_client.clone(), &key.namespace);
        let mut wanted = plan::endpoints(service, pods);
        match self.endpoints.get(key) {
            None => api.create(&PostParams::default(), &wanted).await.map(drop),
            Some(old) if plan::same(&old, &wanted) => Ok(()),
            Some(old) => {
                wanted.metadata.resource_version = old.metadata.resource_version.clone();
                api.replace(&key.name, &PostParams::default(), &wanted).await.map(drop)
            }
        }
    }

    /// What a deleted Service leaves: its slices go by their owner, its Endpoints by us.
    async fn clean_up(&self, key: &ObjectKey) -> Result<(), kube::Error> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        for slice in self.slices.of_service(key) {
            gone_is_fine(
                slices
                    .delete(slice.metadata.name.as_deref().unwrap_or_default(), &DeleteParams::default())
                    .await,
            )?;
        }
        if self.endpoints.get(key).is_none() {
            return Ok(());
        }
        let endpoints: Api<Endpoints> = Api::namespaced(self.endpoints_client.clone(), &key.namespace);
        gone_is_fine(endpoints.delete(&key.name, &DeleteParams::default()).await)
    }
}

impl Controller for EndpointSlices {
    const NAME: &'static str = "endpointslice";
    const WORKERS: usize = 5;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.services.synced().await;
        self.pods.all().synced().await;
        self.slices.all().synced().await;
        self.endpoints.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(service) = self.services.get(key).filter(|s| s.metadata.deletion_timestamp.is_none()) else {
            self.clean_up(key).await?;
            return Ok(Outcome::Done);
        };
        // Without a selector the endpoints are the user's own to write.
        if !plan::has_selector(&service) {
            return Ok(Outcome::Done);
        }
        let selector = plan::selector(&service).unwrap_or_default();
        let selects = |pod: &Pod| plan::selects(&service, pod);
        let pods = self.pods.labelled(&key.namespace, &required(&selector), selects);
        let written = async {
            self.write_slices(key, &service, &pods).await?;
            self.write_endpoints(key, &service, &pods).await
        };
        match written.await {
            Err(error) if is_terminating(&error) => Ok(Outcome::Done),
            other => other.map(|()| Outcome::Done),
        }
    }
}
