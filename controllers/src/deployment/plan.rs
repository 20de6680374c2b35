//! What must change about a Deployment's ReplicaSets. Pure.
//!
//! Source: upstream's deployment controller: `sync.go`, `rolling.go`, `recreate.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{DESIRED, HASH, HISTORY, MAX, REVISION, inherited};

/// What the history of a set's revisions may take, as upstream.
const MAX_HISTORY_BYTES: usize = 2000;
use crate::objects::{controller_reference, scaled_down, scaled_up, template_hash};

/// One ReplicaSet to change.
#[derive(Debug, Clone)]
pub(super) struct SetChange {
    pub(super) set: Arc<ReplicaSet>,
    pub(super) replicas: Option<i32>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) min_ready_seconds: Option<i32>,
}

impl SetChange {
    pub(super) fn of(set: &Arc<ReplicaSet>) -> SetChange {
        SetChange { set: set.clone(), replicas: None, annotations: BTreeMap::new(), min_ready_seconds: None }
    }
}

pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

/// The replicas of several sets; more than an `i32` holds counts as what it holds.
pub(super) fn total<'s>(sets: impl IntoIterator<Item = &'s Arc<ReplicaSet>>) -> i32 {
    sets.into_iter().fold(0, |sum: i32, set| sum.saturating_add(replicas(set)))
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

fn spec(deployment: &Deployment) -> DeploymentSpec {
    deployment.spec.clone()
}

pub(super) fn desired(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

pub(super) fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.paused == Some(true)
}

pub(super) fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.strategy.as_ref();
    strategy.is_some_and(|s| s.type_.as_deref() == Some("Recreate"))
}

/// Whether a set is of the Deployment's template: all but the hash that the set adds to its pods' labels.
pub(super) fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let mut of_set = set.spec.template.clone().unwrap_or_default();
    let mut of_deployment = spec(deployment).template;
    // A person may have copied the label into the Deployment, too.
    for template in [&mut of_set, &mut of_deployment] {
        if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
            labels.remove(HASH);
        }
    }
    serde_json::to_value(of_set).ok() == serde_json::to_value(of_deployment).ok()
}

/// The set of the current template; the oldest, should there be several.
pub(super) fn new_set(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Option<Arc<ReplicaSet>> {
    let mut same: Vec<_> = sets.iter().filter(|set| same_template(deployment, set)).collect();
    same.sort_by_key(|set| set.metadata.creation_timestamp.as_ref().map(|t| t.0));
    same.first().map(|set| (*set).clone())
}

fn revision_of(set: &ReplicaSet) -> i64 {
    set.metadata.annotations.as_ref().and_then(|a| a.get(REVISION)).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// One past the old sets' highest; a set that becomes current again moves up.
pub(super) fn revision(old: &[Arc<ReplicaSet>], new: Option<&ReplicaSet>) -> i64 {
    let highest = old.iter().map(|set| revision_of(set)).max().unwrap_or(0);
    new.map_or(0, revision_of).max(highest.saturating_add(1))
}

/// The ReplicaSet for the current template.
pub(super) fn make(deployment: &Deployment, old: &[Arc<ReplicaSet>], revision: i64) -> ReplicaSet {
    let spec = spec(deployment);
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let hash = template_hash(&serde_json::to_value(&spec.template).unwrap_or_default(), collisions);
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.into(), hash.clone());
    let mut annotations = inherited(deployment);
    annotations.extend(counts(deployment));
    annotations.insert(REVISION.into(), revision.to_string());
    let total = total(old);
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(new_replicas(deployment, 0, total)),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        },
        status: None,
    }
}

/// What an active set notes about the Deployment, from which a change of scale is recognised.
fn counts(deployment: &Deployment) -> BTreeMap<String, String> {
    let desired = desired(deployment);
    BTreeMap::from([
        (DESIRED.to_owned(), desired.to_string()),
        (MAX.to_owned(), desired.saturating_add(max_surge(deployment)).to_string()),
    ])
}

/// Annotations that the current set lacks.
pub(super) fn annotate(deployment: &Deployment, new: &ReplicaSet, revision: i64) -> BTreeMap<String, String> {
    let mut wanted = inherited(deployment);
    wanted.insert(REVISION.into(), revision.to_string());
    let has = new.metadata.annotations.clone().unwrap_or_default();
    if let Some(before) = has.get(REVISION)
        && revision_of(new) < revision
    {
        wanted.extend(longer_history(has.get(HISTORY), before).map(|history| (HISTORY.to_owned(), history)));
    }
    wanted.retain(|name, value| has.get(name) != Some(value));
    wanted
}

