//! Lifecycle hooks: `postStart` and `preStop`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use skiff_cri::Cri;
use skiff_cri::v1::ExecSyncRequest;

use crate::pod::PodExt;
use crate::probe::http::{self, Target};

/// How long an HTTP hook may take; upstream's client has no limit of its own, a hook must have one.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a hook. The error is for the pod's status and log, not for events: it may hold secrets.
pub(crate) async fn run(
    cri: &dyn Cri,
    pod: &Pod,
    container: &Container,
    container_id: &str,
    pod_ip: &str,
    handler: &LifecycleHandler,
) -> Result<(), String> {
    let whose = format!("for Container {:?} in Pod {:?} failed - error:", container.name, pod.describe());
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        let request = ExecSyncRequest { container_id: container_id.to_owned(), cmd: command, timeout: 0 };
        return match cri.exec_sync(request).await {
            Ok(done) if done.exit_code == 0 => Ok(()),
            Ok(done) => {
                let output = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
                let error = format!("command '{shown}' exited with {}: {output}", done.exit_code);
                Err(format!("Exec lifecycle hook ([{shown}]) {whose} {error}, message: {output:?}"))
            }
            Err(error) => Err(format!("Exec lifecycle hook ([{shown}]) {whose} {error}, message: \"\"")),
        };
    }
    if let Some(get) = &handler.http_get {
        let path = get.path.clone().unwrap_or_default();
        let target = Target::new(get, container, pod_ip, "lifecycle");
        let done = match target {
            Ok(target) => http::get(&target, HTTP_TIMEOUT).await.map(drop),
            Err(error) => Err(error),
        };
        return done.map_err(|error| format!("HTTP lifecycle hook ({path}) {whose} {error}"));
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.unsigned_abs())).await;
        return Ok(());
    }
    Err("Cannot run handler: invalid handler: a hook is one of exec, httpGet and sleep".to_owned())
}
