//! The functions of the types whose fields depend on each other.

use serde_json::Value;

use super::path::Path;
use super::walk::{Below, Walk};
use super::{
    autoscaling, certificates, claim, container, devices, flow, labels, network, other, pod, registration,
    scheduling, service, slices, storage, volume, workload,
};

pub(super) fn run<'v>(type_: &str, walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    match type_ {
        "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector" => labels::selector(walk, value, path),
        "core.v1.Pod" => pod::pod(walk, value),
        "core.v1.PodTemplateSpec" => pod::template(walk, value, path),
        "core.v1.PodSpec" => pod::spec(walk, value, path),
        "core.v1.PodSecurityContext" => pod::security(walk, value, path),
        "core.v1.PodDNSConfig" => pod::dns(walk, value, path),
        "core.v1.Container" => container::container(walk, value, path),
        "core.v1.EphemeralContainer" => container::container(walk, value, path),
        "core.v1.EnvVarSource" => container::value_from(walk, value, path),
        "core.v1.EnvFromSource" => container::env_from(walk, value, path),
        "core.v1.Probe" | "core.v1.LifecycleHandler" => container::handler(walk, value, path),
        "core.v1.HTTPGetAction" => container::headers(walk, value, path),
        "core.v1.SecurityContext" => container::security(walk, value, path),
        "core.v1.SeccompProfile" => container::seccomp(walk, value, path),
        "core.v1.AppArmorProfile" => container::apparmor(walk, value, path),
        "core.v1.Volume" => volume::volume(walk, value, path),
        "core.v1.DownwardAPIVolumeSource" => volume::downward(walk, value, path),
        "core.v1.ProjectedVolumeSource" => volume::projected(walk, value, path),
        "core.v1.FlexVolumeSource" | "core.v1.FlexPersistentVolumeSource" => volume::flex(walk, value, path),
        "core.v1.FCVolumeSource" => volume::fibre_channel(walk, value, path),
        "core.v1.NFSVolumeSource" => volume::nfs(walk, value, path),
        "core.v1.ISCSIVolumeSource" => volume::iscsi(walk, value, path),
        "core.v1.ISCSIPersistentVolumeSource" => {
            volume::secret_name(walk, value, path);
            volume::iscsi(walk, value, path)
        }
        "core.v1.StorageOSVolumeSource" | "core.v1.CinderVolumeSource" => {
            volume::secret_name(walk, value, path)
        }
        "core.v1.StorageOSPersistentVolumeSource" | "core.v1.CinderPersistentVolumeSource" => {
            volume::secret_of_cluster(walk, value, path)
        }
        "core.v1.ImageVolumeSource" => volume::image(walk, value, path),
        "core.v1.GCEPersistentDiskVolumeSource" => volume::google_disk(walk, value, path),
        "core.v1.AzureFilePersistentVolumeSource" => volume::azure_file(walk, value, path),
        "core.v1.FlockerVolumeSource" => volume::flocker(walk, value, path),
        "core.v1.QuobyteVolumeSource" => volume::quobyte(walk, value, path),
        "core.v1.AzureDiskVolumeSource" => volume::azure_disk(walk, value, path),
        "core.v1.CSIVolumeSource" | "core.v1.CSIPersistentVolumeSource" => volume::csi(walk, value, path),
        "core.v1.NodeSelector" => scheduling::node_selector(walk, value, path),
        "core.v1.NodeSelectorTerm" => scheduling::node_selector_term(walk, value, path),
        "core.v1.PreferredSchedulingTerm" | "core.v1.WeightedPodAffinityTerm" => {
            scheduling::weighted(walk, value, path)
        }
        "core.v1.PodAffinityTerm" => scheduling::affinity_term(walk, value, path),
        "core.v1.Toleration" => scheduling::toleration(walk, value, path),
        "core.v1.TopologySpreadConstraint" => scheduling::spread(walk, value, path),
        "core.v1.PersistentVolumeClaimSpec" => claim::claim(walk, value, path),
        "core.v1.PersistentVolumeClaimTemplate" => claim::template(walk, value, path),
        "core.v1.PersistentVolumeSpec" => claim::volume(walk, value, path),
        "core.v1.ReplicationControllerSpec" => workload::replication_controller(walk, value, path),
        "core.v1.ServiceSpec" => service::service(walk, value, path),
        "core.v1.EndpointSubset" => service::subset(walk, value, path),
        "core.v1.EndpointAddress" => service::endpoint(walk, value, path),
        "core.v1.Node" => other::node(walk, value),
        "core.v1.Namespace" => other::namespace(walk, value),
        "apps.v1.DeploymentSpec" => workload::deployment(walk, value, path),
        "apps.v1.StatefulSetSpec" => workload::stateful_set(walk, value),
        "apps.v1.ReplicaSetSpec" => workload::replica_set(value),
        "apps.v1.ControllerRevision" => workload::revision(walk, value),
        "autoscaling.v2.HorizontalPodAutoscalerSpec" => autoscaling::autoscaler(walk, value, path),
        "autoscaling.v1.HorizontalPodAutoscalerSpec" => autoscaling::first_version(walk, value, path),
        // What a metric's selector means is up to who has the metrics.
        "autoscaling.v2.MetricIdentifier" => Below::But(vec!["selector"]),
        "autoscaling.v2.MetricSpec" => autoscaling::metric(walk, value, path),
        "autoscaling.v2.MetricTarget" => autoscaling::target(walk, value, path),
        "policy.v1.PodDisruptionBudgetSpec" => other::budget(walk, value, path),
        "networking.v1.NetworkPolicySpec" => network::policy(walk, value, path),
        "networking.v1.NetworkPolicyPort" => network::policy_port(walk, value, path),
        "networking.v1.NetworkPolicyPeer" => network::policy_peer(walk, value, path),
        "networking.v1.IPBlock" => network::block(walk, value, path),
        "networking.v1.Ingress" => network::ingress(walk, value),
        "networking.v1.IngressSpec" => network::ingress_spec(walk, value, path),
        "networking.v1.IngressTLS" => network::ingress_tls(walk, value, path),
        "networking.v1.IngressRule" => network::ingress_rule(walk, value, path),
        "networking.v1.HTTPIngressPath" => network::ingress_path(walk, value, path),
        "networking.v1.IngressBackend" => network::ingress_backend(walk, value, path),
        "networking.v1.IngressClassParametersReference" => network::class_parameters(walk, value, path),
        "discovery.v1.EndpointSlice" => network::slice(walk, value),
        "scheduling.v1.PriorityClass" => other::priority(walk, value),
        "storage.v1.StorageClass" => storage::class(walk, value),
        "storage.v1.VolumeAttributesClass" => storage::attributes(walk, value),
        "storage.v1.CSIDriverSpec" => storage::driver(walk, value, path),
        "storage.v1.CSINodeSpec" => storage::node(walk, value, path),
        "storage.v1.VolumeAttachmentSource" => storage::attachment(walk, value, path),
        "node.v1.RuntimeClass" => other::runtime_class(walk, value),
        "rbac.v1.RoleBinding" | "rbac.v1.ClusterRoleBinding" => other::binding(walk, value),
        "rbac.v1.Role" | "rbac.v1.ClusterRole" => other::role(walk, value),
        "admissionregistration.v1.ValidatingWebhookConfiguration"
        | "admissionregistration.v1.MutatingWebhookConfiguration" => registration::webhooks(walk, value),
        "admissionregistration.v1.RuleWithOperations"
        | "admissionregistration.v1.NamedRuleWithOperations" => registration::rule(walk, value, path),
        "admissionregistration.v1.ValidatingAdmissionPolicyBindingSpec" => {
            registration::policy_binding(walk, value, path)
        }
        "resource.v1.ResourceClaimSpec" => devices::claim(walk, value, path),
        "resource.v1.ResourceClaimTemplateSpec" => devices::template(walk, value, path),
        "resource.v1.DeviceClassSpec" => devices::class(walk, value, path),
        "resource.v1.DeviceTaintRuleSpec" => slices::taint_rule(walk, value, path),
        "resource.v1.ResourceSliceSpec" => slices::slice(walk, value, path),
        "certificates.v1.ClusterTrustBundle" => certificates::bundle(walk, value),
        "certificates.v1.PodCertificateRequest" => certificates::pod_request(walk, value),
        "storagemigration.v1.StorageVersionMigrationSpec" => storage::migration(walk, value, path),
        "flowcontrol.v1.FlowSchema" => flow::schema(walk, value),
        "flowcontrol.v1.PriorityLevelConfiguration" => flow::level(walk, value),
        _ if type_.ends_with("apiregistration.v1.APIService") => registration::api_service(walk, value),
        _ => Below::All,
    }
}
