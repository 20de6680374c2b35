//! Which built-in kinds are not like most, and in what.
//!
//! Source: the strategies and storages of upstream's `pkg/registry`, and the names and prefixes that its validation takes.

use crate::Kind;
use crate::kinds::{Beat, Generation, Names, Prefix, Traits};

pub(super) fn of(kind: &Kind) -> Traits {
    let is = (kind.group.as_str(), kind.kind.as_str());
    Traits {
        names: names(is),
        prefix: prefix(is),
        is_named_by_server: is == ("", "LimitRange"),
        takes_any_finalizer: takes_any_finalizer(is),
        creates_on_update: creates_on_update(is),
        needs_version: needs_version(is),
        keeps_status: is == ("", "Node"),
        kept_metadata: kept_metadata(is),
        generation: generation(kind, is),
        counts_metadata: match is {
            // Its labels say whose endpoints they are.
            ("discovery.k8s.io", "EndpointSlice") => Some("labels"),
            // Whoever rolls it back says so there.
            ("apps", "Deployment") => Some("annotations"),
            _ => None,
        },
        protected: match is {
            ("", "Namespace") => &["default", "kube-system", "kube-public"],
            _ => &[],
        },
        returns_deleted: returns_deleted(is),
        orphans: matches!(is, ("batch", "Job") | ("", "ReplicationController")),
        expires: matches!(is, ("" | "events.k8s.io", "Event")),
        beat: match is {
            ("coordination.k8s.io", "Lease") => Beat::Renewal,
            ("", "Node") => Beat::Conditions,
            _ => Beat::None,
        },
        is_stored_version: matches!(
            (is, kind.version.as_str()),
            (("", "Event"), "v1") | (("autoscaling", "HorizontalPodAutoscaler"), "v2")
        ),
        compares_off: matches!(is.1, "ResourceSlice" | "EndpointSlice"),
        hides_metadata: is == ("policy", "PodDisruptionBudget"),
        default_marks: match is {
            ("storage.k8s.io", "StorageClass") => &[
                "storageclass.kubernetes.io/is-default-class",
                "storageclass.beta.kubernetes.io/is-default-class",
            ],
            _ => &[],
        },
    }
}

fn names(is: (&str, &str)) -> Names {
    match is {
        ("", "Service" | "Namespace") => Names::Label,
        // Events have always been named more freely; `events.k8s.io` is as strict as the rest.
        ("", "Event") | ("rbac.authorization.k8s.io" | "policy", _) => Names::PathSegment,
        // Both are checked by the rules of their kinds, or by none.
        ("certificates.k8s.io", "PodCertificateRequest") => Names::Subdomain,
        ("certificates.k8s.io" | "apiregistration.k8s.io", _) => Names::PathSegment,
        ("authentication.k8s.io" | "authorization.k8s.io", _) => Names::Any,
        ("networking.k8s.io", "IPAddress") => Names::IpAddress,
        _ => Names::Subdomain,
    }
}

fn prefix((_, kind): (&str, &str)) -> Prefix {
    match kind {
        "CertificateSigningRequest" | "DeviceClass" | "ReplicationController" => Prefix::PathSegment,
        "CSIDriver"
        | "CronJob"
        | "DaemonSet"
        | "Deployment"
        | "Event"
        | "HorizontalPodAutoscaler"
        | "Lease"
        | "NetworkPolicy"
        | "PodDisruptionBudget"
        | "PodTemplate"
        | "PriorityClass"
        | "ReplicaSet"
        | "ResourceQuota"
        | "ResourceSlice"
        | "ServiceCIDR" => Prefix::AsNamesOnCreate,
        _ => Prefix::AsNames,
    }
}

/// Kinds of newer groups take any name.
fn takes_any_finalizer((group, kind): (&str, &str)) -> bool {
    match group {
        "" => kind == "Event",
        "coordination.k8s.io"
        | "policy"
        | "node.k8s.io"
        | "admissionregistration.k8s.io"
        | "apiregistration.k8s.io"
        | "apiextensions.k8s.io" => true,
        _ => false,
    }
}

fn creates_on_update(is: (&str, &str)) -> bool {
    matches!(
        is,
        ("", "Endpoints" | "Event" | "LimitRange" | "Service" | "PodTemplate")
            | ("events.k8s.io", "Event")
            | ("coordination.k8s.io", "Lease")
            | ("rbac.authorization.k8s.io", _)
    )
}

fn needs_version(is: (&str, &str)) -> bool {
    matches!(
        is,
        ("coordination.k8s.io", "Lease")
            | ("policy", "PodDisruptionBudget")
            | ("apiextensions.k8s.io" | "apiregistration.k8s.io" | "admissionregistration.k8s.io", _)
            | ("storage.k8s.io", "VolumeAttachment" | "CSIDriver" | "CSINode")
            | ("node.k8s.io", "RuntimeClass")
            | ("certificates.k8s.io", "ClusterTrustBundle" | "PodCertificateRequest")
            | ("storagemigration.k8s.io", "StorageVersionMigration")
            | ("resource.k8s.io", "DeviceTaintRule")
    )
}

/// Of the kinds that think of it.
fn kept_metadata(is: (&str, &str)) -> &'static [&'static str] {
    match is {
        ("apps", "Deployment") => &["labels"],
        ("flowcontrol.apiserver.k8s.io" | "apiregistration.k8s.io", _)
        | ("storage.k8s.io", "VolumeAttachment")
        | ("resource.k8s.io", "ResourceClaim" | "DeviceTaintRule")
        | ("certificates.k8s.io", "PodCertificateRequest")
        | ("storagemigration.k8s.io", "StorageVersionMigration")
        | ("networking.k8s.io", "ServiceCIDR") => &["labels", "annotations", "finalizers"],
        _ => &[],
    }
}

/// Of some kinds upstream counts something else than changes of `spec`.
fn generation(kind: &Kind, is: (&str, &str)) -> Generation {
    match is {
        ("", "PodTemplate") | ("discovery.k8s.io", "EndpointSlice") => Generation::Content,
        (
            "admissionregistration.k8s.io",
            "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration",
        ) => Generation::Content,
        ("scheduling.k8s.io", "PriorityClass") => Generation::One,
        ("storage.k8s.io", "CSIDriver") => Generation::Changes,
        ("resource.k8s.io", "DeviceClass" | "DeviceTaintRule" | "ResourceSlice") => Generation::Spec,
        ("", "Node") | ("storage.k8s.io" | "resource.k8s.io" | "coordination.k8s.io", _) => Generation::None,
        ("certificates.k8s.io" | "apiregistration.k8s.io" | "storagemigration.k8s.io", _) => Generation::None,
        ("networking.k8s.io", "ServiceCIDR" | "IPAddress") => Generation::None,
        _ if kind.strategy.counts_generations() => Generation::Spec,
        _ => Generation::None,
    }
}

fn returns_deleted(is: (&str, &str)) -> bool {
    matches!(
        is,
        (
            "",
            "Pod"
                | "PodTemplate"
                | "PersistentVolumeClaim"
                | "PersistentVolume"
                | "ResourceQuota"
                | "ServiceAccount"
                | "Service"
        ) | ("storage.k8s.io", "StorageClass" | "CSIDriver" | "CSINode" | "VolumeAttachment")
    )
}
