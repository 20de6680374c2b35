//! What was made, on disk: one small JSON file a sandbox and a container.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skiff_cri::v1::{ContainerConfig, PodSandboxConfig};
use skiff_cri::{CriError, ImageRef, keep};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SandboxState {
    /// Being made: what stands of it is removed if the process dies now.
    Starting,
    Ready,
    Stopped,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
    pub(crate) handler: String,
    pub(crate) created_at_ns: i64,
    pub(crate) state: SandboxState,
    pub(crate) ips: Vec<IpAddr>,
    /// The boot that it was made in; empty in records of versions that did not say.
    #[serde(default)]
    pub(crate) boot_id: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) sandbox_id: String,
    pub(crate) config: ContainerConfig,
    pub(crate) image: ImageRef,
    /// The name of the runtime it was given to.
    pub(crate) runtime: String,
    pub(crate) created_at_ns: i64,
    pub(crate) log_path: Option<PathBuf>,
}

/// A directory of records of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    directory: PathBuf,
}

/// What a directory of records holds.
#[derive(Debug)]
pub(crate) struct Found<T> {
    pub(crate) records: Vec<T>,
    /// IDs whose record lies there and could not be read just now. What they name is not to be touched.
    pub(crate) unread: HashSet<String>,
}

impl Records {
    pub(crate) fn open(directory: PathBuf) -> Result<Records, CriError> {
        let made = fs::create_dir_all(&directory).and_then(|()| keep::remove_partials(&directory));
        made.map_err(|e| failed("create", &directory, &e))?;
        Ok(Records { directory })
    }

    /// All records. One that is no record, as after a power cut, is removed: nothing could ever be done with it. One
    /// that the disk does not give is left where it is.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<Found<T>, CriError> {
        let mut found = Found { records: Vec::new(), unread: HashSet::new() };
        for entry in fs::read_dir(&self.directory).map_err(|e| failed("list", &self.directory, &e))? {
            let path = entry.map_err(|e| failed("list", &self.directory, &e))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match fs::read(&path).map(|text| serde_json::from_slice(&text)) {
                Ok(Ok(record)) => found.records.push(record),
                Ok(Err(error)) => {
                    tracing::warn!(path = %path.display(), %error, "a record is damaged and is removed");
                    fs::remove_file(&path).map_err(|e| failed("remove", &path, &e))?;
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a record cannot be read");
                    found.unread.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
                }
            }
        }
        Ok(found)
    }

    /// Writes a record whole and for good: it is there, whenever the process dies or the power goes. Blocks for the disk.
    pub(crate) fn write<T: Serialize>(&self, id: &str, record: &T) -> Result<(), CriError> {
        let path = self.path(id);
        let text = serde_json::to_vec(record).map_err(|e| failed("write", &path, &e.into()))?;
        keep::write(&path, &text, keep::Keep::Durable).map_err(|e| failed("write", &path, &e))
    }

    /// The same, away from the threads that serve.
    pub(crate) async fn save<T: Serialize + Send + 'static>(
        &self,
        id: &str,
        record: T,
    ) -> Result<(), CriError> {
        let (records, id) = (self.clone(), id.to_owned());
        let written = tokio::task::spawn_blocking(move || records.write(&id, &record)).await;
        written.map_err(|_| CriError::unknown("the writer of a record ended before its work"))?
    }

    pub(crate) fn remove(&self, id: &str) -> Result<(), CriError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, &error)),
            _ => Ok(()),
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}

pub(crate) fn failed(action: &str, path: &Path, error: &io::Error) -> CriError {
    CriError::unknown(format!("cannot {action} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_record_goes_and_one_that_the_disk_does_not_give_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let records = Records::open(directory.path().to_owned()).unwrap();
        records.write("whole", &"text").unwrap();
        fs::write(path("empty.json"), "").unwrap();
        fs::write(path("torn.json"), "\"te").unwrap();
        // Reading a directory fails, as reading a bad sector does.
        fs::create_dir(path("unread.json")).unwrap();
        let found = records.read::<String>().unwrap();
        assert_eq!(found.records, ["text"]);
        assert_eq!(found.unread, HashSet::from(["unread".to_owned()]));
        assert!(!path("empty.json").exists() && !path("torn.json").exists());
        assert!(path("whole.json").exists() && path("unread.json").exists());
    }
}
