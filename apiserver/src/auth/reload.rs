//! The configuration of authorization, read when the server starts and again when its file changes.
//!
//! ```text
//! start ─ read, build ─▶ chain           (what is wrong ends the start)
//!   └─ each second: has the file changed, and does not any more? ─ read, build ─▶ the chain is replaced
//!   └─ each minute: whatever has changed, in kubeconfigs and what they name too; what could not be used is tried again
//! ```
//!
//! # Guarantees
//! - What cannot be used changes nothing: an error line and a metric tell of it, and the last that could be used counts.
//! - A file is read once it has been the same for a second, and counts if it is the same after that: half of one that is being
//!   written could be a configuration with fewer authorizers.
//! - Types that are built in may be put in another order while the server runs, and not be taken out.
//!
//! Source: `authorizer/reload.go` of kube-apiserver.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use skiff_webhook::ClientConfig;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::authorize::{Authorization, Chain};
use super::configuration::{
    AuthorizationError, AuthorizationOptions, Builder, BuiltIn, Configuration, of_file, of_modes,
};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// As often upstream reads the file, whether it was told of a change or not.
const READ_EVERY: Duration = Duration::from_secs(60);

/// The configuration that counts.
struct Loaded {
    /// As the file was read last, whether it could be used or not.
    data: Vec<u8>,
    /// Whether it could not, which what it names may change.
    is_refused: bool,
    configuration: Configuration,
    webhooks: Vec<ClientConfig>,
}

/// Follows the file, and the kubeconfigs of webhooks.
pub(crate) struct Reload {
    file: Option<PathBuf>,
    /// Which of several servers this is, for metrics.
    server: String,
    builder: Builder,
    required: BTreeSet<BuiltIn>,
    loaded: Loaded,
}

/// What of a file shows that it is another.
#[derive(Clone, Copy, PartialEq)]
struct Stamp(Option<(SystemTime, u64, u64)>);

