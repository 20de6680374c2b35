//! Containers' logs in the CRI format: reading, following, rotating.
//!
//! ```text
//!  <log root>/<ns>_<pod>_<uid>/<container>/<attempt>.log               being written
//!  <log root>/<ns>_<pod>_<uid>/<container>/<attempt>.log.<time>        rotated, the newest last
//!  2026-11-21T05:01:02.123456789Z stdout F a line
//! ```
//!
//! Nothing in a path comes from a request: the pod and the container are looked up first, and the
//! names are those the API server admitted. Files are opened without following links all the same,
//! since a runtime that is taken over could write the directory.

pub(crate) mod follow;
pub(crate) mod rotate;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Which part of a log is wanted, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub(crate) follow: bool,
    pub(crate) previous: bool,
    pub(crate) timestamps: bool,
    pub(crate) tail_lines: Option<usize>,
    pub(crate) limit_bytes: Option<u64>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) stream: Stream,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stream {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// One line of a CRI log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) time: &'a str,
    pub(crate) stream: &'a str,
    /// The writer broke a long line here.
    pub(crate) partial: bool,
    pub(crate) text: &'a [u8],
}

pub(crate) fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tag = parts.next()?;
    let text = parts.next().unwrap_or_default();
    let partial = tag.split(|b| *b == b':').next() == Some(b"P");
    (matches!(stream, "stdout" | "stderr") && !time.is_empty()).then_some(Entry {
        time,
        stream,
        partial,
        text,
    })
}

