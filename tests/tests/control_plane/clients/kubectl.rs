//! kubectl's verbs, each on a kind that is built in and on one that is defined.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Run, Stage, file};

/// A kind that the verbs are tried on.
struct Kind {
    resource: &'static str,
    /// How kubectl tells of one that was changed.
    shown: &'static str,
    object: Value,
    /// A field of its spec, as JSON and as paths name it, which is 1 at first.
    field: &'static str,
    /// A value of the field that is refused, and what is said then.
    refused: (i64, &'static str),
    /// What explains the field.
    explained: &'static [&'static str],
    /// A condition that comes true by itself, or a path whose value it is.
    waited: &'static str,
}

fn built_in() -> Kind {
    let labels = json!({"app": "it"});
    let template =
        json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    Kind {
        resource: "deployment",
        shown: "deployment.apps/it",
        object: json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "it"},
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}}),
        field: "replicas",
        refused: (-1, "must be greater than or equal to 0"),
        explained: &[
            "GROUP:      apps",
            "KIND:       Deployment",
            "FIELD: replicas <integer>",
            "Number of desired pods.",
        ],
        waited: "condition=Available",
    }
}

fn defined() -> Kind {
    Kind {
        resource: "order",
        shown: "order.shop.example.com/it",
        object: json!({"apiVersion": "shop.example.com/v1", "kind": "Order", "metadata": {"name": "it"},
            "spec": {"size": 1}}),
        field: "size",
        refused: (100, "no more than 99"),
        explained: &[
            "GROUP:      shop.example.com",
            "KIND:       Order",
            "FIELD: size <integer>",
            "How much.",
        ],
        waited: "jsonpath={.spec.colour}=red",
    }
}

impl Kind {
    fn with(&self, value: i64) -> String {
        let mut object = self.object.clone();
        object["spec"][self.field] = value.into();
        object.to_string()
    }

    fn path(&self) -> String {
        format!("jsonpath={{.spec.{}}}", self.field)
    }
}

struct Story<'s> {
    stage: &'s Stage,
    kind: Kind,
}

