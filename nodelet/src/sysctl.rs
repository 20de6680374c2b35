//! Which kernel settings a pod may have.
//!
//! A setting is safe if the kernel keeps it for each namespace and it does nothing to other pods: upstream's list, without
//! its conditions on kernels that are older than Skiff needs. There is no way to allow others yet.

use k8s_openapi::api::core::v1::Pod;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

const SAFE: [(&str, Namespace); 12] = [
    ("kernel.shm_rmid_forced", Namespace::Ipc),
    ("net.ipv4.ip_local_port_range", Namespace::Net),
    ("net.ipv4.ip_local_reserved_ports", Namespace::Net),
    ("net.ipv4.ip_unprivileged_port_start", Namespace::Net),
    ("net.ipv4.ping_group_range", Namespace::Net),
    ("net.ipv4.tcp_fin_timeout", Namespace::Net),
    ("net.ipv4.tcp_keepalive_intvl", Namespace::Net),
    ("net.ipv4.tcp_keepalive_probes", Namespace::Net),
    ("net.ipv4.tcp_keepalive_time", Namespace::Net),
    ("net.ipv4.tcp_rmem", Namespace::Net),
    ("net.ipv4.tcp_syncookies", Namespace::Net),
    ("net.ipv4.tcp_wmem", Namespace::Net),
];

/// A name with dots between its parts. As `sysctl` has it, the separator that comes first is the one that separates; the
/// other is part of a name, such as that of an interface.
pub(crate) fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => {
            let swapped = name.chars().map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            });
            swapped.collect()
        }
        _ => name.to_owned(),
    }
}

/// Why a pod's settings keep it from this node, in upstream's words.
pub(crate) fn refusal(pod: &Pod) -> Option<(String, String)> {
    let spec = pod.spec.as_ref()?;
    let wanted = spec.security_context.as_ref()?.sysctls.iter().flatten();
    let fault = |name: String| {
        let Some((_, namespace)) = SAFE.iter().find(|(safe, _)| *safe == name) else {
            return Some(format!("{name:?} not allowlisted"));
        };
        let (is_hosts, host) = match namespace {
            Namespace::Ipc => (spec.host_ipc, "IPC"),
            Namespace::Net => (spec.host_network, "Net"),
        };
        (is_hosts == Some(true)).then(|| format!("{name:?} not allowed with host {host} enabled"))
    };
    let fault = wanted.map(|sysctl| dotted(&sysctl.name)).find_map(fault)?;
    Some(("SysctlForbidden".to_owned(), format!("forbidden sysctl: {fault}")))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::{dotted, refusal};

    fn refused(names: &[&str], host_network: bool) -> Option<String> {
        let sysctls: Vec<_> = names.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        let spec = json!({
            "containers": [], "hostNetwork": host_network, "securityContext": {"sysctls": sysctls},
        });
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        refusal(&pod).map(|(reason, message)| format!("{reason}: {message}"))
    }

    #[test]
    fn what_is_safe_is_taken_with_either_separator() {
        assert_eq!(refused(&["kernel.shm_rmid_forced", "net/ipv4/tcp_syncookies"], false), None);
    }

    #[test]
    fn what_is_not_known_to_be_safe_is_refused() {
        let message = "SysctlForbidden: forbidden sysctl: \"kernel.msgmax\" not allowlisted";
        assert_eq!(refused(&["net.ipv4.tcp_wmem", "kernel.msgmax"], false).as_deref(), Some(message));
    }

    #[test]
    fn a_pod_on_the_hosts_network_does_not_set_the_hosts() {
        let message = "SysctlForbidden: forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host Net enabled";
        assert_eq!(refused(&["net.ipv4.tcp_syncookies"], true).as_deref(), Some(message));
    }

    #[test]
    fn the_first_separator_is_the_one_that_separates() {
        assert_eq!(dotted("net/ipv4/conf/eth0.7/forwarding"), "net.ipv4.conf.eth0/7.forwarding");
        assert_eq!(dotted("net.ipv4.conf.eth0/7.forwarding"), "net.ipv4.conf.eth0/7.forwarding");
    }
}
