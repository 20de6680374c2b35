//! Defaults that stand in no marker: those that upstream's `SetDefaults_*` functions give a field whatever
//! else the object says. Those that depend on other fields are the strategies'.

use super::Schema;

/// Type (without `io.k8s.api.`), field, default as JSON.
const DEFAULTS: &[(&str, &str, &str)] = &[
    ("core.v1.PodSpec", "restartPolicy", r#""Always""#),
    ("core.v1.PodSpec", "dnsPolicy", r#""ClusterFirst""#),
    ("core.v1.PodSpec", "schedulerName", r#""default-scheduler""#),
    ("core.v1.PodSpec", "securityContext", "{}"),
    ("core.v1.PodSpec", "terminationGracePeriodSeconds", "30"),
    ("core.v1.Container", "terminationMessagePath", r#""/dev/termination-log""#),
    ("core.v1.Container", "terminationMessagePolicy", r#""File""#),
    ("core.v1.Container", "resources", "{}"),
    ("core.v1.EphemeralContainer", "terminationMessagePath", r#""/dev/termination-log""#),
    ("core.v1.EphemeralContainer", "terminationMessagePolicy", r#""File""#),
    ("core.v1.EphemeralContainer", "resources", "{}"),
    ("core.v1.Probe", "timeoutSeconds", "1"),
    ("core.v1.Probe", "periodSeconds", "10"),
    ("core.v1.Probe", "successThreshold", "1"),
    ("core.v1.Probe", "failureThreshold", "3"),
    ("core.v1.GRPCAction", "service", r#""""#),
    ("core.v1.HTTPGetAction", "path", r#""/""#),
    ("core.v1.HTTPGetAction", "scheme", r#""HTTP""#),
    ("core.v1.ObjectFieldSelector", "apiVersion", r#""v1""#),
    ("core.v1.SecretVolumeSource", "defaultMode", "420"),
    ("core.v1.ConfigMapVolumeSource", "defaultMode", "420"),
    ("core.v1.DownwardAPIVolumeSource", "defaultMode", "420"),
    ("core.v1.ProjectedVolumeSource", "defaultMode", "420"),
    ("core.v1.ServiceAccountTokenProjection", "expirationSeconds", "3600"),
    ("core.v1.HostPathVolumeSource", "type", r#""""#),
    ("core.v1.ISCSIVolumeSource", "iscsiInterface", r#""default""#),
    ("core.v1.ServiceSpec", "type", r#""ClusterIP""#),
    ("core.v1.ServiceSpec", "sessionAffinity", r#""None""#),
    ("core.v1.Secret", "type", r#""Opaque""#),
    ("core.v1.PersistentVolumeSpec", "persistentVolumeReclaimPolicy", r#""Retain""#),
    ("core.v1.PersistentVolumeSpec", "volumeMode", r#""Filesystem""#),
    ("core.v1.PersistentVolumeStatus", "phase", r#""Pending""#),
    ("core.v1.PersistentVolumeClaimSpec", "volumeMode", r#""Filesystem""#),
    ("core.v1.PersistentVolumeClaimStatus", "phase", r#""Pending""#),
    ("core.v1.NamespaceStatus", "phase", r#""Active""#),
    ("core.v1.ResourceFieldSelector", "divisor", r#""0""#),
    ("core.v1.ReplicationControllerSpec", "replicas", "1"),
    ("apps.v1.DeploymentSpec", "replicas", "1"),
    ("apps.v1.DeploymentSpec", "revisionHistoryLimit", "10"),
    ("apps.v1.DeploymentSpec", "progressDeadlineSeconds", "600"),
    ("apps.v1.DeploymentSpec", "strategy", "{}"),
    ("apps.v1.DeploymentStrategy", "type", r#""RollingUpdate""#),
    ("apps.v1.ReplicaSetSpec", "replicas", "1"),
    ("apps.v1.DaemonSetSpec", "revisionHistoryLimit", "10"),
    ("apps.v1.DaemonSetSpec", "updateStrategy", "{}"),
    ("apps.v1.DaemonSetUpdateStrategy", "type", r#""RollingUpdate""#),
    ("apps.v1.StatefulSetSpec", "replicas", "1"),
    ("apps.v1.StatefulSetSpec", "revisionHistoryLimit", "10"),
    ("apps.v1.StatefulSetSpec", "podManagementPolicy", r#""OrderedReady""#),
    ("apps.v1.StatefulSetSpec", "updateStrategy", "{}"),
    ("batch.v1.PodFailurePolicyOnPodConditionsPattern", "status", r#""True""#),
    ("batch.v1.CronJobSpec", "concurrencyPolicy", r#""Allow""#),
    ("batch.v1.CronJobSpec", "suspend", "false"),
    ("batch.v1.CronJobSpec", "successfulJobsHistoryLimit", "3"),
    ("batch.v1.CronJobSpec", "failedJobsHistoryLimit", "1"),
    ("autoscaling.v1.HorizontalPodAutoscalerSpec", "minReplicas", "1"),
    ("autoscaling.v2.HorizontalPodAutoscalerSpec", "minReplicas", "1"),
    ("scheduling.v1.PriorityClass", "preemptionPolicy", r#""PreemptLowerPriority""#),
    ("storage.v1.StorageClass", "reclaimPolicy", r#""Delete""#),
    ("storage.v1.StorageClass", "volumeBindingMode", r#""Immediate""#),
    ("storage.v1.CSIDriverSpec", "attachRequired", "true"),
    ("storage.v1.CSIDriverSpec", "podInfoOnMount", "false"),
    ("storage.v1.CSIDriverSpec", "storageCapacity", "false"),
    ("storage.v1.CSIDriverSpec", "fsGroupPolicy", r#""ReadWriteOnceWithFSType""#),
    ("storage.v1.CSIDriverSpec", "volumeLifecycleModes", r#"["Persistent"]"#),
    ("storage.v1.CSIDriverSpec", "preventPodSchedulingIfMissing", "false"),
    ("storage.v1.CSIDriverSpec", "requiresRepublish", "false"),
    ("storage.v1.CSIDriverSpec", "seLinuxMount", "false"),
    ("networking.v1.NetworkPolicyPort", "protocol", r#""TCP""#),
    ("networking.v1.NetworkPolicySpec", "podSelector", "{}"),
    ("discovery.v1.EndpointPort", "name", r#""""#),
    ("discovery.v1.EndpointPort", "protocol", r#""TCP""#),
    ("core.v1.EndpointPort", "protocol", r#""TCP""#),
    ("rbac.v1.RoleRef", "apiGroup", r#""rbac.authorization.k8s.io""#),
    ("admissionregistration.v1.ValidatingWebhook", "failurePolicy", r#""Fail""#),
    ("admissionregistration.v1.ValidatingWebhook", "matchPolicy", r#""Equivalent""#),
    ("admissionregistration.v1.ValidatingWebhook", "namespaceSelector", "{}"),
    ("admissionregistration.v1.ValidatingWebhook", "objectSelector", "{}"),
    ("admissionregistration.v1.ValidatingWebhook", "timeoutSeconds", "10"),
    ("admissionregistration.v1.MutatingWebhook", "failurePolicy", r#""Fail""#),
    ("admissionregistration.v1.MutatingWebhook", "matchPolicy", r#""Equivalent""#),
    ("admissionregistration.v1.MutatingWebhook", "namespaceSelector", "{}"),
    ("admissionregistration.v1.MutatingWebhook", "objectSelector", "{}"),
    ("admissionregistration.v1.MutatingWebhook", "timeoutSeconds", "10"),
    ("admissionregistration.v1.MutatingWebhook", "reinvocationPolicy", r#""Never""#),
    ("admissionregistration.v1.RuleWithOperations", "scope", r#""*""#),
    ("admissionregistration.v1.NamedRuleWithOperations", "scope", r#""*""#),
    ("admissionregistration.v1.MatchResources", "matchPolicy", r#""Equivalent""#),
    ("admissionregistration.v1.MatchResources", "namespaceSelector", "{}"),
    ("admissionregistration.v1.MatchResources", "objectSelector", "{}"),
    ("admissionregistration.v1.ValidatingAdmissionPolicySpec", "failurePolicy", r#""Fail""#),
    ("admissionregistration.v1.MutatingAdmissionPolicySpec", "failurePolicy", r#""Fail""#),
    ("admissionregistration.v1.ServiceReference", "port", "443"),
    ("apiregistration.v1.ServiceReference", "port", "443"),
];

/// The API of other servers lies in a package of its own.
fn full_name(type_name: &str) -> String {
    match type_name.strip_prefix("apiregistration.") {
        Some(_) => format!("io.k8s.kube-aggregator.pkg.apis.{type_name}"),
        None => format!("io.k8s.api.{type_name}"),
    }
}

pub(super) fn add(schema: &mut Schema) {
    for (type_name, field, default) in DEFAULTS {
        let id = schema.by_name.get(&*full_name(type_name)).copied();
        let field =
            id.and_then(|id| schema.types[id.0 as usize].fields.iter_mut().find(|f| *f.name == **field));
        debug_assert!(field.is_some(), "no field for the default of {type_name}");
        if let Some(field) = field {
            field.node.default = serde_json::from_str(default).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_names_a_field_and_is_json() {
        for (type_name, field, default) in DEFAULTS {
            let schema = Schema::builtin();
            let id = schema.find(&full_name(type_name)).unwrap_or_else(|| panic!("{type_name}"));
            let found = schema.get(id).field(field).unwrap_or_else(|| panic!("{type_name}.{field}"));
            let wanted: serde_json::Value = serde_json::from_str(default).unwrap();
            assert_eq!(found.node.default.as_ref(), Some(&wanted), "{type_name}.{field}");
        }
    }
}
