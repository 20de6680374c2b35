//! From a case to what a registry holds of it: layers, config, manifest, index.

use std::collections::HashMap;
use std::io::Write as _;

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::case::{
    ConfigOdd, Entry, Image, Index, Layer, ManifestOdd, MediaType, Member, MemberKind, Mood, Packing,
};
use crate::tar;

pub const TAG: &str = "v";

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// What a registry holds of one image.
#[derive(Clone, Debug, Default)]
pub struct Held {
    pub mood: Mood,
    /// What the tag stands for.
    pub target: String,
    pub documents: HashMap<String, (String, Vec<u8>)>,
    pub blobs: HashMap<String, Vec<u8>>,
    /// The configs among the blobs.
    pub configs: Vec<String>,
}

impl Held {
    pub fn of(image: &Image) -> Result<Held> {
        let mut held = Held { mood: image.mood, ..Held::default() };
        let main = held.manifest(image)?;
        held.target = match &image.index {
            None => text(&main, "digest"),
            Some(index) => {
                let index = held.index(index, &main)?;
                text(&index, "digest")
            }
        };
        Ok(held)
    }

    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let described = descriptor(media_type, &bytes);
        self.blobs.insert(text(&described, "digest"), bytes);
        described
    }

    fn document(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let described = descriptor(media_type, &bytes);
        self.documents.insert(text(&described, "digest"), (media_type.to_owned(), bytes));
        described
    }

    /// The descriptor of an image's manifest.
    fn manifest(&mut self, image: &Image) -> Result<Value> {
        let docker =
            image.manifest == ManifestOdd::Docker || image.index.as_ref().is_some_and(|index| index.docker);
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for layer in &image.layers {
            let archive = tar::archive(layer);
            diff_ids.push(digest(&archive));
            let packed = packed(layer.packing, &archive)?;
            layers.push(self.blob(&media_type(layer, docker), packed));
        }
        let config = config(image.config, &diff_ids);
        let config_type = match (image.config, docker) {
            (ConfigOdd::MediaType, _) => "application/json",
            (_, true) => DOCKER_CONFIG,
            (_, false) => OCI_CONFIG,
        };
        let config = self.blob(config_type, config);
        self.configs.push(text(&config, "digest"));
        let media_type = if docker { DOCKER_MANIFEST } else { OCI_MANIFEST };
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        let (media_type, bytes) = odd_manifest(image.manifest, media_type, manifest)?;
        Ok(self.document(media_type, bytes))
    }

    fn index(&mut self, index: &Index, main: &Value) -> Result<Value> {
        let media_type = if index.docker { DOCKER_LIST } else { OCI_INDEX };
        let mut entries = Vec::new();
        for (at, member) in index.entries.iter().enumerate() {
            entries.push(self.member(at, member, index, main)?);
        }
        let mut document = json!({"schemaVersion": 2, "manifests": entries});
        if index.media_type || index.docker {
            document["mediaType"] = media_type.into();
        }
        Ok(self.document(media_type, serde_json::to_vec(&document)?))
    }

    fn member(&mut self, at: usize, member: &Member, index: &Index, main: &Value) -> Result<Value> {
        let mut described = match member.what {
            MemberKind::Main => main.clone(),
            _ => self.chosen(at, index.docker)?,
        };
        match member.what {
            MemberKind::Nested => {
                let inner = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
                    merged(described, json!({"platform": {"os": "linux", "architecture": host()}})),
                ]});
                described = self.document(OCI_INDEX, serde_json::to_vec(&inner)?);
            }
            MemberKind::Attestation => {
                let statement =
                    self.blob("application/vnd.in-toto+json", br#"{"_type":"statement"}"#.to_vec());
                let config = self.blob(OCI_CONFIG, br#"{"architecture":"unknown","os":"unknown","rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#.to_vec());
                let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [statement]});
                described = self.document(OCI_MANIFEST, serde_json::to_vec(&manifest)?);
                described["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": main["digest"]});
            }
            MemberKind::Missing => {
                self.documents.remove(&text(&described, "digest"));
            }
            MemberKind::WrongSize => {
                described["size"] = json!(described["size"].as_u64().unwrap_or_default() + 1)
            }
            MemberKind::UnknownMediaType => {
                described["mediaType"] = "application/vnd.example.unknown+json".into()
            }
            MemberKind::Image | MemberKind::Main => {}
        }
        if let Some(platform) = &member.platform {
            let mut value = json!({"os": platform.os, "architecture": platform.architecture});
            if member.what == MemberKind::Main && platform.architecture == "amd64" {
                value["architecture"] = host().into();
            }
            if let Some(variant) = &platform.variant {
                value["variant"] = variant.as_str().into();
            }
            if let Some(version) = &platform.os_version {
                value["os.version"] = version.as_str().into();
            }
            if !platform.os_features.is_empty() {
                value["os.features"] = json!(platform.os_features);
            }
            described["platform"] = value;
        }
        Ok(described)
    }

    /// An image of this machine whose tree says that it is this member of an index.
    fn chosen(&mut self, at: usize, docker: bool) -> Result<Value> {
        let layer = Layer { entries: vec![Entry::file(&format!("member-{at}"), 1)], ..Layer::default() };
        let image = Image {
            theme: crate::case::Theme::Index,
            layers: vec![layer],
            config: ConfigOdd::Plain,
            manifest: if docker { ManifestOdd::Docker } else { ManifestOdd::Plain },
            index: None,
            mood: Mood::Plain,
            by_digest: false,
        };
        self.manifest(&image)
    }
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// As images name this machine's architecture.
pub fn host() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

