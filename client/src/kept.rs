//! What was last known of a kind, on the disk: a process that starts while its server is away begins with that.
//!
//! # Guarantees
//! - A file is written whole or not at all, readable by its owner only, and sealed with a checksum: one that is damaged is passed
//!   over, and nothing is known until the server answers.
//! - What is too long to be kept is noticed while it is written out: no more than the longest is held for it, nor read.
//! - It is written a minute after a change at the earliest, the first time sooner, and only if what matters of the objects has changed.
//!
//! # Caveats
//! - What changed in the last minute before an end without warning is not in it.

use std::fs;
use std::io::{self, Read as _, Write};
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
const MAX_BYTES: usize = 64 << 20;
const SEAL_BYTES: usize = 17;

/// The objects in a file; none where there is no sound one.
pub(crate) fn recall<K: DeserializeOwned>(path: &Path) -> Option<Vec<K>> {
    match read(path, MAX_BYTES) {
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

fn read(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max_bytes { Err(too_long(max_bytes)) } else { Ok(bytes) }
}

fn too_long(max_bytes: usize) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {max_bytes} bytes"))
}

/// Writes objects to a file whenever there is a reason, until `shutdown`.
pub(crate) async fn keep<K: Serialize + Send + 'static>(
    path: PathBuf,
    objects: impl Fn() -> Vec<K> + Send + 'static,
    changed: Arc<Notify>,
    shutdown: CancellationToken,
) {
    // What is in the file is known by its seal and its length.
    let mut last = read(&path, MAX_BYTES).ok().map(|bytes| trace(&bytes));
    loop {
        let rested = async {
            changed.notified().await;
            tokio::time::sleep(if last.is_some() { REST } else { FIRST }).await;
        };
        if shutdown.run_until_cancelled(rested).await.is_none() {
            return;
        }
        let (objects, path) = (objects(), path.clone());
        // Large ones take some milliseconds, and the disk may take longer.
        let written =
            tokio::task::spawn_blocking(move || write_changed(&path, &objects, last, MAX_BYTES)).await;
        if let Ok(Some(now)) = written {
            last = Some(now);
        }
    }
}

/// What tells one file from another.
type Trace = (u64, usize);

/// Writes the objects unless the file has them. Answers what is in it then; nothing if it could not be written.
fn write_changed<K: Serialize>(
    path: &Path,
    objects: &[K],
    last: Option<Trace>,
    max_bytes: usize,
) -> Option<Trace> {
    let written = sealed(objects, max_bytes).and_then(|sealed| {
        let now = trace(&sealed);
        if last != Some(now) {
            write(path, &sealed)?;
        }
        Ok(now)
    });
    match written {
        Ok(now) => Some(now),
        // The next change is the next try.
        Err(error) => {
            debug!(path = %path.display(), %error, "what is known now is not kept");
            None
        }
    }
}

fn trace(sealed: &[u8]) -> Trace {
    (checksum(sealed), sealed.len())
}

/// A checksum in hexadecimal and a line's end before the text. It is not meant to withstand anybody but the disk.
fn sealed<K: Serialize>(objects: &[K], max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut bounded = Bounded { bytes: vec![b'\n'; SEAL_BYTES], max_bytes };
    serde_json::to_writer(&mut bounded, objects)?;
    let mut bytes = bounded.bytes;
    let (seal, text) = bytes.split_at_mut(SEAL_BYTES);
    write!(&mut *seal, "{:016x}", checksum(text))?;
    Ok(bytes)
}

/// Bytes that take no more than there may be.
struct Bounded {
    bytes: Vec<u8>,
    max_bytes: usize,
}

impl Write for Bounded {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + more.len() > self.max_bytes {
            return Err(too_long(self.max_bytes));
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (seal, text) = bytes.split_at_checked(SEAL_BYTES)?;
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
        write(&path, &sealed(&["a", "b"], MAX_BYTES).unwrap()).unwrap();
        assert_eq!(recalled(&path), Some(vec!["a".into(), "b".into()]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..5], b""] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(recalled(&path), None);
        }
        let mut changed = whole;
        // The letter between the first quotes: what it becomes can still be parsed.
        assert_eq!(changed[SEAL_BYTES + 2], b'a');
        changed[SEAL_BYTES + 2] = b'c';
        fs::write(&path, changed).unwrap();
        assert_eq!(recalled(&path), None, "a letter was changed");
    }

    #[test]
    fn what_is_too_long_is_neither_held_nor_read_and_what_was_kept_stays() {
        let place = Place::new("long");
        let path = place.file();
        let kept = write_changed(&path, &["a"], None, 64).expect("it is short");
        let size = std::cell::Cell::new(0);
        // Each is asked for its text only when it is its turn.
        struct Counted<'a>(&'a std::cell::Cell<usize>);
        impl Serialize for Counted<'_> {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                self.0.set(self.0.get() + 1);
                to.serialize_str("0123456789")
            }
        }
        let many: Vec<Counted<'_>> = (0..1000).map(|_| Counted(&size)).collect();
        assert_eq!(write_changed(&path, &many, Some(kept), 64), None);
        assert!(size.get() < 10, "{} of them were written out", size.get());
        assert_eq!(recalled(&path), Some(vec!["a".into()]));
        assert_eq!(read(&path, 5).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
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
