//! Which endpoint is in which slice. Pure.
//!
//! An endpoint stays in the slice that it is in: every node of the cluster is sent a slice that changes, so that one pod
//! more or less must cost one slice, however many the Service has. New endpoints go to slices that are written anyway, the
//! fullest first; then to one that has room for all that are left; then to new ones.
//!
//! Who packs from slices that are out of date is refused: by the version of one that it changes, by the name of one that it
//! makes, which is the first that is free.
//!
//! Source: upstream's endpointslice reconciler; KEP-752.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use skiff_client::view::Pod;

use super::plan::{self, Ports};
use crate::objects::{controller_reference, template_hash};

/// Upstream's default.
const MAX_ENDPOINTS: usize = 100;

/// What has to be written, in this order: an endpoint is never in no slice.
#[derive(Debug, Default)]
pub(super) struct Packed {
    pub(super) create: Vec<EndpointSlice>,
    /// With the version that they replace.
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<String>,
}

/// What makes an endpoint the same in two passes: its addresses, and the uid of its pod.
type Identity = (Vec<String>, Option<String>);

fn identity(endpoint: &Endpoint) -> Identity {
    (endpoint.addresses.clone(), endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()))
}

/// A slice that there is, with what it is to hold.
struct Kept<'s> {
    slice: &'s EndpointSlice,
    endpoints: Vec<Endpoint>,
    is_changed: bool,
}

impl Kept<'_> {
    fn room(&self) -> usize {
        MAX_ENDPOINTS.saturating_sub(self.endpoints.len())
    }

    fn take(&mut self, endpoints: impl IntoIterator<Item = Endpoint>) {
        self.endpoints.extend(endpoints);
        self.is_changed = true;
    }
}

/// The endpoints of one combination of ports.
struct Group<'s> {
    ports: Ports,
    kept: Vec<Kept<'s>>,
    new: Vec<Vec<Endpoint>>,
    /// Slices that hold nothing any more.
    spare: Vec<&'s EndpointSlice>,
}

/// `have` are the slices of the Service that are this controller's.
pub(super) fn pack(service: &Service, pods: &[Arc<Pod>], have: &[Arc<EndpointSlice>]) -> Packed {
    let mut wanted: BTreeMap<Ports, BTreeMap<Identity, Endpoint>> = BTreeMap::new();
    for (pod, ip) in plan::reachable(pods) {
        let endpoint = plan::endpoint(service, pod, ip);
        wanted.entry(plan::ports_of(service, pod)).or_default().insert(identity(&endpoint), endpoint);
    }
    if wanted.is_empty() {
        // A Service without pods has one slice that says so.
        wanted.insert(Vec::new(), BTreeMap::new());
    }
    let mut by_ports: BTreeMap<Ports, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in have {
        by_ports.entry(ports_of_slice(slice)).or_default().push(slice);
    }
    let groups: Vec<Group<'_>> = wanted
        .into_iter()
        .map(|(ports, wanted)| {
            let mut existing = by_ports.remove(&ports).unwrap_or_default();
            existing.sort_by_key(|slice| &slice.metadata.name);
            group(ports, wanted, existing)
        })
        .collect();
    let spare = by_ports.into_values().flatten().collect();
    finish(service, groups, spare, have)
}

fn group<'s>(
    ports: Ports,
    mut wanted: BTreeMap<Identity, Endpoint>,
    existing: Vec<&'s EndpointSlice>,
) -> Group<'s> {
    let says_none = wanted.is_empty();
    let mut group = Group { ports, kept: Vec::new(), new: Vec::new(), spare: Vec::new() };
    for slice in existing {
        let had = slice.endpoints.as_deref().unwrap_or_default();
        let endpoints: Vec<Endpoint> = had.iter().filter_map(|e| wanted.remove(&identity(e))).collect();
        let is_placeholder = says_none && had.is_empty() && group.kept.is_empty();
        if endpoints.is_empty() && !is_placeholder {
            group.spare.push(slice);
            continue;
        }
        let is_changed = endpoints != had;
        group.kept.push(Kept { slice, endpoints, is_changed });
    }
    if says_none && group.kept.is_empty() {
        group.new.push(Vec::new());
    }
    place(&mut group, wanted.into_values().collect());
    group
}

/// Finds places for endpoints that are in no slice yet.
fn place(group: &mut Group<'_>, mut left: Vec<Endpoint>) {
    let mut changed: Vec<&mut Kept<'_>> = group.kept.iter_mut().filter(|kept| kept.is_changed).collect();
    changed.sort_by_key(|kept| Reverse(kept.endpoints.len()));
    for kept in changed {
        let n_taken = kept.room().min(left.len());
        kept.take(left.drain(..n_taken));
    }
    while left.len() >= MAX_ENDPOINTS {
        group.new.push(left.drain(..MAX_ENDPOINTS).collect());
    }
    if left.is_empty() {
        return;
    }
    let with_room = group.kept.iter_mut().filter(|kept| kept.room() >= left.len());
    match with_room.min_by_key(|kept| kept.room()) {
        Some(kept) => kept.take(left),
        None => group.new.push(left),
    }
}

