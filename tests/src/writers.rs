//! Writes that are counted: which were acknowledged, and which were sent and not answered. What the API has acknowledged must be
//! there, once, whatever happens to the server.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// For an answer that may never come.
const PATIENCE: Duration = Duration::from_secs(30);
const LABEL: (&str, &str) = ("drill", "writes");

/// What one writer has seen.
#[derive(Debug, Default)]
struct Written {
    acknowledged: Vec<String>,
    /// Sent, but the answer was lost: it may be there, once, or not.
    unknown: Option<String>,
}

/// Writers that write until they get no answer.
#[derive(Debug)]
pub struct Writers {
    tasks: Vec<JoinHandle<Result<Written>>>,
    n_acknowledged: Arc<AtomicUsize>,
}

impl Writers {
    /// Starts so many; what they write is of this round.
    pub fn start(runtime: &Runtime, client: &Client, round: usize, n_writers: usize) -> Writers {
        let n_acknowledged = Arc::new(AtomicUsize::new(0));
        let start = |writer| {
            let maps = Api::default_namespaced(client.clone());
            runtime.spawn(write(maps, format!("{round}-{writer}"), n_acknowledged.clone()))
        };
        Writers { tasks: (0..n_writers).map(start).collect(), n_acknowledged }
    }

    pub fn n_acknowledged(&self) -> usize {
        self.n_acknowledged.load(Ordering::Relaxed)
    }

    /// Adds what they wrote to what is known, once they have all ended.
    pub async fn end(self, known: &mut Known) -> Result<()> {
        for task in self.tasks {
            let written = task.await.context("a writer panicked")??;
            known.acknowledged.extend(written.acknowledged);
            known.unknown.extend(written.unknown);
        }
        Ok(())
    }
}

/// Creates objects whose names the server makes up, so that a write done twice would be there twice.
async fn write(maps: Api<ConfigMap>, whose: String, n_acknowledged: Arc<AtomicUsize>) -> Result<Written> {
    let mut written = Written::default();
    for n in 0_usize.. {
        let value = format!("{whose}-{n}");
        let map = ConfigMap {
            metadata: ObjectMeta {
                generate_name: Some("drill-".into()),
                labels: Some([(LABEL.0.to_owned(), LABEL.1.to_owned())].into()),
                ..ObjectMeta::default()
            },
            data: Some([("value".to_owned(), value.clone())].into()),
            ..ConfigMap::default()
        };
        match tokio::time::timeout(PATIENCE, maps.create(&PostParams::default(), &map)).await {
            Ok(Ok(_)) => {
                written.acknowledged.push(value);
                n_acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Err(kube::Error::Api(status))) if status.code < 500 => {
                return Err(kube::Error::Api(status)).context("a write is refused");
            }
            Ok(Err(_)) | Err(_) => {
                written.unknown = Some(value);
                break;
            }
        }
    }
    Ok(written)
}

/// What must be there, and what may be.
#[derive(Debug, Default)]
pub struct Known {
    acknowledged: HashSet<String>,
    unknown: HashSet<String>,
}

/// What a look found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub n_lost: usize,
    pub n_twice: usize,
    /// There though nobody wrote it, or though it was not there before.
    pub n_strange: usize,
    /// Of those without an answer.
    pub n_unknown_there: usize,
    pub n_unknown_missing: usize,
}

impl Found {
    /// Adds what another look found.
    pub fn add(&mut self, other: &Found) {
        self.n_lost += other.n_lost;
        self.n_twice += other.n_twice;
        self.n_strange += other.n_strange;
        self.n_unknown_there += other.n_unknown_there;
        self.n_unknown_missing += other.n_unknown_missing;
    }
}

impl Known {
    pub fn n_acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// Compares what is stored with it. What has been seen must stay: from here on it counts as acknowledged.
    pub fn compare(&mut self, stored: Vec<String>) -> Found {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for value in stored {
            *counts.entry(value).or_default() += 1;
        }
        let mut found = Found { n_twice: counts.values().filter(|n| **n > 1).count(), ..Found::default() };
        let before = self.acknowledged.len();
        self.acknowledged.retain(|value| counts.remove(value).is_some());
        found.n_lost = before - self.acknowledged.len();
        for value in std::mem::take(&mut self.unknown) {
            if counts.remove(&value).is_some() {
                found.n_unknown_there += 1;
                self.acknowledged.insert(value);
            } else {
                found.n_unknown_missing += 1;
            }
        }
        found.n_strange = counts.len();
        found
    }
}

/// The values of all that was written and is there.
pub async fn stored(client: &Client) -> Result<Vec<String>> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let list = maps.list(&ours()).await.context("reading what was written")?;
    list.into_iter()
        .map(|map| map.data.and_then(|mut data| data.remove("value")).context("a map without its value"))
        .collect()
}

/// Takes away all that was written.
pub async fn clear(client: &Client) -> Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    maps.delete_collection(&DeleteParams::default(), &ours()).await.context("deleting what was written")?;
    Ok(())
}

fn ours() -> ListParams {
    ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts<const N: usize>(values: [&str; N]) -> Vec<String> {
        values.map(str::to_owned).to_vec()
    }

    #[test]
    fn what_is_lost_there_twice_or_nobodys_is_counted_and_what_was_seen_must_stay() {
        let mut known = Known::default();
        known.acknowledged.extend(texts(["a", "b", "c"]));
        known.unknown.extend(texts(["d", "e"]));
        let found = known.compare(texts(["a", "b", "b", "d", "x"]));
        let wanted = Found { n_lost: 1, n_twice: 1, n_strange: 1, n_unknown_there: 1, n_unknown_missing: 1 };
        assert_eq!(found, wanted);
        assert_eq!(known.compare(texts(["a", "b"])), Found { n_lost: 1, ..Found::default() }, "d was there");
        assert_eq!(known.compare(texts(["a", "b", "e"])).n_strange, 1, "e was not there");
    }
}
