//! What a job's policies say: about pods that have failed, and about which completions are enough.

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement, SuccessPolicy};
use skiff_client::view::{ContainerStatus, Pod};

use super::indexes::Indexes;

/// What a failed pod comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// One failure, towards whichever limit there is.
    Counts,
    Ignored,
    /// The index has failed for good.
    FailsIndex,
    /// The whole job has failed, for this reason.
    FailsJob(String),
}

impl Verdict {
    pub(super) fn is_counted(&self) -> bool {
        *self != Verdict::Ignored
    }
}

/// The first rule that matches decides; without one a failure counts.
pub(super) fn verdict(job: &Job, pod: &Pod) -> Verdict {
    let policy = job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref());
    let (namespace, name) = (
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.name.as_deref().unwrap_or_default(),
    );
    for (at, rule) in policy.iter().flat_map(|policy| &policy.rules).enumerate() {
        let what = if let Some(codes) = &rule.on_exit_codes {
            let Some((container, code)) = exit_code(pod, codes) else { continue };
            format!("Container {container} for pod {namespace}/{name} failed with exit code {code}")
        } else {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let patterns = || rule.on_pod_conditions.iter().flatten();
            let matches = |type_: &str, status: &str| {
                patterns().any(|p| p.type_ == type_ && p.status.as_deref().unwrap_or("True") == status)
            };
            let found = conditions.into_iter().find(|c| matches(&c.type_, &c.status));
            let Some(condition) = found else { continue };
            format!("Pod {namespace}/{name} has condition {}", condition.type_)
        };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignored,
            "FailIndex" => Verdict::FailsIndex,
            "FailJob" => Verdict::FailsJob(format!("{what} matching FailJob rule at index {at}")),
            _ => Verdict::Counts,
        };
    }
    Verdict::Counts
}

/// The container whose exit code a rule is about.
fn exit_code<'p>(pod: &'p Pod, rule: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'p str, i32)> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let ended = |container: &'p ContainerStatus| {
        let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
        let is_meant = rule.container_name.as_ref().is_none_or(|name| *name == container.name);
        let is_listed = rule.values.contains(&code);
        let matches = match rule.operator.as_str() {
            "In" => is_listed,
            "NotIn" => !is_listed,
            _ => false,
        };
        (is_meant && code != 0 && matches).then_some((container.name.as_str(), code))
    };
    all.into_iter().find_map(ended)
}

/// The rule by which the indexes that have succeeded are enough.
pub(super) fn success(
    policy: Option<&SuccessPolicy>,
    completions: i32,
    succeeded: &Indexes,
) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let rules = policy.into_iter().flat_map(|policy| &policy.rules);
    let at = rules.into_iter().position(|rule| match (&rule.succeeded_indexes, rule.succeeded_count) {
        (Some(wanted), count) => {
            let wanted = Indexes::parse(wanted, completions);
            let shared = wanted.shared(succeeded);
            !wanted.is_empty() && (shared == wanted.len() || count.is_some_and(|count| shared >= count))
        }
        (None, Some(count)) => succeeded.len() >= count,
        (None, None) => false,
    });
    at.map(|at| format!("Matched rules at index {at}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(rules: Value) -> Job {
        serde_json::from_value(json!({"spec": {"template": {}, "podFailurePolicy": {"rules": rules}}}))
            .unwrap()
    }

    fn pod(code: i32) -> Pod {
        let ended = json!({"name": "c", "state": {"terminated": {"exitCode": code}}, "image": "", "imageID": "",
            "ready": false, "restartCount": 0});
        let status = json!({"containerStatuses": [ended],
            "conditions": [{"type": "DisruptionTarget", "status": "True"}]});
        let pod = json!({"metadata": {"name": "p", "namespace": "d"}, "status": status});
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let exit = |action: &str, operator: &str, values: Value| json!({"action": action, "onExitCodes": {"operator": operator, "values": values}});
        let disrupted = json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]});
        let rules = json!([exit("FailJob", "In", json!([3])), disrupted]);
        assert_eq!(
            verdict(&job(rules.clone()), &pod(3)),
            Verdict::FailsJob(
                "Container c for pod d/p failed with exit code 3 matching FailJob rule at index 0".into()
            )
        );
        assert_eq!(verdict(&job(rules), &pod(4)), Verdict::Ignored);
        assert_eq!(
            verdict(&job(json!([exit("FailIndex", "NotIn", json!([1]))])), &pod(2)),
            Verdict::FailsIndex
        );
        assert_eq!(verdict(&job(json!([exit("FailJob", "NotIn", json!([1]))])), &pod(0)), Verdict::Counts);
        let job = job(
            json!([{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]),
        );
        assert_eq!(
            verdict(&job, &pod(1)),
            Verdict::FailsJob(
                "Pod d/p has condition DisruptionTarget matching FailJob rule at index 0".into()
            )
        );
    }

    #[test]
    fn a_job_has_succeeded_by_the_indexes_that_count() {
        let met = |rules: Value, succeeded: &str| {
            let policy: SuccessPolicy = serde_json::from_value(json!({"rules": rules})).unwrap();
            success(Some(&policy), 10, &Indexes::parse(succeeded, 10))
        };
        assert_eq!(met(json!([{"succeededIndexes": "0,2"}]), "0"), None);
        assert_eq!(
            met(json!([{"succeededIndexes": "0,2"}]), "0-2").as_deref(),
            Some("Matched rules at index 0")
        );
        assert!(met(json!([{"succeededIndexes": "0-4", "succeededCount": 1}]), "3").is_some());
        assert!(met(json!([{"succeededCount": 2}]), "3").is_none());
        assert_eq!(
            met(json!([{"succeededCount": 5}, {"succeededCount": 1}]), "3").as_deref(),
            Some("Matched rules at index 1")
        );
    }
}
