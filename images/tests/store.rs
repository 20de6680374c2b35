//! The store over real files: import, names, garbage, and a crash in the middle.
#![allow(clippy::unwrap_used)] // a helper of a test may panic as a test may

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::json;
use skiff_images::{Error, ImageKind, Images, Registries, fixture};

fn open(root: &Path) -> Arc<Images> {
    Images::open(&root.join("store"), Registries::default()).unwrap()
}

async fn import(images: &Arc<Images>, root: &Path, name: &str, layer: &[u8]) -> Arc<skiff_images::Image> {
    let archive = root.join("image.tar");
    fixture::image_archive(&archive, name, &json!({"Env": ["A=b"]}), &[layer.to_vec()]).unwrap();
    images.import(&archive, None).await.unwrap().remove(0)
}

/// What a collection frees once nobody else has the store open: a process that another test has just forked holds what was open then
/// until it runs its own program.
fn collect_alone(images: &Images) -> skiff_images::Collected {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let collected = images.collect_garbage(|_| false).unwrap();
        if collected != skiff_images::Collected::default() || std::time::Instant::now() > end {
            return collected;
        }
        std::thread::yield_now();
    }
}

fn layer(content: &str) -> Vec<u8> {
    fixture::Layer::default().file("f", 0o644, content.as_bytes()).unwrap().finish().unwrap()
}

#[tokio::test]
async fn an_imported_image_is_found_by_name_id_and_digest_also_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let image = import(&open(root.path()), root.path(), "app:1", &layer("one")).await;
    let images = open(root.path());
    let digest_name = image.digests.first().unwrap().clone();
    for reference in
        ["app:1", "docker.io/library/app:1", &image.id, &image.id[7..], &image.manifest, &digest_name]
    {
        assert_eq!(images.resolve(reference).unwrap(), image, "{reference}");
    }
    assert_eq!(images.resolve("app:2"), None);
    assert_eq!(images.resolve("Not a name"), None);
    assert_eq!(image.kind, ImageKind::Linux);
    assert_eq!(image.config.config.env, ["A=b"]);
    let layers = images.rootfs_layers(&image);
    assert_eq!(std::fs::read_to_string(layers[0].join("f")).unwrap(), "one");
    assert!(images.usage().used_bytes > 0);
}

#[tokio::test]
async fn a_name_moves_to_the_image_that_got_it_last() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let old = import(&images, root.path(), "app:1", &layer("one")).await;
    let new = import(&images, root.path(), "app:1", &layer("two")).await;
    assert_eq!(images.resolve("app:1").unwrap().id, new.id);
    assert!(images.resolve(&old.id).unwrap().names.is_empty());
}

#[tokio::test]
async fn a_wasm_file_is_an_image_by_the_name_that_it_is_given() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    for (start, system) in [(b"\0asm\x01\0\0\0", "wasip1"), (b"\0asm\x0d\0\x01\0", "wasip2")] {
        let file = root.path().join("app.wasm");
        std::fs::write(&file, start).unwrap();
        let image = images.import(&file, Some("app:1")).await.unwrap().remove(0);
        assert_eq!(images.resolve("app:1").unwrap(), image);
        assert_eq!((image.config.os.as_str(), image.config.architecture.as_str()), (system, "wasm"));
        assert_eq!(std::fs::read(images.wasm_module(&image).unwrap()).unwrap(), start);
    }
    // What has no name is found by its ID.
    let file = root.path().join("app.wasm");
    let image = images.import(&file, None).await.unwrap().remove(0);
    assert_eq!(images.resolve(&image.id).unwrap().id, image.id);
    std::fs::write(&file, b"\0asm").unwrap();
    assert!(images.import(&file, Some("app:1")).await.is_err());
}

#[tokio::test]
async fn a_removed_image_keeps_its_layers_while_a_container_uses_it() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let image = import(&images, root.path(), "app:1", &layer("one")).await;
    let other = import(&images, root.path(), "app:2", &layer("two")).await;
    images.remove("app:1").unwrap();
    images.remove("app:1").unwrap();
    assert_eq!(images.resolve(&image.id), None);
    assert_eq!(images.list().len(), 1);

    let in_use = HashSet::from([image.id.clone()]);
    let lower = images.rootfs_layers(&image);
    images.collect_garbage(|id| in_use.contains(id)).unwrap();
    assert!(lower[0].join("f").exists());
    drop(images);
    let images = open(root.path());
    let collected = collect_alone(&images);
    assert_eq!((collected.n_images, collected.n_layers), (1, 1));
    assert!(!lower[0].exists());
    assert!(images.rootfs_layers(&other)[0].join("f").exists());
}

