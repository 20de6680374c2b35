//! Streams a log, and keeps streaming while it is written, across rotations.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::sync::mpsc;

use crate::logs::{LogOptions, Shape, open_beneath, tail_offset};

const CHUNK: usize = 64 * 1024;
/// A line longer than this is not a line of a CRI log.
const MAX_LINE: usize = 1024 * 1024;

/// Sends the log at `<root>/<below>` until its end; with `follow`, until `ended` says that the
/// container has ended and all is sent. Ends early if the receiver goes away.
pub(crate) async fn stream(
    root: PathBuf,
    below: PathBuf,
    options: LogOptions,
    mut ended: impl AsyncFnMut() -> bool,
    out: mpsc::Sender<io::Result<Bytes>>,
) {
    let mut changes = if options.follow { watch(&root.join(&below)) } else { None };
    let mut reader = match Reader::open(root, below, &options).await {
        Ok(reader) => reader,
        Err(error) => return drop(out.send(Err(error)).await),
    };
    // An empty piece says that the log is open: a silent container may write its first line much later.
    if out.send(Ok(Bytes::new())).await.is_err() {
        return;
    }
    loop {
        // The order matters: what was written before the container ended is read after asking.
        let is_last = !options.follow || ended().await;
        match reader.read_on(&out).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return drop(out.send(Err(error)).await),
        }
        if is_last {
            return;
        }
        let Some(changes) = &mut changes else { return };
        // A container that ends writes nothing, so its state is looked at now and then.
        tokio::select! {
            _ = changes.next() => {}
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
            () = out.closed() => return,
        }
    }
}

type Changes = inotify::EventStream<Vec<u8>>;

fn watch(path: &Path) -> Option<Changes> {
    let inotify = Inotify::init().ok()?;
    // The directory, not the file: a rotation puts another file in its place.
    inotify
        .watches()
        .add(path.parent()?, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO)
        .ok()?;
    inotify.into_event_stream(vec![0; 4096]).ok()
}

struct Reader {
    root: PathBuf,
    below: PathBuf,
    file: File,
    shape: Shape,
    pending: Vec<u8>,
}

impl Reader {
    async fn open(root: PathBuf, below: PathBuf, options: &LogOptions) -> io::Result<Reader> {
        let (shape, tail) = (Shape::new(options), options.tail_lines);
        let open = move || {
            let mut file = open_beneath(&root, &below)?;
            let start = match tail {
                Some(n_lines) => tail_offset(&mut file, n_lines)?,
                None => 0,
            };
            file.seek(SeekFrom::Start(start))?;
            Ok(Reader { root, below, file, shape, pending: Vec::new() })
        };
        tokio::task::spawn_blocking(open).await.map_err(io::Error::other)?
    }

    /// Sends all that is there. Answers whether more could be sent.
    async fn read_on(&mut self, out: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<bool> {
        loop {
            let (n_read, text) = self.read_chunk()?;
            if !text.is_empty() && out.send(Ok(Bytes::from(text))).await.is_err() || self.shape.is_full() {
                return Ok(false);
            }
            if n_read == 0 && !self.reopen_if_rotated()? {
                return Ok(true);
            }
        }
    }

    /// A chunk comes from the page cache or a local disk: too short to be worth a thread.
    fn read_chunk(&mut self) -> io::Result<(usize, Vec<u8>)> {
        let mut buffer = vec![0; CHUNK];
        let n_read = self.file.read(&mut buffer)?;
        self.pending.extend_from_slice(&buffer[..n_read]);
        let mut text = Vec::new();
        if let Some(end) = self.pending.iter().rposition(|b| *b == b'\n') {
            let rest = self.pending.split_off(end + 1);
            self.pending.split(|b| *b == b'\n').for_each(|line| self.shape.push(line, &mut text));
            self.pending = rest;
        }
        if self.pending.len() > MAX_LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the log holds a line that is too long"));
        }
        Ok((n_read, text))
    }

    fn reopen_if_rotated(&mut self) -> io::Result<bool> {
        let Ok(fresh) = open_beneath(&self.root, &self.below) else { return Ok(false) };
        if fresh.metadata()?.ino() == self.file.metadata()?.ino() {
            return Ok(false);
        }
        self.file = fresh;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn line(text: &str) -> String {
        format!("2026-01-01T00:00:00Z stdout F {text}\n")
    }

    #[tokio::test]
    async fn a_followed_log_goes_on_across_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, line("one")).unwrap();
        let (tx, mut rx) = mpsc::channel(4);
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let ended = async move || is_over.load(Ordering::SeqCst);
        let task = tokio::spawn(stream(dir.path().to_owned(), "0.log".into(), options, ended, tx));
        assert!(rx.recv().await.unwrap().unwrap().is_empty(), "the log is open");
        assert_eq!(&rx.recv().await.unwrap().unwrap()[..], b"one\n");

        let mut old = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        old.write_all(line("two").as_bytes()).unwrap();
        std::fs::write(&path, line("three")).unwrap();
        over.store(true, Ordering::SeqCst);
        let mut rest = Vec::new();
        while let Some(chunk) = rx.recv().await {
            rest.extend_from_slice(&chunk.unwrap());
        }
        assert_eq!(String::from_utf8(rest).unwrap(), "two\nthree\n");
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_log_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (tx, mut rx) = mpsc::channel(1);
        stream(dir.path().to_owned(), "0.log".into(), LogOptions::default(), async || true, tx).await;
        assert_eq!(rx.recv().await.unwrap().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
