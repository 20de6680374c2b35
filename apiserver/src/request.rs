//! What a request is about: [`RequestInfo`], read from its method, path and query alone.
//!
//! Source: the API's URL layout as kube-apiserver's request info resolver has it, with the legacy
//! `/api/v1/watch/…` paths.

use std::time::Duration;

use skiff_api::paths::NODE_PODS;
use skiff_api::{FieldSelector, LabelSelector};

/// The query's parameters, decoded, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: &str) -> Query {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, Plus::IsSpace), decode(value, Plus::IsSpace))
        });
        Query(pairs.collect())
    }

    /// The first value of a parameter; `None` if it is absent.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The same, with an empty value as good as none.
    pub(crate) fn non_empty(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }

    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A flag: absent is false.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(is_true)
    }
}

/// A duration as Go's `time.ParseDuration` reads it, such as `1m30s`; what is negative counts as none.
///
/// # Errors
/// Go's own sentence.
pub fn duration(text: &str) -> Result<Duration, String> {
    let ns = skiff_api::duration::go_duration_ns(text)?;
    Ok(Duration::from_nanos(u64::try_from(ns).unwrap_or(0)))
}

/// A flag's value as Kubernetes reads them (apimachinery's `Convert_Slice_string_To_bool`): all but `0` and `false`, in
/// capitals or not, is true. Python's clients write `False`.
pub(crate) fn is_true(value: &str) -> bool {
    !(value == "0" || value.eq_ignore_ascii_case("false"))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plus {
    IsSpace,
    IsPlus,
}

fn decode(text: &str, plus: Plus) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let escape = (bytes[at] == b'%')
            .then(|| Some(hex(*bytes.get(at + 1)?)? << 4 | hex(*bytes.get(at + 2)?)?))
            .flatten();
        match (escape, bytes[at]) {
            (Some(byte), _) => {
                out.push(byte);
                at += 3;
                continue;
            }
            (None, b'+') if plus == Plus::IsSpace => out.push(b' '),
            (None, byte) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A text without its percent-encoding.
pub(crate) fn decoded(text: &str) -> String {
    decode(text, Plus::IsPlus)
}

/// Percent-encodes everything but what is safe in any part of a URL.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// One requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LabelTerm {
    pub(crate) key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`.
    pub(crate) operator: &'static str,
    pub(crate) values: Vec<String>,
}

impl LabelTerm {
    /// The requirements of a selector.
    pub(crate) fn of(selector: &LabelSelector) -> Vec<LabelTerm> {
        let written = selector.requirements().into_iter();
        let term = |(key, operator, values): (&str, _, &[String])| LabelTerm {
            key: key.to_owned(),
            operator,
            values: values.to_vec(),
        };
        written.map(term).collect()
    }
}

/// Where a request's name stands. What is authorized by a name must be what is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NamedBy {
    #[default]
    Path,
    FieldSelector,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestInfo {
    /// Whether the path names a resource; otherwise only `path` and `verb` mean anything.
    pub(crate) is_resource: bool,
    pub(crate) path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; of a path that is no
    /// resource the method in lower case.
    pub(crate) verb: String,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    /// Of a collection whose field selector asks for one name, that one.
    pub(crate) name: String,
    pub(crate) named_by: NamedBy,
    /// The terms of a collection's field selector: field, whether it must be equal, value. Authorization may
    /// depend on them.
    pub(crate) fields: Vec<(String, bool, String)>,
    /// The requirements of a collection's label selector, for the same reason.
    pub(crate) labels: Vec<LabelTerm>,
    /// What follows the subresource, such as the path of a proxy request.
    pub(crate) rest: Vec<String>,
    /// Of a path that is no resource: it is answered as this list or watch.
    pub(crate) answered_as: Option<&'static str>,
}

impl RequestInfo {
    pub(crate) fn parse(method: &str, path: &str, query: &Query) -> RequestInfo {
        let mut info = RequestInfo {
            path: path.to_owned(),
            verb: method.to_ascii_lowercase(),
            ..RequestInfo::default()
        };
        let parts: Vec<String> =
            path.trim_matches('/').split('/').map(|part| decode(part, Plus::IsPlus)).collect();
        let mut parts = parts.as_slice();
        match parts {
            [api, version, _, ..] if api == "api" => {
                info.version.clone_from(version);
                parts = &parts[2..];
            }
            [apis, group, version, _, ..] if apis == "apis" => {
                info.group.clone_from(group);
                info.version.clone_from(version);
                parts = &parts[3..];
            }
            _ => {
                if path == NODE_PODS && method == "GET" {
                    info.answered_as = Some(if query.flag("watch") { "watch" } else { "list" });
                }
                return info;
            }
        }
        info.is_resource = true;
        info.verb = match method {
            "GET" | "HEAD" => "get",
            "POST" => "create",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" => "delete",
            _ => "",
        }
        .to_owned();
        if parts[0] == "watch" && parts.len() > 1 {
            info.verb = "watch".to_owned();
            parts = &parts[1..];
        }
        info.locate(parts);
        info.refine_verb(query);
        info
    }

    /// Whether it is about namespaces themselves, whose name stands where a namespace does.
    pub(crate) fn is_of_namespaces(&self) -> bool {
        self.group.is_empty() && self.resource == "namespaces"
    }

    /// Reads `namespaces/<ns>/<resource>/<name>/<subresource>/…` and its shorter forms.
    fn locate(&mut self, mut parts: &[String]) {
        if let [namespaces, namespace, rest @ ..] = parts
            && namespaces == "namespaces"
        {
            self.namespace.clone_from(namespace);
            // These two belong to the namespace itself; anything else is a resource within it.
            if rest.first().is_some_and(|next| next != "status" && next != "finalize") {
                parts = rest;
            }
        }
        let mut parts = parts.iter().cloned();
        self.resource = parts.next().unwrap_or_default();
        self.name = parts.next().unwrap_or_default();
        self.subresource = parts.next().unwrap_or_default();
        self.rest = parts.collect();
    }

    fn refine_verb(&mut self, query: &Query) {
        match self.verb.as_str() {
            "get" if self.name.is_empty() => {
                self.verb = if query.flag("watch") { "watch" } else { "list" }.to_owned();
            }
            "delete" if self.name.is_empty() => self.verb = "deletecollection".to_owned(),
            _ => {}
        }
        if matches!(self.verb.as_str(), "list" | "watch" | "deletecollection") {
            let selector = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default());
            // One that cannot be read is refused where it is applied.
            self.fields = selector.map(|s| s.terms).unwrap_or_default();
            if let Some(Ok(selector)) = query.non_empty("labelSelector").map(LabelSelector::parse) {
                self.labels = LabelTerm::of(&selector);
            }
            // Not so of a deletion, as upstream: who may delete one object may not delete collections.
            if self.name.is_empty() && self.verb != "deletecollection" {
                let named = self.fields.iter().find(|(f, equal, _)| f == "metadata.name" && *equal);
                if let Some((_, _, name)) = named {
                    self.name.clone_from(name);
                    self.named_by = NamedBy::FieldSelector;
                }
            }
        }
    }

    /// Whether changes are told.
    pub(crate) fn is_watch(&self) -> bool {
        self.answered_as.unwrap_or(&self.verb) == "watch"
    }

    /// What a path that is no resource is answered as.
    pub(crate) fn of_node_pods(&self) -> Option<RequestInfo> {
        Some(RequestInfo {
            is_resource: true,
            path: self.path.clone(),
            verb: self.answered_as?.to_owned(),
            version: "v1".to_owned(),
            resource: "pods".to_owned(),
            ..RequestInfo::default()
        })
    }

    /// Whether the request goes on for as long as the client likes.
    pub(crate) fn is_long_running(&self) -> bool {
        self.is_watch()
            || matches!(self.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy" | "log")
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(request: &str, expected: Expect) {
        let (method, url) = request.split_once(' ').expect("a method and a URL");
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let i = RequestInfo::parse(method, path, &Query::parse(query));
        let shown = if i.is_resource {
            format!(
                "{} group={} version={} ns={} {} name={} rest={:?}",
                i.verb,
                i.group,
                i.version,
                i.namespace,
                if i.subresource.is_empty() {
                    i.resource.clone()
                } else {
                    format!("{}/{}", i.resource, i.subresource)
                },
                i.name,
                i.rest
            )
        } else {
            format!("{} {}", i.verb, i.path)
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn paths_of_resources() {
        check("GET /api/v1/pods", expect!["list group= version=v1 ns= pods name= rest=[]"]);
        check("GET /api/v1/pods?watch=true", expect!["watch group= version=v1 ns= pods name= rest=[]"]);
        check("GET /api/v1/pods?watch=False", expect!["list group= version=v1 ns= pods name= rest=[]"]);
        check("GET /api/v1/pods?watch=0", expect!["list group= version=v1 ns= pods name= rest=[]"]);
        check("GET /api/v1/namespaces", expect!["list group= version=v1 ns= namespaces name= rest=[]"]);
        check("GET /api/v1/namespaces/a", expect!["get group= version=v1 ns=a namespaces name=a rest=[]"]);
        check(
            "PUT /api/v1/namespaces/a/finalize",
            expect!["update group= version=v1 ns=a namespaces/finalize name=a rest=[]"],
        );
        check("POST /api/v1/namespaces/a/pods", expect!["create group= version=v1 ns=a pods name= rest=[]"]);
        check(
            "GET /apis/apps/v1/namespaces/a/deployments/b/scale",
            expect!["get group=apps version=v1 ns=a deployments/scale name=b rest=[]"],
        );
        check(
            "DELETE /apis/apps/v1/namespaces/a/deployments",
            expect!["deletecollection group=apps version=v1 ns=a deployments name= rest=[]"],
        );
        check(
            "GET /api/v1/namespaces/a/services/b:80/proxy/x/y%2Fz",
            expect![[r#"get group= version=v1 ns=a services/proxy name=b:80 rest=["x", "y/z"]"#]],
        );
    }

    #[test]
    fn legacy_watch_paths() {
        check("GET /api/v1/watch/pods", expect!["watch group= version=v1 ns= pods name= rest=[]"]);
        check(
            "GET /api/v1/watch/namespaces/a/pods/b",
            expect!["watch group= version=v1 ns=a pods name=b rest=[]"],
        );
    }

    #[test]
    fn a_field_selector_on_the_name_names_the_object() {
        check(
            "GET /api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Db&watch=1",
            expect!["watch group= version=v1 ns=a pods name=b rest=[]"],
        );
    }

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let ms = |text: &str| duration(text).map(|d| d.as_millis());
        for (text, expected) in
            [("0", 0), ("1.5s", 1500), ("1m30s", 90_000), ("2h", 7_200_000), ("-1s", 0), (".5s", 500)]
        {
            assert_eq!(ms(text), Ok(expected), "{text}");
        }
        assert_eq!(ms("10").unwrap_err(), "time: missing unit in duration \"10\"");
        assert_eq!(ms("1x").unwrap_err(), "time: unknown unit \"x\" in duration \"1x\"");
        for text in ["", "-", "s", "1..2s", "99999999999h"] {
            assert_eq!(ms(text).unwrap_err(), format!("time: invalid duration {text:?}"));
        }
    }

    #[test]
    fn flags_are_false_as_upstream_reads_them() {
        for (value, expected) in [
            ("false", false),
            ("False", false),
            ("FALSE", false),
            ("0", false),
            ("", true),
            ("no", true),
            ("1", true),
        ] {
            assert_eq!(is_true(value), expected, "{value:?}");
        }
    }

    #[test]
    fn other_paths() {
        check("GET /healthz", expect!["get /healthz"]);
        check("GET /api", expect!["get /api"]);
        check("GET /api/v1", expect!["get /api/v1"]);
        check("GET /apis/apps/v1/", expect!["get /apis/apps/v1/"]);
        check("GET /", expect!["get /"]);
    }

    #[test]
    fn queries_decode() {
        let query = Query::parse("a=1&b=x%20y+z&c&a=2&bad=%zz");
        assert_eq!(query.get("b"), Some("x y z"));
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert!(query.flag("c"));
        assert_eq!(query.get("bad"), Some("%zz"));
    }

    proptest! {
        #[test]
        fn no_request_panics(method in "[A-Z]{0,7}", path in "/?(api|apis|watch|namespaces|[a-z%/]{0,8}|/){0,9}", query in ".{0,40}") {
            RequestInfo::parse(&method, &path, &Query::parse(&query));
        }

        #[test]
        fn what_is_encoded_decodes_again(text in ".{0,60}") {
            prop_assert_eq!(decode(&encode(&text), Plus::IsPlus), text);
        }
    }
}
