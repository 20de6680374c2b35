//! Paths of the API that are Skiff's own, which its server and its nodes agree on.

/// All pods, as every node may see them: where they are, their labels and the ports of their containers. In the shapes of a list and a watch of pods.
pub const NODE_PODS: &str = "/skiff/node/pods";
