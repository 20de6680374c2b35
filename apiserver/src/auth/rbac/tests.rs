use serde_json::{Value, json};
use skiff_api::Object;

use super::*;
use crate::auth::attributes::Opinion;

struct Cluster {
    rbac: Rbac,
    index: Arc<RoleIndex>,
}

impl Cluster {
    fn new() -> Cluster {
        let index = Arc::new(RoleIndex::default());
        Cluster { rbac: Rbac::new(index.clone()), index }
    }

    fn set(&self, plural: &str, key: &str, object: Option<Value>) {
        let observers = observers(&self.index);
        let (_, observer) = observers.iter().find(|(of, _)| *of == plural).expect("one of the four");
        observer.changed(key, object.as_ref().map(|object| object as &Object));
    }

    fn clear(&self, plural: &str) {
        observers(&self.index).iter().filter(|(of, _)| *of == plural).for_each(|(_, one)| one.cleared());
    }

    fn decide(&self, user: &UserInfo, verb: &str, namespace: &str, resource: &str) -> Decision {
        self.rbac.authorize(&Attributes { namespace, ..Attributes::on(user, verb, "", resource) })
    }
}

fn reader(resource: &str) -> Option<Value> {
    Some(json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [resource]}]}))
}

fn binding(kind: &str, role: &str, subjects: &Value) -> Option<Value> {
    Some(json!({"roleRef": {"kind": kind, "name": role}, "subjects": subjects}))
}

#[test]
fn a_role_counts_for_whom_it_is_bound_to_and_where() {
    let cluster = Cluster::new();
    cluster.set("clusterroles", "reader", reader("pods"));
    cluster.set("roles", "a/keeper", reader("secrets"));
    cluster.set(
        "clusterrolebindings",
        "all",
        binding("ClusterRole", "reader", &json!([{"kind": "Group", "name": "devs"}])),
    );
    cluster.set(
        "rolebindings",
        "a/one",
        binding("ClusterRole", "reader", &json!([{"kind": "User", "name": "jane"}])),
    );
    let account = json!([{"kind": "ServiceAccount", "name": "app"}]);
    cluster.set("rolebindings", "a/keep", binding("Role", "keeper", &account));

    let dev = UserInfo::new("joe", &["devs"]);
    let decision = cluster.decide(&dev, "get", "", "pods");
    assert_eq!(
        decision.reason,
        r#"RBAC: allowed by ClusterRoleBinding "all" of ClusterRole "reader" to Group "devs""#
    );
    assert!(cluster.decide(&dev, "get", "b", "pods").is_allowed());

    let jane = UserInfo::new("jane", &[]);
    let decision = cluster.decide(&jane, "get", "a", "pods");
    assert_eq!(
        decision.reason,
        r#"RBAC: allowed by RoleBinding "one/a" of ClusterRole "reader" to User "jane""#
    );
    assert_eq!(cluster.decide(&jane, "get", "b", "pods").opinion, Opinion::None);
    assert_eq!(cluster.decide(&jane, "get", "", "pods").opinion, Opinion::None);

    let app = UserInfo::new("system:serviceaccount:a:app", &[]);
    let decision = cluster.decide(&app, "get", "a", "secrets");
    assert_eq!(
        decision.reason,
        r#"RBAC: allowed by RoleBinding "keep/a" of Role "keeper" to ServiceAccount "app/a""#
    );
    assert_eq!(cluster.decide(&app, "get", "a", "pods").opinion, Opinion::None);
    assert_eq!(
        cluster.decide(&UserInfo::new("system:serviceaccount:b:app", &[]), "get", "a", "secrets").opinion,
        Opinion::None
    );
}