fn finish<'s>(
    service: &Service,
    groups: Vec<Group<'s>>,
    mut spare: Vec<&'s EndpointSlice>,
    have: &[Arc<EndpointSlice>],
) -> Packed {
    let mut packed = Packed::default();
    let mut names: BTreeSet<String> = have.iter().filter_map(|slice| slice.metadata.name.clone()).collect();
    let mut new: Vec<(Ports, Vec<Endpoint>)> = Vec::new();
    for group in groups {
        for kept in group.kept {
            let wanted = replaced(service, &group.ports, kept.slice, kept.endpoints);
            if kept.is_changed || kept.slice.metadata.labels != wanted.metadata.labels {
                packed.update.push(wanted);
            }
        }
        spare.extend(group.spare);
        new.extend(group.new.into_iter().map(|endpoints| (group.ports.clone(), endpoints)));
    }
    let mut spare = spare.into_iter();
    for (ports, endpoints) in new {
        match spare.next() {
            Some(slice) => packed.update.push(replaced(service, &ports, slice, endpoints)),
            None => {
                let name = free_name(service, &ports, &names);
                names.insert(name.clone());
                packed.create.push(slice(service, &ports, name, endpoints));
            }
        }
    }
    packed.delete = spare.filter_map(|slice| slice.metadata.name.clone()).collect();
    packed
}

fn replaced(
    service: &Service,
    ports: &Ports,
    old: &EndpointSlice,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let mut slice = slice(service, ports, old.metadata.name.clone().unwrap_or_default(), endpoints);
    slice.metadata.resource_version = old.metadata.resource_version.clone();
    slice
}

/// The same in two passes that know of the same slices, so that a pass that runs twice writes once.
fn free_name(service: &Service, ports: &Ports, taken: &BTreeSet<String>) -> String {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let prefix: String = name.chars().take(57).collect();
    let mut at = 0_usize;
    loop {
        let identity = serde_json::json!([service.metadata.uid, ports, at]);
        let suffix: String = template_hash(&identity, 0).chars().take(5).collect();
        let name = format!("{prefix}-{suffix}");
        if !taken.contains(&name) {
            return name;
        }
        at += 1;
    }
}

fn slice(service: &Service, ports: &Ports, name: String, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let of = service.metadata.name.clone().unwrap_or_default();
    let port = |(name, number, protocol, app): &(String, i32, String, Option<String>)| EndpointPort {
        name: Some(name.clone()),
        port: Some(*number),
        protocol: Some(protocol.clone()),
        app_protocol: app.clone(),
    };
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(name),
            generate_name: Some(format!("{of}-")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(plan::slice_labels(service)),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".into(),
        endpoints: Some(endpoints),
        ports: Some(ports.iter().map(port).collect()),
    }
}

