//! A container's life on disk: `<state>/containers/<id>.json`, written by its host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skiff_cri::keep::{self, Keep};
use skiff_cri::{RuntimeContainer, RuntimeState};

use crate::process::ProcessId;

/// Records are small; anything larger was not written here.
const MAX_RECORD_BYTES: u64 = 1 << 20;
/// As for a process that was killed, which is what happened to the guest.
pub(crate) const KILLED: i32 = 137;

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{0:?} is not a container ID")]
    InvalidId(String),
    #[error("read the record {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write the record {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) container: RuntimeContainer,
    /// The host that runs it, by name and process.
    pub(crate) host: String,
    pub(crate) process: ProcessId,
    /// The container's own group; empty if it had none yet.
    pub(crate) cgroup: String,
    /// Its share of the processors, as cgroup v1 counts; 0 if it asks for none.
    #[serde(default)]
    pub(crate) cpu_shares: u64,
}

impl Record {
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.container.state, RuntimeState::Created | RuntimeState::Running)
    }

    /// What became of a container whose host is no more.
    pub(crate) fn host_died(&mut self) {
        let container = &mut self.container;
        container.state = RuntimeState::Exited;
        container.finished_at_ns = now_ns();
        container.exit_code = KILLED;
        (container.reason, container.message) = match self.process.is_of_this_boot() {
            true => {
                let pid = self.process.pid;
                ("Error".to_owned(), format!("the Wasm host process that ran the container (PID {pid}) died"))
            }
            false => ("ContainerStatusUnknown".to_owned(), "the container ended with the machine".to_owned()),
        };
    }
}

/// The directory of records.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    directory: PathBuf,
}

impl Records {
    pub(crate) fn open(state_dir: &Path) -> Result<Records, RecordError> {
        let directory = state_dir.join("containers");
        fs::create_dir_all(&directory)
            .map_err(|source| RecordError::Write { path: directory.clone(), source })?;
        Ok(Records { directory })
    }

    /// Removes what is no record: damaged ones, as after a power cut, and what writers left that died. For the one process
    /// that starts hosts.
    pub(crate) fn sweep(&self) -> Result<(), RecordError> {
        let fail = |source| RecordError::Write { path: self.directory.clone(), source };
        keep::remove_partials(&self.directory).map_err(fail)?;
        for entry in fs::read_dir(&self.directory).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let is_damaged = path.extension().is_some_and(|extension| extension == "json")
                && fs::read(&path).is_ok_and(|text| serde_json::from_slice::<Record>(&text).is_err());
            // What versions before this one left half written.
            if is_damaged || path.extension().is_some_and(|extension| extension == "tmp") {
                tracing::warn!(path = %path.display(), "a damaged record is removed");
                fs::remove_file(&path).map_err(|source| RecordError::Write { path: path.clone(), source })?;
            }
        }
        Ok(())
    }

    fn path(&self, id: &str) -> Result<PathBuf, RecordError> {
        if !is_id(id) {
            return Err(RecordError::InvalidId(id.to_owned()));
        }
        Ok(self.directory.join(format!("{id}.json")))
    }

    /// `None` if there is none. One that a power cut left half written counts as none: nothing of it runs.
    pub(crate) fn load(&self, id: &str) -> Result<Option<Record>, RecordError> {
        let path = self.path(id)?;
        let attempt = || -> io::Result<Option<Record>> {
            let file = match fs::File::open(&path) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
                other => other?,
            };
            let mut text = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(file, MAX_RECORD_BYTES), &mut text)?;
            Ok(serde_json::from_slice(&text)
                .inspect_err(|err| tracing::warn!(path = %path.display(), %err, "unreadable record"))
                .ok())
        };
        attempt().map_err(|source| RecordError::Read { path: path.clone(), source })
    }

    pub(crate) fn all(&self) -> Result<Vec<Record>, RecordError> {
        let fail = |source| RecordError::Read { path: self.directory.clone(), source };
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            if let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".json"))
                && is_id(id)
            {
                records.extend(self.load(id)?);
            }
        }
        Ok(records)
    }

    pub(crate) fn store(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path(&record.container.id)?;
        let attempt = || -> io::Result<()> {
            // That one runs describes a process that a power cut ends: it may be lost, but not take the record along.
            let keep = match record.container.state {
                RuntimeState::Running => Keep::Whole,
                _ => Keep::Durable,
            };
            keep::write(&path, &serde_json::to_vec(record)?, keep)
        };
        attempt().map_err(|source| RecordError::Write { path: path.clone(), source })
    }

    pub(crate) fn remove(&self, id: &str) -> Result<(), RecordError> {
        let path = self.path(id)?;
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::Write { path, source })
            }
            _ => Ok(()),
        }
    }
}

/// IDs become file names.
pub(crate) fn is_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 128
        && !id.starts_with('.')
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

pub(crate) fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_plain_file_name() {
        for (id, valid) in [("a1-b.c", true), ("", false), ("..", false), ("a/b", false), (".x", false)] {
            assert_eq!(is_id(id), valid, "{id:?}");
        }
    }

    #[test]
    fn a_half_written_record_counts_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path()).unwrap();
        fs::write(directory.path().join("containers/a.json"), b"{\"container\":").unwrap();
        assert_eq!(records.load("a").unwrap(), None);
        assert_eq!(records.all().unwrap(), Vec::new());
        fs::write(directory.path().join("containers/b.json"), b"").unwrap();
        records.sweep().unwrap();
        assert_eq!(fs::read_dir(directory.path().join("containers")).unwrap().count(), 0);
    }
}
