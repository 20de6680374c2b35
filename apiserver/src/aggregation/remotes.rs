//! What others serve, as it is published with the table of kinds.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::peer::Peer;
use super::priorities::Priority;
use super::told::Told;
use crate::request::decoded;

/// What others serve, at one moment.
#[derive(Default)]
pub(crate) struct Aggregated {
    /// By group and version.
    pub(super) remotes: BTreeMap<(String, String), Arc<Remote>>,
}

/// A group and version that another server serves.
pub(crate) struct Remote {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) priority: Priority,
    pub(crate) told: Arc<Told>,
    pub(super) is_available: bool,
    pub(super) peer: Arc<Peer>,
}

impl Remote {
    fn says_the_same(&self, other: &Remote) -> bool {
        let is_same = Arc::ptr_eq(&self.told, &other.told) && Arc::ptr_eq(&self.peer, &other.peer);
        is_same && self.priority == other.priority && self.is_available == other.is_available
    }
}

impl Aggregated {
    pub(super) fn says_the_same(&self, other: &Aggregated) -> bool {
        let mut both = self.remotes.values().zip(other.remotes.values());
        self.remotes.keys().eq(other.remotes.keys()) && both.all(|(a, b)| a.says_the_same(b))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.remotes.is_empty()
    }

    pub(crate) fn remotes(&self) -> impl Iterator<Item = &Arc<Remote>> {
        self.remotes.values()
    }

    pub(crate) fn has(&self, group: &str, version: &str) -> bool {
        !self.is_empty() && self.remotes.contains_key(&(group.to_owned(), version.to_owned()))
    }

    /// Who serves a path, if it is another server.
    pub(crate) fn serving(&self, path: &str) -> Option<&Arc<Remote>> {
        if self.is_empty() {
            return None;
        }
        let mut steps = path.trim_start_matches('/').split('/');
        let mut step = || steps.next().map(decoded);
        if step()? != "apis" {
            return None;
        }
        self.remotes.get(&(step()?, step()?))
    }

    /// Who serves the OpenAPI document of version 3 at a path.
    pub(crate) fn describing(&self, path: &str) -> Option<&Arc<Remote>> {
        self.serving(path.strip_prefix("/openapi/v3")?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::peer::{ServicePort, Trust};
    use super::*;

    #[test]
    fn a_path_is_anothers_by_its_first_three_steps() {
        let service = json!({"spec": {"service": {"namespace": "a", "name": "s"}}});
        let to = ServicePort::of(&service).expect("a Service");
        let peer = Arc::new(Peer::new(to, Trust::Anybody, Err("nobody is asked".to_owned())));
        let priority = Priority { group: 1, version: 1 };
        let (group, version, told) = ("g.example".to_owned(), "v1".to_owned(), Arc::default());
        let remote = Arc::new(Remote {
            group: group.clone(),
            version: version.clone(),
            priority,
            told,
            is_available: true,
            peer,
        });
        let all = Aggregated { remotes: BTreeMap::from([((group, version), remote)]) };
        for theirs in [
            "/apis/g.example/v1",
            "/apis/g.example/v1/",
            "//apis/g.example/v1/foos/a",
            "/apis/g%2Eexample/v1/x",
        ] {
            assert!(all.serving(theirs).is_some(), "{theirs}");
        }
        for ours in
            ["/apis/g.example", "/apis/g.example/v12/x", "/api/g.example/v1", "/apis/other/v1", "/", ""]
        {
            assert!(all.serving(ours).is_none(), "{ours}");
        }
        assert!(all.describing("/openapi/v3/apis/g.example/v1").is_some());
        assert!(all.describing("/openapi/v2/apis/g.example/v1").is_none());
    }
}
