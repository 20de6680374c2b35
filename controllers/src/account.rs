//! What every namespace starts with: the service account `default`, and the cluster's CA in `kube-root-ca.crt`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use skiff_client::{Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, exists_is_fine, is_terminating};

const ROOT_CA: &str = "kube-root-ca.crt";
const DEFAULT: &str = "default";

pub(crate) struct Accounts {
    client: Client,
    /// Who writes the CA bundle is somebody else upstream.
    publisher: Client,
    ca_pem: String,
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    config_maps: Informer<ConfigMap>,
    queue: WorkQueue<ObjectKey>,
}

impl Accounts {
    pub(crate) fn new(context: &Context, ca_pem: String) -> Self {
        let informers = &context.informers;
        let queue = WorkQueue::default();
        let namespaces = informers.of::<Namespace>();
        let wake = queue.clone();
        namespaces.on_change(move |change| {
            if let Some(namespace) = change.object() {
                wake.add(key_of(&**namespace));
            }
        });
        // Only these two names matter, in any namespace.
        let accounts = informers.with_fields::<ServiceAccount>("metadata.name=default");
        let wake = queue.clone();
        accounts.on_change(move |change| {
            if let Some(account) = change.object() {
                wake.add(ObjectKey::new("", account.metadata.namespace.clone().unwrap_or_default()));
            }
        });
        let config_maps = informers.with_fields::<ConfigMap>("metadata.name=kube-root-ca.crt");
        let wake = queue.clone();
        config_maps.on_change(move |change| {
            if let Some(map) = change.object() {
                wake.add(ObjectKey::new("", map.metadata.namespace.clone().unwrap_or_default()));
            }
        });
        let publisher = context.credentials.client("root-ca-cert-publisher");
        Accounts { client: context.client.clone(), publisher, ca_pem, namespaces, accounts, config_maps, queue }
    }

    async fn write(&self, namespace: &str) -> Result<(), kube::Error> {
        if self.accounts.get(&ObjectKey::new(namespace, DEFAULT)).is_none() {
            let account = ServiceAccount { metadata: named(DEFAULT), ..ServiceAccount::default() };
            let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
            exists_is_fine(api.create(&PostParams::default(), &account).await)?;
        }
        let data = BTreeMap::from([("ca.crt".to_owned(), self.ca_pem.clone())]);
        let api: Api<ConfigMap> = Api::namespaced(self.publisher.clone(), namespace);
        match self.config_maps.get(&ObjectKey::new(namespace, ROOT_CA)) {
            None => {
                let mut metadata = named(ROOT_CA);
                let note = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                            endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                            guaranteed across distributions of Kubernetes clusters.";
                metadata.annotations =
                    Some(BTreeMap::from([("kubernetes.io/description".into(), note.into())]));
                let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
                exists_is_fine(api.create(&PostParams::default(), &map).await)
            }
            Some(map) if map.data.as_ref() != Some(&data) => {
                let mut map = ConfigMap::clone(&map);
                map.data = Some(data);
                api.replace(ROOT_CA, &PostParams::default(), &map).await.map(drop)
            }
            Some(_) => Ok(()),
        }
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }
}

impl Controller for Accounts {
    const NAME: &'static str = "serviceaccount";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.namespaces.synced().await;
        self.accounts.synced().await;
        self.config_maps.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let active = self.namespaces.get(key).is_some_and(|n| n.metadata.deletion_timestamp.is_none());
        if !active {
            return Ok(Outcome::Done);
        }
        match self.write(&key.name).await {
            Err(error) if is_terminating(&error) => Ok(Outcome::Done),
            other => other.map(|()| Outcome::Done),
        }
    }
}
