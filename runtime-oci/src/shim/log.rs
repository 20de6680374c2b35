//! The container's log in CRI's format: `<RFC 3339 time> <stream> <P|F> <text>`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longer lines are written in parts (`P`), as containerd does.
const MAX_LINE_BYTES: usize = 16 << 10;

pub(super) struct Log {
    path: Option<PathBuf>,
    file: Option<File>,
    /// One read's worth of lines, written at once.
    out: Vec<u8>,
}

/// One of the container's outputs, with the line that has not ended yet.
pub(super) struct Line {
    stream: &'static str,
    text: Vec<u8>,
}

impl Line {
    pub(super) fn new(stream: &'static str) -> Line {
        Line { stream, text: Vec::new() }
    }
}

impl Log {
    /// Output of a container without a log is thrown away.
    pub(super) fn open(path: Option<PathBuf>) -> io::Result<Log> {
        let mut log = Log { path, file: None, out: Vec::new() };
        log.reopen()?;
        Ok(log)
    }

    /// Goes on in a new file at the same path, after the old one was moved away.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.file = Some(open(path)?);
        }
        Ok(())
    }

    /// Takes what a read gave. A disk that is full loses lines; the container does not stop for it.
    pub(super) fn add(&mut self, line: &mut Line, mut bytes: &[u8]) {
        if self.file.is_none() {
            return;
        }
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - line.text.len();
            let here = &bytes[..room.min(bytes.len())];
            if let Some(end) = here.iter().position(|byte| *byte == b'\n') {
                line.text.extend_from_slice(&here[..end]);
                self.finish(line, b'F');
                bytes = &bytes[end + 1..];
            } else {
                line.text.extend_from_slice(here);
                bytes = &bytes[here.len()..];
                if line.text.len() == MAX_LINE_BYTES {
                    self.finish(line, b'P');
                }
            }
        }
        self.write();
    }

    /// The stream has ended. A last line without its end is a part, as containerd has it: whoever reads the log gets
    /// back what was written, to the byte.
    pub(super) fn end(&mut self, line: &mut Line) {
        if !line.text.is_empty() {
            self.finish(line, b'P');
            self.write();
        }
    }

    fn finish(&mut self, line: &mut Line, tag: u8) {
        let _infallible =
            write!(self.out, "{:.9} {} {} ", jiff::Timestamp::now(), line.stream, char::from(tag));
        self.out.append(&mut line.text);
        self.out.push(b'\n');
    }

    fn write(&mut self) {
        if let Some(file) = &mut self.file {
            let _disk_full = file.write_all(&self.out);
        }
        self.out.clear();
        self.out.shrink_to(4 * MAX_LINE_BYTES);
    }
}

/// Never through a link: the directory is the node's, but what is in it may be a container's doing.
fn open(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(flags)
        .open(path)
        .map_err(|err| io::Error::new(err.kind(), format!("open log {}: {err}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The log of these reads of standard output, without the times.
    fn logged(reads: &[&[u8]]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = Log::open(Some(path.clone())).unwrap();
        let mut line = Line::new("stdout");
        for read in reads {
            log.add(&mut line, read);
        }
        log.end(&mut line);
        let text = std::fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| {
                let (time, rest) = line.split_once(' ').unwrap();
                assert!(time.len() == 30 && time.ends_with('Z'), "{time}");
                assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
                rest.to_owned()
            })
            .collect()
    }

    #[test]
    fn lines_are_whole_however_they_were_read() {
        assert_eq!(logged(&[b"a\nb", b"c\n", b"\n"]), ["stdout F a", "stdout F bc", "stdout F "]);
        assert_eq!(logged(&[b"no newline"]), ["stdout P no newline"]);
        assert!(logged(&[]).is_empty());
    }

    #[test]
    fn a_long_line_is_written_in_parts_of_16_kib() {
        let long = vec![b'x'; 2 * MAX_LINE_BYTES + 5];
        let lines = logged(&[&long, b"\ny\n"]);
        let tags: Vec<_> = lines.iter().map(|line| (&line[..9], line.len() - 9)).collect();
        let full = MAX_LINE_BYTES;
        assert_eq!(tags, [("stdout P ", full), ("stdout P ", full), ("stdout F ", 5), ("stdout F ", 1)]);
    }

    #[test]
    fn a_moved_log_goes_on_in_a_new_file_and_a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = Log::open(Some(path.clone())).unwrap();
        let mut line = Line::new("stderr");
        log.add(&mut line, b"old\n");
        std::fs::rename(&path, directory.path().join("0.log.1")).unwrap();
        log.reopen().unwrap();
        log.add(&mut line, b"new\n");
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("stderr F new\n"));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Log::open(Some(link)).is_err());
    }
}
