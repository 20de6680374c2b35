//! The nodes of a cluster that has several.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::TestCluster;
use crate::drills::Process;

/// Where one node has what.
#[derive(Clone, Debug)]
pub struct NodePaths {
    pub name: String,
    pub data: PathBuf,
    pub run: PathBuf,
    pub netns: PathBuf,
    pub cgroup: String,
}

impl TestCluster {
    /// The first is the server's.
    pub fn nodes(&self) -> Vec<NodePaths> {
        (1..=self.shape.n_nodes).map(|number| self.node(number)).collect()
    }

    /// Nodes are counted from 1.
    pub fn node(&self, number: u8) -> NodePaths {
        let base = |root: &str| Path::new(root).join("skiff/clusters").join(&self.name);
        let below = |base: PathBuf| match number {
            1 => base,
            _ => base.join("nodes").join(number.to_string()),
        };
        let run = below(base("/run"));
        let group = format!("skiff-{}", self.name);
        NodePaths {
            name: format!("{}-{number}", self.name),
            data: below(base("/var/lib")),
            netns: run.join("net"),
            run,
            cgroup: if number == 1 { group } else { format!("{group}.{number}") },
        }
    }

    /// The agent of the second node or one after it, to do something to.
    pub fn agent(&self, number: u8) -> Result<Process> {
        let record = std::fs::read(self.record()).context("reading the cluster's record")?;
        let record: Value = serde_json::from_slice(&record)?;
        let pid =
            record["agents"][usize::from(number) - 2]["pid"].as_i64().context("the node has no agent")?;
        Process::open(i32::try_from(pid)?)
    }
}
