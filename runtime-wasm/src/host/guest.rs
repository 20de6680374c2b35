//! Guests: native code from the cache, linked to what its kind is offered, and the state of an instance.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{OnceCell, mpsc, oneshot};
use wasmtime::component::{Component, InstancePre as ComponentPre, ResourceTable};
use wasmtime::{
    Engine, Instance, InstancePre, Module, PoolConcurrencyLimitError, Precompiled, Store, StoreContextMut,
    UnknownImportError,
};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::p2::bindings::{Command, CommandPre};
use wasmtime_wasi::p3::bindings::{Command as Command3, CommandPre as Command3Pre};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::body::{HostOutgoingBody, StreamContext};
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::budget::{Budget, Part, Share};
use super::descriptors::{self, Descriptors, MAX_RESOURCES, Opened};
use super::descriptors3;
use super::log::{ContainerLog, GuestOutput, Stream};
use super::outgoing::Outgoing;
use super::root;
use super::written::Writings;
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
    #[error(
        "the component exports none of wasi:cli/run, wasi:http/incoming-handler (0.2) and wasi:http/handler (0.3): it is a library"
    )]
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

/// What a component may export to be run, and the world it is of then. The first that it has is what it is run by.
const ENTRIES: [(&str, &str); 4] = [
    ("wasi:http/handler@0.3.", "wasi:http/service (WASI 0.3), a server"),
    ("wasi:http/incoming-handler@0.2.", "wasi:http/proxy (WASI 0.2), a server"),
    ("wasi:cli/run@0.3.", "wasi:cli/command (WASI 0.3), a command"),
    ("wasi:cli/run@0.2.", "wasi:cli/command (WASI 0.2), a command"),
];

/// What one call of a guest may hand to its host: as much as its container may have, within these.
const MIN_CALL_BYTES: usize = 1 << 20;
const MAX_CALL_BYTES: usize = 128 << 20;

/// Native code with what it imports, ready to be instantiated.
pub(crate) enum Linked {
    /// A core module with WASI 0.1.
    Module(InstancePre<ModuleState>),
    /// A component of the world `wasi:cli/command` of WASI 0.2, and of 0.3.
    Command(CommandPre<ComponentState>),
    Command3(Command3Pre<ComponentState>),
    /// A component of the world `wasi:http/proxy` of WASI 0.2, and of `wasi:http/service` of 0.3.
    Http(ProxyPre<ComponentState>),
    Http3(ServicePre<ComponentState>),
}

/// An instance of a component, by what it exports.
pub(crate) enum Made {
    Command(Command),
    Command3(Command3),
    Http(Proxy),
    Http3(Service),
}

/// An instance's store. A guest that is dropped before it has come to its end cuts what it was writing.
pub(crate) struct Running {
    pub(crate) store: Store<ComponentState>,
}

