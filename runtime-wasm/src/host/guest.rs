//! Guests: native code from the cache, linked to what its kind is offered, and the state of an instance.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{OnceCell, mpsc, oneshot};
use wasmtime::component::{Component, InstancePre as ComponentPre, ResourceTable};
use wasmtime::{
    Engine, Instance, InstancePre, Module, PoolConcurrencyLimitError, Precompiled, Store, UnknownImportError,
};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::p2::bindings::{Command, CommandPre};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::body::{HostOutgoingBody, StreamContext};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::budget::{Budget, Part, Share};
use super::descriptors::{self, Descriptors, MAX_RESOURCES, Opened};
use super::log::{ContainerLog, GuestOutput, Stream};
use super::outgoing::Outgoing;
use super::root;
use crate::compile::one_line;
use crate::engine::Engines;
use crate::spec::{Access, ContainerSpec};

#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error("the AOT cache holds no native code of the module for this host's engine")]
    NoCode,
    #[error("load the module's native code: {0}")]
    Load(String),
    #[error("the module needs memory of its own, and the host does not load it: it is ending")]
    NoLoader,
    #[error("the module imports {module:?} {name:?}, which is not offered")]
    UnknownImport { module: String, name: String },
    #[error("link the module: {0}")]
    Link(String),
    #[error("the component cannot be linked: {0}")]
    LinkComponent(String),
    #[error("the module exports no function \"_start\": it is a library, not a command")]
    NoStart,
    #[error("the component exports neither wasi:cli/run nor wasi:http/incoming-handler")]
    NoEntry,
    #[error("volume {path:?} cannot be opened: {source}")]
    Preopen { path: String, source: wasmtime::Error },
}

/// A module or component that all containers of the host share that run it.
pub(crate) struct Guest {
    first: Linked,
    code: PathBuf,
    /// With the engine that allocates on demand, once it was needed; never if `first` is.
    on_demand: OnceCell<Linked>,
    loader: Loader,
}

/// Asks the host to load a module: its containers' threads do not see the AOT cache.
pub(crate) type Loader = mpsc::Sender<Load>;

/// A module to be loaded with the engine that allocates on demand.
pub(crate) struct Load {
    code: PathBuf,
    loaded: oneshot::Sender<Result<Linked, GuestError>>,
}

/// Loads that may wait to be noticed; one a module is under way.
const LOADS: usize = 64;

pub(crate) fn loader() -> (Loader, mpsc::Receiver<Load>) {
    mpsc::channel(LOADS)
}

impl Load {
    /// In a thread that sees the AOT cache. Blocks.
    pub(crate) fn run(self, engines: &Engines) {
        // Who asked may have gone.
        _ = self.loaded.send(Linked::load(&engines.on_demand, &self.code));
    }
}

/// Native code with what it imports, ready to be instantiated.
pub(crate) enum Linked {
    /// A core module with WASI 0.1.
    Module(InstancePre<ModuleState>),
    /// A component of the world `wasi:cli/command`.
    Command(CommandPre<ComponentState>),
    /// A component of the world `wasi:http/proxy`.
    Http(ProxyPre<ComponentState>),
}

pub(crate) struct ModuleState {
    pub(crate) wasi: WasiP1Ctx,
    share: Share,
    pub(super) opened: Opened,
}

pub(crate) struct ComponentState {
    wasi: WasiCtx,
    table: ResourceTable,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    share: Share,
    opened: Opened,
    has_returned: bool,
}

/// Breaks off what the guest was writing and had not finished, unless it came to its own end. Otherwise whoever reads it would
/// take what he has for the whole.
impl Drop for ComponentState {
    fn drop(&mut self) {
        if self.has_returned {
            return;
        }
        for entry in self.table.iter_mut() {
            if let Some(body) = entry.downcast_mut::<HostOutgoingBody>() {
                let (nobodys, _) = HostOutgoingBody::new(StreamContext::Response, None, 1, 1);
                std::mem::replace(body, nobodys).abort();
            }
        }
    }
}

impl ComponentState {
    /// The guest has done all that it wanted to do.
    pub(super) fn has_returned(&mut self) {
        self.has_returned = true;
    }

    /// What it has open, and the table that says so.
    pub(super) fn opened(&mut self) -> (&mut Opened, &mut ResourceTable) {
        (&mut self.opened, &mut self.table)
    }
}

impl WasiView for ComponentState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for ComponentState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outgoing }
    }
}

