//! Configurations, read once for all requests.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use skiff_api::{LabelSelector, Object, Status};

use super::conditions::Condition;
use super::rules::{Operations, Rule};
use super::{Attributes, Phase};
use crate::client::{ClientConfig, ConfigError};

/// All webhooks of one phase, in the order in which they are asked.
pub struct Webhooks {
    pub(super) phase: Phase,
    pub(super) hooks: Vec<Webhook>,
    /// Match conditions by their expressions, for whoever compiles the next time.
    conditions: HashMap<Arc<str>, Arc<Condition>>,
}

/// One webhook.
pub(super) struct Webhook {
    /// Tells webhooks of one name apart.
    pub(super) uid: Arc<str>,
    pub(super) configuration: Arc<str>,
    pub(super) name: String,
    pub(super) client: Result<ClientConfig, ConfigError>,
    pub(super) operations: Operations,
    pub(super) rules: Vec<Rule>,
    pub(super) namespace_selector: Result<LabelSelector, Status>,
    pub(super) object_selector: Result<LabelSelector, Status>,
    pub(super) conditions: Vec<Arc<Condition>>,
    pub(super) match_policy: MatchPolicy,
    pub(super) failure_policy: FailurePolicy,
    pub(super) side_effects: Option<SideEffects>,
    pub(super) timeout_seconds: Option<u32>,
    pub(super) review_versions: Vec<String>,
    pub(super) reinvocation: ReinvocationPolicy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MatchPolicy {
    Exact,
    Equivalent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailurePolicy {
    Fail,
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SideEffects {
    /// None, or none when nothing is to be done.
    NoneOnDryRun,
    Some,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReinvocationPolicy {
    Never,
    IfNeeded,
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhooks").field("phase", &self.phase).field("len", &self.hooks.len()).finish()
    }
}

impl Webhooks {
    /// No webhooks.
    pub fn none(phase: Phase) -> Webhooks {
        Webhooks { phase, hooks: Vec::new(), conditions: HashMap::new() }
    }

    /// The webhooks of all configurations of a phase, which were validated and have their defaults. Match conditions that were compiled
    /// for `last`, the webhooks until now, are not compiled again.
    pub fn compile<'c>(
        phase: Phase,
        configurations: impl IntoIterator<Item = &'c Object>,
        last: Option<&Webhooks>,
    ) -> Webhooks {
        let name = |configuration: &Object| -> String {
            configuration["metadata"]["name"].as_str().unwrap_or_default().to_owned()
        };
        let mut configurations: Vec<(String, &Object)> =
            configurations.into_iter().map(|configuration| (name(configuration), configuration)).collect();
        configurations.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut compiler = Compiler { last, conditions: HashMap::new() };
        let mut hooks = Vec::new();
        for (name, configuration) in &configurations {
            let name: Arc<str> = name.as_str().into();
            let mut seen: HashMap<&str, usize> = HashMap::new();
            for webhook in configuration["webhooks"].as_array().into_iter().flatten() {
                let same_before = seen.entry(webhook["name"].as_str().unwrap_or_default()).or_default();
                hooks.push(compiler.webhook(&name, webhook, *same_before));
                *same_before += 1;
            }
        }
        Webhooks { phase, hooks, conditions: compiler.conditions }
    }

    pub fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }

    pub fn len(&self) -> usize {
        self.hooks.len()
    }

    /// Whether a request is shown to no webhook, for what it is about.
    pub(super) fn is_exempt(attributes: &Attributes<'_>) -> bool {
        attributes.kind.group == "admissionregistration.k8s.io"
            && matches!(
                attributes.kind.kind.as_str(),
                "ValidatingWebhookConfiguration"
                    | "MutatingWebhookConfiguration"
                    | "ValidatingAdmissionPolicy"
                    | "ValidatingAdmissionPolicyBinding"
                    | "MutatingAdmissionPolicy"
                    | "MutatingAdmissionPolicyBinding"
            )
    }
}

struct Compiler<'l> {
    last: Option<&'l Webhooks>,
    conditions: HashMap<Arc<str>, Arc<Condition>>,
}