impl Running {
    /// The guest has done all that it wanted to do.
    pub(crate) fn has_returned(&mut self) {
        self.store.data_mut().has_returned = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let state = self.store.data_mut();
        if !state.has_returned {
            state.outgoing.writings.seal();
        }
    }
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
    /// The bodies that a guest of WASI 0.3 writes.
    pub(super) fn writings(&mut self) -> &mut Writings {
        &mut self.outgoing.writings
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

    pub(crate) async fn component(
        &self,
        instances: &Instances,
        part: &Arc<Part>,
    ) -> wasmtime::Result<(Running, Made)> {
        let mut linked = &self.first;
        loop {
            let engine = linked.engine();
            let mut running = Running { store: instances.component_store(engine, part)? };
            let store = &mut running.store;
            let made = match linked {
                Linked::Module(_) => return Err(GuestError::NoEntry.into()),
                Linked::Command(pre) => pre.instantiate_async(store).await.map(Made::Command),
                Linked::Command3(pre) => pre.instantiate_async(store).await.map(Made::Command3),
                Linked::Http(pre) => pre.instantiate_async(store).await.map(Made::Http),
                Linked::Http3(pre) => pre.instantiate_async(store).await.map(Made::Http3),
            };
            match made {
                Err(err) if self.is_want_of_room(linked, &err) => {
                    drop(running);
                    part.made_anew();
                    linked = self.on_demand().await?;
                }
                made => return started(part, made.map(|made| (running, made))),
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
    /// Whether it answers requests, rather than run once.
    pub(crate) fn is_server(&self) -> bool {
        matches!(self, Linked::Http(_) | Linked::Http3(_))
    }

    fn engine(&self) -> &Engine {
        match self {
            Linked::Module(pre) => pre.module().engine(),
            Linked::Command(pre) => pre.engine(),
            Linked::Command3(pre) => pre.engine(),
            Linked::Http(pre) => pre.engine(),
            Linked::Http3(pre) => pre.engine(),
        }
    }

    /// The world of a component that `exports` tells of.
    pub(crate) fn world(exports: impl Fn(&str) -> bool) -> Option<&'static str> {
        ENTRIES.iter().find(|(entry, _)| exports(entry)).map(|(_, world)| *world)
    }

    /// Whether core modules are offered a function.
    pub(crate) fn offers_module(engine: &Engine, module: &str, name: &str) -> bool {
        let mut linker = wasmtime::Linker::new(engine);
        let is_made = p1::add_to_linker_async(&mut linker, |state: &mut ModuleState| &mut state.wasi).is_ok();
        // Who is there cannot be added.
        is_made && linker.func_wrap(module, name, || ()).is_err()
    }

    /// Whether components are offered an interface, by its name and version.
    pub(crate) fn offers(engine: &Engine, interface: &str) -> bool {
        let Ok(mut linker) = Linked::component_linker(engine) else { return false };
        let known = match interface.split_once('@') {
            Some((name, version)) if version.starts_with("0.2.") => descriptors::interface(name),
            Some((name, version)) if version.starts_with("0.3.") => descriptors3::interface(name),
            _ => interface.to_owned(),
        };
        // Who is there cannot be added.
        linker.root().func_wrap(&known, |_: StoreContextMut<'_, ComponentState>, ()| Ok(())).is_err()
    }

    pub(crate) fn load(engine: &Engine, code: &Path) -> Result<Linked, GuestError> {
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

    /// What components are offered: WASI 0.2 and 0.3.
    fn component_linker(engine: &Engine) -> wasmtime::Result<wasmtime::component::Linker<ComponentState>> {
        let mut linker = wasmtime::component::Linker::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
        descriptors::guard_component(&mut linker)?;
        Ok(linker)
    }

    fn component(component: &Component) -> Result<Linked, GuestError> {
        let link = |err: wasmtime::Error| GuestError::LinkComponent(one_line(&err));
        let linker = Linked::component_linker(component.engine()).map_err(link)?;
        let exports = |interface: &str| {
            let ty = component.component_type();
            ty.exports(component.engine()).any(|(name, _)| name.starts_with(interface))
        };
        let entry = ENTRIES.iter().position(|(entry, _)| exports(entry)).ok_or(GuestError::NoEntry)?;
        let pre: ComponentPre<ComponentState> = linker.instantiate_pre(component).map_err(link)?;
        match entry {
            0 => ServicePre::new(pre).map(Linked::Http3),
            1 => ProxyPre::new(pre).map(Linked::Http),
            2 => Command3Pre::new(pre).map(Linked::Command3),
            _ => CommandPre::new(pre).map(Linked::Command),
        }
        .map_err(link)
    }
}

/// What every instance of a container is made of.
pub(crate) struct Instances {
    pub(crate) spec: Arc<ContainerSpec>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) log: Arc<ContainerLog>,
    pub(crate) descriptors: Arc<Descriptors>,
    pub(crate) paths: Paths,
}

/// What the thread that runs a guest sees of the node's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paths {
    /// Its container's root, see [`root::enter`].
    Container,
    /// The node's own.
    Node,
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
        store.set_hostcall_fuel(self.max_call_bytes());
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
            outgoing: Outgoing { descriptors: self.descriptors.clone(), writings: Writings::default() },
            share: Share::of(part.clone()),
            opened: Opened::of(&self.descriptors),
            has_returned: false,
        };
        let mut store = Store::new(engine, state);
        store.limiter(|state| &mut state.share);
        store.set_hostcall_fuel(self.max_call_bytes());
        store.set_max_component_handles(MAX_RESOURCES);
        // Tasks, streams and futures of WASI 0.3 have a table of their own.
        if let Some(table) = store.concurrent_resource_table() {
            table.set_max_capacity(MAX_RESOURCES);
        }
        yield_every_tick(&mut store);
        Ok(store)
    }

    /// What one call may hand to the host. It is looked at only after it.
    fn max_call_bytes(&self) -> usize {
        self.budget.limit().clamp(MIN_CALL_BYTES, MAX_CALL_BYTES)
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
        let opened = match self.paths {
            Paths::Container => root::opened(&self.spec),
            Paths::Node => root::on_node(&self.spec),
        };
        for opened in opened {
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