#[test]
fn what_is_taken_away_no_longer_counts() {
    let cluster = Cluster::new();
    let jane = UserInfo::new("jane", &[]);
    let subjects = json!([{"kind": "User", "name": "jane"}, {"kind": "User", "name": "jane"}]);
    cluster.set("clusterroles", "reader", reader("pods"));
    cluster.set("clusterrolebindings", "one", binding("ClusterRole", "reader", &subjects));
    cluster.set("clusterrolebindings", "two", binding("ClusterRole", "reader", &subjects));
    cluster.set("clusterrolebindings", "one", None);
    assert!(cluster.decide(&jane, "get", "", "pods").is_allowed());
    cluster.set(
        "clusterrolebindings",
        "two",
        binding("ClusterRole", "reader", &json!([{"kind": "User", "name": "joe"}])),
    );
    assert!(!cluster.decide(&jane, "get", "", "pods").is_allowed());
    let joe = UserInfo::new("joe", &[]);
    assert!(cluster.decide(&joe, "get", "", "pods").is_allowed());
    cluster.set("clusterroles", "reader", reader("services"));
    assert!(!cluster.decide(&joe, "get", "", "pods").is_allowed());
    cluster.set("clusterroles", "reader", None);
    assert_eq!(
        cluster.decide(&joe, "get", "", "services").reason,
        r#"RBAC: clusterrole.rbac.authorization.k8s.io "reader" not found"#
    );
    // Another resource that is read anew takes nothing of this one.
    cluster.set("clusterroles", "reader", reader("pods"));
    for other in ["roles", "rolebindings"] {
        cluster.clear(other);
        assert!(cluster.decide(&joe, "get", "", "pods").is_allowed(), "{other}");
    }
    cluster.clear("clusterrolebindings");
    assert!(!cluster.decide(&joe, "get", "", "pods").is_allowed());
}

#[test]
fn rules_are_listed_with_what_could_not_be_found() {
    let cluster = Cluster::new();
    let subjects = json!([{"kind": "User", "name": "jane"}]);
    let mixed = json!({"rules": [
        {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["p"]},
        {"verbs": ["get"], "nonResourceURLs": ["/healthz"]},
    ]});
    cluster.set("clusterroles", "mixed", Some(mixed.clone()));
    cluster.set("clusterrolebindings", "a", binding("ClusterRole", "mixed", &subjects));
    cluster.set("rolebindings", "a/b", binding("Role", "gone", &subjects));
    let list = cluster.rbac.rules_of(&UserInfo::new("jane", &[]), "a");
    assert_eq!(json!([list.resources, list.paths]), json!([[mixed["rules"][0]], [mixed["rules"][1]]]));
    assert_eq!(list.error.as_deref(), Some(r#"role.rbac.authorization.k8s.io "gone" not found"#));
}

/// Counts rather than times: the index looks at what is bound to who asks.
#[test]
fn a_decision_looks_at_no_binding_of_others() {
    let cluster = Cluster::new();
    cluster.set("clusterroles", "reader", reader("pods"));
    for n in 0..10_000 {
        let subjects = json!([{"kind": "User", "name": format!("user-{n}")}]);
        cluster.set("clusterrolebindings", &format!("b-{n}"), binding("ClusterRole", "reader", &subjects));
    }
    let mut seen = 0;
    cluster.index.visit::<()>(&UserInfo::new("user-7", &["devs"]), "default", |_, _| {
        seen += 1;
        ControlFlow::Continue(())
    });
    assert_eq!(seen, 1);
}

#[test]
fn the_roles_of_every_cluster_can_be_read() {
    let policy = Policy::builtin().expect("no line is wrong");
    let count = |plural: &str| policy.expected.iter().filter(|one| one.plural == plural).count();
    assert!(count("clusterroles") >= 69 && count("roles") >= 8, "those of upstream");
    assert_eq!(
        policy.rules_of("cluster-admin").iter().map(PolicyRule::to_json).collect::<Vec<_>>(),
        [
            json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}),
            json!({"verbs": ["*"], "nonResourceURLs": ["*"]}),
        ]
    );
    let admin = policy.expected.iter().find(|one| one.object["metadata"]["name"] == "admin").expect("admin");
    assert_eq!(
        admin.object["aggregationRule"],
        json!({"clusterRoleSelectors": [{"matchLabels": {"rbac.authorization.k8s.io/aggregate-to-admin": "true"}}]})
    );
    // What is bound is there.
    let is_role = |kind: &str, namespace: &Value, name: &Value| {
        let plural = if kind == "Role" { "roles" } else { "clusterroles" };
        policy.expected.iter().any(|one| {
            let meta = &one.object["metadata"];
            one.plural == plural
                && meta["name"] == *name
                && (kind != "Role" || meta["namespace"] == *namespace)
        })
    };
    for one in policy.expected.iter().filter(|one| !one.object["roleRef"].is_null()) {
        let reference = &one.object["roleRef"];
        let kind = reference["kind"].as_str().expect("a kind");
        assert!(is_role(kind, &one.object["metadata"]["namespace"], &reference["name"]), "{reference}");
    }
}

