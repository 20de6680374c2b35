//! Service proxies: from the write of one more endpoint to the first connection that it takes.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::client::{Connection, Server};
use crate::figures::Figures;
use crate::meter::{Groups, Meter};
use crate::objects::{namespace, service, slice, text};
use crate::pods::create;

#[derive(clap::Args, Clone, Debug)]
pub struct FillOptions {
    #[arg(long)]
    namespace: String,
    #[arg(long)]
    services: usize,
}

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    namespace: String,
    /// An address of this network namespace, which the endpoint gets
    #[arg(long)]
    address: Ipv4Addr,
    /// How many endpoints, one after the other
    #[arg(long, default_value_t = 5)]
    count: usize,
}

const CLIENTS: usize = 16;
const TRY_AGAIN: Duration = Duration::from_millis(1);
/// An answer within the machine takes far less; what was sent before the rules were there is not worth waiting for.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the endpoints of the other Services would be: nobody connects to them.
const ELSEWHERE: &str = "10.99.0.250";
/// The greeting by which a connection is known to have reached the endpoint.
const GREETING: &[u8] = b"here\n";
/// As long as upstream's proxies wait between two changes by default, and longer.
const BETWEEN: Duration = Duration::from_millis(1500);

fn services_path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/services")
}

fn slices_path(namespace: &str) -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices")
}

/// Makes Services of one endpoint each, and waits until the last one's rules are there.
pub async fn fill(server: &Server, options: &FillOptions) -> Result<Figures> {
    let connections = server.connections(CLIENTS).await?;
    namespace(&connections[0], &options.namespace).await?;
    let start = Instant::now();
    let make = |number: usize| {
        let connection = &connections[number % CLIENTS];
        async move {
            let name = format!("s{number}");
            create(connection, &services_path(&options.namespace), service(&name).to_string().into()).await?;
            let slice = slice(&name, ELSEWHERE, 8080).to_string();
            create(connection, &slices_path(&options.namespace), slice.into()).await.map(drop)
        }
    };
    let made = futures::stream::iter(0..options.services).map(make).buffer_unordered(CLIENTS);
    made.try_collect::<()>().await?;
    let mut figures = Figures::default();
    figures.set("fill_s", start.elapsed().as_secs_f64());
    Ok(figures)
}

pub async fn run(server: &Server, groups: &Groups, options: &Options) -> Result<Figures> {
    let connection = server.connect().await?;
    let listener = TcpListener::bind((options.address, 0)).await.context("listening as an endpoint")?;
    let port = listener.local_addr()?.port();
    tokio::spawn(greet(listener));
    let made =
        connection.post(&services_path(&options.namespace), service("measured").to_string().into()).await?;
    let cluster_ip: Ipv4Addr = text(&made["spec"]["clusterIP"], "cluster IP")?.parse()?;
    let meter = Meter::start(groups)?;
    let mut times = Vec::new();
    let outcome = async {
        for _ in 0..options.count {
            times.push(one(&connection, &options.namespace, options.address, port, cluster_ip).await?);
        }
        anyhow::Ok(())
    };
    let outcome = outcome.await;
    let mut figures = Figures::default();
    meter.stop(&mut figures)?;
    connection.delete(&format!("{}/measured", services_path(&options.namespace))).await?;
    outcome?;
    figures.percentiles("endpoint_to_connection", &mut times);
    Ok(figures)
}

async fn greet(listener: TcpListener) {
    use tokio::io::AsyncWriteExt as _;
    while let Ok((mut stream, _)) = listener.accept().await {
        // Whoever has gone away again does not want it.
        let _ = stream.write_all(GREETING).await;
    }
}

/// Adds the endpoint, connects until it answers, and takes it away until it does not.
async fn one(
    connection: &Connection,
    namespace: &str,
    address: Ipv4Addr,
    port: u16,
    cluster_ip: Ipv4Addr,
) -> Result<Duration> {
    tokio::time::sleep(BETWEEN).await;
    let path = slices_path(namespace);
    let body = slice("measured", &address.to_string(), port).to_string();
    let start = Instant::now();
    create(connection, &path, body.into()).await?;
    until(cluster_ip, true).await.context("the endpoint was not reached")?;
    let taken = start.elapsed();
    connection.delete(&format!("{path}/measured-1")).await?;
    until(cluster_ip, false).await.context("the endpoint was reached after it was gone")?;
    Ok(taken)
}

async fn until(address: Ipv4Addr, reached: bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if reaches(address).await == reached {
            return Ok(());
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
    bail!("waited {} s", PATIENCE.as_secs())
}

async fn reaches(address: Ipv4Addr) -> bool {
    let asking = async {
        let mut stream = TcpStream::connect((address, 80)).await?;
        let mut greeting = [0; GREETING.len()];
        stream.read_exact(&mut greeting).await?;
        std::io::Result::Ok(greeting == *GREETING)
    };
    matches!(tokio::time::timeout(CONNECT_TIMEOUT, asking).await, Ok(Ok(true)))
}