impl Stamp {
    fn of(path: &Path) -> Stamp {
        use std::os::unix::fs::MetadataExt as _;
        let stamp = |found: std::fs::Metadata| Some((found.modified().ok()?, found.len(), found.ino()));
        Stamp(std::fs::metadata(path).ok().and_then(stamp))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, AuthorizationError> {
    std::fs::read(path).map_err(|source| AuthorizationError::File { path: path.to_owned(), source })
}

impl Reload {
    /// The chain to begin with, and who keeps it up to date.
    ///
    /// # Errors
    /// If the configuration cannot be used.
    pub(crate) fn start(
        options: &AuthorizationOptions,
        server: String,
        builder: Builder,
    ) -> Result<(Chain, Reload), AuthorizationError> {
        let (file, data, configuration) = match options {
            AuthorizationOptions::Modes(modes) => (None, Vec::new(), of_modes(modes)?),
            AuthorizationOptions::File(file) => {
                let data = read(file)?;
                let configuration = of_file(&data, &BTreeSet::new())?;
                builder.metrics.applied(&server, &data);
                (Some(file.clone()), data, configuration)
            }
        };
        let webhooks = configuration.webhooks()?;
        let chain = configuration.build(&webhooks, &builder)?;
        let required = configuration.built_in();
        let loaded = Loaded { data, is_refused: false, configuration, webhooks };
        Ok((chain, Reload { file, server, builder, required, loaded }))
    }

    /// Replaces the chain as often as it is another, until `shutdown`.
    pub(crate) async fn follow(mut self, authorization: Arc<Authorization>, shutdown: CancellationToken) {
        if self.file.is_none() && self.loaded.webhooks.is_empty() {
            return;
        }
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The file may have changed since it was read for the start.
        let (mut seen, mut read, mut read_at) = (None, None, Instant::now());
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let now = self.file.as_deref().map(Stamp::of);
            let is_settled = now == seen;
            let is_wanted = now != read || read_at.elapsed() >= READ_EVERY;
            seen = now;
            if !is_settled || !is_wanted {
                continue;
            }
            (read, read_at) = (now, Instant::now());
            // Files are read, and expressions compiled.
            let looked = tokio::task::spawn_blocking(move || {
                let found = self.look(now);
                (self, found)
            });
            let Ok((reload, found)) = looked.await else {
                tracing::error!("the configuration of authorization is not followed any more");
                return;
            };
            self = reload;
            if let Some(chain) = found {
                authorization.replace(chain);
            }
        }
    }

    /// The chain, if it is another. `stamp` is that of the file, which is not to change while it is read.
    fn look(&mut self, stamp: Option<Stamp>) -> Option<Chain> {
        let changed = self.file.clone().and_then(|file| self.look_at_file(&file, stamp));
        changed.or_else(|| self.look_at_webhooks())
    }

    fn look_at_file(&mut self, file: &Path, stamp: Option<Stamp>) -> Option<Chain> {
        let data = match read(file) {
            Ok(data) => data,
            Err(error) => {
                self.failed(&error);
                self.builder.metrics.reloaded(&self.server, false);
                return None;
            }
        };
        let is_new = data != self.loaded.data;
        if stamp != Some(Stamp::of(file)) || !(is_new || self.loaded.is_refused) {
            return None;
        }
        self.loaded.data.clone_from(&data);
        let loaded = self.load(&data);
        self.loaded.is_refused = loaded.is_err();
        match loaded {
            Ok(None) => None,
            Ok(Some(chain)) => {
                tracing::info!(file = %file.display(), "authorization goes by the new configuration");
                self.builder.metrics.reloaded(&self.server, true);
                self.builder.metrics.applied(&self.server, &data);
                Some(chain)
            }
            Err(error) => {
                self.failed(&error);
                if is_new {
                    self.builder.metrics.reloaded(&self.server, false);
                }
                None
            }
        }
    }

    fn failed(&self, error: &AuthorizationError) {
        let error = error as &dyn std::error::Error;
        tracing::error!(error, "the new configuration of authorization cannot be used; the last one counts");
    }

    /// `None` where the file says what counts already, in other words perhaps.
    fn load(&mut self, data: &[u8]) -> Result<Option<Chain>, AuthorizationError> {
        let configuration = of_file(data, &self.required)?;
        if configuration == self.loaded.configuration {
            return Ok(None);
        }
        let added = configuration
            .built_in()
            .into_iter()
            .find(|one| matches!(one, BuiltIn::Node | BuiltIn::Rbac) && !self.required.contains(one));
        if let Some(added) = added {
            return Err(AuthorizationError::Added { type_: added.as_str() });
        }
        let webhooks = configuration.webhooks()?;
        let chain = configuration.build(&webhooks, &self.builder)?;
        (self.loaded.configuration, self.loaded.webhooks) = (configuration, webhooks);
        Ok(Some(chain))
    }

    /// Kubeconfigs, and certificates and tokens that they name, may be renewed.
    fn look_at_webhooks(&mut self) -> Option<Chain> {
        match self.rebuild() {
            Ok(None) => None,
            Ok(Some(chain)) => {
                tracing::info!("authorization webhooks are called by what their kubeconfigs say now");
                Some(chain)
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "a webhook's kubeconfig cannot be used any more; what it said counts");
                None
            }
        }
    }

