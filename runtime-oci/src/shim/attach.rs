//! Who reads a container's output beside its log.
//!
//! Nothing is lost to a reader that keeps up now and then: while one has not taken what it was given, the output it comes
//! from waits, as it would for a terminal. A reader that takes nothing for half a minute is let go, so that nobody who
//! stands still holds up a container.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

#[derive(Default)]
pub(super) struct Attachments(Vec<Reader>);

struct Reader {
    connection: u64,
    stream: Stream,
    to: OwnedFd,
    /// What it has not taken.
    left: Vec<u8>,
    since: Instant,
}

impl Attachments {
    pub(super) fn add(&mut self, connection: u64, stream: Stream, to: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&to, true)?;
        self.0.push(Reader { connection, stream, to, left: Vec::new(), since: Instant::now() });
        Ok(())
    }

    pub(super) fn remove(&mut self, connection: u64) {
        self.0.retain(|reader| reader.connection != connection);
    }

    /// Gives a piece of an output to all who read it.
    pub(super) fn give(&mut self, stream: Stream, piece: &[u8]) {
        self.0.retain_mut(|reader| {
            if reader.stream != stream {
                return true;
            }
            reader.left.extend_from_slice(piece);
            reader.write()
        });
    }

    /// Whether somebody has not taken what the output gave last.
    pub(super) fn hold_back(&self, stream: Stream) -> bool {
        self.0.iter().any(|reader| reader.stream == stream && !reader.left.is_empty())
    }

    pub(super) fn are_settled(&self) -> bool {
        self.0.iter().all(|reader| reader.left.is_empty())
    }

    /// Those that are waited for, each with its place.
    pub(super) fn waited_for(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let waiting = self.0.iter().enumerate().filter(|(_, reader)| !reader.left.is_empty());
        waiting.map(|(place, reader)| (place, reader.to.as_fd()))
    }

    /// Goes on with those at these places, in growing order.
    pub(super) fn go_on(&mut self, places: &[usize]) {
        for place in places.iter().rev() {
            if self.0.get_mut(*place).is_some_and(|reader| !reader.write()) {
                self.0.remove(*place);
            }
        }
    }

    /// When the first of those that are waited for has had its time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.iter().filter(|reader| !reader.left.is_empty()).map(|reader| reader.since + PATIENCE).min()
    }

    /// The connections of those that have had their time.
    pub(super) fn overdue(&self, now: Instant) -> Vec<u64> {
        let overdue = |reader: &&Reader| !reader.left.is_empty() && now >= reader.since + PATIENCE;
        self.0.iter().filter(overdue).map(|reader| reader.connection).collect()
    }
}

impl Reader {
    /// Writes what it can; whether the reader is still there.
    fn write(&mut self) -> bool {
        let mut written = 0;
        let is_there = loop {
            let Some(rest) = self.left.get(written..).filter(|rest| !rest.is_empty()) else { break true };
            match rustix::io::write(&self.to, rest) {
                Ok(n) => written += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break true,
                Err(_) => break false,
            }
        };
        if written > 0 {
            self.left.drain(..written);
            self.since = Instant::now();
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_slow_reader_holds_back_its_own_output_and_gets_every_byte() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut attachments = Attachments::default();
        attachments.add(1, Stream::Stdout, writer.into()).unwrap();
        let piece = [7; 32 << 10];
        let mut given = 0;
        while !attachments.hold_back(Stream::Stdout) {
            attachments.give(Stream::Stdout, &piece);
            given += piece.len();
        }
        assert!(!attachments.hold_back(Stream::Stderr));
        assert!(attachments.deadline().is_some());
        let mut seen = vec![0; given];
        let mut n_seen = 0;
        while n_seen < given {
            n_seen += reader.read(&mut seen[n_seen..]).unwrap();
            let places: Vec<usize> = attachments.waited_for().map(|(place, _)| place).collect();
            attachments.go_on(&places);
        }
        assert!(attachments.are_settled() && attachments.deadline().is_none());
        assert!(seen.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_reader_that_stands_still_has_had_its_time_and_one_that_left_is_forgotten() {
        let (reader, writer) = io::pipe().unwrap();
        let (_still, other) = io::pipe().unwrap();
        let mut attachments = Attachments::default();
        attachments.add(1, Stream::Stdout, writer.into()).unwrap();
        attachments.add(2, Stream::Stdout, other.into()).unwrap();
        drop(reader);
        while !attachments.hold_back(Stream::Stdout) {
            attachments.give(Stream::Stdout, &[0; 32 << 10]);
        }
        let now = Instant::now();
        assert!(attachments.overdue(now).is_empty());
        assert_eq!(attachments.overdue(now + PATIENCE + Duration::from_secs(1)), [2]);
        attachments.remove(2);
        assert!(attachments.are_settled());
    }
}
