//! `skiff service`: where a cluster's Services are published.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::ListParams;
use skiff_client::Read;

use crate::cluster::client;

#[derive(Subcommand, Debug)]
pub(crate) enum ServiceCommand {
    /// List the published addresses
    #[command(visible_alias = "ls")]
    List,
    /// Print the URL of one Service
    Url {
        name: String,
        #[arg(long, short, default_value = "default")]
        namespace: String,
    },
}

pub(crate) async fn run(command: ServiceCommand, kubeconfig: &Path) -> Result<()> {
    let kube = client(kubeconfig).await?;
    match command {
        ServiceCommand::List => {
            let services: Api<Read<Service>> = Api::all(kube);
            println!("{:<20} {:<30} {:<20} URL", "NAMESPACE", "NAME", "ADDRESS");
            for Read(service) in services.list(&ListParams::default()).await? {
                let meta = &service.metadata;
                for (address, port) in published(&service) {
                    println!(
                        "{:<20} {:<30} {:<20} {}",
                        meta.namespace.as_deref().unwrap_or_default(),
                        meta.name.as_deref().unwrap_or_default(),
                        format!("{address}:{port}"),
                        url(&address, port),
                    );
                }
            }
        }
        ServiceCommand::Url { name, namespace } => {
            let services: Api<Read<Service>> = Api::namespaced(kube, &namespace);
            let Read(service) =
                services.get(&name).await.with_context(|| format!("service {namespace}/{name}"))?;
            let Some((address, port)) = published(&service).into_iter().next() else {
                bail!(
                    "service {namespace}/{name} has no address yet; only Services of type LoadBalancer get one"
                );
            };
            println!("{}", url(&address, port));
        }
    }
    Ok(())
}

fn published(service: &Service) -> Vec<(String, i32)> {
    let ingress =
        service.status.iter().flat_map(|s| s.load_balancer.iter().flat_map(|l| l.ingress.iter().flatten()));
    let ports: Vec<i32> =
        service.spec.iter().flat_map(|s| s.ports.iter().flatten()).map(|p| p.port).collect();
    ingress
        .filter_map(|i| i.ip.clone().or_else(|| i.hostname.clone()))
        .flat_map(|address| ports.iter().map(move |port| (address.clone(), *port)))
        .collect()
}

fn url(address: &str, port: i32) -> String {
    match port {
        80 => format!("http://{address}"),
        443 => format!("https://{address}"),
        port => format!("http://{address}:{port}"),
    }
}
