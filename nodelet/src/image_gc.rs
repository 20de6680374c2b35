//! Images that nobody uses, removed while the disk that holds them is fuller than it should be.
//!
//! Every five minutes, as upstream's kubelet: at the high threshold, those that were used longest ago go until the low threshold is
//! reached. Never goes what a container, running or not, is made from, nor what has not been here for two minutes: it may just have
//! been pulled for somebody. What of an image's content others need stays; the runtime knows.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skiff_cri::v1::{Image, ImageSpec, ListContainersRequest, ListImagesRequest, RemoveImageRequest};
use skiff_cri::{Cri, CriError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::event::{EventSink, EventType, node_ref};

const PERIOD: Duration = Duration::from_secs(5 * 60);
const MIN_AGE: Duration = Duration::from_secs(2 * 60);

/// How full the disk of images may be, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageGcPolicy {
    /// From here on images are removed. At 100 none ever is.
    pub high_percent: u8,
    /// Until here.
    pub low_percent: u8,
}

impl Default for ImageGcPolicy {
    /// Upstream's.
    fn default() -> ImageGcPolicy {
        ImageGcPolicy { high_percent: 85, low_percent: 80 }
    }
}

#[derive(Debug, thiserror::Error)]
enum ImageGcError {
    #[error("asking the runtime: {0}")]
    Runtime(#[from] CriError),
    #[error("the runtime names no file system of its images")]
    NoFileSystem,
    #[error("looking at the file system of {path}: {source}")]
    Disk { path: PathBuf, source: std::io::Error },
    #[error("the file system of images has no capacity")]
    NoCapacity,
    #[error("{n_failed} images could not be removed, the last one: {last}")]
    Removal { n_failed: usize, last: CriError },
    #[error("{0}")]
    NotEnough(String),
}

#[derive(Clone, Copy, Debug)]
struct Disk {
    capacity: u64,
    available: u64,
}

impl Disk {
    fn used_percent(self) -> u64 {
        let available = u128::from(self.available.min(self.capacity));
        100 - u64::try_from(available * 100 / u128::from(self.capacity.max(1))).unwrap_or(100)
    }

    /// How many bytes must go; `None` below the high threshold.
    fn excess(self, policy: ImageGcPolicy) -> Option<u64> {
        if self.used_percent() < u64::from(policy.high_percent) {
            return None;
        }
        let free_percent = u128::from(100_u8.saturating_sub(policy.low_percent));
        let wanted = u64::try_from(u128::from(self.capacity) * free_percent / 100).unwrap_or(u64::MAX);
        Some(wanted.saturating_sub(self.available))
    }
}

/// What is known of an image that is here.
struct Seen {
    first_seen: Instant,
    last_used: Option<Instant>,
    n_bytes: u64,
    pinned: bool,
}

#[derive(Default)]
struct Seens(HashMap<String, Seen>);

impl Seens {
    fn look(&mut self, images: &[Image], in_use: &HashSet<String>, now: Instant) {
        for image in images {
            let new = Seen { first_seen: now, last_used: None, n_bytes: 0, pinned: false };
            let seen = self.0.entry(image.id.clone()).or_insert(new);
            (seen.n_bytes, seen.pinned) = (image.size, image.pinned);
            if in_use.contains(&image.id) {
                seen.last_used = Some(now);
            }
        }
        let here: HashSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.0.retain(|id, _| here.contains(id.as_str()));
    }

    /// Those that may go, with their sizes, the first to go first.
    fn removable(&self, in_use: &HashSet<String>, now: Instant) -> Vec<(String, u64)> {
        let may_go = |(id, seen): &(&String, &Seen)| {
            !seen.pinned && !in_use.contains(*id) && now.duration_since(seen.first_seen) >= MIN_AGE
        };
        let mut found: Vec<(&String, &Seen)> = self.0.iter().filter(may_go).collect();
        found.sort_by_key(|(id, seen)| (seen.last_used, seen.first_seen, (*id).clone()));
        found.into_iter().map(|(id, seen)| (id.clone(), seen.n_bytes)).collect()
    }
}

/// Removes images that nobody uses while the disk is too full, for as long as the nodelet runs.
pub(crate) struct ImageGc {
    policy: ImageGcPolicy,
    node_name: String,
    cri: Arc<dyn Cri>,
    sink: Arc<dyn EventSink>,
    seen: Seens,
}

impl ImageGc {
    pub(crate) fn new(
        policy: ImageGcPolicy,
        node_name: String,
        cri: Arc<dyn Cri>,
        sink: Arc<dyn EventSink>,
    ) -> ImageGc {
        ImageGc { policy, node_name, cri, sink, seen: Seens::default() }
    }

