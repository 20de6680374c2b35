//! Where groups and versions stand in discovery.
//!
//! Source: `apiVersionPriorities` of kube-apiserver, and what its controllers give to groups of custom resources.

/// Group, version, and the priority of each. Of those that this server has.
const BUILTIN: &[(&str, &str, i64, i64)] = &[
    ("", "v1", 18_000, 1),
    ("apps", "v1", 17_800, 15),
    ("events.k8s.io", "v1", 17_750, 15),
    ("authentication.k8s.io", "v1", 17_700, 15),
    ("authorization.k8s.io", "v1", 17_600, 15),
    ("autoscaling", "v1", 17_500, 15),
    ("autoscaling", "v2", 17_500, 30),
    ("batch", "v1", 17_400, 15),
    ("certificates.k8s.io", "v1", 17_300, 15),
    ("networking.k8s.io", "v1", 17_200, 15),
    ("policy", "v1", 17_100, 15),
    ("rbac.authorization.k8s.io", "v1", 17_000, 15),
    ("storage.k8s.io", "v1", 16_800, 15),
    ("apiextensions.k8s.io", "v1", 16_700, 15),
    ("admissionregistration.k8s.io", "v1", 16_700, 15),
    ("scheduling.k8s.io", "v1", 16_600, 15),
    ("coordination.k8s.io", "v1", 16_500, 15),
    ("node.k8s.io", "v1", 16_300, 15),
    ("discovery.k8s.io", "v1", 16_200, 15),
    ("resource.k8s.io", "v1", 16_200, 21),
    ("flowcontrol.apiserver.k8s.io", "v1", 16_100, 21),
    ("storagemigration.k8s.io", "v1", 15_800, 15),
    // As in the manifests of metrics-server.
    (METRICS_GROUP, "v1beta1", 100, 100),
];

/// The group of APIServices themselves comes first, whatever these say, and has none of its own.
pub(crate) const OWN_GROUP: &str = "apiregistration.k8s.io";
/// The group that another server may take over.
pub(crate) const METRICS_GROUP: &str = "metrics.k8s.io";
const OWN: Priority = Priority { group: 20_001, version: 0 };
const CUSTOM: Priority = Priority { group: 1000, version: 100 };

/// What stands before what: the higher number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Priority {
    pub(crate) group: i64,
    pub(crate) version: i64,
}

/// Of a group and version that this server serves itself.
pub(crate) fn local(group: &str, version: &str) -> Priority {
    if group == OWN_GROUP {
        return OWN;
    }
    let found = BUILTIN.iter().find(|(g, v, _, _)| *g == group && *v == version);
    found.map_or(CUSTOM, |&(_, _, group, version)| Priority { group, version })
}

#[cfg(test)]
mod tests {
    use skiff_api::Kinds;

    use super::*;

    #[test]
    fn every_built_in_group_and_version_has_upstreams_priority() {
        for kind in Kinds::builtin().iter() {
            assert_ne!(local(&kind.group, &kind.version), CUSTOM, "{}", kind.api_version());
        }
        let facts = include_str!("../../../tests/reference/facts.txt");
        let served: Vec<&str> = facts.lines().filter_map(|line| line.strip_prefix("serves ")).collect();
        assert!(served.len() > 20, "{served:?}");
        for line in served {
            let [version, group_priority, version_priority] = line.split(' ').collect::<Vec<_>>()[..] else {
                assert!(line.starts_with(OWN_GROUP), "{line}");
                continue;
            };
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            let Priority { group: of_group, version: of_version } = local(group, version);
            assert_eq!(group_priority, format!("group={of_group}"), "{line}");
            assert_eq!(version_priority, format!("version={of_version}"), "{line}");
        }
        assert_eq!(local("example.com", "v1"), CUSTOM);
    }
}
