//! What nodelet and a host say to each other: frames of a length (four bytes, big endian) and JSON.
//! A connection carries requests and their answers in turn; after [`Request::Subscribe`] only
//! [`Event`]s.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::spec::{ContainerSpec, Resources};

/// Arguments and environment of a container together stay far below this, as they would for `execve`.
const MAX_FRAME_BYTES: u32 = 4 << 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Create(Box<ContainerSpec>),
    Start {
        id: String,
    },
    /// Answered once the container has exited.
    Stop {
        id: String,
        grace_ms: u64,
    },
    Remove {
        id: String,
    },
    Usage {
        id: String,
    },
    Update {
        id: String,
        resources: Resources,
    },
    ReopenLog {
        id: String,
    },
    Subscribe,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Usage { cpu_ns: u64, memory_bytes: u64 },
    Failed(Failure),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FailureKind {
    NotFound,
    AlreadyExists,
    /// The container is in a state that forbids the call.
    State,
    /// The guest or its configuration is at fault.
    Invalid,
    Host,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into() }
    }

    /// With all causes: it ends in a pod's event.
    pub(crate) fn host(error: impl std::error::Error) -> Failure {
        Failure::new(FailureKind::Host, skiff_cri::whole(&error))
    }

    pub(crate) fn invalid(message: impl std::fmt::Display) -> Failure {
        Failure::new(FailureKind::Invalid, message.to_string())
    }

    pub(crate) fn not_found(id: &str) -> Failure {
        Failure::new(FailureKind::NotFound, format!("container {id:?} not found"))
    }
}

/// A container changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) sandbox_id: String,
    pub(crate) container_id: String,
}

pub(crate) async fn write<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), value: &T) -> io::Result<()> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, value)?;
    let n_bytes = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    if n_bytes > MAX_FRAME_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {n_bytes} bytes, more than {MAX_FRAME_BYTES}"),
        ));
    }
    frame[..4].copy_from_slice(&n_bytes.to_be_bytes());
    stream.write_all(&frame).await
}

/// `None` at the end of the stream.
pub(crate) async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let n_bytes = u32::from_be_bytes(length);
    if n_bytes > MAX_FRAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {n_bytes} bytes")));
    }
    let mut frame = vec![0; n_bytes as usize];
    stream.read_exact(&mut frame).await?;
    Ok(Some(serde_json::from_slice(&frame)?))
}
