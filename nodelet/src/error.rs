//! Why a nodelet could not start or had to end.

use std::io;
use std::path::PathBuf;

use skiff_cri::CriError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot create the directory {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the container runtime does not answer")]
    Runtime(#[source] CriError),
    #[error("cannot read this machine's {what}")]
    Machine {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the node API's certificate or key is not usable: {0}")]
    Certificate(String),
    #[error("cannot listen on {address} for the node API")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("node {node:?}: cannot register with the API server")]
    Register {
        node: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the {0} task ended unexpectedly")]
    TaskEnded(&'static str),
}