impl Story<'_> {
    fn kubectl(&self, args: &[&str]) -> Run {
        self.stage.kubectl(args)
    }

    /// Runs one with an object whose field has a value.
    fn with(&self, value: i64, args: &[&str]) -> Run {
        let mut all = args.to_vec();
        all.extend(["-f", "-"]);
        self.kubectl(&all).input(&self.kind.with(value))
    }

    async fn field_is(&self, value: i64) -> Result<()> {
        let path = self.kind.path();
        let found = self.kubectl(&["get", self.kind.resource, "it", "-o", &path]).succeeds().await?;
        ensure!(found == value.to_string(), "{} is {found}, not {value}", self.kind.field);
        Ok(())
    }

    fn tells(&self, said: &str, what: &str) -> Result<()> {
        ensure!(said.contains(&format!("{} {what}", self.kind.shown)), "not {what}: {said}");
        Ok(())
    }

    async fn apply(&self) -> Result<()> {
        let said = self.with(1, &["apply", "--dry-run=server"]).succeeds().await?;
        self.tells(&said, "created (server dry run)")?;
        self.kubectl(&["get", self.kind.resource, "it"]).ends_with(1).await?;
        self.tells(&self.with(1, &["apply"]).succeeds().await?, "created")?;
        self.tells(&self.with(1, &["apply"]).succeeds().await?, "unchanged")?;
        self.tells(&self.with(2, &["apply"]).succeeds().await?, "configured")?;
        self.field_is(2).await?;
        let (refused, why) = self.kind.refused;
        let said = self.with(refused, &["apply"]).ends_with(1).await?;
        ensure!(said.contains(why), "{said}");
        let mut unknown = self.kind.object.clone();
        unknown["spec"]["unknown"] = 1.into();
        let said = self.kubectl(&["apply", "-f", "-"]).input(&unknown.to_string()).ends_with(1).await?;
        ensure!(said.contains("unknown field \"spec.unknown\""), "{said}");
        let last = self
            .kubectl(&["apply", "view-last-applied", self.kind.resource, "it", "-o=json"])
            .succeeds()
            .await?;
        let last: Value = serde_json::from_str(&last)?;
        ensure!(last["spec"][self.kind.field] == 2, "{last}");

        // kubectl's own apply of before is taken over by one on the server; what another owns is not.
        let said = self.with(3, &["apply", "--server-side"]).succeeds().await?;
        self.tells(&said, "serverside-applied")?;
        self.field_is(3).await?;
        let said = self.with(4, &["apply", "--server-side", "--field-manager=other"]).ends_with(1).await?;
        let conflict = format!("conflict with \"kubectl\": .spec.{}", self.kind.field);
        ensure!(said.contains(&conflict), "{said}");
        let forced = ["apply", "--server-side", "--field-manager=other", "--force-conflicts"];
        self.with(4, &forced).succeeds().await?;
        self.field_is(4).await?;
        let managed = self.kubectl(&["get", self.kind.resource, "it", "-o=json", "--show-managed-fields"]);
        let managed: Value = serde_json::from_str(&managed.succeeds().await?)?;
        let field = format!("f:{}", self.kind.field);
        let owners: Vec<_> = managed["metadata"]["managedFields"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|entry| entry["fieldsV1"]["f:spec"][&field].is_object())
            .map(|entry| json!([entry["manager"], entry["operation"]]))
            .collect();
        ensure!(owners == [json!(["other", "Apply"])], "{managed}");
        self.with(1, &forced).succeeds().await.map(drop)
    }

    async fn diff(&self) -> Result<()> {
        let field = self.kind.field;
        for more in [&[][..], &["--server-side", "--field-manager=other"][..]] {
            let mut args = vec!["diff"];
            args.extend(more);
            let said = self.with(5, &args).ends_with(1).await?;
            for line in [format!("-  {field}: 1"), format!("+  {field}: 5")] {
                ensure!(said.lines().any(|found| found == line), "no {line:?}: {said}");
            }
            self.field_is(1).await?;
        }
        let said = self.with(1, &["diff", "--server-side", "--field-manager=other"]).ends_with(0).await?;
        ensure!(said.is_empty(), "{said}");
        Ok(())
    }

    async fn edit(&self) -> Result<()> {
        let (resource, field) = (self.kind.resource, self.kind.field);
        let editor = |value: i64| format!("sed -i -E 's/^  {field}: [0-9]+$/  {field}: {value}/'");
        let edit = |value| self.kubectl(&["edit", resource, "it"]).env("KUBE_EDITOR", editor(value));
        self.tells(&edit(6).succeeds().await?, "edited")?;
        self.field_is(6).await?;
        let said = edit(6).ends_with(0).await?;
        ensure!(said.contains("Edit cancelled, no changes made"), "{said}");
        // Why is said in the text that is to be edited anew.
        let said = edit(self.kind.refused.0).ends_with(1).await?;
        ensure!(said.contains("\"it\" is invalid"), "{said}");
        self.field_is(6).await
    }

    async fn explain(&self) -> Result<()> {
        let path = format!("{}.spec.{}", self.kind.resource, self.kind.field);
        let said = self.kubectl(&["explain", &path]).succeeds().await?;
        for word in self.kind.explained {
            ensure!(said.contains(word), "no {word:?}: {said}");
        }
        let said = self.kubectl(&["explain", self.kind.resource, "--recursive"]).succeeds().await?;
        ensure!(said.contains(&format!("    {}\t<integer>", self.kind.field)), "{said}");
        let said = self.kubectl(&["explain", &format!("{path}s")]).ends_with(1).await?;
        ensure!(said.contains("does not exist"), "{said}");
        Ok(())
    }

    async fn auth(&self) -> Result<()> {
        let resource = self.kind.resource;
        let account = "system:serviceaccount:default:default";
        let ask = |verb| self.kubectl(&["auth", "can-i", verb, resource, "--as", account]);
        ensure!(ask("get").ends_with(1).await?.contains("no"));
        let shown = self.kind.shown.trim_end_matches("/it");
        let (plural, group) = shown.split_once('.').unwrap_or((shown, ""));
        let rule = json!({"apiGroups": [group], "resources": [format!("{plural}s")], "verbs": ["get"]});
        let list = |rules: Value| {
            let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
                "metadata": {"name": "reads", "namespace": "default"}, "rules": rules});
            let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": "reads", "namespace": "default"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reads"},
                "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]});
            json!({"apiVersion": "v1", "kind": "List", "items": [role, binding]}).to_string()
        };
        self.kubectl(&["auth", "reconcile", "-f", "-"]).input(&list(json!([rule]))).succeeds().await?;
        ensure!(ask("get").ends_with(0).await?.contains("yes"));
        ensure!(ask("delete").ends_with(1).await?.contains("no"));
        let all = self.kubectl(&["auth", "can-i", "--list", "--as", account]).succeeds().await?;
        let line = all.lines().find(|line| line.starts_with(&format!("{plural}s.{group}")));
        ensure!(line.is_some_and(|line| line.ends_with("[get]")), "{all}");
        // More rights are added to a role that is there, and those it has stay.
        let more = json!({"apiGroups": [group], "resources": [format!("{plural}s")], "verbs": ["delete"]});
        self.kubectl(&["auth", "reconcile", "-f", "-"]).input(&list(json!([more]))).succeeds().await?;
        ensure!(
            ask("get").ends_with(0).await?.contains("yes")
                && ask("delete").ends_with(0).await?.contains("yes")
        );
        let who = self.kubectl(&["auth", "whoami", "--as", account, "-o=json"]).succeeds().await?;
        let who: Value = serde_json::from_str(&who)?;
        ensure!(who["status"]["userInfo"]["username"] == account, "{who}");
        self.kubectl(&["delete", "role,rolebinding", "reads"]).succeeds().await.map(drop)
    }

    async fn replace(&self) -> Result<()> {
        let resource = self.kind.resource;
        let old = self.kubectl(&["get", resource, "it", "-o=json"]).succeeds().await?;
        self.tells(&self.with(7, &["replace"]).succeeds().await?, "replaced")?;
        self.field_is(7).await?;
        let said = self.kubectl(&["replace", "-f", "-"]).input(&old).ends_with(1).await?;
        ensure!(said.contains("the object has been modified"), "{said}");
        let uid = || self.kubectl(&["get", resource, "it", "-o=jsonpath={.metadata.uid}"]).succeeds();
        let before = uid().await?;
        self.with(1, &["replace", "--force"]).succeeds().await?;
        ensure!(uid().await? != before, "it is the same object");
        let said =
            self.kubectl(&["replace", "-f", "-"]).input(&self.kind.with(1).replace("\"it\"", "\"none\""));
        ensure!(said.ends_with(1).await?.contains("not found"));
        Ok(())
    }

    async fn wait(&self) -> Result<()> {
        let resource = self.kind.resource;
        let said = self
            .kubectl(&["wait", resource, "it", "--for", self.kind.waited, "--timeout=30s"])
            .succeeds()
            .await?;
        self.tells(&said, "condition met")?;
        let said =
            self.kubectl(&["wait", resource, "it", "--for=delete", "--timeout=0s"]).ends_with(1).await?;
        ensure!(said.contains("condition not met"), "{said}");
        let wait = self.kubectl(&["wait", resource, "later", "--for=create", "--timeout=30s"]).succeeds();
        let create = async {
            let later = self.kind.with(1).replace("\"it\"", "\"later\"");
            self.kubectl(&["create", "-f", "-"]).input(&later).succeeds().await
        };
        tokio::try_join!(wait, create)?;
        let gone = self.kubectl(&["wait", resource, "later", "--for=delete", "--timeout=30s"]).succeeds();
        let delete = self.kubectl(&["delete", resource, "later", "--wait=false"]).succeeds();
        tokio::try_join!(gone, delete)?;
        Ok(())
    }

    /// What else there is of one.
    async fn others(&self) -> Result<()> {
        let (resource, field) = (self.kind.resource, self.kind.field);
        self.kubectl(&["label", resource, "it", "a=b"]).succeeds().await?;
        self.kubectl(&["annotate", resource, "it", "c=d"]).succeeds().await?;
        for (type_, patch) in [
            ("merge", format!(r#"{{"spec":{{"{field}":2}}}}"#)),
            ("json", format!(r#"[{{"op":"replace","path":"/spec/{field}","value":2}}]"#)),
        ] {
            self.with(1, &["replace"]).succeeds().await?;
            self.kubectl(&["patch", resource, "it", "--type", type_, "-p", &patch]).succeeds().await?;
            self.field_is(2).await?;
        }
        self.kubectl(&["scale", resource, "it", "--replicas=3"]).succeeds().await?;
        self.field_is(3).await?;
        let columns = format!("custom-columns=N:.metadata.name,F:.spec.{field}");
        let said = self.kubectl(&["get", resource, "-o", &columns, "--sort-by", ".metadata.name"]);
        ensure!(said.succeeds().await?.lines().nth(1).is_some_and(|line| line.ends_with('3')));
        let said = self.kubectl(&["describe", resource, "it"]).succeeds().await?;
        ensure!(said.contains("Name:") && said.contains("it"), "{said}");
        let said =
            self.kubectl(&["get", resource, "--field-selector", "metadata.name!=it"]).ends_with(0).await?;
        ensure!(said.contains("No resources found"), "{said}");
        let status =
            self.kubectl(&["get", resource, "it", "--subresource=status", "-o=name"]).succeeds().await?;
        ensure!(status.trim() == self.kind.shown, "{status}");
        let said = self.kubectl(&["delete", resource, "--all"]).succeeds().await?;
        ensure!(said.contains("deleted"), "{said}");
        Ok(())
    }
}

async fn story(kind: Kind) -> Result<()> {
    let stage = Stage::set().await?;
    let crds = file("chart/crds");
    stage.kubectl(&["create", "-f", &crds]).succeeds().await?;
    stage.kubectl(&["wait", "--for=condition=Established", "-f", &crds]).succeeds().await?;
    let story = Story { stage: &stage, kind };
    story.apply().await?;
    story.diff().await?;
    story.edit().await?;
    story.explain().await?;
    story.auth().await?;
    story.replace().await?;
    story.wait().await?;
    story.others().await?;
    stage.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_does_all_that_it_can_to_a_kind_that_is_built_in() -> Result<()> {
    story(built_in()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_does_all_that_it_can_to_a_kind_that_is_defined() -> Result<()> {
    story(defined()).await
}
