//! Requests of HTTP servers, and what many of them weigh.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::client::Server;
use crate::figures::Figures;
use crate::meter::{Groups, Meter};
use crate::objects::{self, namespace, pods_path};
use crate::pods::{Seen, Watch};

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    address: SocketAddr,
    #[arg(long, default_value_t = 32)]
    clients: usize,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// Servers that are pods, made first.
#[derive(clap::Args, Clone, Debug)]
pub struct PodsOptions {
    #[arg(long)]
    namespace: String,
    #[arg(long)]
    image: String,
    #[arg(long)]
    count: usize,
}

const TRY_AGAIN: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(60);

type Sender = SendRequest<Empty<Bytes>>;

pub async fn run(groups: &Groups, options: &Options) -> Result<Figures> {
    first_answer(options.address).await?;
    let meter = Meter::start(groups)?;
    let options = Arc::new(options.clone());
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let clients = (0..options.clients).map(|_| {
        let address = options.address;
        tokio::spawn(async move {
            let mut sender = connect(address).await?;
            let mut times = Vec::new();
            while Instant::now() < end {
                let start = Instant::now();
                // A server may end a connection after so many requests; that is part of what it takes.
                if sender.is_closed() {
                    sender = connect(address).await?;
                }
                get(&mut sender, address).await?;
                times.push(start.elapsed());
            }
            anyhow::Ok(times)
        })
    });
    let mut times = Vec::new();
    for client in futures::future::join_all(clients).await {
        times.extend(client??);
    }
    let mut figures = Figures::default();
    let taken = meter.stop(&mut figures)?;
    figures.set("requests_per_s", times.len() as f64 / taken.as_secs_f64());
    figures.percentiles("request", &mut times);
    Ok(figures)
}

async fn connect(address: SocketAddr) -> Result<Sender> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn get(sender: &mut Sender, address: SocketAddr) -> Result<()> {
    let request = Request::get("/").header("host", address.to_string()).body(Empty::new())?;
    sender.ready().await?;
    let mut response = sender.send_request(request).await.with_context(|| format!("asking {address}"))?;
    ensure!(response.status().is_success(), "{address} answered {}", response.status());
    while let Some(frame) = response.frame().await {
        frame?;
    }
    Ok(())
}

/// One question on a connection of its own.
pub async fn ask_once(address: SocketAddr) -> Result<()> {
    get(&mut connect(address).await?, address).await
}

/// Asks until it is answered.
pub async fn first_answer(address: SocketAddr) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let asked = async { get(&mut connect(address).await?, address).await };
        match asked.await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error.context("it has never answered")),
            Err(_) => tokio::time::sleep(TRY_AGAIN).await,
        }
    }
}

/// Makes pods and answers the addresses at which they serve.
pub async fn pods(server: &Server, options: &PodsOptions) -> Result<Vec<String>> {
    let connection = server.connect().await?;
    namespace(&connection, &options.namespace).await?;
    let path = pods_path(&options.namespace);
    let mut watch = Watch::start(server, &path).await?;
    let template = objects::serving_pod(&options.image);
    for number in 0..options.count {
        connection.post(&path, template.named(&format!("web-{number}"))).await?;
    }
    watch.wait(Seen::Running, options.count).await?;
    let addresses = watch.addresses();
    ensure!(
        addresses.len() == options.count,
        "{} of {} pods have an address",
        addresses.len(),
        options.count
    );
    for address in &addresses {
        first_answer(SocketAddr::new(address.parse()?, 80)).await?;
    }
    Ok(addresses)
}

/// Deletes the pods again.
pub async fn no_pods(server: &Server, options: &PodsOptions) -> Result<()> {
    let connection = server.connect().await?;
    let path = pods_path(&options.namespace);
    let mut watch = Watch::start(server, &path).await?;
    for number in 0..options.count {
        connection.delete(&format!("{path}/web-{number}")).await?;
    }
    watch.wait(Seen::Gone, options.count).await
}
