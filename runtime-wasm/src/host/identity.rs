//! Who a guest is to the kernel: the files of its volumes are its own, its group's or strangers', as for a Linux container.
//!
//! Credentials are a thread's. The C library would set those of all threads at once; the calls here do not ask it.

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::spec::{Identity, Right};

/// The calling thread, and those that it starts from now on, become `identity` for good.
pub(crate) fn assume(identity: &Identity) -> Result<(), Errno> {
    let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    // Of a user who is not root this leaves no capability, as the kernel has it.
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let kept = if identity.uid == 0 {
        identity.rights.iter().copied().map(capability).collect()
    } else {
        CapabilitySet::empty()
    };
    keep_capabilities(kept)
}

fn capability(right: Right) -> CapabilitySet {
    match right {
        Right::DacOverride => CapabilitySet::DAC_OVERRIDE,
        Right::Fowner => CapabilitySet::FOWNER,
        Right::NetBindService => CapabilitySet::NET_BIND_SERVICE,
    }
}

/// Keeps at most `keep` of this thread's capabilities, for good: threads it starts have no more either.
pub(crate) fn keep_capabilities(keep: CapabilitySet) -> Result<(), Errno> {
    let now = rustix::thread::capabilities(None)?;
    let sets = CapabilitySets {
        effective: now.effective & keep,
        permitted: now.permitted & keep,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `/proc` says of a thread: its user, its group, its further groups, its effective capabilities.
    fn credentials() -> [String; 4] {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        ["Uid:", "Gid:", "Groups:", "CapEff:"].map(|name| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..].split_whitespace().collect::<Vec<_>>().join(" ")
        })
    }

    #[test]
    fn a_thread_and_those_it_starts_become_someone_else_and_no_other_does() {
        if !rustix::process::getuid().is_root() {
            return;
        }
        let before = credentials();
        let of = |identity: Identity| {
            let became = move || {
                assume(&identity).unwrap();
                let own = credentials();
                assert_eq!(std::thread::spawn(credentials).join().unwrap(), own);
                own
            };
            std::thread::spawn(became).join().unwrap()
        };
        let user = Identity { uid: 1000, gid: 3000, groups: vec![20, 3000], rights: Right::ALL.to_vec() };
        assert_eq!(of(user), ["1000 1000 1000 1000", "3000 3000 3000 3000", "20 3000", "0000000000000000"]);
        // 1: DAC_OVERRIDE, 3: FOWNER.
        let root = Identity { rights: vec![Right::DacOverride, Right::Fowner], ..Identity::default() };
        assert_eq!(of(root), ["0 0 0 0", "0 0 0 0", "0", "000000000000000a"]);
        assert_eq!(credentials(), before);
    }
}