impl Compiler<'_> {
    fn condition(&mut self, expression: &str) -> Arc<Condition> {
        if let Some(known) = self.conditions.get(expression) {
            return known.clone();
        }
        let known = self.last.and_then(|last| last.conditions.get(expression)).cloned();
        let condition = known.unwrap_or_else(|| Arc::new(Condition::compile(expression)));
        self.conditions.insert(expression.into(), condition.clone());
        condition
    }

    fn webhook(&mut self, configuration: &Arc<str>, webhook: &Value, same_before: usize) -> Webhook {
        let text = |field: &str| webhook[field].as_str();
        let list = |field: &str| webhook[field].as_array().into_iter().flatten();
        let name = text("name").unwrap_or_default().to_owned();
        let rules: Vec<Rule> = list("rules").map(Rule::read).collect();
        let expressions = list("matchConditions").map(|c| c["expression"].as_str().unwrap_or_default());
        Webhook {
            uid: format!("{configuration}/{name}/{same_before}").into(),
            configuration: configuration.clone(),
            client: ClientConfig::from_json(&webhook["clientConfig"]),
            operations: rules.iter().map(Rule::operations).fold(Operations::default(), Operations::union),
            rules,
            namespace_selector: LabelSelector::from_json(&webhook["namespaceSelector"]),
            object_selector: LabelSelector::from_json(&webhook["objectSelector"]),
            conditions: expressions.map(|expression| self.condition(expression)).collect(),
            match_policy: match text("matchPolicy") {
                Some("Equivalent") => MatchPolicy::Equivalent,
                _ => MatchPolicy::Exact,
            },
            failure_policy: match text("failurePolicy") {
                Some("Ignore") => FailurePolicy::Ignore,
                _ => FailurePolicy::Fail,
            },
            side_effects: text("sideEffects").map(|effects| match effects {
                "None" | "NoneOnDryRun" => SideEffects::NoneOnDryRun,
                _ => SideEffects::Some,
            }),
            timeout_seconds: webhook["timeoutSeconds"].as_u64().and_then(|n| u32::try_from(n).ok()),
            review_versions: list("admissionReviewVersions")
                .filter_map(|version| version.as_str().map(str::to_owned))
                .collect(),
            reinvocation: match text("reinvocationPolicy") {
                Some("IfNeeded") => ReinvocationPolicy::IfNeeded,
                _ => ReinvocationPolicy::Never,
            },
            name,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expressions_are_compiled_once() {
        let configuration = |expression: &str| {
            json!({"metadata": {"name": "a"}, "webhooks": [
                {"name": "x", "matchConditions": [{"name": "c", "expression": "1 < 2"}]},
                {"name": "y", "matchConditions": [{"name": "c", "expression": expression}]},
            ]})
        };
        let first = Webhooks::compile(Phase::Validating, [&configuration("1 < 2")], None);
        assert!(Arc::ptr_eq(&first.hooks[0].conditions[0], &first.hooks[1].conditions[0]));
        let second = Webhooks::compile(Phase::Validating, [&configuration("2 < 3")], Some(&first));
        assert!(Arc::ptr_eq(&first.hooks[0].conditions[0], &second.hooks[0].conditions[0]));
        let third = Webhooks::compile(Phase::Validating, [&configuration("2 < 3")], Some(&second));
        assert!(Arc::ptr_eq(&second.hooks[1].conditions[0], &third.hooks[1].conditions[0]));
    }

    #[test]
    fn what_is_no_configuration_is_compiled_to_what_matches_nothing() {
        for odd in
            [json!(null), json!({"webhooks": 1}), json!({"webhooks": [null, 1, {}, {"rules": [null]}]})]
        {
            let webhooks = Webhooks::compile(Phase::Mutating, [&odd], None);
            assert!(webhooks.hooks.iter().all(|hook| !hook.operations.has(super::super::Operation::Create)));
        }
    }
}
