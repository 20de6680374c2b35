//! What every node may see of all pods, at a path of its own.
//!
//! A node may read its own pods only (`auth/node.rs`). What network policies need of the others is cut from the same cache, in the shapes
//! of a list and a watch of pods, and who may have it is for roles to say. See decision 22.

use axum::body::Body;
use parking_lot::Mutex;
use skiff_api::Status;

use super::Pipeline;
use super::entry::Head;
use crate::auth::UserInfo;
use crate::cache::Detail;
use crate::call::Call;
use crate::negotiate::Encoding;
use crate::request::{Query, RequestInfo};
use crate::respond::Response;

impl Pipeline {
    /// `info` is of the list or the watch that the path stands for.
    pub(super) async fn node_pods(
        &self,
        user: UserInfo,
        info: RequestInfo,
        query: Query,
        head: Head,
        encoding: Encoding,
    ) -> Result<Response, Status> {
        // Who may select by what he is not shown, sees it.
        if query.non_empty("fieldSelector").is_some() {
            return Err(Status::bad_request(format!("{} has no field selectors", info.path)));
        }
        let Head { method, uri, headers, mut extensions, table, held: _held } = head;
        let kind = table.kinds.by_resource(&info.group, &info.version, &info.resource);
        let kind = kind.ok_or_else(Status::no_such_path)?.clone();
        extensions.insert(Detail::ForNodes);
        let call = Call {
            user,
            info,
            method,
            uri,
            query,
            headers,
            extensions,
            body: Mutex::new(Body::empty()),
            printed: self.lister().printed_kind(&kind),
            kind,
            table,
            // Documents are cut as they are written in JSON, and in no other form.
            encoding: Encoding { gzip: encoding.gzip, ..Encoding::plain() },
            warnings: Vec::new(),
            is_own: false,
        };
        self.registry.handle(call).await
    }
}
