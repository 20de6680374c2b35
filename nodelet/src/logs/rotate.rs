//! Keeps containers' logs small: at 10 MiB a file is set aside and a new one begun, five are kept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use skiff_cri::Cri;
use skiff_cri::v1::{
    ContainerFilter, ContainerState, ContainerStateValue, ContainerStatusRequest, ListContainersRequest,
    ReopenContainerLogRequest,
};

use crate::snapshot::POD_UID;

const INTERVAL: Duration = Duration::from_secs(10);
const MAX_BYTES: u64 = 10 * 1024 * 1024;
const MAX_FILES: usize = 5;

/// Rotates the logs of running containers, for as long as the nodelet runs.
pub(crate) async fn run(cri: &dyn Cri) {
    let mut ticker = tokio::time::interval(INTERVAL);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticker.tick().await;
        let state = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
        let filter = ContainerFilter { state: Some(state), ..ContainerFilter::default() };
        let running = match cri.list_containers(ListContainersRequest { filter: Some(filter) }).await {
            Ok(list) => list.containers,
            Err(error) => {
                tracing::warn!(%error, "cannot list containers to rotate their logs");
                continue;
            }
        };
        for container in running.into_iter().filter(|c| c.labels.contains_key(POD_UID)) {
            if let Err(error) = rotate_container(cri, &container.id).await {
                tracing::warn!(container = %container.id, %error, "cannot rotate the container's log");
            }
        }
    }
}

async fn rotate_container(cri: &dyn Cri, id: &str) -> io::Result<()> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    let Ok(Some(status)) = cri.container_status(request).await.map(|r| r.status) else { return Ok(()) };
    let path = PathBuf::from(status.log_path);
    // One `stat` a container and interval: nothing to put on another thread.
    if path.as_os_str().is_empty() || fs::symlink_metadata(&path).map_or(0, |m| m.len()) < MAX_BYTES {
        return Ok(());
    }
    let rotated = set_aside(&path, Timestamp::now())?;
    let reopened = cri.reopen_container_log(ReopenContainerLogRequest { container_id: id.to_owned() }).await;
    if let Err(error) = reopened {
        // The runtime still writes the old file: it gets its name back, and the next round tries again.
        fs::rename(rotated, &path)?;
        return Err(io::Error::other(error));
    }
    remove_oldest(&path)
}

fn set_aside(path: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", now.strftime("%Y%m%d-%H%M%S")));
    let rotated = PathBuf::from(name);
    fs::rename(path, &rotated)?;
    Ok(rotated)
}

/// Removes rotated files beyond those kept; the names sort by time.
fn remove_oldest(path: &Path) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(());
    };
    let prefix = format!("{name}.");
    let mut rotated: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&prefix)))
        .collect();
    rotated.sort();
    let n_extra = rotated.len().saturating_sub(MAX_FILES - 1);
    rotated.into_iter().take(n_extra).try_for_each(fs::remove_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_files_are_kept_the_newest_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for second in 0..7 {
            fs::write(&path, second.to_string()).unwrap();
            set_aside(&path, Timestamp::from_second(second).unwrap()).unwrap();
            remove_oldest(&path).unwrap();
        }
        fs::write(&path, "now").unwrap();
        let mut names: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 5);
        assert_eq!(names[1], "0.log.19700101-000003");
    }
}
