//! A container's share of its host's descriptors, over all its instances.
//!
//! Containers of one trust domain are threads of one process and share its table of descriptors. What a guest opens
//! (files, directories, sockets, accepted connections, requests it sends) is counted, and past its share it is told that
//! no more can be opened, as a process would be past its own limit. Its neighbours notice nothing.
//!
//! WASI's implementation does the opening; the functions here stand before its own in the linker and let through or
//! refuse. What an instance has open is read from its table of resources each time, so that nothing needs to be told of
//! what it closes.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource as Limit, getrlimit};
use wasmtime::component::{Linker as ComponentLinker, Resource, ResourceTable};
use wasmtime::{AsContextMut, Caller, Extern, Linker, StoreContextMut};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::WasiFilesystemView;
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self, WasiSnapshotPreview1};
use wasmtime_wasi::p2::bindings::filesystem::types as files;
use wasmtime_wasi::p2::bindings::sockets::network::{self, IpAddressFamily};
use wasmtime_wasi::p2::bindings::sockets::{tcp, tcp_create_socket, udp_create_socket};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, TcpSocket, UdpSocket};
use wasmtime_wasi::sockets::WasiSocketsView;
use wiggle::GuestMemory;

use super::descriptors3;
use super::guest::{ComponentState, ModuleState};

/// What a container may have open at most.
pub(super) const MOST: usize = 2048;
/// No container may have more than this part of what its host may.
const PART: usize = 16;
/// Entries of an instance's table of resources: what else a guest can make its host hold.
pub(crate) const MAX_RESOURCES: usize = 16 * 1024;
/// WASI 0.1's `mfile`.
const TOO_MANY_OPEN_FILES: i32 = 33;

/// What a container has open.
pub(crate) struct Descriptors {
    most: usize,
    open: AtomicUsize,
}

impl Descriptors {
    pub(crate) fn new() -> Arc<Descriptors> {
        let host =
            getrlimit(Limit::Nofile).current.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        Descriptors::of(MOST.min(host / PART))
    }

    fn of(most: usize) -> Arc<Descriptors> {
        Arc::new(Descriptors { most, open: AtomicUsize::new(0) })
    }

    /// `held` of all that is open becomes `wanted`, if there is room.
    fn change(&self, held: usize, wanted: usize) -> bool {
        let within = |open: usize| {
            let new = open.saturating_sub(held) + wanted;
            (wanted <= held || new <= self.most).then_some(new)
        };
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_ok()
    }

    /// Room for one connection that is in no table; `None` if there is none.
    pub(crate) fn one(self: &Arc<Self>) -> Option<One> {
        self.change(0, 1).then(|| One(self.clone()))
    }
}

/// A descriptor's place, given back when dropped.
pub(crate) struct One(Arc<Descriptors>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.change(1, 0);
    }
}

/// One store's part, given back when the store is dropped.
pub(crate) struct Opened {
    of: Arc<Descriptors>,
    counted: usize,
}

impl Opened {
    pub(crate) fn of(descriptors: &Arc<Descriptors>) -> Opened {
        Opened { of: descriptors.clone(), counted: 0 }
    }

    /// Whether the store whose resources these are, and `n_streams` that are in no table, may open one more.
    pub(crate) fn admit(&mut self, table: &mut ResourceTable, n_streams: usize) -> bool {
        let now = table.iter_mut().filter(|entry| holds_descriptor(*entry)).count() + n_streams;
        let admitted = self.of.change(self.counted, now + 1);
        if admitted {
            self.counted = now + 1;
        } else if now < self.counted && self.of.change(self.counted, now) {
            self.counted = now;
        }
        admitted
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.of.change(self.counted, 0);
    }
}

/// A stream keeps its file open after the descriptor it was made from is dropped, so streams count too.
fn holds_descriptor(entry: &(dyn Any + Send)) -> bool {
    entry.is::<files::Descriptor>()
        || entry.is::<TcpSocket>()
        || entry.is::<UdpSocket>()
        || entry.is::<DynInputStream>()
        || entry.is::<DynOutputStream>()
}

/// Stands before WASI 0.1's one function that opens.
pub(crate) fn guard_module(linker: &mut Linker<ModuleState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker.func_wrap_async("wasi_snapshot_preview1", "path_open", path_open)?;
    linker.allow_shadowing(false);
    Ok(())
}

type PathOpen = (i32, i32, i32, i32, i32, i64, i64, i32, i32);

fn path_open<'a>(
    mut caller: Caller<'a, ModuleState>,
    (fd, look, path, length, how, base, all, flags, to): PathOpen,
) -> Box<dyn Future<Output = wasmtime::Result<i32>> + Send + 'a> {
    Box::new(async move {
        if !caller.data_mut().admit() {
            return Ok(TOO_MANY_OPEN_FILES);
        }
        let fuel = caller.as_context_mut().hostcall_fuel();
        let export = caller.get_export("memory");
        let (mut memory, state) = match &export {
            Some(Extern::Memory(memory)) => {
                let (bytes, state) = memory.data_and_store_mut(&mut caller);
                (GuestMemory::Unshared(bytes), state)
            }
            Some(Extern::SharedMemory(memory)) => (GuestMemory::Shared(memory.data()), caller.data_mut()),
            _ => return Err(wasmtime::Error::msg("missing required memory export")),
        };
        let (wasi, memory) = (&mut state.wasi, &mut memory);
        wasi.set_hostcall_fuel(fuel);
        wasi_snapshot_preview1::path_open(wasi, memory, fd, look, path, length, how, base, all, flags, to)
            .await
    })
}

