//! Which controllers run: `--controllers` of upstream's kube-controller-manager, by its names.

use std::collections::BTreeSet;
use std::str::FromStr;

use thiserror::Error;

/// What is turned on or off as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Accounts,
    Aggregation,
    Autoscalers,
    Balancers,
    BootstrapInfo,
    Budgets,
    ClaimProtection,
    CronJobs,
    DaemonSets,
    Deployments,
    Endpoints,
    EphemeralVolumes,
    ExpiredTokens,
    Garbage,
    Jobs,
    Mirrors,
    Namespaces,
    NodeRanges,
    Nodes,
    Quotas,
    ReplicaSets,
    ReplicationControllers,
    SigningRequests,
    StatefulSets,
    Strays,
    VolumeBinder,
    VolumeExpander,
    VolumeProtection,
}

/// Upstream's names, longer and shorter, and what is its job here. `None` is nobody's: there is nothing to turn on.
const NAMES: &[(&str, &str, Option<Part>)] = &[
    ("bootstrap-signer-controller", "bootstrapsigner", Some(Part::BootstrapInfo)),
    ("certificatesigningrequest-approving-controller", "csrapproving", Some(Part::SigningRequests)),
    ("certificatesigningrequest-cleaner-controller", "csrcleaner", Some(Part::SigningRequests)),
    ("certificatesigningrequest-signing-controller", "csrsigning", Some(Part::SigningRequests)),
    ("cloud-node-lifecycle-controller", "cloud-node-lifecycle", None),
    ("clusterrole-aggregation-controller", "clusterrole-aggregation", Some(Part::Aggregation)),
    ("cronjob-controller", "cronjob", Some(Part::CronJobs)),
    ("daemonset-controller", "daemonset", Some(Part::DaemonSets)),
    ("deployment-controller", "deployment", Some(Part::Deployments)),
    ("device-taint-eviction-controller", "", None),
    ("disruption-controller", "disruption", Some(Part::Budgets)),
    ("endpoints-controller", "endpoint", Some(Part::Endpoints)),
    ("endpointslice-controller", "endpointslice", Some(Part::Endpoints)),
    ("endpointslice-mirroring-controller", "endpointslicemirroring", Some(Part::Mirrors)),
    ("ephemeral-volume-controller", "ephemeral-volume", Some(Part::EphemeralVolumes)),
    ("garbage-collector-controller", "garbagecollector", Some(Part::Garbage)),
    ("horizontal-pod-autoscaler-controller", "horizontalpodautoscaling", Some(Part::Autoscalers)),
    ("job-controller", "job", Some(Part::Jobs)),
    ("kube-apiserver-serving-clustertrustbundle-publisher-controller", "", None),
    ("legacy-serviceaccount-token-cleaner-controller", "legacy-service-account-token-cleaner", None),
    ("namespace-controller", "namespace", Some(Part::Namespaces)),
    ("node-ipam-controller", "nodeipam", Some(Part::NodeRanges)),
    ("node-lifecycle-controller", "nodelifecycle", Some(Part::Nodes)),
    ("node-route-controller", "route", None),
    ("persistentvolume-attach-detach-controller", "attachdetach", None),
    ("persistentvolume-binder-controller", "persistentvolume-binder", Some(Part::VolumeBinder)),
    ("persistentvolume-expander-controller", "persistentvolume-expander", Some(Part::VolumeExpander)),
    ("persistentvolume-protection-controller", "pv-protection", Some(Part::VolumeProtection)),
    ("persistentvolumeclaim-protection-controller", "pvc-protection", Some(Part::ClaimProtection)),
    ("pod-garbage-collector-controller", "podgc", Some(Part::Strays)),
    ("podcertificaterequest-cleaner-controller", "", None),
    ("podgroup-protection-controller", "", None),
    ("replicaset-controller", "replicaset", Some(Part::ReplicaSets)),
    ("replicationcontroller-controller", "replicationcontroller", Some(Part::ReplicationControllers)),
    ("resourceclaim-controller", "resource-claim-controller", None),
    ("resourcepoolstatusrequest-controller", "", None),
    ("resourcequota-controller", "resourcequota", Some(Part::Quotas)),
    ("root-ca-certificate-publisher-controller", "root-ca-cert-publisher", Some(Part::Accounts)),
    ("selinux-warning-controller", "", None),
    ("service-cidr-controller", "", None),
    ("service-lb-controller", "service", Some(Part::Balancers)),
    ("serviceaccount-controller", "serviceaccount", Some(Part::Accounts)),
    ("serviceaccount-token-controller", "serviceaccount-token", None),
    ("statefulset-controller", "statefulset", Some(Part::StatefulSets)),
    ("storage-version-migrator-controller", "svm", None),
    ("storageversion-garbage-collector-controller", "storage-version-gc", None),
    ("taint-eviction-controller", "", Some(Part::Nodes)),
    ("token-cleaner-controller", "tokencleaner", Some(Part::ExpiredTokens)),
    ("ttl-after-finished-controller", "ttl-after-finished", Some(Part::Jobs)),
    ("ttl-controller", "ttl", None),
    ("validatingadmissionpolicy-status-controller", "", None),
    ("volumeattributesclass-protection-controller", "", None),
];

