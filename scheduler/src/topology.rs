//! Which nodes share a value of a label: what pods are counted by.
//!
//! Looking a label up in a node's map, for every node of every decision, is what a large cluster cannot afford. So each
//! label that somebody asks about is a column: a small number for each node, made once and kept up with the nodes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

/// A node's place in tables. It is given away again once the node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(pub(crate) u32);

impl NodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Columns kept. Past this many all are made anew as they are asked for: names of labels are up to whoever makes pods.
const MAX_COLUMNS: usize = 64;
/// Values that no node has any longer stay in a column until they are so many times those that are.
const MAX_STALE: usize = 4;

/// One label of all nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Column {
    /// By node: 0 without the label, else one more than the value's number.
    of_node: Vec<u32>,
    numbers: HashMap<String, u32>,
}

impl Column {
    fn set(&mut self, node: NodeId, value: Option<&String>) {
        let number = match value {
            None => 0,
            Some(value) => match self.numbers.get(value) {
                Some(number) => *number,
                None => {
                    let number = self.numbers.len() as u32 + 1;
                    self.numbers.insert(value.clone(), number);
                    number
                }
            },
        };
        if self.of_node.len() <= node.index() {
            self.of_node.resize(node.index() + 1, 0);
        }
        self.of_node[node.index()] = number;
    }

    /// The number of the value that a node has.
    pub(crate) fn value(&self, node: NodeId) -> Option<usize> {
        let number = self.of_node.get(node.index()).copied()?;
        (number as usize).checked_sub(1)
    }

    /// Numbers are below this.
    pub(crate) fn n_values(&self) -> usize {
        self.numbers.len()
    }

    /// All values that there are, or were, with their numbers.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&str, usize)> {
        self.numbers.iter().map(|(value, number)| (value.as_str(), *number as usize - 1))
    }
}

/// The columns that somebody has asked for.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    columns: RefCell<HashMap<String, Arc<Column>>>,
}

impl Topology {
    /// The column of a label, made from `nodes` if this is the first time.
    pub(crate) fn column<'n>(
        &self,
        key: &str,
        nodes: impl Iterator<Item = (NodeId, &'n Node)>,
    ) -> Arc<Column> {
        let mut columns = self.columns.borrow_mut();
        if let Some(column) = columns.get(key) {
            return column.clone();
        }
        if columns.len() >= MAX_COLUMNS {
            columns.clear();
        }
        let mut column = Column::default();
        nodes.for_each(|(id, node)| column.set(id, label(node, key)));
        let column = Arc::new(column);
        columns.insert(key.to_owned(), column.clone());
        column
    }

    /// A node has come, changed or, without one, gone.
    pub(crate) fn set(&mut self, id: NodeId, node: Option<&Node>) {
        self.columns.get_mut().retain(|key, column| {
            let column = Arc::make_mut(column);
            column.set(id, node.and_then(|node| label(node, key)));
            column.numbers.len() <= MAX_STALE * (column.of_node.len() + 1)
        });
    }
}

fn label<'n>(node: &'n Node, key: &str) -> Option<&'n String> {
    node.metadata.labels.as_ref()?.get(key)
}

/// Amounts by the value that nodes have of a label.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    column: Arc<Column>,
    amounts: Vec<i64>,
}

impl Tally {
    pub(crate) fn new(column: Arc<Column>) -> Tally {
        Tally { amounts: vec![0; column.n_values()], column }
    }

    pub(crate) fn add(&mut self, node: NodeId, by: i64) {
        if let Some(value) = self.column.value(node) {
            self.amounts[value] += by;
        }
    }

    /// What was added for the nodes that have the same value as this one; `None` if it has none.
    pub(crate) fn at(&self, node: NodeId) -> Option<i64> {
        self.column.value(node).map(|value| self.amounts[value])
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.amounts.iter().all(|amount| *amount == 0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(zone: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"labels": {"zone": zone}}})).unwrap()
    }

    #[test]
    fn a_column_follows_the_nodes() {
        let mut topology = Topology::default();
        let nodes = [node("a"), node("b"), node("a")];
        let all = || (0..).map(NodeId).zip(&nodes);
        let column = topology.column("zone", all());
        let value = |column: &Column, id| column.value(NodeId(id));
        assert_eq!(value(&column, 0), value(&column, 2));
        assert_ne!(value(&column, 0), value(&column, 1));
        assert_eq!(topology.column("absent", all()).value(NodeId(0)), None);
        drop(column);
        topology.set(NodeId(0), Some(&node("b")));
        topology.set(NodeId(1), None);
        topology.set(NodeId(7), Some(&node("c")));
        let column = topology.column("zone", std::iter::empty());
        assert_eq!((value(&column, 0), value(&column, 1)), (Some(1), None));
        assert_eq!((value(&column, 7), value(&column, 5)), (Some(2), None));
    }

    #[test]
    fn values_that_come_and_go_do_not_pile_up() {
        let mut topology = Topology::default();
        topology.column("zone", std::iter::empty());
        for n in 0..1000 {
            topology.set(NodeId(0), Some(&node(&n.to_string())));
        }
        let last = node("999");
        let column = topology.column("zone", std::iter::once((NodeId(0), &last)));
        assert!(column.n_values() <= 2 * MAX_STALE, "{}", column.n_values());
        for n in 0..1000 {
            topology.column(&n.to_string(), std::iter::empty());
        }
        assert!(topology.columns.borrow().len() <= MAX_COLUMNS);
    }
}
