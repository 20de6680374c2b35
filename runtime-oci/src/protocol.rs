//! What a shim and its callers say to each other: a four-byte length, little endian, and JSON; descriptors
//! travel beside the first byte.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// An exec's process spec is the largest, with its environment.
pub(crate) const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Three streams of an exec.
pub(crate) const MAX_DESCRIPTORS: usize = 3;

/// `shim.json`: what a shim is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShimConfig {
    pub(crate) id: String,
    pub(crate) runc: PathBuf,
    pub(crate) runc_root: PathBuf,
    pub(crate) bundle: PathBuf,
    /// The container's cgroup, relative to every hierarchy's root.
    pub(crate) cgroup: String,
    pub(crate) log_path: Option<PathBuf>,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    /// Whether the standard input ends with the first who attaches to it.
    #[serde(default)]
    pub(crate) stdin_once: bool,
    /// The shim's own cgroup; empty in orders of versions that had none.
    #[serde(default)]
    pub(crate) shim_cgroup: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Answered with [`Answer::Running`] at once, and with [`Answer::Exited`] at the end.
    Watch,
    /// A signal for the container's first process.
    Kill {
        signal: i32,
    },
    ReopenLog,
    Resize {
        width: u16,
        height: u16,
    },
    /// The descriptors of those streams that are wanted come with it. Answered with
    /// [`Answer::ExecStarted`], with the terminal's descriptor if there is one, then [`Answer::ExecExited`].
    /// Closing the connection kills the process.
    /// `process` is JSON, for a file as it is.
    Exec {
        process: String,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// The pipes that outputs are to be written to come with it, as long as the connection lives. Answered with
    /// [`Answer::Attached`], with the descriptor to write input to, which is the terminal's if there is one.
    Attach {
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// The input of who is attached has ended: the container's, too, where it was to; the connection ends otherwise.
    CloseStdin,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    Ok,
    Failed { message: String },
    Running { pid: i32, started_at_ns: i64 },
    Exited(Exit),
    ExecStarted { pid: i32 },
    ExecExited { code: i32 },
    Attached,
}

/// `exit.json`: how a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub(crate) started_at_ns: i64,
    pub(crate) finished_at_ns: i64,
    pub(crate) exit_code: i32,
    pub(crate) oom_killed: bool,
    /// Nobody saw it end: its shim had been killed.
    #[serde(default)]
    pub(crate) lost: bool,
}

/// A message as it goes over the wire.
pub(crate) fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).map_err(|_| too_large())?;
    if json.len() > MAX_MESSAGE_BYTES {
        return Err(too_large());
    }
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// Takes a whole message off the front of `buffer`, if there is one.
pub(crate) fn unframe<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some((length, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_MESSAGE_BYTES {
        return Err(too_large());
    }
    let Some(json) = rest.get(..length) else { return Ok(None) };
    let message = serde_json::from_slice(json)?;
    buffer.drain(..4 + length);
    Ok(Some(message))
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "message is too large")
}

/// Sends what it can of `bytes`, the descriptors with the first of them.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(sent)
}

/// Receives into `buffer` and `descriptors`; 0 at the end.
pub(crate) fn receive(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut chunk = [0; 4096];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut chunk)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
    }
    buffer.extend_from_slice(&chunk[..received.bytes]);
    Ok(received.bytes)
}

/// A path to `name` in an open directory that is short enough for a socket's address, however deep the
/// directory lies.
pub(crate) fn socket_path(directory: BorrowedFd<'_>, name: &str) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_off_one_by_one_and_only_whole() {
        let mut bytes = frame(&Request::Kill { signal: 15 }).unwrap();
        bytes.extend(frame(&Request::ReopenLog).unwrap());
        let mut buffer = Vec::new();
        let mut seen = Vec::new();
        for byte in bytes {
            buffer.push(byte);
            seen.extend(unframe::<Request>(&mut buffer).unwrap());
        }
        assert!(matches!(seen[..], [Request::Kill { signal: 15 }, Request::ReopenLog]));
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_claimed_length_is_bounded() {
        assert!(unframe::<Request>(&mut vec![0xff; 8]).is_err());
        assert!(unframe::<Request>(&mut vec![1, 0, 0, 0, b'{']).is_err());
    }
}