/// The revisions that a set has had, with the one before its newest; the oldest go where they are too many. `None` where even one
/// alone would be.
fn longer_history(history: Option<&String>, before: &str) -> Option<String> {
    let history = history.map_or("", String::as_str);
    let mut kept = history;
    // A comma before the new one.
    while kept.len() + 1 + before.len() > MAX_HISTORY_BYTES && !kept.is_empty() {
        kept = kept.split_once(',').map_or("", |(_, rest)| rest);
    }
    match kept {
        "" if history.is_empty() => Some(before.to_owned()),
        "" => (before.len() < MAX_HISTORY_BYTES).then(|| before.to_owned()),
        kept => Some(format!("{kept},{before}")),
    }
}

/// The Deployment's `minReadySeconds`, if its current set has another.
pub(super) fn min_ready_change(deployment: &Deployment, new: &ReplicaSet) -> Option<i32> {
    let wanted = spec(deployment).min_ready_seconds.unwrap_or(0);
    let has = new.spec.min_ready_seconds.unwrap_or(0);
    (wanted != has).then_some(wanted)
}

/// How many more, and how many fewer, pods than desired there may be.
fn surge_and_unavailable(deployment: &Deployment) -> (i32, i32) {
    if is_recreate(deployment) {
        return (0, desired(deployment));
    }
    let rolling = spec(deployment).strategy.and_then(|s| s.rolling_update).unwrap_or_default();
    let desired = desired(deployment);
    let surge = rolling.max_surge.as_ref().map_or(0, |surge| scaled_up(surge, desired));
    let unavailable = rolling.max_unavailable.as_ref().map_or(0, |most| scaled_down(most, desired));
    // Both 0, as percentages of few pods may come to, would never get anywhere.
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (surge, unavailable.min(desired))
}

pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    surge_and_unavailable(deployment).0
}

pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    surge_and_unavailable(deployment).1
}

/// How many replicas the current set may have, next to `total_old` of the others.
fn new_replicas(deployment: &Deployment, current: i32, total_old: i32) -> i32 {
    let desired = desired(deployment);
    if is_recreate(deployment) {
        return desired;
    }
    let most = desired.saturating_add(max_surge(deployment));
    let room = most.saturating_sub(current.saturating_add(total_old));
    if room <= 0 { current } else { current + room.min(desired - current) }
}

/// The changes of scale that this pass makes.
pub(super) fn scale(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
) -> Vec<SetChange> {
    let active: Vec<&Arc<ReplicaSet>> = old.iter().chain(new).filter(|set| replicas(set) > 0).collect();
    if is_paused(deployment) || active.iter().any(|set| scale_changed(deployment, set)) {
        return proportional(deployment, new, old, &active);
    }
    if is_recreate(deployment) {
        let downs: Vec<SetChange> =
            old.iter().filter(|s| replicas(s) > 0).map(|s| to(deployment, s, 0)).collect();
        return if downs.is_empty() { up_to(deployment, new, desired(deployment)) } else { downs };
    }
    let Some(new) = new else { return Vec::new() };
    let total_old = total(old);
    let current = replicas(new);
    let wanted = if current > desired(deployment) {
        desired(deployment)
    } else {
        new_replicas(deployment, current, total_old)
    };
    if wanted != current {
        return vec![to(deployment, new, wanted)];
    }
    roll_down(deployment, new, old)
}

fn up_to(deployment: &Deployment, set: Option<&Arc<ReplicaSet>>, wanted: i32) -> Vec<SetChange> {
    set.filter(|s| replicas(s) != wanted).map(|s| to(deployment, s, wanted)).into_iter().collect()
}

fn to(deployment: &Deployment, set: &Arc<ReplicaSet>, replicas: i32) -> SetChange {
    SetChange { replicas: Some(replicas), annotations: counts(deployment), ..SetChange::of(set) }
}

/// Whether the Deployment's replicas were changed since the set was last scaled.
fn scale_changed(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let noted =
        set.metadata.annotations.as_ref().and_then(|a| a.get(DESIRED)).and_then(|d| d.parse::<i32>().ok());
    noted.is_some_and(|noted| noted != desired(deployment))
}

