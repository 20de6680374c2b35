//! What manifests, indexes and configs say, and the choice of platform and runtime.
//!
//! OCI image spec 1.1 and Docker's schema 2, read leniently: registries are full of images whose optional
//! fields are `null`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::PullCause;
use crate::name::Digest;
use crate::platform::{Host, Platform};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub(crate) const WASM_LAYER: &str = "application/wasm";
/// What `wasm-to-oci` and early runtimes pushed.
pub(crate) const OLD_WASM_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";
/// What early tools of the component model pushed.
pub(crate) const OLD_COMPONENT_LAYER: &str = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm";
/// Says of an image with a Linux platform that its program is Wasm.
const VARIANT: &str = "module.wasm.image/variant";
/// Whatever its name is; with `compat-smart` it is a matter of the name, as it is without an annotation.
const COMPAT: &str = "compat";
const WASM_SUFFIX: &str = ".wasm";

/// Which runtime an image is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageKind {
    /// A root filesystem of Linux programs.
    Linux,
    /// A WebAssembly module or component.
    Wasm { module: WasmModule },
}

/// Where a Wasm image keeps its module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WasmModule {
    /// A blob of its own: Wasm OCI artifacts.
    Blob { digest: Digest },
    /// A file of the layers, named by the entrypoint: images built for the `wasi/wasm` platform, or whose program is Wasm
    /// whatever platform they name.
    File { path: String },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    /// Some writers leave it out; the other version has no config, and so is no manifest here.
    #[serde(default = "two")]
    pub(crate) schema_version: u32,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

fn two() -> u32 {
    2
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Index {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) manifests: Vec<Descriptor>,
}

/// What a digest's JSON turned out to be.
pub(crate) enum Document {
    Index(Index),
    Manifest(Box<Manifest>),
}

/// Reads an index or a manifest; its own `mediaType` is optional in OCI, its fields tell.
pub(crate) fn parse(bytes: &[u8], digest: &Digest) -> Result<Document, PullCause> {
    #[derive(Deserialize)]
    struct Shape {
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        config: Option<serde::de::IgnoredAny>,
    }
    let invalid =
        |detail: String| PullCause::Invalid { what: "manifest", digest: digest.to_string(), detail };
    let shape: Shape = serde_json::from_slice(bytes).map_err(|err| invalid(err.to_string()))?;
    match shape {
        Shape { manifests: Some(_), config: Some(_) } => {
            // The confusion attack of CVE-2021-41190.
            Err(invalid("is both an index and a manifest".to_owned()))
        }
        Shape { manifests: Some(_), .. } => {
            serde_json::from_slice(bytes).map(Document::Index).map_err(|err| invalid(err.to_string()))
        }
        Shape { config: Some(_), .. } => {
            serde_json::from_slice(bytes).map(Document::Manifest).map_err(|err| invalid(err.to_string()))
        }
        _ => Err(invalid("schema 1 manifests and artifacts without a config are not supported".to_owned())),
    }
}

impl Index {
    /// What may be looked at, in this order: this machine's Linux images, the best first, then those of Wasm, then what has no
    /// platform, such as an index in the index.
    pub(crate) fn candidates(&self, host: Host) -> Vec<&Descriptor> {
        const WASM: u16 = 1000;
        const UNSAID: u16 = 2000;
        let rank = |entry: &Descriptor| match &entry.platform {
            Some(platform) => platform.rank(host).map(u16::from).or(platform.is_wasm().then_some(WASM)),
            None => Some(UNSAID),
        };
        let mut ranked: Vec<_> =
            self.manifests.iter().filter_map(|entry| Some((rank(entry)?, entry))).collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, entry)| entry).collect()
    }

    /// The first of the [candidates](Index::candidates).
    pub(crate) fn choose(&self, digest: &Digest) -> Result<&Descriptor, PullCause> {
        let first = self.candidates(Host::this()).into_iter().next();
        first.ok_or_else(|| PullCause::NoPlatform { digest: digest.to_string() })
    }
}

/// An image's config: what its author says about running it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub(crate) variant: String,
    #[serde(default, deserialize_with = "or_default")]
    pub created: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub config: RunConfig,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) rootfs: RootFs,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) diff_ids: Vec<Digest>,
}