#[derive(Debug, Error, PartialEq, Eq)]
pub enum SelectionError {
    #[error("{name:?} is not in the list of known controllers: {}", known())]
    Unknown { name: String },
    #[error("{name:?} cannot be turned on: this version has no such controller")]
    NotBuilt { name: String },
    #[error("{on} and {off} are one controller here: turn on both, or turn off both (-{on})")]
    Together { on: &'static str, off: &'static str },
}

/// Which controllers run; all of them by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    off: BTreeSet<Part>,
}

impl Selection {
    pub(crate) fn has(&self, part: Part) -> bool {
        !self.off.contains(&part)
    }

    /// Whether any controller with a name of its own runs.
    pub fn is_empty(&self) -> bool {
        NAMES.iter().filter_map(|(_, _, part)| *part).all(|part| !self.has(part))
    }
}

impl FromStr for Selection {
    type Err = SelectionError;

    /// Names with commas between them: `*` turns on all that are not named, `foo` turns foo on and `-foo` off; what comes
    /// first counts.
    fn from_str(list: &str) -> Result<Selection, SelectionError> {
        let words: Vec<&str> = list.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
        for word in words.iter().filter(|word| **word != "*") {
            let name = word.strip_prefix('-').unwrap_or(word);
            let Some((_, _, part)) =
                NAMES.iter().find(|(long, short, _)| !name.is_empty() && (name == *long || name == *short))
            else {
                return Err(SelectionError::Unknown { name: name.to_owned() });
            };
            if part.is_none() && !word.starts_with('-') {
                return Err(SelectionError::NotBuilt { name: name.to_owned() });
            }
        }
        let is_on = |long: &str, short: &str| {
            let named = |name: &str| name == long || (!short.is_empty() && name == short);
            let said = words.iter().find_map(|word| match word.strip_prefix('-') {
                Some(name) => named(name).then_some(false),
                None => named(word).then_some(true),
            });
            said.unwrap_or_else(|| words.contains(&"*"))
        };
        let mut off = BTreeSet::new();
        for (long, short, part) in NAMES {
            let Some(part) = part else { continue };
            let on = is_on(long, short);
            let other = NAMES.iter().find(|(l, s, of)| *of == Some(*part) && is_on(l, s) != on);
            if let Some((other, _, _)) = other {
                let (on, off) = if on { (*long, *other) } else { (*other, *long) };
                return Err(SelectionError::Together { on, off });
            }
            if !on {
                off.insert(*part);
            }
        }
        Ok(Selection { off })
    }
}

/// What may be turned on and off, for whoever looks for a name.
fn known() -> String {
    let names: Vec<&str> = NAMES.iter().map(|(long, _, _)| *long).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(list: &str, expected: Result<&[Part], SelectionError>) {
        let off = list.parse::<Selection>().map(|selection| selection.off.into_iter().collect::<Vec<_>>());
        assert_eq!(off, expected.map(<[Part]>::to_vec), "{list}");
    }

    #[test]
    fn controllers_are_turned_off_by_either_of_upstreams_names() {
        check("*", Ok(&[]));
        check("*,-deployment,-replicaset-controller", Ok(&[Part::Deployments, Part::ReplicaSets]));
        check("-deployment-controller,*", Ok(&[Part::Deployments]));
        check("deployment,-deployment,*", Ok(&[]));
        check("*,-job,-ttl-after-finished", Ok(&[Part::Jobs]));
        check("*,-taint-eviction-controller,-nodelifecycle", Ok(&[Part::Nodes]));
        // One that is not built is off anyway.
        check("*,-ttl-controller", Ok(&[]));
        check("*,-horizontalpodautoscaling", Ok(&[Part::Autoscalers]));
        assert_eq!(Selection::default(), "*".parse().expect("all of them"));
    }

    #[test]
    fn without_a_star_only_what_is_named_runs() {
        let only: Selection = "deployment,cronjob".parse().expect("a selection");
        assert!(only.has(Part::Deployments) && only.has(Part::CronJobs) && !only.has(Part::ReplicaSets));
        assert!(!only.is_empty() && "-deployment".parse::<Selection>().expect("a selection").is_empty());
    }

    #[test]
    fn what_cannot_be_is_said_and_known_names_are_listed() {
        check("*,-deploy", Err(SelectionError::Unknown { name: "deploy".into() }));
        check("*,-", Err(SelectionError::Unknown { name: String::new() }));
        check("*,ttl", Err(SelectionError::NotBuilt { name: "ttl".into() }));
        let (on, off) = ("ttl-after-finished-controller", "job-controller");
        check("*,-job", Err(SelectionError::Together { on, off }));
        let said = "deploy".parse::<Selection>().expect_err("unknown").to_string();
        assert!(said.contains("known controllers") && said.contains(" deployment-controller,"), "{said}");
    }
}