fn ports_of_slice(slice: &EndpointSlice) -> Ports {
    let ports = slice.ports.iter().flatten();
    ports
        .map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            let (name, number) = (port.name.clone().unwrap_or_default(), port.port.unwrap_or_default());
            (name, number, protocol, port.app_protocol.clone())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(ports: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "d", "uid": "u"},
            "spec": {"selector": {"app": "a"}, "ports": ports}}))
        .unwrap()
    }

    fn web() -> Service {
        service(json!([{"port": 80}]))
    }

    fn pod(n: usize, ready: bool, port: i32) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        let ip = format!("10.0.{}.{}", n / 250, n % 250);
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": format!("p{n}"), "namespace": "d", "uid": format!("u{n}"), "labels": {"app": "a"}},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
                "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap(),
        )
    }

    fn pods(numbers: impl IntoIterator<Item = usize>) -> Vec<Arc<Pod>> {
        numbers.into_iter().map(|n| pod(n, true, 80)).collect()
    }

    /// What there is after a pass has been carried out, and how many writes that took.
    fn written(have: &[Arc<EndpointSlice>], packed: Packed) -> (Vec<Arc<EndpointSlice>>, usize) {
        let n_writes = packed.create.len() + packed.update.len() + packed.delete.len();
        let mut all: BTreeMap<_, _> =
            have.iter().map(|slice| (slice.metadata.name.clone().unwrap(), slice.clone())).collect();
        for slice in packed.create {
            let name = slice.metadata.name.clone().unwrap();
            assert!(all.insert(name, Arc::new(slice)).is_none(), "a name is taken");
        }
        for slice in packed.update {
            let name = slice.metadata.name.clone().unwrap();
            assert!(all.insert(name, Arc::new(slice)).is_some(), "there is none to update");
        }
        packed.delete.iter().for_each(|name| drop(all.remove(name).unwrap()));
        (all.into_values().collect(), n_writes)
    }

    #[track_caller]
    fn check(have: &[Arc<EndpointSlice>], pods: &[Arc<Pod>], n_writes: usize) -> Vec<Arc<EndpointSlice>> {
        let (now, n_written) = written(have, pack(&web(), pods, have));
        assert_eq!(n_written, n_writes);
        let mut held: Vec<_> = now.iter().flat_map(|s| s.endpoints.iter().flatten()).map(identity).collect();
        held.sort();
        let mut wanted: Vec<_> =
            plan::reachable(pods).map(|(pod, ip)| identity(&plan::endpoint(&web(), pod, ip))).collect();
        wanted.sort();
        assert_eq!(held, wanted, "each endpoint is in one slice");
        assert_eq!(written(&now, pack(&web(), pods, &now)).1, 0, "a second pass writes nothing");
        now
    }

    fn sizes(slices: &[Arc<EndpointSlice>]) -> Vec<usize> {
        let mut sizes: Vec<_> = slices.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).collect();
        sizes.sort_unstable();
        sizes
    }

    #[test]
    fn one_pod_more_or_less_costs_one_slice_of_a_service_of_very_many() {
        let have = check(&[], &pods(0..5000), 50);
        assert_eq!(sizes(&have), [100; 50]);
        let have = check(&have, &pods(1..5000), 1);
        let have = check(&have, &pods((1..5000).chain([6000])), 1);
        assert_eq!(sizes(&have), [100; 50], "the place that was free is taken");
        let mut changed = pods((1..5000).chain([6000]));
        changed[2000] = pod(2001, false, 80);
        check(&have, &changed, 1);
    }

    #[test]
    fn what_is_left_goes_where_something_is_written_anyway() {
        let have = check(&[], &pods(0..150), 2);
        assert_eq!(sizes(&have), [50, 100]);
        let have = check(&have, &pods((1..150).chain([200])), 1);
        assert_eq!(sizes(&have), [50, 100], "a pod takes the place of the one that went");
        let have = check(&have, &pods((1..150).chain(200..231)), 1);
        assert_eq!(sizes(&have), [80, 100]);
        let have = check(&have, &pods((1..150).chain(200..261)), 1);
        assert_eq!(sizes(&have), [30, 80, 100], "thirty have no room in one, and a new one is one write too");
    }

    #[test]
    fn a_service_without_pods_has_one_slice_that_says_so() {
        let have = check(&[], &[], 1);
        assert_eq!((sizes(&have), have[0].ports.clone()), (vec![0], Some(Vec::new())));
        let have = check(&have, &pods(0..1), 1);
        assert_eq!((have.len(), sizes(&have)), (1, vec![1]), "the slice is written anew, not another made");
        let have = check(&have, &pods(0..250), 3);
        assert_eq!(sizes(&check(&have, &[], 3)), [0]);
    }

    #[test]
    fn an_endpoint_that_is_in_two_slices_is_taken_out_of_one() {
        let have = check(&[], &pods(0..1), 1);
        let mut twin = (*have[0]).clone();
        twin.metadata.name = Some("z".into());
        let both = [have[0].clone(), Arc::new(twin)];
        assert_eq!(sizes(&check(&both, &pods(0..1), 1)), [1]);
    }

    #[test]
    fn pods_that_name_a_port_differently_get_slices_of_their_own() {
        let service = service(json!([{"port": 80, "targetPort": "http"}]));
        let pods = [pod(1, true, 8080), pod(2, true, 9090), pod(3, false, 8080)];
        let slices = pack(&service, &pods, &[]).create;
        let shape: Vec<(i32, usize)> = slices
            .iter()
            .map(|s| (s.ports.as_ref().unwrap()[0].port.unwrap(), s.endpoints.as_ref().unwrap().len()))
            .collect();
        assert_eq!(shape, [(8080, 2), (9090, 1)]);
        let conditions = slices[0].endpoints.iter().flatten().map(|e| e.conditions.clone().unwrap());
        assert_eq!(conditions.map(|c| c.ready.unwrap()).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn names_are_the_same_in_every_pass_that_knows_of_the_same_slices() {
        let names = |pods: &[Arc<Pod>]| {
            let made = pack(&web(), pods, &[]).create;
            made.into_iter().map(|slice| slice.metadata.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&pods(0..150)), names(&pods(200..350)));
    }

    #[test]
    fn labels_of_the_service_are_the_slices_too() {
        let have = check(&[], &pods(0..150), 2);
        let mut service = web();
        service.metadata.labels = Some([("l".to_owned(), "v".to_owned())].into());
        let packed = pack(&service, &pods(0..150), &have);
        assert_eq!((packed.create.len(), packed.update.len(), packed.delete.len()), (0, 2, 0));
        assert_eq!(packed.update[0].metadata.labels.as_ref().unwrap()["l"], "v");
    }
}
