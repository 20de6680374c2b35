//! The files of volumes that come from the API.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, Container, DownwardAPIVolumeFile, DownwardAPIVolumeSource, KeyToPath,
    PodCertificateProjection, ProjectedVolumeSource, Secret, SecretVolumeSource,
    ServiceAccountTokenProjection, VolumeProjection,
};

use crate::env::{Downward, not_found};
use crate::objects::Objects;
use crate::pod::{PodExt, containers, init_containers, optional};
use crate::volume::VolumeError;
use crate::volume::bundle::Bundles;
use crate::volume::certificate::{Certificates, Credentials};
use crate::volume::token::Tokens;

const DEFAULT_MODE: i32 = 0o644;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
    /// The user that alone may read it, where one is known: for tokens.
    pub(crate) owner: Option<u32>,
}

/// Files by path below the volume.
pub(crate) type Payload = BTreeMap<String, File>;

pub(crate) struct PayloadContext<'a> {
    pub(crate) objects: &'a Objects,
    pub(crate) tokens: &'a Tokens,
    pub(crate) bundles: &'a Bundles,
    pub(crate) certificates: &'a Certificates,
    pub(crate) downward: &'a Downward<'a>,
}

fn content(error: impl std::fmt::Display) -> VolumeError {
    VolumeError::Content(error.to_string())
}

impl PayloadContext<'_> {
    fn namespace(&self) -> &str {
        self.downward.pod.namespace()
    }

    async fn config_map(&self, name: &str, optional: bool) -> Result<Option<Arc<ConfigMap>>, VolumeError> {
        match self
            .objects
            .config_maps
            .get(self.namespace(), name, self.downward.pod.uid())
            .await
            .map_err(content)?
        {
            None if !optional => Err(content(not_found("configmap", name))),
            found => Ok(found),
        }
    }

    async fn secret(&self, name: &str, optional: bool) -> Result<Option<Arc<Secret>>, VolumeError> {
        match self
            .objects
            .secrets
            .get(self.namespace(), name, self.downward.pod.uid())
            .await
            .map_err(content)?
        {
            None if !optional => Err(content(not_found("secret", name))),
            found => Ok(found),
        }
    }

    pub(crate) async fn config_map_volume(
        &self,
        source: &ConfigMapVolumeSource,
    ) -> Result<Payload, VolumeError> {
        let is_optional = optional(source.optional);
        let map = self.config_map(&source.name, is_optional).await?;
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        select(
            &config_map_data(map.as_deref()),
            source.items.as_deref(),
            mode,
            is_optional,
            "configmap references non-existent config key",
        )
    }

    pub(crate) async fn secret_volume(&self, source: &SecretVolumeSource) -> Result<Payload, VolumeError> {
        let is_optional = optional(source.optional);
        let secret = self.secret(source.secret_name.as_deref().unwrap_or_default(), is_optional).await?;
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        select(
            &secret_data(secret.as_deref()),
            source.items.as_deref(),
            mode,
            is_optional,
            "references non-existent secret key",
        )
    }

    pub(crate) fn downward_volume(&self, source: &DownwardAPIVolumeSource) -> Result<Payload, VolumeError> {
        self.downward_files(
            source.items.as_deref().unwrap_or_default(),
            source.default_mode.unwrap_or(DEFAULT_MODE),
        )
    }

    fn downward_files(
        &self,
        items: &[DownwardAPIVolumeFile],
        default_mode: i32,
    ) -> Result<Payload, VolumeError> {
        let mut payload = Payload::new();
        for item in items {
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => self.downward.field(field),
                (None, Some(field)) => self.downward.resource(field, &Container::default()),
                (None, None) => Ok(String::new()),
            };
            let data = value.map_err(content)?.into_bytes();
            payload.insert(
                item.path.clone(),
                File { data, mode: mode(item.mode.unwrap_or(default_mode)), owner: None },
            );
        }
        Ok(payload)
    }

    pub(crate) async fn projected_volume(
        &self,
        volume: &str,
        source: &ProjectedVolumeSource,
    ) -> Result<Payload, VolumeError> {
        let default_mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let (mut payload, mut errors) = (Payload::new(), Vec::new());
        for (index, projection) in source.sources.iter().flatten().enumerate() {
            let files = match &projection.pod_certificate {
                Some(source) => self.certificate(volume, index, source, default_mode).await,
                None => self.projection(projection, default_mode).await,
            };
            match files {
                Ok(files) => payload.extend(files),
                Err(error) => errors.push(error.to_string()),
            }
        }
        match errors.len() {
            0 => Ok(payload),
            1 => Err(VolumeError::Content(errors.remove(0))),
            _ => Err(VolumeError::Content(format!("[{}]", errors.join(", ")))),
        }
    }

    async fn projection(
        &self,
        projection: &VolumeProjection,
        default_mode: i32,
    ) -> Result<Payload, VolumeError> {
        if let Some(source) = &projection.config_map {
            let is_optional = optional(source.optional);
            let map = self.config_map(&source.name, is_optional).await?;
            return select(
                &config_map_data(map.as_deref()),
                source.items.as_deref(),
                default_mode,
                is_optional,
                "configmap references non-existent config key",
            );
        }
        if let Some(source) = &projection.secret {
            let is_optional = optional(source.optional);
            let secret = self.secret(&source.name, is_optional).await?;
            return select(
                &secret_data(secret.as_deref()),
                source.items.as_deref(),
                default_mode,
                is_optional,
                "references non-existent secret key",
            );
        }
        if let Some(source) = &projection.downward_api {
            return self.downward_files(source.items.as_deref().unwrap_or_default(), default_mode);
        }
        if let Some(source) = &projection.service_account_token {
            return self.token(source, default_mode).await;
        }
        if let Some(source) = &projection.cluster_trust_bundle {
            let data = self.bundles.get(source).await.map_err(content)?;
            return Ok(Payload::from([(source.path.clone(), self.private(data, default_mode))]));
        }
        Err(VolumeError::Unsupported("projected"))
    }

    async fn certificate(
        &self,
        volume: &str,
        index: usize,
        source: &PodCertificateProjection,
        default_mode: i32,
    ) -> Result<Payload, VolumeError> {
        let pod = self.downward.pod;
        let Credentials { key, chain } =
            self.certificates.get(pod, volume, index, source).await.map_err(content)?;
        let bundle = format!("{key}{chain}");
        let files = [
            (&source.credential_bundle_path, bundle),
            (&source.key_path, key),
            (&source.certificate_chain_path, chain),
        ];
        let files = files.into_iter().filter_map(|(path, text)| {
            let path = path.clone().filter(|path| !path.is_empty())?;
            Some((path, self.private(text.into_bytes(), default_mode)))
        });
        Ok(files.collect())
    }

    /// A file for the pod's user and group alone, where they are known.
    fn private(&self, data: Vec<u8>, default_mode: i32) -> File {
        let pod = self.downward.pod;
        let owner = only_user(pod);
        let has_group =
            pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).is_some_and(|s| s.fs_group.is_some());
        let mode = if owner.is_some() || has_group { 0o600 } else { mode(default_mode) };
        File { data, mode, owner }
    }

    async fn token(
        &self,
        source: &ServiceAccountTokenProjection,
        default_mode: i32,
    ) -> Result<Payload, VolumeError> {
        let pod = self.downward.pod;
        let token = self
            .tokens
            .get(pod, source.audience.as_deref(), source.expiration_seconds)
            .await
            .map_err(content)?;
        Ok(Payload::from([(source.path.clone(), self.private(token.into_bytes(), default_mode))]))
    }
}