#[tokio::test]
async fn what_a_crash_left_half_done_is_gone_at_the_next_start() {
    let root = tempfile::tempdir().unwrap();
    let store = root.path().join("store");
    drop(open(root.path()));
    std::fs::create_dir_all(store.join("ingest/half/layer")).unwrap();
    std::fs::write(store.join("images/broken.json"), "{").unwrap();
    let images = open(root.path());
    assert!(images.list().is_empty());
    assert_eq!(std::fs::read_dir(store.join("ingest")).unwrap().count(), 0);
    assert!(!store.join("images/broken.json").exists());
}

#[tokio::test]
async fn a_wasm_artifact_gives_its_module_and_a_linux_image_none() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let archive = root.path().join("wasm.tar");
    fixture::wasm_archive(&archive, "ghcr.io/a/hello:1", b"\0asm....").unwrap();
    let wasm = images.import(&archive, None).await.unwrap().remove(0);
    assert!(matches!(wasm.kind, ImageKind::Wasm { .. }));
    assert_eq!(std::fs::read(images.wasm_module(&wasm).unwrap()).unwrap(), b"\0asm....");
    let linux = import(&images, root.path(), "app:1", &layer("one")).await;
    assert!(matches!(images.wasm_module(&linux), Err(Error::NotWasm { .. })));
    assert!(images.file(&linux, "/f").unwrap().ends_with("f"));
    for missing in ["/none", "../f", "", "/f/x"] {
        assert!(images.file(&linux, missing).is_err(), "{missing}");
    }
}

#[tokio::test]
async fn a_wrong_archive_is_refused_and_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let path = root.path().join("bad.tar");
    for bytes in [&b"not a tar"[..], &[], &[0; 1024]] {
        std::fs::write(&path, bytes).unwrap();
        let err = images.import(&path, None).await.unwrap_err().to_string();
        assert!(err.contains("import image archive"), "{err}");
    }
    assert!(images.import(&root.path().join("none.tar"), None).await.is_err());
    images.collect_garbage(|_| false).unwrap();
    assert_eq!(images.usage().used_bytes, 0);
}

/// A store as an earlier version left it: its layers in another folder, by other rules.
fn aged(root: &Path) {
    let store = root.join("store");
    std::fs::rename(store.join("layers-2"), store.join("layers")).unwrap();
    for layer in std::fs::read_dir(store.join("layers")).unwrap() {
        let file = layer.unwrap().path().join("f");
        if file.exists() {
            std::fs::write(file, "as it was unpacked then").unwrap();
        }
    }
}

#[tokio::test]
async fn layers_that_another_version_unpacked_are_unpacked_again_and_removed() {
    let root = tempfile::tempdir().unwrap();
    // Of no other test: it is mounted, and mounts of the whole machine are looked at for the layer's name.
    let image = import(&open(root.path()), root.path(), "app:1", &layer("aged")).await;
    aged(root.path());
    let images = open(root.path());
    assert_eq!(images.resolve("app:1").unwrap(), image);
    let read = |images: &Images| std::fs::read_to_string(images.rootfs_layers(&image)[0].join("f")).unwrap();
    images.ready(&image).await.unwrap();
    assert_eq!(read(&images), "aged");
    images.wait_for_renewal();
    assert!(!root.path().join("store/layers").exists());

    // Below a container they stay for as long as it runs.
    drop(images);
    aged(root.path());
    let (old, mounted) = (root.path().join("store/layers"), root.path().join("mounted"));
    let lower = std::fs::read_dir(&old).unwrap().map(|layer| layer.unwrap().path());
    let lower = lower.filter(|layer| layer.join("f").exists()).collect::<Vec<_>>().remove(0);
    std::fs::create_dir(&mounted).unwrap();
    // In a mount namespace of its own, as a container has one.
    let script = r#"mount --bind "$0" "$1" && echo mounted && read go && cat "$1/f""#;
    let mut container = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .args([&lower, &mounted])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(container.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "mounted");
    let while_mounted = open(root.path());
    while_mounted.wait_for_renewal();
    assert_eq!(read(&while_mounted), "aged");
    drop(while_mounted);
    container.stdin.take().unwrap().write_all(b"\n").unwrap();
    let seen = said.next().map(Result::unwrap);
    assert!(container.wait().unwrap().success());
    assert_eq!(seen.as_deref(), Some("as it was unpacked then"));
    assert_eq!(std::fs::read_dir(&old).unwrap().count(), 2, "the layer and its size");
    open(root.path()).wait_for_renewal();
    assert!(!old.exists());
}

#[tokio::test]
async fn an_image_that_cannot_be_unpacked_again_is_forgotten_and_the_store_opens() {
    let root = tempfile::tempdir().unwrap();
    import(&open(root.path()), root.path(), "app:1", &layer("one")).await;
    import(&open(root.path()), root.path(), "app:2", &layer("two")).await;
    aged(root.path());
    let blob = skiff_images::Digest::of(&layer("one"));
    std::fs::remove_file(root.path().join("store/blobs/sha256").join(&blob.to_string()[7..])).unwrap();
    let images = open(root.path());
    images.wait_for_renewal();
    assert!(images.resolve("app:1").is_none());
    assert!(images.resolve("app:2").is_some());
}