type Answer<'a, T, E> = Box<dyn Future<Output = wasmtime::Result<(Result<T, E>,)>> + Send + 'a>;
type Store<'a> = StoreContextMut<'a, ComponentState>;

/// Stands before WASI 0.2's functions that open. `version` is that of the interfaces in the linker.
pub(crate) fn guard_component(linker: &mut ComponentLinker<ComponentState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker
        .instance(&interface("wasi:filesystem/types"))?
        .func_wrap_async("[method]descriptor.open-at", |store: Store<'_>, params: OpenAt| {
            open_at(store, params)
        })?;
    linker.instance(&interface("wasi:sockets/tcp-create-socket"))?.func_wrap(
        "create-tcp-socket",
        |mut store: Store<'_>, (family,): (IpAddressFamily,)| {
            if !store.data_mut().admit(0) {
                return Ok((Err(network::ErrorCode::NewSocketLimit),));
            }
            let mut view = store.data_mut().sockets();
            let made = tcp_create_socket::Host::create_tcp_socket(&mut view, family);
            Ok((made.map(Ok).or_else(|err| network::Host::convert_error_code(&mut view, err).map(Err))?,))
        },
    )?;
    linker.instance(&interface("wasi:sockets/udp-create-socket"))?.func_wrap_async(
        "create-udp-socket",
        |mut store: Store<'_>, (family,): (IpAddressFamily,)| -> Answer<'_, Resource<UdpSocket>, _> {
            Box::new(async move {
                if !store.data_mut().admit(0) {
                    return Ok((Err(network::ErrorCode::NewSocketLimit),));
                }
                let mut view = store.data_mut().sockets();
                let made = udp_create_socket::Host::create_udp_socket(&mut view, family).await;
                Ok((made
                    .map(Ok)
                    .or_else(|err| network::Host::convert_error_code(&mut view, err).map(Err))?,))
            })
        },
    )?;
    linker.instance(&interface("wasi:sockets/tcp"))?.func_wrap(
        "[method]tcp-socket.accept",
        |mut store: Store<'_>, (listener,): (Resource<TcpSocket>,)| {
            if !store.data_mut().admit(0) {
                return Ok((Err(network::ErrorCode::NewSocketLimit),));
            }
            let mut view = store.data_mut().sockets();
            let made = tcp::HostTcpSocket::accept(&mut view, listener);
            Ok((made.map(Ok).or_else(|err| network::Host::convert_error_code(&mut view, err).map(Err))?,))
        },
    )?;
    linker.allow_shadowing(false);
    descriptors3::guard(linker)
}

/// As `wasmtime-wasi` names its interfaces; a guest's own patch version is matched to it by the linker.
pub(super) fn interface(name: &str) -> String {
    format!("{name}@0.2.12")
}

type OpenAt =
    (Resource<files::Descriptor>, files::PathFlags, String, files::OpenFlags, files::DescriptorFlags);

fn open_at(
    mut store: Store<'_>,
    (directory, path_flags, path, open_flags, flags): OpenAt,
) -> Answer<'_, Resource<files::Descriptor>, files::ErrorCode> {
    Box::new(async move {
        if !store.data_mut().admit(0) {
            // There is no code for too many open files.
            return Ok((Err(files::ErrorCode::InsufficientMemory),));
        }
        let mut view = store.data_mut().filesystem();
        let opened =
            files::HostDescriptor::open_at(&mut view, directory, path_flags, path, open_flags, flags).await;
        Ok((opened.map(Ok).or_else(|err| files::Host::convert_error_code(&mut view, err).map(Err))?,))
    })
}

impl ModuleState {
    fn admit(&mut self) -> bool {
        self.opened.admit(self.wasi.ctx().table, 0)
    }
}

impl ComponentState {
    pub(super) fn admit(&mut self, n_streams: usize) -> bool {
        let (opened, table) = self.opened();
        opened.admit(table, n_streams)
    }

    /// Room for so many resources more, and not for more than there was.
    pub(super) fn bound_resources(&mut self, n_more: usize) {
        let (_, table) = self.opened();
        let wanted = table.iter_mut().count().saturating_add(n_more);
        table.set_max_capacity(table.max_capacity().min(wanted));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_instances_share_one_number_and_what_is_closed_or_dropped_is_given_back() {
        let descriptors = Descriptors::of(3);
        let mut table = ResourceTable::new();
        let (mut first, mut second) = (Opened::of(&descriptors), Opened::of(&descriptors));
        let input = |table: &mut ResourceTable| {
            let stream: DynInputStream = Box::new(wasmtime_wasi::p2::pipe::ClosedInputStream);
            table.push(stream).unwrap()
        };
        assert!(first.admit(&mut table, 0));
        let one = input(&mut table);
        assert!(first.admit(&mut table, 0));
        let _two = input(&mut table);
        let connection = descriptors.one().unwrap();
        assert!(!first.admit(&mut table, 0));
        assert!(!second.admit(&mut ResourceTable::new(), 0));
        assert!(descriptors.one().is_none());
        table.delete(one).unwrap();
        assert!(first.admit(&mut table, 0));
        assert!(!second.admit(&mut ResourceTable::new(), 0));
        drop(connection);
        assert!(second.admit(&mut ResourceTable::new(), 0));
        drop((first, second));
        assert_eq!(descriptors.open.load(Ordering::Relaxed), 0);
    }
}
