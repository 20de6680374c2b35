//! Read connections, a few, lent out one call at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::super::contract::StoreError;
use super::log::{self, ReadError};

const CONNECTIONS: usize = 2;

pub(super) struct Readers {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Connection>>>,
    /// One permit a connection.
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn open(path: &Path) -> Result<Readers, StoreError> {
        let connections = (0..CONNECTIONS).map(|_| log::open_reader(path)).collect::<Result<Vec<_>, _>>()?;
        Ok(Readers {
            path: path.into(),
            idle: Arc::new(Mutex::new(connections)),
            permits: Arc::new(Semaphore::new(CONNECTIONS)),
        })
    }

    /// Calls made later fail.
    pub(super) fn close(&self) {
        self.permits.close();
        self.idle.lock().clear();
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run_checked(operation, |connection| read(connection).map_err(ReadError::Sqlite)).await
    }

    /// Runs `read` in one read transaction, so that all it sees is of one revision.
    pub(super) async fn run_checked<T: Send + 'static>(
        &self,
        operation: &'static str,
        read: impl FnOnce(&Connection) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (idle, path) = (self.idle.clone(), self.path.clone());
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let Some(mut connection) = idle.lock().pop() else { return Err(StoreError::Closed) };
            let result = in_transaction(&mut connection, read).map_err(|e| match e {
                ReadError::Sqlite(e) => log::classify(&path, operation, e),
                ReadError::Refused(refusal) => refusal,
            });
            idle.lock().push(connection);
            result
        });
        task.await.map_err(|_| StoreError::Closed)?
    }
}

fn in_transaction<T>(
    connection: &mut Connection,
    read: impl FnOnce(&Connection) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    let transaction = connection.transaction()?;
    let result = read(&transaction)?;
    transaction.finish()?;
    Ok(result)
}
