//! A container's output as CRI log lines: `2026-01-02T03:04:05.000000006Z stdout F text`; or as it comes, on this process's own
//! standard output and error.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime::{FrameInfo, Trap, WasmBacktrace};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::compile::one_line;

/// A longer line is written in parts, marked `P`.
const MAX_LINE_BYTES: usize = 16 << 10;
/// Functions that are named of a guest that failed.
const MAX_FRAMES: usize = 20;
/// What is written of a module's or a function's name. They are the guest's, and short ones may stand for endless ones.
const MAX_NAME_BYTES: usize = 256;
/// What a guest may write at once.
const MAX_WRITE_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// A container's log file; without a path everything is discarded.
pub(crate) struct ContainerLog {
    path: Option<PathBuf>,
    file: Mutex<Option<File>>,
    is_plain: bool,
}

impl ContainerLog {
    pub(crate) fn open(path: Option<PathBuf>) -> io::Result<Arc<ContainerLog>> {
        let file = path.as_deref().map(open).transpose()?;
        Ok(Arc::new(ContainerLog { path, file: Mutex::new(file), is_plain: false }))
    }

    /// Of a guest whose output is this process's.
    pub(crate) fn plain() -> Arc<ContainerLog> {
        Arc::new(ContainerLog { path: None, file: Mutex::default(), is_plain: true })
    }

    /// Whoever reads it may have gone, which is no reason to stop.
    fn write_plain(&self, stream: Stream, text: &[u8]) {
        _ = match stream {
            Stream::Stdout => io::stdout().lock().write_all(text),
            Stream::Stderr => io::stderr().lock().write_all(text),
        };
    }

    /// Goes on in a new file after the old one was renamed.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        let file = self.path.as_deref().map(open).transpose()?;
        *self.file.lock() = file;
        Ok(())
    }

    /// One line of the host's own.
    pub(crate) fn say(&self, stream: Stream, line: &str) {
        if self.is_plain {
            return self.write_plain(stream, format!("{line}\n").as_bytes());
        }
        let (mut text, mut rest) = (Vec::new(), line.as_bytes());
        while let Some((part, further)) =
            rest.split_at_checked(MAX_LINE_BYTES).filter(|(_, rest)| !rest.is_empty())
        {
            append(&mut text, stream, "P", part);
            rest = further;
        }
        append(&mut text, stream, "F", rest);
        self.write(&text);
    }

    pub(crate) fn say_all(&self, stream: Stream, lines: &[String]) {
        lines.iter().for_each(|line| self.say(stream, line));
    }

    /// A disk that is full loses lines rather than stopping the guest.
    fn write(&self, text: &[u8]) {
        if let Some(file) = self.file.lock().as_mut()
            && let Err(err) = file.write_all(text)
        {
            tracing::warn!(path = ?self.path, %err, "container log");
        }
    }
}

/// Why a guest failed: on one line, and where it was then.
pub(crate) struct Failure {
    pub(crate) reason: String,
    /// The innermost function first, by name where the module has names.
    pub(crate) backtrace: Vec<String>,
}

pub(crate) fn failure(err: &wasmtime::Error) -> Failure {
    let frames = err.downcast_ref::<WasmBacktrace>().map(WasmBacktrace::frames).unwrap_or_default();
    let line = |frame: &FrameInfo| {
        let module = name(frame.module().name().unwrap_or("<module>"));
        match frame.func_name() {
            Some(function) => {
                format!("    at {module}!{}", name(format_args!("{:#}", rustc_demangle::demangle(function))))
            }
            None => format!("    at {module}!<function {}>", frame.func_index()),
        }
    };
    let reason = match err.downcast_ref::<Trap>() {
        Some(trap) => {
            let trap = trap.to_string();
            format!("wasm trap: {}", trap.strip_prefix("wasm trap: ").unwrap_or(&trap))
        }
        // The trace is a context, too, and would be said on the same line.
        None if !frames.is_empty() => one_line(&wasmtime::Error::msg(err.root_cause().to_string())),
        None => one_line(err),
    };
    Failure { reason, backtrace: frames.iter().take(MAX_FRAMES).map(line).collect() }
}

/// A name as it may stand in a line: not too long, and nothing in it that begins another.
fn name(full: impl fmt::Display) -> String {
    struct Short(String);
    impl fmt::Write for Short {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for character in text.chars() {
                if self.0.len() + character.len_utf8() > MAX_NAME_BYTES {
                    // Ends whoever would go on.
                    return Err(fmt::Error);
                }
                self.0.push(if character.is_control() { '?' } else { character });
            }
            Ok(())
        }
    }
    let mut short = Short(String::new());
    if fmt::write(&mut short, format_args!("{full}")).is_err() {
        short.0.push_str("...");
    }
    short.0
}