impl Guest {
    /// Loads what [`crate::compile`] wrote to the cache: for the pool, or if it does not fit in there, without one. Blocks.
    pub(crate) fn load(engines: &Engines, loader: &Loader, code: &Path) -> Result<Guest, GuestError> {
        let (first, is_pooled) = match Linked::load(&engines.pooled, code) {
            Ok(linked) => (linked, true),
            Err(GuestError::Load(_) | GuestError::Link(_) | GuestError::LinkComponent(_)) => {
                (Linked::load(&engines.on_demand, code)?, false)
            }
            Err(err) => return Err(err),
        };
        tracing::debug!(is_pooled, "a module is loaded");
        Ok(Guest { first, code: code.to_owned(), on_demand: OnceCell::new(), loader: loader.clone() })
    }

    pub(crate) fn linked(&self) -> &Linked {
        &self.first
    }

    async fn on_demand(&self) -> Result<&Linked, GuestError> {
        let load = || async {
            let (loaded, answer) = oneshot::channel();
            let load = Load { code: self.code.clone(), loaded };
            self.loader.send(load).await.map_err(|_| GuestError::NoLoader)?;
            answer.await.map_err(|_| GuestError::NoLoader)?
        };
        self.on_demand.get_or_try_init(load).await
    }

    pub(crate) async fn module(
        &self,
        instances: &Instances,
        part: &Arc<Part>,
    ) -> wasmtime::Result<(Store<ModuleState>, Instance)> {
        let mut linked = &self.first;
        loop {
            let Linked::Module(pre) = linked else { return Err(GuestError::NoEntry.into()) };
            let mut store = instances.module_store(pre.module().engine(), part)?;
            match pre.instantiate_async(&mut store).await {
                Err(err) if self.is_want_of_room(linked, &err) => {
                    drop(store);
                    part.made_anew();
                    linked = self.on_demand().await?;
                }
                made => return started(part, made.map(|made| (store, made))),
            }
        }
    }

    pub(crate) async fn command(
        &self,
        instances: &Instances,
        part: &Arc<Part>,
    ) -> wasmtime::Result<(Store<ComponentState>, Command)> {
        let mut linked = &self.first;
        loop {
            let Linked::Command(pre) = linked else { return Err(GuestError::NoEntry.into()) };
            let mut store = instances.component_store(pre.engine(), part)?;
            match pre.instantiate_async(&mut store).await {
                Err(err) if self.is_want_of_room(linked, &err) => {
                    drop(store);
                    part.made_anew();
                    linked = self.on_demand().await?;
                }
                made => return started(part, made.map(|made| (store, made))),
            }
        }
    }

    pub(crate) async fn proxy(
        &self,
        instances: &Instances,
        part: &Arc<Part>,
    ) -> wasmtime::Result<(Store<ComponentState>, Proxy)> {
        let mut linked = &self.first;
        loop {
            let Linked::Http(pre) = linked else { return Err(GuestError::NoEntry.into()) };
            let mut store = instances.component_store(pre.engine(), part)?;
            match pre.instantiate_async(&mut store).await {
                Err(err) if self.is_want_of_room(linked, &err) => {
                    drop(store);
                    part.made_anew();
                    linked = self.on_demand().await?;
                }
                made => return started(part, made.map(|made| (store, made))),
            }
        }
    }

    /// Whether the host's pool had nothing left of something that there is enough of outside it.
    fn is_want_of_room(&self, tried: &Linked, err: &wasmtime::Error) -> bool {
        std::ptr::eq(tried, &self.first) && err.is::<PoolConcurrencyLimitError>()
    }
}

fn started<T>(part: &Part, made: wasmtime::Result<T>) -> wasmtime::Result<T> {
    part.started();
    made
}

impl Linked {
    fn load(engine: &Engine, code: &Path) -> Result<Linked, GuestError> {
        if !code.exists() {
            return Err(GuestError::NoCode);
        }
        // Where the cache lies is nobody's business who reads a pod's events.
        let load = |err: wasmtime::Error| {
            GuestError::Load(one_line(&err).replace(&*code.to_string_lossy(), "the module"))
        };
        match Engine::detect_precompiled_file(code).map_err(load)? {
            Some(Precompiled::Module) => {
                // SAFETY: the file lies in the AOT cache, which only the compile process writes, whole or not
                // at all, into a directory that only this user can write to; it is never changed in place.
                let module = unsafe { Module::deserialize_file(engine, code) }.map_err(load)?;
                Linked::module(&module)
            }
            Some(Precompiled::Component) => {
                // SAFETY: as above.
                let component = unsafe { Component::deserialize_file(engine, code) }.map_err(load)?;
                Linked::component(&component)
            }
            None => Err(GuestError::Load("it is not native code".to_owned())),
        }
    }