#[test]
fn what_people_added_stays_and_what_is_missing_comes_back() {
    let policy = Policy::builtin().expect("no line is wrong");
    let find = |plural: &str, name: &str| {
        let found =
            policy.expected.iter().find(|o| o.plural == plural && o.object["metadata"]["name"] == name);
        found.expect("it is expected").object.clone()
    };
    let expected = find("clusterroles", "system:basic-user");
    assert_eq!(completed(&expected, &expected), None);

    let mut changed = expected.clone();
    let own = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
    changed["rules"] = json!([own]);
    changed["metadata"]["labels"] = json!({"mine": "yes"});
    let new = completed(&changed, &expected).expect("it lacks something");
    assert_eq!(new["rules"][0], own);
    assert_eq!(lacking(&new, &expected), []);
    assert_eq!(new["metadata"]["labels"]["mine"], "yes");
    assert_eq!(new["metadata"]["labels"]["kubernetes.io/bootstrapping"], "rbac-defaults");
    assert_eq!(completed(&new, &expected), None, "once is enough");

    changed["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] = "false".into();
    assert_eq!(completed(&changed, &expected), None, "it is its owner's");

    let expected = find("clusterrolebindings", "cluster-admin");
    let mut changed = expected.clone();
    changed["subjects"] = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]);
    let new = completed(&changed, &expected).expect("it lacks the administrators");
    assert_eq!(new["subjects"].as_array().map(Vec::len), Some(2));
}

fn lacking(held: &Object, wanted: &Object) -> Vec<PolicyRule> {
    let (held, wanted): (Vec<_>, Vec<_>) = (rule::rules_of(held), rule::rules_of(wanted));
    escalation::missing(&held, &wanted).expect("few")
}

#[test]
fn what_is_not_held_is_named_part_by_part() {
    let rule = |json: Value| PolicyRule::of(&json);
    let held = [
        rule(json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/scale"]})),
        rule(
            json!({"verbs": ["*"], "apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["web"]}),
        ),
        rule(json!({"verbs": ["get"], "nonResourceURLs": ["/api/*"]})),
    ];
    let lacks = |wanted: Value| {
        let lacking = escalation::missing(&held, &[rule(wanted)]).expect("few");
        lacking.iter().map(PolicyRule::to_json).collect::<Vec<_>>()
    };
    let none: Vec<Value> = Vec::new();
    assert_eq!(
        lacks(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "jobs/scale"]})),
        none
    );
    assert_eq!(
        lacks(json!({"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["pods", "secrets"]})),
        [
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}),
            json!({"verbs": ["delete"], "apiGroups": [""], "resources": ["pods"]}),
            json!({"verbs": ["delete"], "apiGroups": [""], "resources": ["secrets"]}),
        ]
    );
    let named = |names: Value| json!({"verbs": ["patch"], "apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": names});
    assert_eq!(lacks(named(json!(["web"]))), none);
    assert_eq!(lacks(named(json!(["web", "db"]))), [named(json!(["db"]))]);
    // Any name is more than one.
    assert_eq!(lacks(named(json!([]))).len(), 1);
    assert_eq!(lacks(json!({"verbs": ["get"], "nonResourceURLs": ["/api/v1"]})), none);
    assert_eq!(lacks(json!({"verbs": ["get"], "nonResourceURLs": ["/metrics"]})).len(), 1);
    assert_eq!(lacks(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})).len(), 1);
}

#[test]
fn a_role_of_too_many_combinations_is_not_taken_apart() {
    let many: Vec<String> = (0..40).map(|n| format!("n{n}")).collect();
    let rule =
        PolicyRule::of(&json!({"verbs": many, "apiGroups": many, "resources": many, "resourceNames": many}));
    assert!(escalation::missing(&[], &[rule]).is_err());
    // Nor one that combines them with nothing.
    let many: Vec<String> = (0..1000).map(|n| format!("n{n}")).collect();
    let rule = PolicyRule::of(&json!({"verbs": many, "apiGroups": many}));
    assert!(escalation::missing(&[], &[rule]).is_err());
}
