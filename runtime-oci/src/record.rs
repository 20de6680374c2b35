//! `container.json`: what a container is and how far it has come. That it was made and how it ended outlives a power cut;
//! what happens in between ends with the power, and takes no more than itself along.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use skiff_cri::keep::{self, Keep};

use crate::protocol::Exit;

const CONTAINER: &str = "container.json";
const EXIT: &str = "exit.json";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) sandbox_id: String,
    /// Relative to every hierarchy's root.
    pub(crate) cgroup: String,
    /// The signal that asks it to end.
    pub(crate) stop_signal: i32,
    pub(crate) created_at_ns: i64,
    /// Set before the shim is started: from then on there may be processes.
    pub(crate) start_attempted: bool,
    pub(crate) started_at_ns: i64,
    /// Why it could not be started.
    pub(crate) start_error: Option<StartError>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StartError {
    pub(crate) at_ns: i64,
    pub(crate) message: String,
}

impl Record {
    pub(crate) fn read(directory: &Path) -> io::Result<Record> {
        Ok(serde_json::from_slice(&fs::read(directory.join(CONTAINER))?)?)
    }

    pub(crate) fn write(&self, directory: &Path, keep: Keep) -> io::Result<()> {
        write_json(directory, CONTAINER, self, keep)
    }
}

impl Exit {
    /// `None` if there is none yet.
    pub(crate) fn read(directory: &Path) -> io::Result<Option<Exit>> {
        match fs::read(directory.join(EXIT)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }

    pub(crate) fn write(&self, directory: &Path) -> io::Result<()> {
        write_json(directory, EXIT, self, Keep::Durable)
    }
}

pub(crate) fn write_json(directory: &Path, name: &str, value: &impl Serialize, keep: Keep) -> io::Result<()> {
    keep::write(&directory.join(name), &serde_json::to_vec(value)?, keep)
}

pub(crate) fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
