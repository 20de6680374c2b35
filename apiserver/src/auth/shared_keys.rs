//! The keys of service-account tokens, where several servers share a store: each signs with its own and tells the others of it.
//!
//! They lie beside the objects, not among them: whoever could write one as an object could be anybody. A key stays for as long as a
//! token that it signed may live, which may be for ever; who takes one away from the store has its tokens refused everywhere.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::Jwk;
use tokio_util::sync::CancellationToken;

use super::token::TokenKeys;
use crate::store::{Range, Revision, Store, StoreError, Write};

const FOLDER: &str = "/skiff/service-account-keys/";
/// No cluster has had so many servers.
const MAX_KEYS: usize = 256;
const AGAIN: Duration = Duration::from_secs(1);

/// Tells the others of this server's key, and takes up theirs; answers as of when.
pub(crate) async fn share(store: &dyn Store, keys: &TokenKeys) -> Result<Revision, StoreError> {
    if let Ok(own) = keys.public_jwk()
        && let Ok(text) = serde_json::to_vec(&own)
    {
        // One of its name that is there already is the same: it is named by its hash.
        store.write(Write::create(format!("{FOLDER}{}", keys.key_id()), text)).await?;
    }
    take_up(store, keys).await
}

async fn take_up(store: &dyn Store, keys: &TokenKeys) -> Result<Revision, StoreError> {
    let range = Range { limit: Some(MAX_KEYS), ..Range::prefix(FOLDER) };
    let found = store.range(range).await?;
    if found.more {
        tracing::warn!(
            limit = MAX_KEYS,
            folder = FOLDER,
            "there are more keys of service-account tokens than are read"
        );
    }
    let read = found.items.iter().filter_map(|item| match serde_json::from_slice::<Jwk>(&item.value) {
        Ok(key) => Some(key),
        Err(error) => {
            tracing::warn!(key = &*item.key, %error, "a key of service-account tokens cannot be read");
            None
        }
    });
    keys.accept(read.collect());
    Ok(found.revision)
}

/// Follows what other servers publish.
pub(crate) async fn follow(
    store: Arc<dyn Store>,
    keys: Arc<TokenKeys>,
    mut after: Revision,
    closed: CancellationToken,
) {
    loop {
        let changed = closed.run_until_cancelled(changed(&*store, after)).await;
        let Some(changed) = changed else { return };
        if let Err(error) = changed {
            tracing::debug!(%error, "the watch of other servers' keys broke");
            if closed.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                return;
            }
        }
        match closed.run_until_cancelled(take_up(&*store, &keys)).await {
            None | Some(Err(StoreError::Closed)) => return,
            Some(Ok(revision)) => after = revision,
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot read other servers' keys; tried again in a moment");
            }
        }
    }
}

/// Waits until a key came or went, or nobody can tell.
async fn changed(store: &dyn Store, after: Revision) -> Result<(), StoreError> {
    let mut watch = store.watch(FOLDER, after).await?;
    while let Some(batch) = watch.next().await {
        if !batch?.events.is_empty() {
            return Ok(());
        }
    }
    Err(StoreError::Closed)
}
