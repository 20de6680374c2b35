//! Where the cluster is kept: in a file of this server's own, or in an etcd that several servers share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use skiff_apiserver::store::{
    EtcdOptions, EtcdStore, EtcdTls, Range, SqliteOptions, SqliteStore, Store, StoreError, Write, Written,
};
use tracing::warn;

use crate::complaint::Complaint;
use crate::layout::Layout;
use crate::token::ca_hash;

const LOOK_AGAIN: Duration = Duration::from_secs(1);
const OBJECTS: &str = "/registry/";
/// Whose certificates the servers of the cluster sign: the hash of the authority's public key.
const AUTHORITY: &str = "/skiff/authority";

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DatastoreArgs {
    /// Keep the cluster in etcd, at these URLs of its members, instead of a file of this server's own; other servers may share it
    #[arg(long, value_name = "URL", value_delimiter = ',', env = "SKIFF_DATASTORE")]
    pub(crate) datastore: Vec<String>,
    /// The CA, in PEM, of the certificates that the members of etcd show
    #[arg(long, value_name = "FILE", requires = "datastore")]
    pub(crate) datastore_cafile: Option<PathBuf>,
    /// The certificate, in PEM, that this server shows to etcd
    #[arg(long, value_name = "FILE", requires_all = ["datastore", "datastore_keyfile"])]
    pub(crate) datastore_certfile: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long, value_name = "FILE", requires_all = ["datastore", "datastore_certfile"])]
    pub(crate) datastore_keyfile: Option<PathBuf>,
}

impl DatastoreArgs {
    pub(crate) fn is_shared(&self) -> bool {
        !self.datastore.is_empty()
    }

    /// Opens the store. One whose members are away is waited for.
    pub(crate) async fn open(&self, layout: &Layout, authority_pem: &str) -> Result<Arc<dyn Store>> {
        if !self.is_shared() {
            let store = SqliteStore::open(SqliteOptions::new(layout.database()));
            return Ok(Arc::new(store.context("opening the cluster's database")?));
        }
        let options = EtcdOptions { tls: self.tls()?, ..EtcdOptions::new(self.datastore.iter().cloned()) };
        let mut complaint = Complaint::default();
        let store = loop {
            match EtcdStore::open(options.clone()).await {
                Err(error @ (StoreError::Away { .. } | StoreError::TimedOut { .. })) => {
                    if complaint.is_due() {
                        warn!(error = &error as &dyn std::error::Error, "waiting for the datastore");
                    }
                }
                opened => break opened.context("opening the datastore")?,
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        require_cluster(&store, layout).await?;
        require_authority(&store, authority_pem, &layout.pki()).await?;
        Ok(Arc::new(store))
    }

    fn tls(&self) -> Result<Option<EtcdTls>> {
        let read =
            |path: &PathBuf| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
        let ca_pem = self.datastore_cafile.as_ref().map(read).transpose()?;
        let client_pem = match (&self.datastore_certfile, &self.datastore_keyfile) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        let is_given = ca_pem.is_some() || client_pem.is_some();
        Ok(is_given.then_some(EtcdTls { ca_pem, client_pem }))
    }
}

/// A server that has a node had a cluster. Over an empty store it would begin an empty one, and end whatever runs.
async fn require_cluster(store: &dyn Store, layout: &Layout) -> Result<()> {
    let record = layout.node_record();
    if !record.exists() {
        return Ok(());
    }
    let found = store.range(Range { limit: Some(1), ..Range::prefix(OBJECTS) }).await;
    if !found.context("looking at what the datastore holds")?.items.is_empty() {
        return Ok(());
    }
    bail!(
        "the datastore is empty, though a node of a cluster was kept here ({} is there): name the datastore that has the cluster, or \
         restore a backup of it; to begin an empty cluster, remove {} first",
        record.display(),
        record.display()
    )
}

/// Nodes and administrators of the cluster trust one authority: a server with another could not be spoken to.
async fn require_authority(store: &dyn Store, authority_pem: &str, pki: &Path) -> Result<()> {
    let own = ca_hash(authority_pem.as_bytes())?;
    let written = store.write(Write::create(AUTHORITY, own.clone())).await;
    let current = match written.context("recording the cluster's authority in the datastore")? {
        Written::Done { .. } => return Ok(()),
        Written::Mismatch { current } => current.map(|found| found.value).unwrap_or_default(),
    };
    if current == own.as_bytes() {
        return Ok(());
    }
    bail!(
        "the cluster in the datastore has another authority ({}) than {} ({own}): copy ca.crt and ca.key there from a server of that \
         cluster, in place of those that are there",
        String::from_utf8_lossy(&current),
        pki.display()
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::pki::{Clock, Pki, write_private};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        datastore: DatastoreArgs,
    }

    #[test]
    fn endpoints_are_a_list_and_a_certificate_needs_its_key() {
        let parse = |line: &[&str]| Line::try_parse_from([&["skiff"], line].concat());
        let args = parse(&["--datastore", "https://a:2379,https://b:2379"]).unwrap().datastore;
        assert_eq!(args.datastore, ["https://a:2379", "https://b:2379"]);
        assert!(args.is_shared() && args.tls().unwrap().is_none());
        assert!(!parse(&[]).unwrap().datastore.is_shared());
        assert!(parse(&["--datastore-cafile", "/ca"]).is_err());
        assert!(parse(&["--datastore", "https://a", "--datastore-certfile", "/crt"]).is_err());
        let missing = parse(&["--datastore", "https://a", "--datastore-cafile", "/no/such/file"]).unwrap();
        assert!(missing.datastore.tls().unwrap_err().to_string().contains("/no/such/file"));
    }

    /// Whatever store it is, as the checks see it.
    fn store(folder: &Path) -> SqliteStore {
        SqliteStore::open(SqliteOptions::new(folder.join("shared.db"))).unwrap()
    }

    #[tokio::test]
    async fn a_server_with_another_authority_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        let authority = |path: &Path| Pki::open(path, Clock::Checked).unwrap().ca_pem();
        require_authority(&store, &authority(&one), &one).await.unwrap();
        require_authority(&store, &authority(&one), &one).await.unwrap();
        let refused = require_authority(&store, &authority(&other), &other).await.unwrap_err().to_string();
        assert!(
            refused.contains("another authority") && refused.contains("copy ca.crt and ca.key"),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn an_empty_datastore_under_a_node_is_no_new_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let mut layout = Layout::of_cluster("test", Path::new("/none"));
        layout.data_dir = folder.path().to_owned();
        require_cluster(&store, &layout).await.unwrap();
        write_private(&layout.node_record(), "{}").unwrap();
        let refused = require_cluster(&store, &layout).await.unwrap_err().to_string();
        assert!(refused.contains("the datastore is empty"), "{refused}");
        store.write(Write::create("/registry/namespaces/default", "{}")).await.unwrap();
        require_cluster(&store, &layout).await.unwrap();
    }
}