/// The defaults for a container of the image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    #[serde(deserialize_with = "or_default")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    /// `KEY=value`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM`, `TERM` or a number; empty for the default.
    #[serde(deserialize_with = "or_default")]
    pub stop_signal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
}

/// Docker's health check; Kubernetes does not run it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    #[serde(deserialize_with = "or_default")]
    pub test: Vec<String>,
}

/// Decides the runtime from the manifest and, where that leaves it open, the config's platform.
pub(crate) fn kind(
    manifest: &Manifest,
    config: &ImageConfig,
    digest: &Digest,
) -> Result<ImageKind, PullCause> {
    let is_module = |layer: &&Descriptor| {
        matches!(layer.media_type.as_str(), WASM_LAYER | OLD_WASM_LAYER | OLD_COMPONENT_LAYER)
    };
    if let Some(layer) = manifest.layers.iter().find(is_module) {
        return Ok(ImageKind::Wasm { module: WasmModule::Blob { digest: layer.digest.clone() } });
    }
    if manifest.config.media_type == WASM_CONFIG {
        let detail = format!("a Wasm artifact without a layer of type {WASM_LAYER}");
        return Err(PullCause::Invalid { what: "manifest", digest: digest.to_string(), detail });
    }
    let platform = Platform {
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        variant: config.variant.clone(),
    };
    let run = &config.config;
    let path = run.entrypoint.first().or(run.cmd.first()).cloned().unwrap_or_default();
    let is_said = [&manifest.annotations, &run.labels]
        .iter()
        .any(|said| said.get(VARIANT).is_some_and(|v| v == COMPAT));
    if platform.is_wasm() || is_said || path.ends_with(WASM_SUFFIX) {
        return Ok(ImageKind::Wasm { module: WasmModule::File { path } });
    }
    if platform.rank(Host::this()).is_some() || platform.is_unsaid() {
        return Ok(ImageKind::Linux);
    }
    Err(PullCause::NoPlatform { digest: digest.to_string() })
}