/// A change of scale in the middle of a rollout is shared among the active sets by their size.
fn proportional(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    active: &[&Arc<ReplicaSet>],
) -> Vec<SetChange> {
    // One active set, or none: it, or the newest, takes everything.
    if active.len() <= 1 {
        let newest = || old.iter().max_by_key(|s| s.metadata.creation_timestamp.as_ref().map(|t| t.0));
        let set = active.first().copied().or(new).or_else(newest);
        return up_to(deployment, set, desired(deployment));
    }
    let total = total(active.iter().copied());
    let most = desired(deployment).saturating_add(max_surge(deployment));
    let allowed = if desired(deployment) > 0 { most } else { 0 };
    let mut left = allowed.saturating_sub(total);
    let mut sorted = active.to_vec();
    // Scaling up favours the newest and scaling down the oldest among sets of one size.
    sorted.sort_by_key(|s| {
        (std::cmp::Reverse(replicas(s)), s.metadata.creation_timestamp.as_ref().map(|t| t.0))
    });
    let mut changes: Vec<SetChange> = Vec::new();
    for set in &sorted {
        let share = fraction(deployment, set, allowed.saturating_sub(total));
        let share = if left > 0 { share.clamp(0, left) } else { share.clamp(left, 0) };
        left = left.saturating_sub(share);
        changes.push(to(deployment, set, replicas(set).saturating_add(share).max(0)));
    }
    if let Some(first) = changes.first_mut()
        && let Some(replicas) = &mut first.replicas
    {
        *replicas = replicas.saturating_add(left).max(0);
    }
    changes
}

/// A set's share of so many more or fewer replicas.
fn fraction(deployment: &Deployment, set: &ReplicaSet, to_add: i32) -> i32 {
    if to_add == 0 {
        return 0;
    }
    let noted =
        set.metadata.annotations.as_ref().and_then(|a| a.get(MAX)).and_then(|m| m.parse::<i32>().ok());
    let was_max = f64::from(noted.filter(|m| *m > 0).unwrap_or_else(|| desired(deployment).max(1)));
    let now_max = f64::from(desired(deployment).saturating_add(max_surge(deployment)));
    let size = f64::from(replicas(set));
    // The conversion saturates.
    ((size * now_max / was_max).round() as i32).saturating_sub(replicas(set))
}

/// Old sets go down: first what is unhealthy anyway, then as far as enough pods stay available.
fn roll_down(deployment: &Deployment, new: &Arc<ReplicaSet>, old: &[Arc<ReplicaSet>]) -> Vec<SetChange> {
    let total_old = total(old);
    if total_old == 0 {
        return Vec::new();
    }
    let must_stay = desired(deployment).saturating_sub(max_unavailable(deployment));
    let not_available_of_new = replicas(new).saturating_sub(available(new));
    let all = total_old.saturating_add(replicas(new));
    let mut may_go = all.saturating_sub(must_stay).saturating_sub(not_available_of_new);
    if may_go <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<(&Arc<ReplicaSet>, i32)> = old.iter().map(|set| (set, replicas(set))).collect();
    sizes.sort_by_key(|(set, _)| set.metadata.creation_timestamp.as_ref().map(|t| t.0));
    for (set, size) in &mut sizes {
        let unhealthy = size.saturating_sub(available(set)).clamp(0, may_go);
        *size -= unhealthy;
        may_go -= unhealthy;
    }
    let healthy = old.iter().chain([new]).fold(0, |sum: i32, set| sum.saturating_add(available(set)));
    let mut spare = healthy.saturating_sub(must_stay);
    for (_, size) in &mut sizes {
        let gone = (*size).min(spare).max(0);
        *size -= gone;
        spare -= gone;
    }
    let changed = sizes.into_iter().filter(|(set, size)| replicas(set) != *size);
    changed.map(|(set, size)| to(deployment, set, size)).collect()
}

/// The oldest empty sets, as far as there are more than the history keeps.
pub(super) fn beyond_history<'s>(
    deployment: &Deployment,
    old: &'s [Arc<ReplicaSet>],
) -> Vec<&'s Arc<ReplicaSet>> {
    let keep = usize::try_from(spec(deployment).revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let mut alive: Vec<_> = old.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
    alive.sort_by_key(|set| revision_of(set));
    let n_surplus = alive.len().saturating_sub(keep);
    alive.truncate(n_surplus);
    let is_empty = |s: &&Arc<ReplicaSet>| {
        // One whose controller has not yet seen its last change may still make pods.
        let is_seen = s.status.as_ref().and_then(|s| s.observed_generation) >= s.metadata.generation;
        replicas(s) == 0 && is_seen && s.status.as_ref().is_none_or(|status| status.replicas == 0)
    };
    alive.into_iter().filter(is_empty).collect()
}

#[cfg(test)]
mod tests;