    /// Each of `reclaims` wants all gone that may go, now.
    pub(crate) async fn run(mut self, mut reclaims: mpsc::Receiver<oneshot::Sender<()>>) {
        let mut has_failed = false;
        loop {
            match self.pass(Instant::now()).await {
                Ok(()) => has_failed = false,
                Err(error) => {
                    tracing::warn!(%error, "images that nobody uses could not be removed as they should");
                    // Once may be chance.
                    if has_failed {
                        self.event("ImageGCFailed", &error.to_string());
                    }
                    has_failed = true;
                }
            }
            let due = Instant::now() + PERIOD;
            loop {
                // Both only wait.
                tokio::select! {
                    () = tokio::time::sleep_until(due) => break,
                    Some(done) = reclaims.recv() => {
                        if let Err(error) = self.reclaim().await {
                            tracing::warn!(%error, "images that nobody uses could not be removed from a full disk");
                        }
                        // Whoever asked may have ended.
                        let _gone = done.send(());
                    }
                }
            }
        }
    }

    /// Removes all images that nobody uses and that may go.
    async fn reclaim(&mut self) -> Result<(), ImageGcError> {
        let in_use = self.look(Instant::now()).await?;
        if self.policy.high_percent >= 100 {
            return Ok(());
        }
        let (mut n_failed, mut last_failure) = (0, None);
        for (id, _) in self.seen.removable(&in_use, Instant::now()) {
            let image = ImageSpec { image: id, ..ImageSpec::default() };
            if let Err(error) = self.cri.remove_image(RemoveImageRequest { image: Some(image) }).await {
                (n_failed, last_failure) = (n_failed + 1, Some(error));
            }
        }
        match last_failure {
            Some(last) => Err(ImageGcError::Removal { n_failed, last }),
            None => Ok(()),
        }
    }

    /// Notes what is here, and answers which images are in use.
    async fn look(&mut self, now: Instant) -> Result<HashSet<String>, ImageGcError> {
        let images = self.cri.list_images(ListImagesRequest::default()).await?.images;
        let containers = self.cri.list_containers(ListContainersRequest::default()).await?.containers;
        let in_use: HashSet<String> =
            containers.into_iter().flat_map(|c| [c.image_id, c.image_ref]).collect();
        self.seen.look(&images, &in_use, now);
        Ok(in_use)
    }

    fn event(&self, reason: &str, message: &str) {
        self.sink.event(&node_ref(&self.node_name), EventType::Warning, reason, message);
    }

    async fn pass(&mut self, now: Instant) -> Result<(), ImageGcError> {
        let in_use = self.look(now).await?;
        if self.policy.high_percent >= 100 {
            return Ok(());
        }
        let disk = self.disk().await?;
        if disk.capacity == 0 {
            self.event("InvalidDiskCapacity", &ImageGcError::NoCapacity.to_string());
            return Err(ImageGcError::NoCapacity);
        }
        let Some(excess) = disk.excess(self.policy) else { return Ok(()) };
        tracing::info!(used_percent = disk.used_percent(), excess, "removing images that nobody uses");
        self.free(disk, excess, self.seen.removable(&in_use, now)).await
    }

    async fn free(&self, disk: Disk, excess: u64, removable: Vec<(String, u64)>) -> Result<(), ImageGcError> {
        let (mut n_bytes, mut n_failed, mut last_failure) = (0_u64, 0, None);
        for (id, size) in removable {
            if n_bytes >= excess {
                break;
            }
            let image = ImageSpec { image: id, ..ImageSpec::default() };
            match self.cri.remove_image(RemoveImageRequest { image: Some(image) }).await {
                Ok(()) => n_bytes = n_bytes.saturating_add(size),
                Err(error) => (n_failed, last_failure) = (n_failed + 1, Some(error)),
            }
        }
        if let Some(last) = last_failure {
            return Err(ImageGcError::Removal { n_failed, last });
        }
        if n_bytes >= excess {
            return Ok(());
        }
        let message = format!(
            "the disk of images is {}% full, and without the images that nobody uses only {n_bytes} of {excess} bytes \
             became free: look at logs, volumes and images in use",
            disk.used_percent()
        );
        self.event("FreeDiskSpaceFailed", &message);
        Err(ImageGcError::NotEnough(message))
    }

