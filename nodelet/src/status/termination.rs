//! A container's last words: its termination message file, or the end of its log.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use crate::logs::tail_text;
use crate::snapshot::{ContainerInfo, PodSnapshot, RunState};

const MAX_FILE_BYTES: u64 = 4096;
const MAX_LOG_BYTES: usize = 2048;
const MAX_LOG_LINES: usize = 80;

/// Adds to every ended container's message what the container itself left.
pub(crate) async fn add_messages(mut snapshot: PodSnapshot) -> PodSnapshot {
    if !snapshot.containers.iter().any(|c| c.state == RunState::Exited) {
        return snapshot;
    }
    let fallback = snapshot.clone();
    let task = tokio::task::spawn_blocking(move || {
        for container in snapshot.containers.iter_mut().filter(|c| c.state == RunState::Exited) {
            let words = last_words(container);
            if !words.is_empty() {
                let separator = if container.message.is_empty() { "" } else { ": " };
                container.message = format!("{}{separator}{words}", container.message);
            }
        }
        snapshot
    });
    task.await.unwrap_or(fallback)
}

fn last_words(container: &ContainerInfo) -> String {
    let from_log = container.message_falls_back_to_logs
        && container.exit_code != 0
        && container.reason != "ContainerCannotRun";
    let file = match container.message_file.as_deref().map(read_file) {
        None => String::new(),
        Some(Ok(text)) => text,
        Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Some(Err(error)) => {
            return format!("Error on reading termination log {}: {error}", container.message_path);
        }
    };
    match file.is_empty() && from_log {
        true => tail_text(container.log_path.as_ref(), MAX_LOG_LINES, MAX_LOG_BYTES),
        false => file,
    }
}

fn read_file(path: &str) -> std::io::Result<String> {
    // The container may write this file, so it is opened as nothing but a regular file would be.
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let mut file = std::fs::OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
    let length = file.metadata()?.len();
    if length > MAX_FILE_BYTES {
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(length - MAX_FILE_BYTES))?;
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
