//! Which runtime a container goes to, and what the runtimes say about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use skiff_cri::v1::ContainerConfig;
use skiff_cri::{Code, ContainerRuntime, CriError, RuntimeContainer};
use skiff_images::{Image, ImageKind, RunConfig};

/// The annotation of a container's status that names its runtime: `runc`, `wasmtime`.
pub const RUNTIME_ANNOTATION: &str = "skiff.dev/runtime";

/// The handlers that mean the Wasm runtime, whatever the image is.
const WASM_HANDLERS: [&str; 2] = ["wasmtime", "wasmtime-dedicated"];

/// The annotation of a pod, as of an image, that says that programs for Linux by their image's platform are Wasm: all of
/// them, or those that are called so.
const VARIANT_ANNOTATION: &str = "module.wasm.image/variant";
const COMPAT: &str = "compat";
const COMPAT_SMART: &str = "compat-smart";
const WASM_SUFFIX: &str = ".wasm";

fn is_said_to_be_wasm(
    image: &RunConfig,
    annotations: &BTreeMap<String, String>,
    config: &ContainerConfig,
) -> bool {
    match annotations.get(VARIANT_ANNOTATION).map(String::as_str) {
        Some(COMPAT) => true,
        Some(COMPAT_SMART) => {
            let words = [&config.command, &image.entrypoint, &config.args, &image.cmd];
            let program = words.into_iter().find_map(|words| words.first());
            program.is_some_and(|program| program.ends_with(WASM_SUFFIX))
        }
        _ => false,
    }
}

/// All container runtimes of the node.
pub(crate) struct Dispatch {
    /// By handler; today there is `runc` only.
    pub(crate) linux: BTreeMap<String, Arc<dyn ContainerRuntime>>,
    pub(crate) default_handler: String,
    pub(crate) wasm: Arc<dyn ContainerRuntime>,
}

impl Dispatch {
    /// Handlers that a RuntimeClass may name.
    pub(crate) fn handlers(&self) -> impl Iterator<Item = &str> {
        self.linux.keys().map(String::as_str).chain(WASM_HANDLERS)
    }

    pub(crate) fn check_handler(&self, handler: &str) -> Result<(), CriError> {
        if handler.is_empty() || self.handlers().any(|h| h == handler) {
            return Ok(());
        }
        Err(CriError::new(Code::Unknown, format!("no runtime for {handler:?} is configured")))
    }

    /// The image decides; the handler decides among the Linux runtimes, or forces Wasm, and so may the pod's annotations.
    pub(crate) fn pick(
        &self,
        image: &Image,
        handler: &str,
        annotations: &BTreeMap<String, String>,
        config: &ContainerConfig,
    ) -> Result<&Arc<dyn ContainerRuntime>, CriError> {
        let forced =
            WASM_HANDLERS.contains(&handler) || is_said_to_be_wasm(&image.config.config, annotations, config);
        if forced || matches!(image.kind, ImageKind::Wasm { .. }) {
            return Ok(&self.wasm);
        }
        let handler = if handler.is_empty() { &self.default_handler } else { handler };
        self.linux
            .get(handler)
            .ok_or_else(|| CriError::new(Code::Unknown, format!("no runtime for {handler:?} is configured")))
    }

    pub(crate) fn is_wasm(&self, runtime: &Arc<dyn ContainerRuntime>) -> bool {
        runtime.name() == self.wasm.name()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<dyn ContainerRuntime>> {
        self.linux.values().chain(std::iter::once(&self.wasm))
    }

    /// A runtime by the name that a container's record holds.
    pub(crate) fn named(&self, name: &str) -> Result<&Arc<dyn ContainerRuntime>, CriError> {
        self.all().find(|r| r.name() == name).ok_or_else(|| {
            CriError::unknown(format!("the runtime {name:?} of this container is no longer configured"))
        })
    }

    /// What every runtime knows, by container ID.
    pub(crate) async fn states(&self) -> Result<BTreeMap<String, RuntimeContainer>, CriError> {
        let mut out = BTreeMap::new();
        for runtime in self.all() {
            out.extend(runtime.list().await?.into_iter().map(|c| (c.id.clone(), c)));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_may_say_that_what_its_image_calls_linux_is_wasm() {
        let said = |variant: &str, entrypoint: &str, command: &str| {
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let image = RunConfig { entrypoint: words(entrypoint), ..Default::default() };
            let config = ContainerConfig { command: words(command), ..Default::default() };
            let annotations = BTreeMap::from([(VARIANT_ANNOTATION.to_owned(), variant.to_owned())]);
            is_said_to_be_wasm(&image, &annotations, &config)
        };
        assert!(said("compat", "/app", ""));
        assert!(said("compat-smart", "/app.wasm", ""));
        assert!(said("compat-smart", "/bin/sh", "/app.wasm"));
        // A side-car of the same pod.
        assert!(!said("compat-smart", "/app", ""));
        assert!(!said("compat-smart", "/app.wasm", "/bin/sh"));
        assert!(!said("", "/app.wasm", ""));
    }
}