    async fn disk(&self) -> Result<Disk, ImageGcError> {
        let info = self.cri.image_fs_info().await?;
        let named = info.image_filesystems.into_iter().find_map(|file_system| file_system.fs_id);
        let path = PathBuf::from(named.ok_or(ImageGcError::NoFileSystem)?.mountpoint);
        match rustix::fs::statvfs(&path) {
            Ok(found) => Ok(Disk {
                capacity: found.f_blocks.saturating_mul(found.f_frsize),
                available: found.f_bavail.saturating_mul(found.f_frsize),
            }),
            Err(err) => Err(ImageGcError::Disk { path, source: err.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Node;

    fn image(id: &str, size: u64) -> Image {
        Image { id: id.to_owned(), size, ..Image::default() }
    }

    #[test]
    fn nothing_goes_below_the_high_threshold_and_all_down_to_the_low_one_above() {
        let policy = ImageGcPolicy::default();
        let disk = |available| Disk { capacity: 1000, available };
        assert_eq!(disk(160).excess(policy), None);
        assert_eq!(disk(151).excess(policy), Some(49), "what is free is rounded down, as upstream does");
        assert_eq!(disk(150).excess(policy), Some(50));
        assert_eq!(disk(0).excess(policy), Some(200));
        // More free than there is: some file systems count so.
        assert_eq!(disk(2000).excess(policy), None);
    }

    #[test]
    fn those_used_longest_ago_go_first_and_none_that_is_used_new_or_pinned() {
        let (start, mut seen) = (Instant::now(), Seens::default());
        let after = |s| start + Duration::from_secs(s);
        let set = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<HashSet<_>>();
        let mut pinned = image("pinned", 1);
        pinned.pinned = true;
        let old = [image("never", 1), image("once", 2), image("now", 4), pinned];
        seen.look(&old, &set(&["once", "now"]), start);
        let all = [old.as_slice(), &[image("new", 8)]].concat();
        seen.look(&all, &set(&["now"]), after(200));
        let at = after(250);
        assert_eq!(
            seen.removable(&set(&["now"]), at),
            [("never".to_owned(), 1), ("once".to_owned(), 2)],
            "the new one has been here for 50 s"
        );
        seen.look(&all[1..], &set(&[]), after(400));
        let ids: Vec<String> = seen.removable(&set(&[]), after(400)).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, ["new", "once", "now"]);
    }

    #[tokio::test]
    async fn what_a_container_uses_stays_and_what_could_not_be_freed_is_said() {
        let node = Node::new();
        node.cri.give_images(&[("sha256:used", 100), ("sha256:unused", 100)], "/proc");
        node.cri.give_container("sha256:used");
        let policy = ImageGcPolicy { high_percent: 0, low_percent: 0 };
        let mut gc = ImageGc::new(policy, "n1".into(), node.cri.clone(), node.events.clone());
        gc.seen.look(
            &[image("sha256:used", 100), image("sha256:unused", 100)],
            &HashSet::new(),
            Instant::now(),
        );
        // `/proc` has no capacity.
        let error = gc.pass(Instant::now()).await.unwrap_err();
        assert!(matches!(error, ImageGcError::NoCapacity), "{error}");
        assert_eq!(node.events.messages("InvalidDiskCapacity").len(), 1);
        node.cri.give_images(&[("sha256:used", 100), ("sha256:unused", 100)], "/");
        let error = gc.pass(Instant::now() + MIN_AGE).await.unwrap_err();
        assert!(matches!(error, ImageGcError::NotEnough(_)), "{error}");
        assert_eq!(node.events.messages("FreeDiskSpaceFailed").len(), 1);
        assert_eq!(node.cri.removed_images(), ["sha256:unused"]);
        let policy = ImageGcPolicy { high_percent: 100, low_percent: 0 };
        let mut off = ImageGc::new(policy, "n1".into(), node.cri.clone(), node.events.clone());
        off.pass(Instant::now() + MIN_AGE).await.unwrap();
        assert_eq!(node.cri.removed_images().len(), 1);
    }
}
