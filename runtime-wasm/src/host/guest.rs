//! Guests: native code from the cache, linked to what its kind is offered, and the state of an instance.

use std::path::Path;
use std::sync::Arc;

use wasmtime::component::{Component, InstancePre as ComponentPre, ResourceTable};
use wasmtime::{Engine, InstancePre, Module, Precompiled, Store, UnknownImportError};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::budget::{Budget, Share};
use super::descriptors::{self, Descriptors, MAX_RESOURCES, Opened};
use super::log::{ContainerLog, GuestOutput, Stream};
use super::outgoing::Outgoing;
use super::root;
use crate::compile::one_line;
use crate::spec::{Access, ContainerSpec};

#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error("the AOT cache holds no native code at {0} for this host's engine")]
    NoCode(String),
    #[error("load the module's native code: {0}")]
    Load(String),
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

/// A module or component, ready to be instantiated. Shared by all containers of the host that run it.
pub(crate) enum Guest {
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
}

impl ComponentState {
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
    /// Loads what [`crate::compile`] wrote to the cache.
    pub(crate) fn load(engine: &Engine, code: &Path) -> Result<Guest, GuestError> {
        if !code.exists() {
            return Err(GuestError::NoCode(code.display().to_string()));
        }
        let load = |err: wasmtime::Error| GuestError::Load(one_line(&err));
        match Engine::detect_precompiled_file(code).map_err(load)? {
            Some(Precompiled::Module) => {
                // SAFETY: the file lies in the AOT cache, which only the compile process writes, whole or not
                // at all, into a directory that only this user can write to; it is never changed in place.
                let module = unsafe { Module::deserialize_file(engine, code) }.map_err(load)?;
                Guest::module(&module)
            }
            Some(Precompiled::Component) => {
                // SAFETY: as above.
                let component = unsafe { Component::deserialize_file(engine, code) }.map_err(load)?;
                Guest::component(&component)
            }
            None => Err(GuestError::Load(format!("{} is not native code", code.display()))),
        }
    }

    fn module(module: &Module) -> Result<Guest, GuestError> {
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
        Ok(Guest::Module(pre))
    }

    fn component(component: &Component) -> Result<Guest, GuestError> {
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
            return Ok(Guest::Http(ProxyPre::new(pre).map_err(link)?));
        }
        Ok(Guest::Command(CommandPre::new(pre).map_err(link)?))
    }
}

/// What every instance of a container is made of.
pub(crate) struct Instances {
    pub(crate) engine: Engine,
    pub(crate) spec: Arc<ContainerSpec>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) log: Arc<ContainerLog>,
    pub(crate) descriptors: Arc<Descriptors>,
}

impl Instances {
    pub(crate) fn module_store(&self) -> Result<Store<ModuleState>, GuestError> {
        let mut state = ModuleState {
            wasi: self.wasi()?.build_p1(),
            share: Share::of(&self.budget),
            opened: Opened::of(&self.descriptors),
        };
        state.wasi.ctx().table.set_max_capacity(MAX_RESOURCES);
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| &mut state.share);
        yield_every_tick(&mut store);
        Ok(store)
    }

    pub(crate) fn component_store(&self) -> Result<Store<ComponentState>, GuestError> {
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_RESOURCES);
        let state = ComponentState {
            wasi: self.wasi()?.build(),
            table,
            http: WasiHttpCtx::new(),
            outgoing: Outgoing { descriptors: self.descriptors.clone() },
            share: Share::of(&self.budget),
            opened: Opened::of(&self.descriptors),
        };
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| &mut state.share);
        yield_every_tick(&mut store);
        Ok(store)
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