    fn module(module: &Module) -> Result<Linked, GuestError> {
        let mut linker = wasmtime::Linker::new(module.engine());
        p1::add_to_linker_async(&mut linker, |state: &mut ModuleState| &mut state.wasi)
            .and_then(|()| descriptors::guard_module(&mut linker))
            .map_err(|err| GuestError::Link(one_line(&err)))?;
        if module.get_export("_start").is_none_or(|export| export.func().is_none()) {
            return Err(GuestError::NoStart);
        }
        let pre =
            linker.instantiate_pre(module).map_err(|err| match err.downcast_ref::<UnknownImportError>() {
                Some(unknown) => GuestError::UnknownImport {
                    module: unknown.module().to_owned(),
                    name: unknown.name().to_owned(),
                },
                None => GuestError::Link(one_line(&err)),
            })?;
        Ok(Linked::Module(pre))
    }

    fn component(component: &Component) -> Result<Linked, GuestError> {
        let link = |err: wasmtime::Error| GuestError::LinkComponent(one_line(&err));
        let mut linker = wasmtime::component::Linker::new(component.engine());
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).map_err(link)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker).map_err(link)?;
        descriptors::guard_component(&mut linker).map_err(link)?;
        let exports = |interface: &str| {
            let ty = component.component_type();
            ty.exports(component.engine()).any(|(name, _)| name.starts_with(interface))
        };
        let (is_http, is_command) = (exports("wasi:http/incoming-handler@0.2"), exports("wasi:cli/run@0.2"));
        if !is_http && !is_command {
            return Err(GuestError::NoEntry);
        }
        let pre: ComponentPre<ComponentState> = linker.instantiate_pre(component).map_err(link)?;
        if is_http {
            return Ok(Linked::Http(ProxyPre::new(pre).map_err(link)?));
        }
        Ok(Linked::Command(CommandPre::new(pre).map_err(link)?))
    }
}

/// What every instance of a container is made of.
pub(crate) struct Instances {
    pub(crate) spec: Arc<ContainerSpec>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) log: Arc<ContainerLog>,
    pub(crate) descriptors: Arc<Descriptors>,
}

impl Instances {
    fn module_store(&self, engine: &Engine, part: &Arc<Part>) -> Result<Store<ModuleState>, GuestError> {
        let mut state = ModuleState {
            wasi: self.wasi()?.build_p1(),
            share: Share::of(part.clone()),
            opened: Opened::of(&self.descriptors),
        };
        state.wasi.ctx().table.set_max_capacity(MAX_RESOURCES);
        let mut store = Store::new(engine, state);
        store.limiter(|state| &mut state.share);
        yield_every_tick(&mut store);
        Ok(store)
    }

    fn component_store(
        &self,
        engine: &Engine,
        part: &Arc<Part>,
    ) -> Result<Store<ComponentState>, GuestError> {
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_RESOURCES);
        let state = ComponentState {
            wasi: self.wasi()?.build(),
            table,
            http: WasiHttpCtx::new(),
            outgoing: Outgoing { descriptors: self.descriptors.clone() },
            share: Share::of(part.clone()),
            opened: Opened::of(&self.descriptors),
            has_returned: false,
        };
        let mut store = Store::new(engine, state);
        store.limiter(|state| &mut state.share);
        yield_every_tick(&mut store);
        Ok(store)
    }

    /// Whether what every instance is given can be had at all.
    pub(crate) fn check(&self) -> Result<(), GuestError> {
        self.wasi().map(drop)
    }

    /// Default deny: the volumes, and of the network what the pod's namespace has.
    fn wasi(&self) -> Result<WasiCtxBuilder, GuestError> {
        let mut builder = WasiCtxBuilder::new();
        builder
            .args(&self.spec.args)
            .envs(&self.spec.envs)
            .stdout(GuestOutput::new(&self.log, Stream::Stdout))
            .stderr(GuestOutput::new(&self.log, Stream::Stderr))
            .inherit_network()
            .allow_tcp(true)
            .allow_udp(true)
            .allow_ip_name_lookup(true);
        for opened in root::opened(&self.spec) {
            let permissions = match opened.access {
                Access::ReadOnly => FsPerms::ReadOnly,
                Access::ReadWrite => FsPerms::ReadWrite,
            };
            let path = opened.guest_path.clone();
            builder
                .preopened_dir(&opened.path, &opened.guest_path, permissions)
                .map_err(|source| GuestError::Preopen { path, source })?;
        }
        Ok(builder)
    }
}

/// Lets a busy guest's thread look at its timers, its sockets and its stop signal.
fn yield_every_tick<T: 'static>(store: &mut Store<T>) {
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
}