fn merged(mut value: Value, more: Value) -> Value {
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
    value
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn packed(packing: Packing, archive: &[u8]) -> Result<Vec<u8>> {
    const SKIPPED: &[u8] = &[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, b'a', b'n', b'y'];
    let cut = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() * 2 / 3);
        bytes
    };
    let parts = || archive.chunks(700.min(archive.len().max(1)));
    Ok(match packing {
        Packing::Plain => archive.to_vec(),
        Packing::Gzip => gzip(archive)?,
        Packing::GzipMembers => parts().map(gzip).collect::<Result<Vec<_>>>()?.concat(),
        Packing::GzipThenGarbage => [gzip(archive)?, b"garbage".to_vec()].concat(),
        Packing::GzipThenZeros => [gzip(archive)?, vec![0; 512]].concat(),
        Packing::GzipCut => cut(gzip(archive)?),
        Packing::Zstd => zstd::encode_all(archive, 1)?,
        Packing::ZstdFrames => {
            parts().map(|part| zstd::encode_all(part, 1)).collect::<Result<Vec<_>, _>>()?.concat()
        }
        Packing::ZstdSkippableFirst => [SKIPPED.to_vec(), zstd::encode_all(archive, 1)?].concat(),
        Packing::ZstdSkippableLast => [zstd::encode_all(archive, 1)?, SKIPPED.to_vec()].concat(),
        Packing::ZstdCut => cut(zstd::encode_all(archive, 1)?),
        Packing::ZstdThenGarbage => [zstd::encode_all(archive, 1)?, b"garbage".to_vec()].concat(),
        Packing::Bzip2Magic => [b"BZh91AY&SY".as_slice(), archive].concat(),
    })
}

fn media_type(layer: &Layer, docker: bool) -> String {
    let base = if docker { DOCKER_LAYER } else { OCI_LAYER };
    let separator = if docker { '.' } else { '+' };
    match layer.media_type {
        MediaType::Right => match layer.packing {
            Packing::Plain | Packing::Bzip2Magic => base.to_owned(),
            Packing::Gzip
            | Packing::GzipMembers
            | Packing::GzipThenGarbage
            | Packing::GzipThenZeros
            | Packing::GzipCut => {
                format!("{base}{separator}gzip")
            }
            _ => format!("{OCI_LAYER}+zstd"),
        },
        MediaType::OciTar => OCI_LAYER.to_owned(),
        MediaType::OciGzip => format!("{OCI_LAYER}+gzip"),
        MediaType::OciZstd => format!("{OCI_LAYER}+zstd"),
        MediaType::DockerGzip => format!("{DOCKER_LAYER}.gzip"),
        MediaType::DockerTar => DOCKER_LAYER.to_owned(),
        MediaType::NonDistributable => "application/vnd.oci.image.layer.nondistributable.v1.tar".to_owned(),
        MediaType::DockerForeign => "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".to_owned(),
        MediaType::Unknown => "application/vnd.example.layer".to_owned(),
        MediaType::Empty => String::new(),
    }
}