/// Opens a file beneath the log root, following no link in it.
pub(crate) fn open_beneath(root: &Path, below: &Path) -> io::Result<File> {
    let dir = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = File::from(openat2(&dir, below, flags, Mode::empty(), resolve)?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

const BLOCK: u64 = 64 * 1024;

/// Where the last `n_lines` lines begin.
pub(crate) fn tail_offset(file: &mut File, n_lines: usize) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if n_lines == 0 {
        return Ok(end);
    }
    let (mut position, mut n_found) = (end, 0);
    let mut buffer = Vec::new();
    while position > 0 {
        let start = position.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        buffer.clear();
        file.take(position - start).read_to_end(&mut buffer)?;
        for (index, byte) in buffer.iter().enumerate().rev() {
            let at = start + index as u64;
            // The newline that ends the file ends its last line, and begins none.
            if *byte == b'\n' && at + 1 < end {
                n_found += 1;
                if n_found == n_lines {
                    return Ok(at + 1);
                }
            }
        }
        position = start;
    }
    Ok(0)
}

/// What passes of a log: filters lines by time and stream, and shapes them.
pub(crate) struct Shape {
    since: Option<Timestamp>,
    timestamps: bool,
    stream: Stream,
    left: Option<u64>,
    /// The last piece written was of a line that goes on.
    in_partial: bool,
}

impl Shape {
    pub(crate) fn new(options: &LogOptions) -> Shape {
        Shape {
            since: options.since,
            timestamps: options.timestamps,
            stream: options.stream,
            left: options.limit_bytes,
            in_partial: false,
        }
    }

    /// Nothing more may be written.
    pub(crate) fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    pub(crate) fn push(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(entry) = parse(line) else { return };
        let wanted = match self.stream {
            Stream::All => true,
            Stream::Stdout => entry.stream == "stdout",
            Stream::Stderr => entry.stream == "stderr",
        };
        let early =
            self.since.is_some_and(|since| entry.time.parse::<Timestamp>().is_ok_and(|time| time < since));
        if !wanted || early {
            return;
        }
        let before = out.len();
        if self.timestamps && !self.in_partial {
            out.extend_from_slice(entry.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(entry.text);
        if !entry.partial {
            out.push(b'\n');
        }
        self.in_partial = entry.partial;
        if let Some(left) = &mut self.left {
            let allowed = usize::try_from(*left).unwrap_or(usize::MAX).min(out.len() - before);
            out.truncate(before + allowed);
            *left -= allowed as u64;
        }
    }
}

/// More than a runtime writes of one line in one piece, twice: wherever reading begins, it meets whole pieces.
const TAIL_WINDOW: u64 = 128 * 1024;

/// The end of a log as plain text, for termination messages: of the last lines, the last bytes.
pub(crate) fn tail_text(path: &Path, max_lines: usize, max_bytes: usize) -> String {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return String::new() };
    let read = || -> io::Result<Vec<u8>> {
        let mut file = open_beneath(dir, Path::new(name))?;
        let end = file.seek(SeekFrom::End(0))?;
        let start = tail_offset(&mut file, max_lines)?.max(end.saturating_sub(TAIL_WINDOW));
        file.seek(SeekFrom::Start(start))?;
        let mut raw = Vec::new();
        file.take(TAIL_WINDOW).read_to_end(&mut raw)?;
        let mut shape = Shape::new(&LogOptions::default());
        let mut text = Vec::new();
        raw.split(|b| *b == b'\n').for_each(|line| shape.push(line, &mut text));
        let mut from = text.len().saturating_sub(max_bytes);
        // A character that is cut apart is left out, or it would be shown as another, which is longer.
        while text.get(from).is_some_and(|byte| byte & 0xc0 == 0x80) {
            from += 1;
        }
        Ok(text.split_off(from))
    };
    match read() {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => format!("Error on reading termination message from logs: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:00.1Z stdout F one\n2026-01-01T00:00:01Z stderr F two\n2026-01-01T00:00:02Z stdout P thr\n2026-01-01T00:00:02Z stdout F ee\n";

    fn shaped(options: &LogOptions) -> String {
        let mut shape = Shape::new(options);
        let mut out = Vec::new();
        LOG.as_bytes().split(|b| *b == b'\n').for_each(|line| shape.push(line, &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn partial_lines_are_joined() {
        assert_eq!(shaped(&LogOptions::default()), "one\ntwo\nthree\n");
        let with_times = shaped(&LogOptions { timestamps: true, ..Default::default() });
        assert!(with_times.ends_with("2026-01-01T00:00:02Z three\n"), "{with_times}");
    }

    #[test]
    fn streams_times_and_bytes_limit_what_is_shown() {
        assert_eq!(shaped(&LogOptions { stream: Stream::Stderr, ..Default::default() }), "two\n");
        let since = Some("2026-01-01T00:00:01Z".parse().unwrap());
        assert_eq!(shaped(&LogOptions { since, ..Default::default() }), "two\nthree\n");
        assert_eq!(shaped(&LogOptions { limit_bytes: Some(6), ..Default::default() }), "one\ntw");
    }

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("0.log"), LOG).unwrap();
        let mut file = open_beneath(dir.path(), Path::new("0.log")).unwrap();
        for (n, expected) in [(0, LOG.len()), (1, LOG.rfind("2026").unwrap()), (4, 0), (9, 0)] {
            assert_eq!(tail_offset(&mut file, n).unwrap(), expected as u64, "{n}");
        }
        assert_eq!(tail_text(&dir.path().join("0.log"), 2, 100), "three\n");
    }

    #[test]
    fn a_termination_message_is_the_end_of_the_log_however_long_its_lines_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for (n_lines, length) in [(10, 100), (100, 100), (100, 600), (100, 3000), (5, 60_000), (1, 900_000)] {
            let mut log = String::new();
            for _ in 0..n_lines {
                let line = "\u{e4}".repeat(length / 2);
                // As the runtime's writer breaks long lines.
                for (n, piece) in line.as_bytes().chunks(16 * 1024).enumerate() {
                    let tag = if (n + 1) * 16 * 1024 >= line.len() { "F" } else { "P" };
                    let piece = std::str::from_utf8(piece).unwrap();
                    log.push_str(&format!("2026-01-01T00:00:00.123456789Z stdout {tag} {piece}\n"));
                }
            }
            log.push_str("2026-01-01T00:00:01Z stderr F FATAL: the reason\n");
            std::fs::write(&path, log).unwrap();
            let text = tail_text(&path, 80, 2048);
            assert!(text.ends_with("FATAL: the reason\n"), "{n_lines} x {length}: {text:?}");
            let full = n_lines * length > 2048;
            assert!(
                text.len() <= 2048 && (!full || text.len() > 2040),
                "{n_lines} x {length}: {}",
                text.len()
            );
            assert!(!text.contains('\u{fffd}'));
        }
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("0.log")).unwrap();
        assert!(open_beneath(dir.path(), Path::new("0.log")).is_err());
        assert!(open_beneath(dir.path(), Path::new("../x")).is_err());
        assert!(open_beneath(dir.path(), Path::new(".")).is_err());
    }
}