/// `null` where the format has an empty list, map or string.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> Digest {
        Digest::of(b"x")
    }

    fn index(platforms: &[(&str, &str)]) -> Index {
        let manifests = platforms.iter().map(|(os, architecture)| Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            digest: Digest::of(os.as_bytes()),
            size: 1,
            platform: Some(Platform {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: String::new(),
            }),
            annotations: BTreeMap::new(),
        });
        Index { manifests: manifests.collect() }
    }

    #[test]
    fn linux_of_this_machine_comes_before_wasm_and_wasm_before_nothing() {
        let both = index(&[("wasi", "wasm"), ("unknown", "unknown"), ("linux", Host::this().architecture)]);
        assert_eq!(both.choose(&digest()).unwrap().digest, Digest::of(b"linux"));
        let wasm = index(&[("linux", "s390x"), ("wasip1", "wasm")]);
        assert_eq!(wasm.choose(&digest()).unwrap().digest, Digest::of(b"wasip1"));
        assert!(index(&[("linux", "s390x"), ("unknown", "unknown")]).choose(&digest()).is_err());
        assert!(index(&[]).choose(&digest()).is_err());
    }

    #[test]
    fn the_best_that_this_machine_runs_comes_first_and_what_it_cannot_run_never() {
        let entry = |architecture: &str, variant: &str| {
            let digest = Digest::of(format!("{architecture} {variant}").as_bytes());
            let platform =
                serde_json::json!({"os": "linux", "architecture": architecture, "variant": variant});
            serde_json::json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 1, "platform": platform})
        };
        let inner = serde_json::json!({"mediaType": OCI_INDEX, "digest": Digest::of(b"inner"), "size": 1});
        // An artifact: its writer has a platform to say, and says nothing.
        let mut nothing = entry("", "");
        nothing["platform"]["os"] = "".into();
        let entries = [
            nothing,
            entry("amd64", "v9"),
            inner,
            entry("386", ""),
            entry("x86_64", ""),
            entry("amd64", "v2"),
            entry("arm64", ""),
        ];
        let index: Index = serde_json::from_value(serde_json::json!({"manifests": entries})).unwrap();
        let chosen = |level| {
            let host = Host { architecture: "amd64", level };
            index.candidates(host).into_iter().map(|entry| entry.digest.clone()).collect::<Vec<_>>()
        };
        let [plain, v2, i386] = [&b"x86_64 "[..], b"amd64 v2", b"386 "].map(Digest::of);
        assert_eq!(chosen(1), [plain.clone(), i386.clone(), Digest::of(b"inner")]);
        assert_eq!(chosen(3), [v2, plain, i386, Digest::of(b"inner")]);
    }

    fn kind_of(manifest: serde_json::Value, config: serde_json::Value) -> Result<ImageKind, PullCause> {
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let Document::Manifest(manifest) = parse(&bytes, &digest())? else { panic!("an index") };
        kind(&manifest, &serde_json::from_value(config).unwrap(), &digest())
    }

    fn manifest(config_type: &str, layer_type: &str) -> serde_json::Value {
        serde_json::json!({
            "schemaVersion": 2,
            "config": {"mediaType": config_type, "digest": digest(), "size": 2},
            "layers": [{"mediaType": layer_type, "digest": Digest::of(b"layer"), "size": 3, "annotations": null}],
        })
    }

    #[test]
    fn every_form_of_wasm_image_is_recognised() {
        let blob = ImageKind::Wasm { module: WasmModule::Blob { digest: Digest::of(b"layer") } };
        let none = serde_json::json!({});
        assert_eq!(kind_of(manifest(WASM_CONFIG, WASM_LAYER), none.clone()).unwrap(), blob);
        let old = manifest("application/vnd.wasm.config.v1+json", OLD_WASM_LAYER);
        assert_eq!(kind_of(old, none.clone()).unwrap(), blob);
        let platform =
            serde_json::json!({"os": "wasi", "architecture": "wasm", "config": {"Entrypoint": ["/a.wasm"]}});
        let file = ImageKind::Wasm { module: WasmModule::File { path: "/a.wasm".to_owned() } };
        assert_eq!(kind_of(manifest(OCI_CONFIG, OCI_LAYER), platform).unwrap(), file);
        assert!(kind_of(manifest(WASM_CONFIG, OCI_LAYER), none.clone()).is_err());
        assert_eq!(
            kind_of(manifest("application/vnd.oci.empty.v1+json", OLD_COMPONENT_LAYER), none).unwrap(),
            blob
        );
    }

    #[test]
    fn an_image_for_linux_whose_program_is_wasm_is_for_wasm() {
        let config = |program: &str, labels: &serde_json::Value| {
            let config = serde_json::json!({"Entrypoint": [program], "Labels": labels});
            serde_json::json!({"os": "linux", "architecture": Host::this().architecture, "config": config})
        };
        let annotated = |variant: &str| {
            let mut manifest = manifest(OCI_CONFIG, OCI_LAYER);
            manifest["annotations"] = serde_json::json!({VARIANT: variant});
            manifest
        };
        let none = serde_json::Value::Null;
        let file = |path: &str| ImageKind::Wasm { module: WasmModule::File { path: path.to_owned() } };
        let plain = manifest(OCI_CONFIG, OCI_LAYER);
        assert_eq!(kind_of(plain.clone(), config("/app.wasm", &none)).unwrap(), file("/app.wasm"));
        assert_eq!(kind_of(plain.clone(), config("/app", &none)).unwrap(), ImageKind::Linux);
        assert_eq!(kind_of(annotated("compat"), config("/app", &none)).unwrap(), file("/app"));
        assert_eq!(kind_of(annotated("compat-smart"), config("/app", &none)).unwrap(), ImageKind::Linux);
        let label = serde_json::json!({VARIANT: "compat"});
        assert_eq!(kind_of(plain, config("/app", &label)).unwrap(), file("/app"));
    }

    #[test]
    fn an_image_for_another_machine_is_refused() {
        let other = serde_json::json!({"os": "linux", "architecture": "s390x", "config": null});
        assert!(matches!(kind_of(manifest(OCI_CONFIG, OCI_LAYER), other), Err(PullCause::NoPlatform { .. })));
    }

    #[test]
    fn a_document_that_is_index_and_manifest_at_once_is_refused() {
        let mut both = manifest(OCI_CONFIG, OCI_LAYER);
        both["manifests"] = serde_json::json!([]);
        assert!(parse(&serde_json::to_vec(&both).unwrap(), &digest()).is_err());
        assert!(parse(b"{}", &digest()).is_err());
        assert!(parse(b"not json", &digest()).is_err());
    }
}
