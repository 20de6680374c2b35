//! Wasm files without a node: what they need, and running one as a pod would.
//!
//! # Caveats
//! - A guest that is run here has this process's network and user, and no share of descriptors or memory but those it is
//!   given. Only directories may be mounted.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;
use wasmtime::{Engine, Module, Precompiled};

use crate::aot::{self, AotCache, AotError};
use crate::compile::one_line;
use crate::engine;
use crate::host::budget::Budget;
use crate::host::container::{self, StartError};
use crate::host::descriptors::Descriptors;
use crate::host::guest::{self, Guest, Instances, Linked, Paths};
use crate::host::log::ContainerLog;
use crate::host::ticker::Ticker;
use crate::spec::{Access, ContainerSpec, Identity, Preopen, Resources};

/// How long files that a guest was reading may hold up the end.
const BLOCKING_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("make the directory {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("make a Wasm engine: {0}")]
    Engine(String),
    #[error("look at the native code: {0}")]
    Load(String),
    #[error("start the {what}: {source}")]
    Start { what: &'static str, source: io::Error },
    #[error(transparent)]
    Aot(#[from] AotError),
    /// In the words of a container's start.
    #[error("{0}")]
    Guest(String),
}

/// Native code, kept in a directory that only this user can write to.
pub struct Workshop {
    aot: AotCache,
}

/// What a Wasm file is and needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Such as `component of wasi:http/service (WASI 0.3), a server`.
    pub kind: String,
    pub bytes: u64,
    /// Of native code, if there was some before.
    pub code_bytes: Option<u64>,
    pub imports: Vec<Import>,
    pub exports: Vec<String>,
    /// Why a container would not start.
    pub refusal: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub name: String,
    pub is_offered: bool,
}

/// How a file is run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub module: PathBuf,
    /// The first is the program's name.
    pub args: Vec<String>,
    pub envs: Vec<(String, String)>,
    pub directories: Vec<Directory>,
    /// Where a server listens.
    pub port: u16,
    pub memory_bytes: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct Directory {
    pub on_node: PathBuf,
    pub in_guest: String,
    pub is_read_only: bool,
}

impl Workshop {
    /// `compile_command` calls [`crate::compile::main`] with what is appended to it.
    pub fn open(directory: &Path, compile_command: Vec<OsString>) -> Result<Workshop, ToolError> {
        let failed = |source| ToolError::Directory { path: directory.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let engine = engine()?;
        let aot = AotCache::open(directory, engine::compatibility(&engine), compile_command)?;
        Ok(Workshop { aot })
    }

    async fn code(&self, module: &Path) -> Result<PathBuf, ToolError> {
        let read = |source| ToolError::Read { path: module.to_owned(), source };
        let digest = aot::digest(module).map_err(read)?;
        self.aot.ensure(module, &digest, |_| ()).await?;
        Ok(self.aot.code(&digest))
    }

    pub async fn inspect(&self, module: &Path) -> Result<Inspection, ToolError> {
        let read = |source| ToolError::Read { path: module.to_owned(), source };
        let bytes = fs::metadata(module).map_err(read)?.len();
        let digest = aot::digest(module).map_err(read)?;
        let code_bytes = fs::metadata(self.aot.code(&digest)).ok().map(|code| code.len());
        let code = self.code(module).await?;
        let engine = engine()?;
        let load = |err: wasmtime::Error| ToolError::Load(one_line(&err));
        let (kind, imports, exports) = match Engine::detect_precompiled_file(&code).map_err(load)? {
            Some(Precompiled::Module) => {
                // SAFETY: only the compile process writes to the cache, in a directory that only this user can write to.
                let module = unsafe { Module::deserialize_file(&engine, &code) };
                core(&module.map_err(load)?)
            }
            _ => {
                // SAFETY: as above.
                let found = unsafe { Component::deserialize_file(&engine, &code) };
                component(&found.map_err(load)?)
            }
        };
        let refusal = Linked::load(&engine, &code).err().map(|err| err.to_string());
        Ok(Inspection { kind, bytes, code_bytes, imports, exports, refusal })
    }

    /// Runs a file on this thread until it ends, or this process is asked to. Its output is this process's; what is returned is
    /// its exit code.
    pub fn run(&self, run: Run) -> Result<i32, ToolError> {
        let thread = |what| move |source| ToolError::Start { what, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .event_interval(1)
            .build()
            .map_err(thread("runtime"))?;
        let ended = runtime.block_on(self.run_inside(run));
        runtime.shutdown_timeout(BLOCKING_PATIENCE);
        ended
    }

    async fn run_inside(&self, run: Run) -> Result<i32, ToolError> {
        let code = self.code(&run.module).await?;
        let engines = engine::runners().map_err(|err| ToolError::Engine(one_line(&err)))?;
        let (loader, mut loads) = guest::loader();
        let guest = Guest::load(&engines, &loader, &code).map_err(|err| ToolError::Guest(err.to_string()))?;
        let loading = engines.clone();
        let loading = tokio::spawn(async move {
            while let Some(load) = loads.recv().await {
                let engines = loading.clone();
                _ = tokio::task::spawn_blocking(move || load.run(&engines)).await;
            }
        });
        let ticker =
            Ticker::start(engines.clone()).map_err(|source| ToolError::Start { what: "ticker", source })?;
        let budget = Budget::in_pod(run.memory_bytes, None);
        budget.heap.stops(&engines);
        let instances = Instances {
            spec: Arc::new(spec(run)),
            budget: budget.clone(),
            log: ContainerLog::plain(),
            descriptors: Descriptors::new(),
            paths: Paths::Node,
        };
        let stop = async {
            let mut terminate =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
            let terminated = async {
                match &mut terminate {
                    Some(terminate) => _ = terminate.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                () = terminated => {}
            }
        };
        // All that this thread does from here on, it does for the guest.
        let counted = budget.heap.enter();
        let ended = container::run_here(Arc::new(guest), instances, ticker, stop).await;
        drop(counted);
        loading.abort();
        let why = |err: StartError| ToolError::Guest(skiff_cri::whole(&err));
        ended.map(|ended| ended.exit_code).map_err(why)
    }
}

fn engine() -> Result<Engine, ToolError> {
    engine::compiler().map_err(|err| ToolError::Engine(one_line(&err)))
}

fn spec(run: Run) -> ContainerSpec {
    let preopen = |directory: Directory| Preopen {
        host_path: directory.on_node,
        guest_path: directory.in_guest,
        access: if directory.is_read_only { Access::ReadOnly } else { Access::ReadWrite },
    };
    ContainerSpec {
        id: "run".to_owned(),
        sandbox_id: "run".to_owned(),
        module: String::new(),
        args: run.args,
        envs: run.envs,
        preopens: run.directories.into_iter().map(preopen).collect(),
        files: Vec::new(),
        netns: None,
        pod_cgroup: String::new(),
        resources: Resources { memory_bytes: run.memory_bytes, ..Resources::default() },
        pod_memory_bytes: None,
        log_path: None,
        http_port: run.port,
        request_timeout_ms: None,
        identity: Identity::default(),
    }
}

fn core(module: &Module) -> (String, Vec<Import>, Vec<String>) {
    let import = |import: wasmtime::ImportType<'_>| Import {
        name: format!("{} {}", import.module(), import.name()),
        is_offered: Linked::offers_module(module.engine(), import.module(), import.name()),
    };
    let exports = module.exports().map(|export| export.name().to_owned()).collect();
    ("core module (WASI 0.1), a command".to_owned(), module.imports().map(import).collect(), exports)
}

fn component(component: &Component) -> (String, Vec<Import>, Vec<String>) {
    let (engine, ty) = (component.engine(), component.component_type());
    // Of an interface that only names types nothing is needed.
    let is_types = |item: &ComponentItem| match item {
        ComponentItem::ComponentInstance(instance) => {
            instance.exports(engine).all(|(_, item)| matches!(item.ty, ComponentItem::Type(_)))
        }
        _ => false,
    };
    let import = |name: &str, item: &ComponentItem| Import {
        name: name.to_owned(),
        is_offered: is_types(item) || Linked::offers(engine, name),
    };
    let imports = ty.imports(engine).map(|(name, item)| import(name, &item.ty)).collect();
    let exports: Vec<String> = ty.exports(engine).map(|(name, _)| name.to_owned()).collect();
    let kind = Linked::world(|entry| exports.iter().any(|export| export.starts_with(entry)));
    (format!("component of {}", kind.unwrap_or("no world that is run, a library")), imports, exports)
}
