//! Lists of many pods, read as they come and counted.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use regex::bytes::Regex;

use crate::client::{Connection, Server};
use crate::figures::Figures;
use crate::meter::{Groups, Meter};
use crate::objects::{MARK, pods_path};

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    namespace: String,
    /// How many pods the namespace has
    #[arg(long)]
    pods: usize,
    /// How many lists
    #[arg(long, default_value_t = 5)]
    count: usize,
}

pub async fn run(server: &Server, groups: &Groups, options: &Options) -> Result<Figures> {
    let connection = server.connect().await?;
    let path = pods_path(&options.namespace);
    let listed = Listed::new(&path, options.pods)?;
    let meter = Meter::start(groups)?;
    let (mut times, mut bytes) = (Vec::new(), 0);
    for _ in 0..options.count {
        let (time, size) = listed.list(&connection).await?;
        times.push(time);
        bytes = size;
    }
    let mut figures = Figures::default();
    meter.stop(&mut figures)?;
    figures.percentiles("list", &mut times);
    figures.set("answer_mb", bytes as f64 / 1e6);
    Ok(figures)
}

/// A collection of which it is known how many it has.
pub(super) struct Listed<'p> {
    path: &'p str,
    count: usize,
    mark: Regex,
}

impl<'p> Listed<'p> {
    pub(super) fn new(path: &'p str, count: usize) -> Result<Listed<'p>> {
        Ok(Listed { path, count, mark: Regex::new(&regex::escape(MARK))? })
    }

    /// How long a list took and how large it was; an error if one is missing.
    pub(super) async fn list(&self, connection: &Connection) -> Result<(Duration, usize)> {
        let start = Instant::now();
        let (size, items) = list(connection, self.path, &self.mark).await?;
        let time = start.elapsed();
        ensure!(items == self.count, "a list of {items} objects instead of {}", self.count);
        Ok((time, size))
    }
}

async fn list(connection: &Connection, path: &str, mark: &Regex) -> Result<(usize, usize)> {
    let mut body = connection.open(Method::GET, path, "", Bytes::new()).await?.into_body();
    let (mut size, mut count) = (0, Counter { mark, tail: Vec::new(), found: 0 });
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            size += data.len();
            count.feed(&data);
        }
    }
    Ok((size, count.found))
}

/// Counts a mark in a text that comes in pieces.
struct Counter<'a> {
    mark: &'a Regex,
    /// The end of the last piece, too short to hold the mark.
    tail: Vec<u8>,
    found: usize,
}

impl Counter<'_> {
    fn feed(&mut self, piece: &[u8]) {
        let overlap = MARK.len() - 1;
        self.found += self.mark.find_iter(piece).count();
        // Marks over the border: a window that is too short to hold one that lies in the piece alone.
        self.tail.extend_from_slice(&piece[..piece.len().min(overlap)]);
        self.found += self.mark.find_iter(&self.tail).count();
        if piece.len() >= overlap {
            self.tail.clear();
            self.tail.extend_from_slice(&piece[piece.len() - overlap..]);
        } else {
            let over = self.tail.len().saturating_sub(overlap);
            self.tail.drain(..over);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_counted_however_the_text_is_cut() {
        let mark = Regex::new(MARK).expect("it is one");
        let text = format!("x{MARK}yy{MARK}{MARK}z").into_bytes();
        for size in 1..=text.len() {
            let mut counter = Counter { mark: &mark, tail: Vec::new(), found: 0 };
            text.chunks(size).for_each(|piece| counter.feed(piece));
            assert_eq!(counter.found, 3, "pieces of {size}");
        }
    }
}
