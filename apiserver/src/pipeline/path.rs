//! Requests for what is no resource: health, discovery, OpenAPI, metrics, and who signs tokens.

use std::sync::Arc;

use http::HeaderValue;
use http::header::CONTENT_TYPE;
use skiff_api::Status;

use super::Pipeline;
use crate::discovery;
use crate::failure::{method_not_allowed, store_failure};
use crate::limits;
use crate::live::Table;
use crate::metrics::Format;
use crate::negotiate::Encoding;
use crate::request::{Query, RequestInfo};
use crate::respond::{self, Response};

impl Pipeline {
    /// What is no resource.
    pub(super) async fn path(
        &self,
        table: &Arc<Table>,
        info: &RequestInfo,
        query: &Query,
        headers: &http::HeaderMap,
        encoding: &Encoding,
    ) -> Result<Response, Status> {
        if !matches!(info.verb.as_str(), "get" | "head") {
            return Err(method_not_allowed());
        }
        let path = info.path.as_str();
        if let Some(response) = self.health.answer(path, query).await {
            return Ok(response);
        }
        if let Some(response) = self.openid.answer(path) {
            return Ok(response);
        }
        if path.starts_with("/openapi/") {
            // A document that nobody has asked for yet is made of all kinds.
            let (table, path, query) = (table.clone(), path.to_owned(), query.clone());
            let (headers, encoding) = (headers.clone(), *encoding);
            let answer = move || {
                let (openapi, aggregated) = (&table.discovery.openapi, &table.aggregated);
                openapi.answer(aggregated, &table.merged, &path, &query, &headers, &encoding)
            };
            return self.heavy.others().run(answer).await?.unwrap_or_else(|| Err(Status::no_such_path()));
        }
        if let Some(response) = table.discovery.answer(&table.aggregated, path, headers, encoding) {
            return Ok(response);
        }
        match path {
            "/" => {
                Ok(respond::document_response(encoding, &[], 200, &table.discovery.paths(&table.aggregated)))
            }
            "/version" | "/version/" => {
                Ok(respond::document_response(encoding, &[], 200, &discovery::version()))
            }
            path if path.starts_with("/debug/api_priority_and_fairness/") => {
                let report = self.limits.report();
                limits::dump(path, &report)
                    .map(|text| respond::text(200, text))
                    .ok_or_else(Status::no_such_path)
            }
            "/metrics" => {
                let bytes = self.registry.objects.store.size_bytes().await.map_err(|e| store_failure(&e))?;
                let revision = self.registry.objects.store.revision().await.map_err(|e| store_failure(&e))?;
                let format = Format::of(headers);
                Ok(metrics_page(format, self.metrics.render(format, bytes, revision)))
            }
            "/metrics/slis" => {
                let format = Format::of(headers);
                Ok(metrics_page(format, self.metrics.health.render(format)))
            }
            _ => Err(Status::no_such_path()),
        }
    }
}

fn metrics_page(format: Format, page: String) -> Response {
    let mut response = respond::text(200, page);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response
}