    /// `None` where the kubeconfigs say the same as before.
    fn rebuild(&mut self) -> Result<Option<Chain>, AuthorizationError> {
        let webhooks = self.loaded.configuration.webhooks()?;
        if webhooks == self.loaded.webhooks {
            return Ok(None);
        }
        let chain = self.loaded.configuration.build(&webhooks, &self.builder)?;
        self.loaded.webhooks = webhooks;
        Ok(Some(chain))
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use base64::Engine as _;
    use serde_json::{Value, json};
    use skiff_webhook::{Client, DialError, Resolver, Stream};

    use super::*;
    use crate::metrics::Metrics;
    use crate::tls;

    struct Nowhere;

    #[async_trait]
    impl Resolver for Nowhere {
        async fn dial_service(&self, _: &str, _: &str, _: u16) -> Result<Box<dyn Stream>, DialError> {
            Err(DialError::Unresolved("nowhere".into()))
        }
    }

    /// A folder with a configuration in it, and who follows that.
    struct World {
        folder: tempfile::TempDir,
        reload: Reload,
        begun_with: Chain,
    }

    impl World {
        fn of(order: &[&str]) -> World {
            let folder = tempfile::tempdir().expect("a folder");
            write_configuration(folder.path(), order);
            let client = Arc::new(Client::new(Arc::new(Nowhere), tls::provider()));
            let metrics = Metrics::default().authorization;
            let options = AuthorizationOptions::File(folder.path().join("configuration"));
            let started = Reload::start(&options, "a".to_owned(), Builder { client, metrics });
            let (begun_with, reload) = started.expect("a configuration");
            World { folder, reload, begun_with }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("configuration")
        }

        /// The names of the authorizers, if they are others now.
        fn look(&mut self) -> Option<Vec<String>> {
            let stamp = Stamp::of(&self.path());
            self.reload.look(Some(stamp)).map(names)
        }
    }

    fn names(chain: Chain) -> Vec<String> {
        chain.0.into_iter().map(|link| link.name).collect()
    }

    /// What is of no built-in type is a webhook.
    fn write_configuration(folder: &Path, order: &[&str]) {
        let authorizers = order.iter().map(|type_| match BuiltIn::parse(type_) {
            Some(built_in) => json!({"type": type_, "name": built_in.name()}),
            None => json!({"type": "Webhook", "name": type_, "webhook": {
                "timeout": "3s", "subjectAccessReviewVersion": "v1", "failurePolicy": "Deny",
                "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": folder.join("kubeconfig")},
            }}),
        });
        let configuration = json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
            "authorizers": authorizers.collect::<Vec<Value>>(),
        });
        std::fs::write(folder.join("configuration"), configuration.to_string()).expect("a file");
    }

    fn write_kubeconfig(folder: &Path, token: &str) {
        let authority = rcgen::generate_simple_self_signed(["a".to_owned()]).expect("a certificate");
        let kept = folder.join("ca.pem");
        if !kept.exists() {
            std::fs::write(&kept, authority.cert.pem()).expect("a file");
        }
        let authority =
            base64::engine::general_purpose::STANDARD.encode(std::fs::read(kept).expect("a file"));
        let config = json!({
            "current-context": "c",
            "clusters": [{"name": "a", "cluster": {"server": "https://a", "certificate-authority-data": authority}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "a", "user": "u"}}],
        });
        std::fs::write(folder.join("kubeconfig"), config.to_string()).expect("a file");
    }

    #[test]
    fn what_could_not_be_used_is_tried_again_until_it_can_be() {
        let mut world = World::of(&["Node", "RBAC"]);
        std::fs::write(world.folder.path().join("kubeconfig"), "{}").expect("a file");
        write_configuration(world.folder.path(), &["Node", "judge", "RBAC"]);
        assert_eq!(world.look(), None);
        assert_eq!(world.look(), None);
        write_kubeconfig(world.folder.path(), "t");
        assert_eq!(world.look(), Some(vec!["node".to_owned(), "judge".to_owned(), "rbac".to_owned()]));
        assert_eq!(world.look(), None);
    }

    #[test]
    fn credentials_that_are_renewed_make_another_chain_while_a_new_configuration_is_refused() {
        let mut world = World::of(&["Node", "RBAC"]);
        write_kubeconfig(world.folder.path(), "t");
        write_configuration(world.folder.path(), &["judge", "Node", "RBAC"]);
        let wanted = vec!["judge".to_owned(), "node".to_owned(), "rbac".to_owned()];
        assert_eq!(world.look(), Some(wanted.clone()));
        write_kubeconfig(world.folder.path(), "t");
        assert_eq!(world.look(), None);
        std::fs::write(world.path(), "no configuration").expect("a file");
        assert_eq!(world.look(), None);
        write_kubeconfig(world.folder.path(), "other");
        assert_eq!(world.look(), Some(wanted));
        std::fs::remove_file(world.path()).expect("it was there");
        write_kubeconfig(world.folder.path(), "a third");
        assert!(world.look().is_some());
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_does_not_count() {
        let mut world = World::of(&["Node", "RBAC"]);
        let before = Stamp::of(&world.path());
        write_configuration(world.folder.path(), &["AlwaysDeny", "Node", "RBAC"]);
        assert!(world.reload.look(Some(before)).is_none());
        let wanted = ["alwaysdeny", "node", "rbac"].map(str::to_owned).to_vec();
        assert_eq!(world.look(), Some(wanted));
    }

    #[test]
    fn types_are_put_in_another_order_and_neither_taken_out_nor_added() {
        let mut world = World::of(&["RBAC", "AlwaysDeny"]);
        assert_eq!(
            names(std::mem::replace(&mut world.begun_with, Chain(Vec::new()))),
            ["rbac", "alwaysdeny"]
        );
        write_configuration(world.folder.path(), &["RBAC"]);
        assert_eq!(world.look(), None);
        write_configuration(world.folder.path(), &["RBAC", "AlwaysDeny", "Node"]);
        assert_eq!(world.look(), None);
        write_configuration(world.folder.path(), &["AlwaysDeny", "RBAC"]);
        assert_eq!(world.look(), Some(vec!["alwaysdeny".to_owned(), "rbac".to_owned()]));
    }
}