/// The directory may be writable by others: a link planted there is not followed.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(path)
}

fn append(text: &mut Vec<u8>, stream: Stream, tag: &str, line: &[u8]) {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.9fZ");
    text.extend_from_slice(format!("{now} {} {tag} ", stream.name()).as_bytes());
    text.extend_from_slice(line);
    text.push(b'\n');
}

/// One instance's standard output or error. Lines of instances that run at once do not mix.
#[derive(Clone)]
pub(crate) struct GuestOutput(Arc<Lines>);

struct Lines {
    log: Arc<ContainerLog>,
    stream: Stream,
    /// The line so far.
    pending: Mutex<Vec<u8>>,
}

impl GuestOutput {
    pub(crate) fn new(log: &Arc<ContainerLog>, stream: Stream) -> GuestOutput {
        GuestOutput(Arc::new(Lines { log: log.clone(), stream, pending: Mutex::default() }))
    }

    fn push(&self, mut bytes: &[u8]) {
        let lines = &self.0;
        if lines.log.is_plain {
            return lines.log.write_plain(lines.stream, bytes);
        }
        let mut pending = lines.pending.lock();
        let mut text = Vec::new();
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - pending.len();
            match bytes.iter().take(room + 1).position(|byte| *byte == b'\n') {
                Some(end) => {
                    pending.extend_from_slice(&bytes[..end]);
                    append(&mut text, lines.stream, "F", &pending);
                    pending.clear();
                    bytes = &bytes[end + 1..];
                }
                None if bytes.len() <= room => {
                    pending.extend_from_slice(bytes);
                    break;
                }
                None => {
                    pending.extend_from_slice(&bytes[..room]);
                    append(&mut text, lines.stream, "P", &pending);
                    pending.clear();
                    bytes = &bytes[room..];
                }
            }
        }
        drop(pending);
        if !text.is_empty() {
            lines.log.write(&text);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let pending = self.pending.get_mut();
        if !pending.is_empty() {
            let mut text = Vec::new();
            append(&mut text, self.stream, "F", pending);
            self.log.write(&text);
        }
    }
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for GuestOutput {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.push(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl OutputStream for GuestOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.push(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_WRITE_BYTES)
    }
}

#[async_trait::async_trait]
impl Pollable for GuestOutput {
    async fn ready(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(writes: &[&[u8]]) -> Vec<(String, usize)> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let log = ContainerLog::open(Some(path.clone())).unwrap();
        let output = GuestOutput::new(&log, Stream::Stdout);
        writes.iter().for_each(|bytes| output.push(bytes));
        drop(output);
        let text = std::fs::read_to_string(path).unwrap();
        let line = |line: &str| {
            let fields: Vec<_> = line.splitn(4, ' ').collect();
            assert_eq!((fields[0].len(), fields[1]), (30, "stdout"), "{line}");
            (fields[2].to_owned(), fields[3].len())
        };
        text.lines().map(line).collect()
    }

    #[test]
    fn a_line_is_full_wherever_its_writes_were_cut() {
        let full = |n| ("F".to_owned(), n);
        assert_eq!(logged(&[b"ab", b"c\nd", b"e\n\n", b"end"]), [full(3), full(2), full(0), full(3)]);
    }

    #[test]
    fn a_long_line_comes_in_parts_and_one_that_just_fits_does_not() {
        let long = [vec![b'x'; MAX_LINE_BYTES + 5], b"\n".to_vec()].concat();
        assert_eq!(logged(&[&long]), [("P".to_owned(), MAX_LINE_BYTES), ("F".to_owned(), 5)]);
        let fits = [vec![b'x'; MAX_LINE_BYTES], b"\n".to_vec()].concat();
        assert_eq!(logged(&[&fits]), [("F".to_owned(), MAX_LINE_BYTES)]);
    }

    #[test]
    fn a_name_is_short_and_begins_no_line() {
        assert_eq!(name("a\nb"), "a?b");
        assert_eq!(name("x".repeat(MAX_NAME_BYTES)).len(), MAX_NAME_BYTES);
        assert_eq!(name("ü".repeat(MAX_NAME_BYTES)), "ü".repeat(MAX_NAME_BYTES / 2) + "...");
        let demangled = |mangled: &str| name(format_args!("{:#}", rustc_demangle::demangle(mangled)));
        assert_eq!(demangled("_ZN3foo3barE"), "foo::bar");
        assert_eq!(demangled(&format!("_ZN300{}E", "x".repeat(300))).len(), MAX_NAME_BYTES + 3);
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::os::unix::fs::symlink(directory.path().join("target"), &path).unwrap();
        assert!(ContainerLog::open(Some(path)).is_err());
    }
}
