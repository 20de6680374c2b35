//! Scheduler and controllers of a server: which of them run, and while who else does not.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use skiff_client::Candidate;
use skiff_controllers::{Credentials, Joining, JoiningOptions, Reached};
use tokio::sync::watch;

use super::{Server, ServerArgs, administrator, client, serving_names};
use crate::node::{self, Parts};
use crate::pki::Pki;

/// What of a server works as one, and takes turns with others by a Lease of its name.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Component {
    Scheduler,
    ControllerManager,
}

/// Of the cluster's range, each node gets a part this long.
const NODE_PREFIX: u8 = 24;

impl Server {
    /// Scheduler and controllers, each for as long as it holds upstream's Lease.
    pub(super) async fn start_control_plane(&self, parts: &mut Parts) -> Result<()> {
        let identity = self.identity().await?;
        if !self.args.disable.contains(&Component::Scheduler) {
            self.start_scheduler(&identity, parts)?;
        }
        if !self.args.disable.contains(&Component::ControllerManager) && !self.args.controllers.is_empty() {
            self.start_controllers(&identity, parts)?;
        }
        Ok(())
    }

    /// Who this server is among those that could do its work: one that comes back is the same, and no other has its store.
    async fn identity(&self) -> Result<String> {
        let namespaces: Api<Namespace> = Api::all(administrator(&self.api));
        let system = namespaces.get("kube-system").await.context("looking at the namespace kube-system")?;
        Ok(format!("{}_{}", self.node.name, system.metadata.uid.unwrap_or_default()))
    }

    fn start_scheduler(&self, identity: &str, parts: &mut Parts) -> Result<()> {
        let client = client(&self.api, "system:kube-scheduler", &[]);
        let candidate =
            Candidate { client: client.clone(), name: "kube-scheduler", identity: identity.to_owned() };
        let (seen, host, stop) = (self.informers.clone(), node::host_name()?, self.shutdown.clone());
        parts.spawn(async move {
            let run = |term| skiff_scheduler::run(client.clone(), seen.clone(), host.clone(), term);
            skiff_client::lead(candidate, stop, run).await;
            Ok("scheduler")
        });
        Ok(())
    }

    /// When the authority has been given another certificate they start anew: it is in what they publish, and its end in what
    /// they sign.
    fn start_controllers(&self, identity: &str, parts: &mut Parts) -> Result<()> {
        let Server { args, node, pki, reached, .. } = self;
        let api = self.api.clone();
        let config = skiff_controllers::Config {
            credentials: Credentials::new(move |user, groups| client(&api, user, groups)),
            service_lb: args.service_lb,
            local_storage_class: Some(args.local_storage_class.clone()).filter(|name| !name.is_empty()),
            selection: args.controllers.clone(),
        };
        let mut joining = joining(args, node.ip, pki, reached.subscribe())?;
        let (args, node_ip, pki, reached) = (args.clone(), node.ip, pki.clone(), reached.clone());
        let (seen, stop, mut authority) =
            (self.informers.clone(), self.shutdown.clone(), self.authority.subscribe());
        let client = client(&self.api, "system:kube-controller-manager", &[]);
        let identity = identity.to_owned();
        parts.spawn(async move {
            loop {
                let (client, identity) = (client.clone(), identity.clone());
                let candidate = Candidate { client, name: "kube-controller-manager", identity };
                let (config, seen, ca_pem) = (config.clone(), seen.clone(), pki.ca_pem());
                let run = move |term| {
                    let (config, joining) = (config.clone(), joining.clone());
                    skiff_controllers::run(config, Some(joining), ca_pem.clone(), seen.clone(), term)
                };
                let until = stop.child_token();
                let leading = skiff_client::lead(candidate, until.clone(), run);
                let mut leading = std::pin::pin!(leading);
                let is_anew = tokio::select! {
                    // Both only wait.
                    () = leading.as_mut() => false,
                    Ok(()) = authority.changed() => true,
                };
                if !is_anew {
                    return Ok("controllers");
                }
                until.cancel();
                leading.await;
                joining = self::joining(&args, node_ip, &pki, reached.subscribe())?;
            }
        });
        Ok(())
    }
}

/// What nodes need to join, by the authority's certificate of the moment.
fn joining(
    args: &ServerArgs,
    node_ip: Ipv4Addr,
    pki: &Pki,
    reached: watch::Receiver<Reached>,
) -> Result<Joining> {
    let (reserved_names, _) = serving_names(args, node_ip)?;
    Joining::new(JoiningOptions {
        reached,
        ca_pem: &pki.ca_pem(),
        ca_key_pem: &pki.ca_key_pem(),
        reserved_names,
        cluster_cidr: &args.cluster_cidr,
        node_prefix: NODE_PREFIX,
        service_cidr: Some(&args.service_cidr),
    })
    .context("preparing for nodes to join")
}
