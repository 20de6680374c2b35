//! Pulls from a registry of the test's own on loopback: Debian's docker-registry, filled by skopeo.
#![allow(clippy::unwrap_used)] // a helper of a test may panic as a test may

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::json;
use skiff_images::{Error, Images, Phase, Progress, PullCause, Registries, fixture};
use tokio::sync::watch;

struct Registry {
    process: Child,
    root: tempfile::TempDir,
    port: u16,
}

impl Registry {
    fn start() -> Registry {
        let root = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = root.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}/data}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            root.path().display()
        );
        std::fs::write(&config, text).unwrap();
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        lines.find(|line| line.as_ref().unwrap().contains("listening on")).unwrap().unwrap();
        // Its log must be read on, or it would block.
        std::thread::spawn(move || lines.for_each(drop));
        Registry { process, root, port }
    }

    fn push(&self, archive: &Path, repository: &str) {
        let status = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .arg(format!("oci-archive:{}", archive.display()))
            .arg(format!("docker://127.0.0.1:{}/{repository}", self.port))
            .status()
            .expect("skopeo is installed");
        assert!(status.success());
    }

    fn images(&self) -> Arc<Images> {
        let yaml = format!("mirrors: {{docker.io: {{endpoint: ['http://127.0.0.1:{}']}}}}", self.port);
        Images::open(&self.root.path().join("store"), Registries::parse(&yaml).unwrap()).unwrap()
    }

    fn archive(&self) -> std::path::PathBuf {
        let path = self.root.path().join("image.tar");
        let layer = fixture::Layer::default().file("f", 0o644, &[7; 300_000]).unwrap().finish().unwrap();
        fixture::image_archive(&path, "x:1", &json!({"Cmd": ["/f"]}), &[layer]).unwrap();
        path
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_docker_hub_is_pulled_from_its_mirror_with_progress() {
    let registry = Registry::start();
    registry.push(&registry.archive(), "library/app:1");
    let images = registry.images();
    let (sender, receiver) = watch::channel(Progress::default());
    let image = images.pull("app:1", None, Some(&sender)).await.unwrap();
    let progress = receiver.borrow();
    assert_eq!(progress.phase, Phase::Done);
    assert!(
        progress.layers.iter().all(|layer| layer.done_bytes == layer.total_bytes && layer.total_bytes > 0)
    );
    assert!(image.names.contains("docker.io/library/app:1"));
    assert_eq!(std::fs::metadata(images.rootfs_layers(&image)[0].join("f")).unwrap().len(), 300_000);

    let by_digest = images.pull(image.digests.first().unwrap(), None, None).await.unwrap();
    assert_eq!(by_digest.id, image.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_the_same_image_at_once_share_the_work() {
    let registry = Registry::start();
    registry.push(&registry.archive(), "library/app:1");
    let images = registry.images();
    let pulls = (0..8).map(|_| images.pull("app:1", None, None));
    let pulled = futures::future::try_join_all(pulls).await.unwrap();
    assert!(pulled.iter().all(|image| image.id == pulled[0].id));
    assert_eq!(images.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_reads_as_with_containerd() {
    let registry = Registry::start();
    let err = registry.images().pull("nope:1", None, None).await.unwrap_err();
    assert!(err.is_not_found());
    let name = "docker.io/library/nope:1";
    let expected = format!(
        "failed to pull and unpack image {name:?}: failed to resolve reference {name:?}: {name}: not found"
    );
    assert_eq!(err.to_string(), expected);
    let err = registry.images().pull("No Name", None, None).await.unwrap_err();
    assert_eq!(err.reason(), Some("InvalidImageName"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_not_what_its_digest_says_is_refused() {
    let registry = Registry::start();
    registry.push(&registry.archive(), "library/app:1");
    let blobs = registry.root.path().join("data/docker/registry/v2/blobs/sha256");
    let largest = std::fs::read_dir(&blobs)
        .unwrap()
        .flat_map(|prefix| std::fs::read_dir(prefix.unwrap().path()).unwrap())
        .map(|entry| entry.unwrap().path().join("data"))
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&largest, bytes).unwrap();
    let images = registry.images();
    let err = images.pull("app:1", None, None).await.unwrap_err();
    assert!(matches!(err, Error::Pull { cause: PullCause::WrongDigest { .. }, .. }), "{err}");
    assert!(images.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_answer_is_named() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let root = tempfile::tempdir().unwrap();
    let images = Images::open(root.path(), Registries::default()).unwrap();
    let err = images.pull(&format!("127.0.0.1:{port}/app:1"), None, None).await.unwrap_err();
    assert!(matches!(err, Error::Pull { cause: PullCause::Unreachable { .. }, .. }), "{err}");
    assert!(err.to_string().contains("failed to do request"), "{err}");
}