fn config(odd: ConfigOdd, diff_ids: &[String]) -> Vec<u8> {
    let mut ids = diff_ids.to_vec();
    match odd {
        ConfigOdd::WrongDiffId => {
            ids.pop();
            ids.push(digest(b"other"));
        }
        ConfigOdd::SwappedDiffIds => ids.reverse(),
        ConfigOdd::ExtraDiffId => ids.push(digest(b"other")),
        ConfigOdd::MissingDiffId => {
            ids.pop();
        }
        _ => {}
    }
    let mut config = json!({
        "architecture": host(),
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/a"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": ids},
        "history": [],
    });
    let remove = |config: &mut Value, key: &str| _ = config.as_object_mut().map(|config| config.remove(key));
    match odd {
        ConfigOdd::NoRootfs => remove(&mut config, "rootfs"),
        ConfigOdd::NullRootfs => config["rootfs"] = Value::Null,
        ConfigOdd::NullDiffIds => config["rootfs"]["diff_ids"] = Value::Null,
        ConfigOdd::RootfsType => config["rootfs"]["type"] = "other".into(),
        ConfigOdd::NullConfig => config["config"] = Value::Null,
        ConfigOdd::NullFields => {
            config["config"] = json!({"Env": null, "Cmd": null, "Entrypoint": null, "Labels": null, "Volumes": null, "User": null, "ExposedPorts": null, "WorkingDir": null, "StopSignal": null});
            config["created"] = Value::Null;
            config["history"] = Value::Null;
        }
        ConfigOdd::UnknownFields => {
            config["future"] = json!({"any": [1, 2, 3]});
            config["config"]["Future"] = json!({"any": true});
        }
        ConfigOdd::NoPlatform => {
            remove(&mut config, "architecture");
            remove(&mut config, "os");
        }
        ConfigOdd::ForeignPlatform => config["architecture"] = "s390x".into(),
        ConfigOdd::OtherSystem => config["os"] = "windows".into(),
        ConfigOdd::AliasPlatform => config["architecture"] = std::env::consts::ARCH.into(),
        ConfigOdd::VariantPlatform => config["variant"] = "v1".into(),
        ConfigOdd::WrongTypeOfEnv => config["config"]["Env"] = "PATH=/bin".into(),
        ConfigOdd::WrongTypeOfUser => config["config"]["User"] = 7.into(),
        ConfigOdd::OddCreated => config["created"] = "yesterday".into(),
        ConfigOdd::OddHistory => config["history"] = json!([{"empty_layer": true}, {"created_by": "x"}]),
        ConfigOdd::Large => config["config"]["Labels"] = json!({"large": "x".repeat(200_000)}),
        ConfigOdd::UpperCaseKeys => {
            let rootfs = config["rootfs"].take();
            remove(&mut config, "rootfs");
            config["RootFS"] = rootfs;
        }
        ConfigOdd::NoJson => return b"no json".to_vec(),
        ConfigOdd::Array => return b"[]".to_vec(),
        _ => {}
    }
    serde_json::to_vec(&config).unwrap_or_default()
}

fn odd_manifest(
    odd: ManifestOdd,
    media_type: &'static str,
    mut manifest: Value,
) -> Result<(&'static str, Vec<u8>)> {
    let remove = |value: &mut Value, key: &str| _ = value.as_object_mut().map(|value| value.remove(key));
    let add = |value: &mut Value, n: i64| *value = json!(value.as_i64().unwrap_or_default() + n);
    // Where there is none, what is changed is nobody's.
    let mut none = Value::Null;
    let mut layers = manifest["layers"].take();
    let layer = layers.get_mut(0).unwrap_or(&mut none);
    match odd {
        ManifestOdd::NoMediaType => remove(&mut manifest, "mediaType"),
        ManifestOdd::NoSchemaVersion => remove(&mut manifest, "schemaVersion"),
        ManifestOdd::SchemaVersion1 => manifest["schemaVersion"] = 1.into(),
        ManifestOdd::NullLayers => layers = Value::Null,
        ManifestOdd::NullAnnotations => {
            manifest["annotations"] = Value::Null;
            layer["annotations"] = Value::Null;
            manifest["config"]["urls"] = Value::Null;
        }
        ManifestOdd::UnknownFields => {
            manifest["future"] = json!({"any": 1});
            layer["data"] = "aGVsbG8=".into();
            manifest["artifactType"] = "application/vnd.example".into();
        }
        ManifestOdd::EmptyManifests => manifest["manifests"] = json!([]),
        ManifestOdd::Both => manifest["manifests"] = json!([manifest["config"]]),
        ManifestOdd::LayerTooLong => add(&mut layer["size"], 1),
        ManifestOdd::LayerTooShort => add(&mut layer["size"], -1),
        ManifestOdd::ConfigTooLong => add(&mut manifest["config"]["size"], 1),
        ManifestOdd::NegativeSize => layer["size"] = json!(-1),
        ManifestOdd::NoSize => remove(layer, "size"),
        ManifestOdd::OddDigest => layer["digest"] = "sha256:../../../../etc/passwd".into(),
        ManifestOdd::UpperCaseDigest => {
            let digest = text(layer, "digest");
            layer["digest"] =
                format!("sha256:{}", digest.trim_start_matches("sha256:").to_uppercase()).into();
        }
        ManifestOdd::NoConfig => remove(&mut manifest, "config"),
        ManifestOdd::Urls => layer["urls"] = json!(["http://127.0.0.1:1/nowhere"]),
        ManifestOdd::Array => return Ok((media_type, b"[]".to_vec())),
        ManifestOdd::NoJson => return Ok((media_type, b"no json".to_vec())),
        ManifestOdd::OtherMediaType => manifest["mediaType"] = OCI_INDEX.into(),
        _ => {}
    }
    manifest["layers"] = layers;
    let mut bytes = serde_json::to_vec(&manifest)?;
    match odd {
        ManifestOdd::LeadingSpace => bytes.splice(0..0, *b"\n  ").for_each(drop),
        ManifestOdd::TrailingGarbage => bytes.extend_from_slice(b"garbage"),
        _ => {}
    }
    Ok((media_type, bytes))
}
