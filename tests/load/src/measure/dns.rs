//! Queries of Services' names over UDP.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::net::UdpSocket;

use crate::figures::Figures;
use crate::meter::{Groups, Meter};

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    namespace: String,
    #[arg(long)]
    address: SocketAddr,
    /// How many Services `proxy-fill` has made
    #[arg(long)]
    services: usize,
    #[arg(long, default_value_t = 32)]
    clients: usize,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_ANSWER_BYTES: usize = 1232;
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;
/// The most that may go unanswered for the rest to be a measurement.
const MAX_LOST_SHARE: f64 = 0.001;

pub async fn run(groups: &Groups, options: &Options) -> Result<Figures> {
    wait(options).await?;
    let meter = Meter::start(groups)?;
    let options = Arc::new(options.clone());
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let clients = (0..options.clients).map(|client| tokio::spawn(ask(options.clone(), client, end)));
    let (mut times, mut lost) = (Vec::new(), 0);
    for client in futures::future::join_all(clients).await {
        let (more, missing) = client??;
        times.extend(more);
        lost += missing;
    }
    let mut figures = Figures::default();
    let taken = meter.stop(&mut figures)?;
    ensure!(
        f64::from(lost) <= times.len() as f64 * MAX_LOST_SHARE,
        "{lost} queries of {} were not answered",
        times.len()
    );
    figures.set("queries_per_s", times.len() as f64 / taken.as_secs_f64());
    figures.percentiles("query", &mut times);
    Ok(figures)
}

/// The last name that was made is the last one that a server learns of.
async fn wait(options: &Options) -> Result<()> {
    const TRIES: usize = 600;
    let socket = connect(options.address).await?;
    let name = name(options, options.services - 1);
    let mut last = Ok(());
    for _ in 0..TRIES {
        last = resolve(&socket, 0, &name).await;
        if last.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    last.with_context(|| format!("{} does not know {name}", options.address))
}

async fn connect(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(address).await?;
    Ok(socket)
}

fn name(options: &Options, number: usize) -> String {
    format!("s{number}.{}.svc.cluster.local", options.namespace)
}

async fn ask(options: Arc<Options>, client: usize, end: Instant) -> Result<(Vec<Duration>, u32)> {
    let socket = connect(options.address).await?;
    let (mut times, mut lost, mut number) = (Vec::new(), 0, client);
    while Instant::now() < end {
        number = (number + options.clients) % options.services;
        let start = Instant::now();
        let id = (times.len() as u16).wrapping_add(1);
        match tokio::time::timeout(ANSWER_TIMEOUT, resolve(&socket, id, &name(&options, number))).await {
            Ok(answer) => {
                answer?;
                times.push(start.elapsed());
            }
            Err(_) => lost += 1,
        }
    }
    Ok((times, lost))
}

async fn resolve(socket: &UdpSocket, id: u16, name: &str) -> Result<()> {
    socket.send(&query(id, name)).await?;
    let mut answer = [0; MAX_ANSWER_BYTES];
    loop {
        let size = socket.recv(&mut answer).await?;
        if let Some(outcome) = check(id, &answer[..size]) {
            return outcome.with_context(|| format!("asking for {name}"));
        }
    }
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    // Recursion desired, one question.
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    for word in [TYPE_A, CLASS_IN] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    message
}

/// `None` for an answer to something else, such as a query that was given up.
fn check(id: u16, answer: &[u8]) -> Option<Result<()>> {
    let word = |at: usize| Some(u16::from_be_bytes([*answer.get(at)?, *answer.get(at + 1)?]));
    if word(0)? != id {
        return None;
    }
    let (code, answers) = (word(2)? & 0xf, word(6)?);
    Some(if code == 0 && answers > 0 {
        Ok(())
    } else {
        Err(anyhow::anyhow!("answered with code {code} and {answers} records"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_one_question_for_an_address() {
        let message = query(0x0102, "s1.a");
        assert_eq!(message, [1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, b's', b'1', 1, b'a', 0, 0, 1, 0, 1]);
    }

    #[test]
    fn only_an_address_for_the_own_question_counts() {
        let mut answer = query(7, "a");
        answer[2] = 0x81;
        assert!(check(7, &answer).is_some_and(|outcome| outcome.is_err()), "no record");
        answer[7] = 1;
        assert!(check(7, &answer).is_some_and(|outcome| outcome.is_ok()));
        answer[3] = 3;
        assert!(check(7, &answer).is_some_and(|outcome| outcome.is_err()), "no such name");
        assert!(check(8, &answer).is_none());
        assert!(check(7, &answer[..5]).is_none());
    }
}
