//! What was made, on disk: one small JSON file a sandbox and a container.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skiff_cri::v1::{ContainerConfig, PodSandboxConfig};
use skiff_cri::{CriError, ImageRef};

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
#[derive(Debug)]
pub(crate) struct Records {
    directory: PathBuf,
}

impl Records {
    pub(crate) fn open(directory: PathBuf) -> Result<Records, CriError> {
        fs::create_dir_all(&directory).map_err(|e| failed("create", &directory, &e))?;
        Ok(Records { directory })
    }

    /// All records. One that cannot be read, as after a full disk, is reported and left out.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<Vec<T>, CriError> {
        let mut out = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(|e| failed("list", &self.directory, &e))? {
            let path = entry.map_err(|e| failed("list", &self.directory, &e))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let record = fs::read(&path).map_err(|e| e.to_string());
            match record.and_then(|r| serde_json::from_slice(&r).map_err(|e| e.to_string())) {
                Ok(record) => out.push(record),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error, "a record cannot be read and is passed over")
                }
            }
        }
        Ok(out)
    }

    /// Writes a record whole: it is there, old or new, whenever the process dies.
    pub(crate) fn write<T: Serialize>(&self, id: &str, record: &T) -> Result<(), CriError> {
        let path = self.path(id);
        let partial = path.with_extension("partial");
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&partial)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            fs::rename(&partial, &path)
        };
        write().map_err(|e| failed("write", &path, &e))
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
