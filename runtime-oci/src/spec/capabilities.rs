//! Which capabilities a container has.

use std::collections::BTreeSet;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use skiff_cri::v1::LinuxContainerSecurityContext;

use crate::host::Host;

/// By number, as the kernel counts them.
const NAMES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has unless it says otherwise: containerd's and Docker's choice.
const DEFAULT: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Names without `CAP_`: the default, less what is dropped, plus what is added; never more than this process
/// could give. What is added and dropped by name is dropped, and dropping all leaves only what is added by name,
/// even beside adding all.
pub(super) fn granted(
    security: &LinuxContainerSecurityContext,
    host: &Host,
) -> Result<BTreeSet<&'static str>, String> {
    let possible = || {
        NAMES.iter().enumerate().filter(|(bit, _)| host.capabilities & (1 << bit) != 0).map(|(_, name)| *name)
    };
    if security.privileged {
        return Ok(possible().collect());
    }
    let requested = security.capabilities.clone().unwrap_or_default();
    let (add_all, add) = parsed(&requested.add_capabilities)?;
    let (drop_all, drop) = parsed(&requested.drop_capabilities)?;
    let mut granted: BTreeSet<_> = if drop_all {
        BTreeSet::new()
    } else if add_all {
        NAMES.iter().copied().collect()
    } else {
        DEFAULT.iter().copied().collect()
    };
    granted.extend(add);
    granted.retain(|name| !drop.contains(name));
    let possible: BTreeSet<_> = possible().collect();
    granted.retain(|name| possible.contains(name));
    Ok(granted)
}

/// Names as Kubernetes takes them: `NET_ADMIN`, `CAP_NET_ADMIN` or `ALL`, in any case.
fn parsed(names: &[String]) -> Result<(bool, BTreeSet<&'static str>), String> {
    let mut all = false;
    let mut known = BTreeSet::new();
    for name in names {
        let upper = name.to_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if short == "ALL" {
            all = true;
            continue;
        }
        let found = NAMES.iter().find(|known| **known == short);
        known.insert(*found.ok_or_else(|| format!("unknown capability {name:?}"))?);
    }
    Ok((all, known))
}

/// The sets that make `granted` what the process has. Nothing is inheritable (CVE-2022-24769).
pub(super) fn sets(granted: &BTreeSet<&str>, ambient: &[String]) -> Result<LinuxCapabilities, String> {
    let as_set = |names: &mut dyn Iterator<Item = &str>| -> Capabilities {
        names.filter_map(|name| name.parse::<Capability>().ok()).collect()
    };
    let (_, ambient) = parsed(ambient)?;
    let all = as_set(&mut granted.iter().copied());
    let ambient = as_set(&mut ambient.into_iter().filter(|name| granted.contains(name)));
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(all.clone()));
    sets.set_effective(Some(all.clone()));
    sets.set_permitted(Some(all));
    // An ambient capability must be inheritable, too; only what is asked for by name.
    sets.set_inheritable(Some(ambient.clone()));
    sets.set_ambient(Some(ambient));
    Ok(sets)
}