#[tokio::test]
async fn who_wants_an_image_waits_for_that_alone_and_is_told_if_it_cannot_be_made_whole() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let image = import(&images, root.path(), "app:1", &layer("one")).await;
    let other = import(&images, root.path(), "app:2", &layer("two")).await;
    // As lost, with nobody behind who would make them whole.
    for image in [&image, &other] {
        std::fs::remove_dir_all(&images.rootfs_layers(image)[0]).unwrap();
    }
    images.ready(&image).await.unwrap();
    assert!(images.rootfs_layers(&image)[0].join("f").exists());
    assert!(!images.rootfs_layers(&other)[0].exists());
    let blob = skiff_images::Digest::of(&layer("two"));
    std::fs::remove_file(root.path().join("store/blobs/sha256").join(&blob.to_string()[7..])).unwrap();
    let error = images.ready(&other).await.unwrap_err();
    assert!(matches!(error, Error::Incomplete { .. }), "{error}");
    assert!(images.resolve("app:2").is_none(), "it may be pulled again");
}

#[tokio::test]
async fn what_is_held_stays_and_goes_with_the_next_collection() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let image = import(&images, root.path(), "app:1", &layer("one")).await;
    // The documents around it are no part of it.
    images.collect_garbage(|_| false).unwrap();
    let held = images.hold(&image.id).unwrap();
    images.remove("app:1").unwrap();
    assert_eq!(images.collect_garbage(|_| false).unwrap(), skiff_images::Collected::default());
    assert!(images.rootfs_layers(&image)[0].exists());
    drop(held);
    let collected = images.collect_garbage(|_| false).unwrap();
    assert_eq!((collected.n_images, collected.n_layers, collected.n_blobs), (1, 1, 3));
    assert!(images.hold(&image.id).is_none());
}

#[tokio::test]
async fn what_a_mount_names_stays_though_no_record_knows_of_it() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    // A layer that no other test has: mounts of the whole machine are looked at, for the layer's name in whatever store.
    let image = import(&images, root.path(), "app:1", &layer("mounted")).await;
    let (lower, mounted) = (images.rootfs_layers(&image)[0].clone(), root.path().join("mounted"));
    std::fs::create_dir(&mounted).unwrap();
    // In a mount namespace of its own, as a container has one.
    let script = r#"mount --bind "$0" "$1" && echo mounted && read go"#;
    let mut container = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .args([&lower, &mounted])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(container.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "mounted");
    images.remove("app:1").unwrap();
    let collected = images.collect_garbage(|_| false).unwrap();
    let is_there = lower.join("f").exists();
    container.stdin.take().unwrap().write_all(b"\n").unwrap();
    container.wait().unwrap();
    assert_eq!((collected.n_images, collected.n_layers, is_there), (1, 0, true));
    assert_eq!(images.collect_garbage(|_| false).unwrap().n_layers, 1);
    assert!(!lower.exists());
}

#[tokio::test]
async fn nothing_goes_while_another_has_the_store_open() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    import(&images, root.path(), "app:1", &layer("one")).await;
    images.remove("app:1").unwrap();
    let other = open(root.path());
    assert_eq!(images.collect_garbage(|_| false).unwrap(), skiff_images::Collected::default());
    drop(other);
    assert_eq!(collect_alone(&images).n_layers, 1);
}

#[tokio::test]
async fn what_a_power_cut_left_of_a_layer_goes_and_is_in_nobodys_way() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let image = import(&images, root.path(), "app:1", &layer("one")).await;
    let size_of = |path: &Path| path.with_extension("json");
    let lower = images.rootfs_layers(&image)[0].clone();
    let lost = lower.with_file_name("e".repeat(64));
    std::fs::write(size_of(&lost), "{").unwrap();
    std::fs::remove_file(size_of(&lower)).unwrap();
    images.collect_garbage(|_| false).unwrap();
    assert!(!size_of(&lost).exists());
    images.remove("app:1").unwrap();
    assert_eq!(images.collect_garbage(|_| false).unwrap().n_layers, 1, "though its size is lost");
    assert!(!lower.exists());
}

#[tokio::test]
async fn what_a_new_pull_of_an_image_replaces_goes_with_the_next_collection() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    import(&images, root.path(), "app:2", &layer("two")).await;
    images.collect_garbage(|_| false).unwrap();
    let before = images.usage();
    import(&images, root.path(), "app:1", &layer("one")).await;
    // The same name again: what had it is an image without names now, and the node may remove that by its ID.
    let old = images.resolve("app:1").unwrap();
    import(&images, root.path(), "app:1", &layer("two")).await;
    images.remove(&old.id).unwrap();
    images.collect_garbage(|_| false).unwrap();
    assert_eq!(images.usage().inodes_used, before.inodes_used);
}
