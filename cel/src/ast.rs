//! The tree of an expression, in one arena: what refers to a part holds its number, so that nothing recurses to drop it.

use std::sync::Arc;

pub(crate) type Name = Arc<str>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(u32);

impl NodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Clone, Debug)]
pub(crate) enum Node {
    Literal(Literal),
    Ident(Name),
    Select {
        operand: NodeId,
        field: Name,
        /// Whether only its presence is asked for.
        is_test: bool,
    },
    Call {
        function: Name,
        target: Option<NodeId>,
        args: Vec<NodeId>,
    },
    List(Vec<Item>),
    Map(Vec<Entry>),
    Message {
        name: Name,
        fields: Vec<Field>,
    },
    Fold(Box<Fold>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub value: NodeId,
    pub is_optional: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub key: NodeId,
    pub value: NodeId,
    pub is_optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub name: Name,
    pub value: NodeId,
    pub is_optional: bool,
    pub offset: usize,
}

/// What all macros that go through something become: a value is carried through a loop.
#[derive(Clone, Debug)]
pub(crate) struct Fold {
    pub range: NodeId,
    pub variable: Name,
    /// With it the first one is the key or the index, and this the value.
    pub second: Option<Name>,
    pub carried: Name,
    pub init: NodeId,
    pub condition: NodeId,
    pub step: NodeId,
    pub result: NodeId,
}

/// The name that macros carry their value under; no expression can write it.
pub(crate) const CARRIED: &str = "@result";

#[derive(Clone, Debug, Default)]
pub(crate) struct Ast {
    nodes: Vec<Node>,
    /// Where each part begins in the text.
    offsets: Vec<usize>,
    /// How deep each part is.
    heights: Vec<u16>,
}

impl Ast {
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    pub(crate) fn offset(&self, id: NodeId) -> usize {
        self.offsets[id.index()]
    }

    pub(crate) fn height(&self, id: NodeId) -> u16 {
        self.heights[id.index()]
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn replace(&mut self, id: NodeId, node: Node) {
        self.nodes[id.index()] = node;
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    pub(crate) fn add(&mut self, offset: usize, node: Node) -> NodeId {
        let mut height = 0;
        each_child(&node, |child| height = height.max(self.height(child)));
        self.nodes.push(node);
        self.offsets.push(offset);
        self.heights.push(height.saturating_add(1));
        NodeId((self.nodes.len() - 1) as u32)
    }

    /// What a part is made of.
    pub(crate) fn each_child(&self, id: NodeId, see: impl FnMut(NodeId)) {
        each_child(self.node(id), see);
    }

    /// A part once more; the parts of a part precede it.
    pub(crate) fn copy(&mut self, id: NodeId) -> NodeId {
        let mut node = self.node(id).clone();
        each_child_mut(&mut node, |child| *child = self.copy(*child));
        self.add(self.offset(id), node)
    }
}

fn each_child(node: &Node, mut see: impl FnMut(NodeId)) {
    let mut node = node.clone();
    each_child_mut(&mut node, |child| see(*child));
}

fn each_child_mut(node: &mut Node, mut see: impl FnMut(&mut NodeId)) {
    match node {
        Node::Literal(_) | Node::Ident(_) => {}
        Node::Select { operand, .. } => see(operand),
        Node::Call { target, args, .. } => target.iter_mut().chain(args).for_each(see),
        Node::List(items) => items.iter_mut().for_each(|item| see(&mut item.value)),
        Node::Map(entries) => {
            for entry in entries {
                see(&mut entry.key);
                see(&mut entry.value);
            }
        }
        Node::Message { fields, .. } => fields.iter_mut().for_each(|field| see(&mut field.value)),
        Node::Fold(fold) => {
            let Fold { range, init, condition, step, result, .. } = fold.as_mut();
            [range, init, condition, step, result].into_iter().for_each(see);
        }
    }
}
