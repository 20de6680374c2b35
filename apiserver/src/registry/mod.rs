//! The verbs, each written once for all kinds.

mod apply;
pub(crate) mod create;
mod delete;
pub(crate) mod ensure;
pub(crate) mod list;
pub(crate) mod managed;
pub(crate) mod metadata;
pub(crate) mod options;
pub(crate) mod patch;
mod update;
mod watch;

use std::sync::Arc;

use skiff_api::{Status, protobuf};
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::answer;
use crate::auth::authorize::Authorization;
use crate::call::Call;
use crate::convert::is_same_version;
use crate::objects::Objects;
use crate::respond::Response;
use crate::services::Services;

/// What the verbs work with.
pub(crate) struct Registry {
    pub(crate) objects: Arc<Objects>,
    pub(crate) admission: Admission,
    pub(crate) authorizer: Arc<Authorization>,
    /// Gives addresses and ports to what has them.
    pub(crate) services: Arc<Services>,
    pub(crate) lists: list::Lists,
    /// Ends watches.
    pub(crate) shutdown: CancellationToken,
}

impl Registry {
    /// One request for a resource itself; subresources are elsewhere.
    pub(crate) async fn handle(&self, call: Call) -> Result<Response, Status> {
        let unsupported =
            |verb: &str| Err(Status::method_not_allowed(&call.kind.group, &call.kind.plural, verb));
        match call.info.verb.as_str() {
            "get" => self.get(&call).await,
            "list" => self.lists.list(call).await,
            "watch" => self.watch(call).await,
            "create" if call.info.name.is_empty() => self.create(call).await,
            "update" if !call.info.name.is_empty() => self.update(call).await,
            "patch" if !call.info.name.is_empty() => self.patch(call).await,
            "delete" => self.delete(call).await,
            "deletecollection" => self.delete_collection(call).await,
            "" => unsupported("the method"),
            verb => unsupported(verb),
        }
    }

    async fn get(&self, call: &Call) -> Result<Response, Status> {
        match call.query.non_empty("resourceVersion") {
            None => {
                self.objects.lister.caches.wait_for_newest().await?;
            }
            Some("0") => {}
            Some(version) => self.objects.lister.caches.wait_for(options::revision(version)?).await?,
        }
        let entry =
            self.objects.lister.caches.of(&call.kind)?.get(&call.key())?.ok_or_else(|| call.not_found())?;
        if is_same_version(self.objects.lister.caches.of(&call.kind)?.kind(), &call.kind) && !entry.is_foreign
        {
            if call.encoding.is_plain() {
                return Ok(answer::encoded(call, 200, entry.json()));
            }
            if call.encoding.is_protobuf() {
                let message = entry.protobuf(&call.kind);
                let object = protobuf::envelope(&call.kind.api_version(), &call.kind.kind, &message);
                return Ok(answer::encoded(call, 200, object));
            }
        }
        Ok(call.object(200, self.objects.parsed(&call.kind, &entry).await?))
    }
}
