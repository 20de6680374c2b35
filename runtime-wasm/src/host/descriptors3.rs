//! What stands before WASI 0.3's functions that open, as [`super::descriptors`] does before those of 0.1 and 0.2.
//!
//! Streams of 0.3 are not in the table of resources, and keep their file or socket open. The engine's own table has them, with
//! three entries or more for each: so many descriptors are counted as there may be.

use std::iter;
use std::pin::Pin;

use wasmtime::component::{Access, Accessor, FutureReader, Lift, Linker, Lower, Resource, StreamReader};
use wasmtime::{AsContextMut, Result, StoreContextMut};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p3::bindings::filesystem::types::{
    self as files, DescriptorFlags, DirectoryEntry, ErrorCode as FileError, HostDescriptorWithStore,
    OpenFlags, PathFlags,
};
use wasmtime_wasi::p3::bindings::sockets::types::{
    ErrorCode as SocketError, HostTcpSocket, HostTcpSocketWithStore, HostUdpSocket, IpAddressFamily,
};
use wasmtime_wasi::sockets::{TcpSocket, UdpSocket, WasiSockets, WasiSocketsView};

use super::descriptors::MOST;
use super::guest::ComponentState;

/// Of the engine's table, for one stream: its two ends and what is between them.
const STREAM_ENTRIES: usize = 3;

type Store<'a> = StoreContextMut<'a, ComponentState>;
type Later<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;
type Opening = (Resource<Descriptor>, PathFlags, String, OpenFlags, DescriptorFlags);
type Opened = (std::result::Result<Resource<Descriptor>, FileError>,);
type Reading<T> = ((StreamReader<T>, FutureReader<std::result::Result<(), FileError>>),);

pub(super) fn guard(linker: &mut Linker<ComponentState>) -> Result<()> {
    linker.allow_shadowing(true);
    let mut files = linker.instance(&interface("wasi:filesystem/types"))?;
    files.func_wrap_concurrent("[method]descriptor.open-at", open_at)?;
    files.func_wrap(
        "[method]descriptor.read-via-stream",
        |mut store: Store<'_>, (file, offset)| match admit(&mut store) {
            true => WasiFilesystem::read_via_stream(file_access(store), file, offset).map(|made| (made,)),
            false => nothing(store),
        },
    )?;
    files.func_wrap(
        "[method]descriptor.read-directory",
        |mut store: Store<'_>, (directory,): (Resource<Descriptor>,)| -> Result<Reading<DirectoryEntry>> {
            match admit(&mut store) {
                true => WasiFilesystem::read_directory(file_access(store), directory).map(|made| (made,)),
                false => nothing(store),
            }
        },
    )?;
    let mut sockets = linker.instance(&interface("wasi:sockets/types"))?;
    sockets.func_wrap(
        "[static]tcp-socket.create",
        |mut store: Store<'_>, (family,): (IpAddressFamily,)| {
            if !admit(&mut store) {
                return Ok((Err(full()),));
            }
            let made: std::result::Result<Resource<TcpSocket>, _> =
                HostTcpSocket::create(&mut store.data_mut().sockets(), family);
            Ok((made.map(Ok).or_else(|err| err.downcast().map(Err))?,))
        },
    )?;
    sockets.func_wrap_async(
        "[static]udp-socket.create",
        |mut store: Store<'_>, (family,): (IpAddressFamily,)| {
            Box::new(async move {
                if !admit(&mut store) {
                    return Ok((Err(full()),));
                }
                let made: std::result::Result<Resource<UdpSocket>, _> =
                    HostUdpSocket::create(&mut store.data_mut().sockets(), family).await;
                Ok((made.map(Ok).or_else(|err| err.downcast().map(Err))?,))
            })
        },
    )?;
    sockets.func_wrap_async(
        "[method]tcp-socket.listen",
        |mut store: Store<'_>, (socket,): (Resource<TcpSocket>,)| {
            Box::new(async move {
                if !admit(&mut store) {
                    return Ok((Err(full()),));
                }
                // What it accepts comes without asking, and is counted with what is asked for next. One instance has no
                // more of it than a container may have open; then it traps.
                store.data_mut().bound_resources(MOST);
                let access = Access::<_, WasiSockets>::new(store, ComponentState::sockets);
                let made =
                    <WasiSockets as HostTcpSocketWithStore<ComponentState>>::listen(access, socket).await;
                Ok((made.map(Ok).or_else(|err| err.downcast().map(Err))?,))
            })
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// As `wasmtime-wasi` names its interfaces.
pub(super) fn interface(name: &str) -> String {
    format!("{name}@0.3.0")
}

/// There is no code for too many open files, nor for sockets.
fn full() -> SocketError {
    SocketError::OutOfMemory
}

fn file_access(store: Store<'_>) -> Access<'_, ComponentState, WasiFilesystem> {
    Access::<_, WasiFilesystem>::new(store, ComponentState::filesystem)
}

/// A stream that has ended, and why.
fn nothing<T: Send + Sync + Lift + Lower + 'static>(mut store: Store<'_>) -> Result<Reading<T>> {
    let why = async { Ok::<_, wasmtime::Error>(Err(FileError::InsufficientMemory)) };
    Ok(((StreamReader::new(&mut store, iter::empty())?, FutureReader::new(&mut store, why)?),))
}

fn open_at(
    accessor: &Accessor<ComponentState>,
    (directory, path_flags, path, open_flags, flags): Opening,
) -> Later<'_, Opened> {
    Box::pin(async move {
        if !accessor.with(|mut access| admit(&mut access.as_context_mut())) {
            return Ok((Err(files::ErrorCode::InsufficientMemory),));
        }
        let files = accessor.with_getter::<WasiFilesystem>(ComponentState::filesystem);
        let opened = WasiFilesystem::open_at(&files, directory, path_flags, path, open_flags, flags).await;
        Ok((opened.map(Ok).or_else(|err| err.downcast().map(Err))?,))
    })
}

fn admit(store: &mut Store<'_>) -> bool {
    let n_streams =
        store.concurrent_resource_table().map_or(0, |table| table.iter_mut().count() / STREAM_ENTRIES);
    store.data_mut().admit(n_streams)
}
