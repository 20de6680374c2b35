//! Devices of the host in a container.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

/// A device of the host that a container is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Its path in the container.
    pub path: PathBuf,
    pub is_block: bool,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// `r`, `w`, `m`.
    pub permissions: String,
}

pub(super) fn nodes(devices: &[HostDevice]) -> Vec<LinuxDevice> {
    let node = |device: &HostDevice| {
        let mut node = LinuxDevice::default();
        node.set_path(device.path.clone());
        node.set_typ(kind(device));
        node.set_major(device.major.into());
        node.set_minor(device.minor.into());
        node.set_file_mode(Some(device.mode));
        node.set_uid(Some(device.uid));
        node.set_gid(Some(device.gid));
        node
    };
    devices.iter().map(node).collect()
}

/// Nothing but the devices given; runc adds those that every container has (`/dev/null` and its like). A
/// privileged container may use all.
pub(super) fn rules(devices: &[HostDevice], privileged: bool) -> Vec<LinuxDeviceCgroup> {
    let mut all = LinuxDeviceCgroup::default();
    all.set_allow(privileged);
    all.set_typ(None);
    all.set_major(None);
    all.set_minor(None);
    all.set_access(Some("rwm".to_owned()));
    let mut rules = vec![all];
    if !privileged {
        rules.extend(devices.iter().map(|device| {
            let mut rule = LinuxDeviceCgroup::default();
            rule.set_allow(true);
            rule.set_typ(Some(kind(device)));
            rule.set_major(Some(device.major.into()));
            rule.set_minor(Some(device.minor.into()));
            rule.set_access(Some(device.permissions.clone()));
            rule
        }));
    }
    rules
}

fn kind(device: &HostDevice) -> LinuxDeviceType {
    if device.is_block { LinuxDeviceType::B } else { LinuxDeviceType::C }
}