/// The user that every container of the pod runs as, if they all name the same one.
fn only_user(pod: &k8s_openapi::api::core::v1::Pod) -> Option<u32> {
    let pod_user = pod.spec.as_ref()?.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = init_containers(pod)
        .iter()
        .chain(containers(pod))
        .map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(pod_user));
    let first = users.next().flatten()?;
    if users.all(|user| user == Some(first)) { u32::try_from(first).ok() } else { None }
}

fn config_map_data(map: Option<&ConfigMap>) -> BTreeMap<String, Vec<u8>> {
    let Some(map) = map else { return BTreeMap::new() };
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

fn secret_data(secret: Option<&Secret>) -> BTreeMap<String, Vec<u8>> {
    secret.iter().flat_map(|s| s.data.iter().flatten()).map(|(k, v)| (k.clone(), v.0.clone())).collect()
}

/// The keys that a volume shows: all, or those listed, under the paths listed.
fn select(
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    default_mode: i32,
    is_optional: bool,
    missing: &str,
) -> Result<Payload, VolumeError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let files = data.iter().map(|(key, data)| {
            (key.clone(), File { data: data.clone(), mode: mode(default_mode), owner: None })
        });
        return Ok(files.collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(data) => {
                let file =
                    File { data: data.clone(), mode: mode(item.mode.unwrap_or(default_mode)), owner: None };
                payload.insert(item.path.clone(), file);
            }
            None if is_optional => {}
            None => return Err(VolumeError::Content(format!("{missing}: {}", item.key))),
        }
    }
    Ok(payload)
}

fn mode(mode: i32) -> u32 {
    mode.unsigned_abs() & 0o777
}
