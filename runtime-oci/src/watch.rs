//! One task a running container: it waits for the shim to tell the end, or to go without telling.

use std::path::Path;
use std::sync::Arc;

use skiff_cri::ContainerEvent;
use tokio::process::Child;
use tokio::sync::broadcast;

use crate::client::ShimConnection;
use crate::protocol::{Answer, Exit};
use crate::record::now_ns;
use crate::runtime::Container;

/// The exit code of what was killed.
const KILLED: i32 = 137;

/// Watches a container to its end. `shim` is the shim's process if it is this one's child, to be reaped.
pub(crate) fn spawn(
    container: Arc<Container>,
    mut connection: ShimConnection,
    shim: Option<Child>,
    events: broadcast::Sender<ContainerEvent>,
) {
    tokio::spawn(async move {
        let told = loop {
            match connection.receive().await {
                Ok(Some(Answer::Exited(exit))) => break Some(exit),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break None,
            }
        };
        let exit = match told {
            Some(exit) => exit,
            None => after_silence(&container).await,
        };
        container.ended(exit);
        let _nobody_listens = events.send(container.event());
        let_go(&container).await;
        if let Some(mut shim) = shim {
            let _reaped = shim.wait().await;
        }
    });
}

/// The shim has gone: it left a record of the end, or it was killed. What it supervised is then ended, since
/// nobody would ever see it end.
pub(crate) async fn after_silence(container: &Arc<Container>) -> Exit {
    let container = container.clone();
    let ended = tokio::task::spawn_blocking(move || {
        let directory: &Path = container.directory();
        match Exit::read(directory) {
            Ok(Some(exit)) => return exit,
            Ok(None) => {}
            Err(err) => tracing::warn!(container = container.id(), "exit record is unreadable: {err}"),
        }
        match container.group().kill() {
            // Whoever looks at a container that ended so wants to know why; nobody can look at what it wrote.
            Ok(()) => {
                if let Err(err) = container.bundle().remove_layer() {
                    tracing::warn!(container = container.id(), "remove what a lost container wrote: {err}");
                }
            }
            Err(err) => {
                tracing::error!(container = container.id(), "end what a killed shim left: {err}");
            }
        }
        let exit = Exit {
            started_at_ns: container.started_at_ns(),
            finished_at_ns: now_ns(),
            exit_code: KILLED,
            oom_killed: false,
            lost: true,
        };
        if let Err(err) = exit.write(directory) {
            tracing::warn!(container = container.id(), "record the end: {err}");
        }
        exit
    });
    ended.await.unwrap_or(Exit {
        started_at_ns: 0,
        finished_at_ns: now_ns(),
        exit_code: KILLED,
        oom_killed: false,
        lost: true,
    })
}

/// Gives the group of a container that has ended back to the kernel. Its last figures are in the record by then.
pub(crate) async fn let_go(container: &Arc<Container>) {
    let ended = container.clone();
    let removed =
        tokio::task::spawn_blocking(move || ended.group().kill().and_then(|()| ended.group().remove()));
    if let Ok(Err(err)) = removed.await {
        // Removing the container tries again.
        tracing::warn!(container = container.id(), "remove the group of a container that has ended: {err}");
    }
}
