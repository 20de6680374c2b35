//! The container's first process, and those that `exec` adds.

use std::path::PathBuf;

use oci_spec::runtime::{PosixRlimitBuilder, PosixRlimitType, Process};
use skiff_cri::ExecProcess;
use skiff_cri::v1::{LinuxContainerSecurityContext, security_profile::ProfileType};

use super::{Input, OpenFiles, capabilities};
use crate::apparmor::DEFAULT_PROFILE;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn process(
    input: &Input<'_>,
    security: &LinuxContainerSecurityContext,
) -> Result<Process, String> {
    let config = input.config;
    let account = input.accounts.resolve(security, &input.image.user)?;
    let mut user = oci_spec::runtime::User::default();
    user.set_uid(account.uid);
    user.set_gid(account.gid);
    user.set_additional_gids(Some(account.groups));

    let cwd = [&config.working_dir, &input.image.working_dir].into_iter().find(|cwd| !cwd.is_empty());
    let ambient = security.capabilities.as_ref().map(|set| set.add_ambient_capabilities.as_slice());
    let granted = capabilities::granted(security, input.host)?;

    let mut process = Process::default();
    process.set_terminal(Some(config.tty));
    process.set_user(user);
    process.set_args(Some(args(input)?));
    process.set_env(Some(env(input)));
    process.set_cwd(cwd.map_or_else(|| PathBuf::from("/"), PathBuf::from));
    process.set_capabilities(Some(capabilities::sets(&granted, ambient.unwrap_or_default())?));
    process.set_no_new_privileges(Some(security.no_new_privs));
    // The others are those of this process: a container may not have more, and upstream gives it no less.
    let OpenFiles { soft, hard } = input.open_files;
    let open_files = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(soft).hard(hard);
    process.set_rlimits(Some(vec![
        open_files.build().map_err(|error| format!("failed to generate spec: {error}"))?,
    ]));
    process.set_oom_score_adj(oom_score_adj(input));
    process.set_apparmor_profile(apparmor(input, security)?);
    Ok(process)
}

pub(super) fn exec(own: &Process, exec: &ExecProcess) -> Process {
    let mut process = own.clone();
    process.set_args(Some(exec.command.clone()));
    process.set_terminal(Some(exec.tty));
    if exec.tty
        && let Some(env) = process.env_mut()
    {
        set(env, "TERM", "xterm", Overwrite::No);
    }
    process
}

/// Kubernetes' rules for `command` and `args` against the image's entrypoint and command.
fn args(input: &Input<'_>) -> Result<Vec<String>, String> {
    let (config, image) = (input.config, input.image);
    let mut args = if config.command.is_empty() { image.entrypoint.clone() } else { config.command.clone() };
    if !config.args.is_empty() {
        args.extend(config.args.iter().cloned());
    } else if config.command.is_empty() {
        args.extend(image.cmd.iter().cloned());
    }
    if args.first().is_none_or(String::is_empty) {
        return Err("failed to generate spec: no command specified".to_owned());
    }
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err("failed to generate spec: command holds a NUL".to_owned());
    }
    Ok(args)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Overwrite {
    Yes,
    No,
}

/// The image's variables under the pod's.
fn env(input: &Input<'_>) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned()];
    let hostname = &input.sandbox.config.hostname;
    if !hostname.is_empty() {
        set(&mut env, "HOSTNAME", hostname, Overwrite::Yes);
    }
    if input.config.tty {
        set(&mut env, "TERM", "xterm", Overwrite::Yes);
    }
    for variable in &input.image.env {
        if let Some((key, value)) = variable.split_once('=') {
            set(&mut env, key, value, Overwrite::Yes);
        }
    }
    for variable in &input.config.envs {
        set(&mut env, &variable.key, &variable.value, Overwrite::Yes);
    }
    env.retain(|variable| !variable.contains('\0'));
    env
}

fn set(env: &mut Vec<String>, key: &str, value: &str, overwrite: Overwrite) {
    let existing =
        env.iter_mut().find(|variable| variable.split_once('=').is_some_and(|(name, _)| name == key));
    match existing {
        Some(_) if overwrite == Overwrite::No => {}
        Some(variable) => *variable = format!("{key}={value}"),
        None => env.push(format!("{key}={value}")),
    }
}

/// The score that is asked for, but never lower than this process may give: runc would fail.
fn oom_score_adj(input: &Input<'_>) -> Option<i32> {
    let wanted = input.config.linux.as_ref()?.resources.as_ref()?.oom_score_adj.clamp(-1000, 1000);
    let least = if input.host.can_lower_oom_score() { -1000 } else { input.host.oom_score_adj };
    if wanted < least {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            tracing::warn!(
                "without CAP_SYS_RESOURCE oom_score_adj stays at {least} where {wanted} was asked for"
            );
        });
    }
    i32::try_from(wanted.max(least)).ok()
}

fn apparmor(input: &Input<'_>, security: &LinuxContainerSecurityContext) -> Result<Option<String>, String> {
    let asked = security.apparmor.as_ref();
    // Upstream's runtimes take what is not said for the default.
    match asked.map_or(ProfileType::RuntimeDefault, |profile| profile.profile_type()) {
        ProfileType::Localhost if !input.host.has_apparmor => Err("apparmor is not supported".to_owned()),
        ProfileType::Localhost => Ok(asked.map(|profile| profile.localhost_ref.clone())),
        ProfileType::RuntimeDefault if input.host.has_default_profile && !security.privileged => {
            Ok(Some(DEFAULT_PROFILE.to_owned()))
        }
        ProfileType::RuntimeDefault | ProfileType::Unconfined => Ok(None),
    }
}
