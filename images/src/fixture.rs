//! Small images for tests, here and in the crates above, made without a network: OCI layouts whose single
//! layer holds the host's static busybox, or a Wasm module.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::manifest::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, WASM_CONFIG, WASM_LAYER};
use crate::name::Digest;
use crate::platform::Host;

/// Where Debian's `busybox-static` puts it.
const BUSYBOX: &str = "/bin/busybox";

const APPLETS: &[&str] = &[
    "sh",
    "ash",
    "cat",
    "chmod",
    "chown",
    "cp",
    "date",
    "dd",
    "df",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "grep",
    "head",
    "hostname",
    "httpd",
    "id",
    "ip",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mknod",
    "mount",
    "mv",
    "nc",
    "nproc",
    "nslookup",
    "ping",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "tail",
    "tee",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "tty",
    "umount",
    "uname",
    "uniq",
    "usleep",
    "vi",
    "wc",
    "wget",
    "which",
    "whoami",
    "xargs",
    "yes",
];

/// A layer in the making.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Layer {
        Layer(tar::Builder::new(Vec::new()))
    }
}

impl Layer {
    pub fn directory(mut self, path: &str, mode: u32) -> io::Result<Layer> {
        self.append(path, tar::EntryType::Directory, mode, &[])?;
        Ok(self)
    }

    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<Layer> {
        self.append(path, tar::EntryType::Regular, mode, content)?;
        Ok(self)
    }

    pub fn link(mut self, path: &str, target: &str) -> io::Result<Layer> {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, target)?;
        Ok(self)
    }

    /// The tar.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        self.0.into_inner()
    }

    fn append(&mut self, path: &str, kind: tar::EntryType, mode: u32, content: &[u8]) -> io::Result<()> {
        let mut header = header(kind, mode, content.len() as u64);
        self.0.append_data(&mut header, path, content)
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_mtime(1_700_000_000);
    header
}

/// A layer with busybox, its usual applets, `/etc/passwd` and `/etc/group` with `root` and `app` (1000), and
/// a world-writable `/tmp`.
pub fn busybox_layer() -> io::Result<Layer> {
    let busybox = std::fs::read(BUSYBOX)?;
    let mut layer = Layer::default()
        .directory("bin", 0o755)?
        .file("bin/busybox", 0o755, &busybox)?
        .directory("etc", 0o755)?
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")?
        .file("etc/group", 0o644, b"root:x:0:\napp:x:1000:\nextra:x:2000:app\n")?
        .directory("root", 0o700)?
        .directory("tmp", 0o1777)?;
    for directory in ["dev", "home", "home/app", "proc", "sys", "var", "run"] {
        layer = layer.directory(directory, 0o755)?;
    }
    for applet in APPLETS {
        layer = layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    Ok(layer)
}

/// Writes an OCI layout of busybox, named `name`, to `path`. `config` amends the image config's `config`.
pub fn busybox_archive(path: &Path, name: &str, config: &Value) -> io::Result<()> {
    let mut run = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Cmd": ["sh"],
    });
    if let (Some(run), Some(more)) = (run.as_object_mut(), config.as_object()) {
        run.extend(more.clone());
    }
    image_archive(path, name, &run, &[busybox_layer()?.finish()?])
}

/// Writes an OCI layout of a Linux image of uncompressed `layers`.
pub fn image_archive(path: &Path, name: &str, run_config: &Value, layers: &[Vec<u8>]) -> io::Result<()> {
    let platform = json!({"os": "linux", "architecture": Host::this().architecture});
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = json!({
        "os": "linux",
        "architecture": Host::this().architecture,
        "config": run_config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = serde_json::to_vec(&config)?;
    let layers: Vec<_> = layers.iter().map(|layer| (OCI_LAYER, layer.as_slice())).collect();
    layout(path, name, (OCI_CONFIG, &config), &layers, &platform)
}

/// Writes an OCI layout of a Wasm artifact that holds `module`.
pub fn wasm_archive(path: &Path, name: &str, module: &[u8]) -> io::Result<()> {
    let config = json!({"architecture": "wasm", "os": "wasip1", "layerDigests": [Digest::of(module)]});
    let config = serde_json::to_vec(&config)?;
    let platform = json!({"os": "wasip1", "architecture": "wasm"});
    layout(path, name, (WASM_CONFIG, &config), &[(WASM_LAYER, module)], &platform)
}

fn layout(
    path: &Path,
    name: &str,
    config: (&str, &[u8]),
    layers: &[(&str, &[u8])],
    platform: &Value,
) -> io::Result<()> {
    let descriptor = |(media_type, bytes): (&str, &[u8])| json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config),
        "layers": layers.iter().map(|layer| descriptor(*layer)).collect::<Vec<_>>(),
    });
    let manifest = serde_json::to_vec(&manifest)?;
    let mut entry = descriptor((OCI_MANIFEST, &manifest));
    entry["platform"] = platform.clone();
    entry["annotations"] = json!({"io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]});

    let mut archive = tar::Builder::new(io::BufWriter::new(File::create(path)?));
    let mut add = |name: String, bytes: &[u8]| {
        archive.append_data(&mut header(tar::EntryType::Regular, 0o644, bytes.len() as u64), name, bytes)
    };
    add("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json".to_owned(), &serde_json::to_vec(&index)?)?;
    for blob in layers.iter().map(|layer| layer.1).chain([config.1, &manifest]) {
        add(format!("blobs/sha256/{}", Digest::of(blob).hex()), blob)?;
    }
    archive.into_inner()?.flush()
}
