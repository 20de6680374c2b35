//! What was last known of a kind, on the disk: a process that starts while its server is away begins with that.
//!
//! # Guarantees
//! - A file is written whole or not at all, readable by its owner only, and sealed with a checksum: one that is damaged is passed
//!   over, and nothing is known until the server answers.
//! - It is written a minute after a change at the earliest, the first time sooner, and only if what matters of the objects has changed.
//!
//! # Caveats
//! - What changed in the last minute before an end without warning is not in it.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Between two writes: disks of small machines wear out.
const REST: Duration = Duration::from_secs(60);
/// Before there is anything to begin with.
const FIRST: Duration = Duration::from_secs(5);
/// Of one kind; more is not kept.
const MAX_BYTES: u64 = 64 << 20;

/// The objects in a file; none where there is no sound one.
pub(crate) fn recall<K: DeserializeOwned>(path: &Path) -> Option<Vec<K>> {
    let read = || -> io::Result<Vec<u8>> {
        let length = fs::metadata(path)?.len();
        if length > MAX_BYTES { Err(io::Error::other("it is too long")) } else { fs::read(path) }
    };
    match read() {
        Ok(bytes) => {
            let objects = unsealed(&bytes).and_then(|text| serde_json::from_slice(text).ok());
            if objects.is_none() {
                warn!(path = %path.display(), "what was last known is damaged; waiting for the server to tell it anew");
            }
            objects
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(path = %path.display(), %error, "what was last known cannot be read");
            None
        }
    }
}

/// Writes objects to a file whenever there is a reason, until `shutdown`.
pub(crate) async fn keep<K: Serialize>(
    path: PathBuf,
    objects: impl Fn() -> Vec<K>,
    changed: Arc<Notify>,
    shutdown: CancellationToken,
) {
    let mut last = fs::read(&path).ok();
    loop {
        let rested = async {
            changed.notified().await;
            tokio::time::sleep(if last.is_some() { REST } else { FIRST }).await;
        };
        if shutdown.run_until_cancelled(rested).await.is_none() {
            return;
        }
        let Ok(text) = serde_json::to_vec(&objects()) else { continue };
        let sealed = sealed(&text);
        if last.as_ref() == Some(&sealed) {
            continue;
        }
        match write(&path, &sealed) {
            Ok(()) => last = Some(sealed),
            // The next change is the next try.
            Err(error) => debug!(path = %path.display(), %error, "what is known now is not kept"),
        }
    }
}

/// A checksum in hexadecimal and a line's end before the text. It is not meant to withstand anybody but the disk.
fn sealed(text: &[u8]) -> Vec<u8> {
    let mut sealed = format!("{:016x}\n", checksum(text)).into_bytes();
    sealed.extend_from_slice(text);
    sealed
}

fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (seal, text) = bytes.split_at_checked(17)?;
    let seal = std::str::from_utf8(seal).ok()?.strip_suffix('\n')?;
    (u64::from_str_radix(seal, 16).ok()? == checksum(text)).then_some(text)
}

/// FNV-1a, the same in every version of this program.
fn checksum(text: &[u8]) -> u64 {
    text.iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = PathBuf::from(format!("{}.partial", path.display()));
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    /// A file in a directory of its own below the system's temporary one.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let directory = std::env::temp_dir().join(format!("skiff-kept-{name}-{}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            Place(directory)
        }

        fn file(&self) -> PathBuf {
            self.0.join("kept.json")
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn recalled(path: &Path) -> Option<Vec<String>> {
        recall(path)
    }

    #[test]
    fn what_is_damaged_is_not_taken_for_what_was_known() {
        let place = Place::new("damaged");
        let path = place.file();
        assert_eq!(recalled(&path), None, "nothing was kept yet");
        write(&path, &sealed(br#"["a","b"]"#)).unwrap();
        assert_eq!(recalled(&path), Some(vec!["a".into(), "b".into()]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..5], b""] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(recalled(&path), None);
        }
        let mut changed = whole;
        changed[20] = b'c';
        fs::write(&path, changed).unwrap();
        assert_eq!(recalled(&path), None, "a letter was changed");
    }

    #[tokio::test(start_paused = true)]
    async fn many_changes_are_one_write_and_one_that_does_not_matter_none() {
        let place = Place::new("rest");
        let (path, changed) = (place.file(), Arc::new(Notify::new()));
        let known = Arc::new(parking_lot::Mutex::new(vec!["a".to_owned()]));
        let objects = known.clone();
        let shutdown = CancellationToken::new();
        let kept = tokio::spawn(keep(
            path.clone(),
            move || objects.lock().clone(),
            changed.clone(),
            shutdown.clone(),
        ));
        for _ in 0..100 {
            changed.notify_one();
            tokio::task::yield_now().await;
        }
        assert_eq!(recalled(&path), None);
        tokio::time::sleep(REST + Duration::from_secs(1)).await;
        assert_eq!(recalled(&path), Some(vec!["a".into()]));
        fs::remove_file(&path).unwrap();
        changed.notify_one();
        tokio::time::sleep(2 * (REST + Duration::from_secs(1))).await;
        assert_eq!(recalled(&path), None, "the same was written once more");
        known.lock().push("b".into());
        changed.notify_one();
        tokio::time::sleep(REST + Duration::from_secs(1)).await;
        assert_eq!(recalled(&path), Some(vec!["a".into(), "b".into()]));
        shutdown.cancel();
        kept.await.unwrap();
    }
}
