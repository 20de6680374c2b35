//! Kinds that are answered rather than stored: reviews of tokens and of access.

mod access;

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_api::{Object, Status};
use skiff_webhook::admission::Operation;

use crate::auth::UserInfo;
use crate::auth::attributes::Opinion;
use crate::auth::authenticate::Authenticator;
use crate::call::Call;
use crate::clock::now;
use crate::registry::Registry;
use crate::registry::create::read_object;
use crate::registry::options::WriteOptions;
use crate::respond::Response;
use crate::subresource::binding::bind;
use access::{Question, user_of};

/// What reviews are answered by.
pub(crate) struct Reviews {
    pub(crate) registry: Arc<Registry>,
    pub(crate) authenticator: Arc<Authenticator>,
}

impl Reviews {
    /// Answers an object of a virtual kind.
    pub(crate) async fn create(&self, mut call: Call) -> Result<Response, Status> {
        let options = WriteOptions::parse(&call)?;
        let object = read_object(&mut call, options.validation).await?;
        let dynamic = &self.registry.admission.dynamic;
        let object = dynamic.admit_document(&mut call, Operation::Create, object, options.dry_run).await?;
        let answer = self.review(&call, object, options.dry_run).await?;
        Ok(call.object(201, answer))
    }

    async fn review(&self, call: &Call, mut object: Object, dry_run: bool) -> Result<Object, Status> {
        let status = match call.kind.kind.as_str() {
            "TokenReview" => {
                self.registry.objects.lister.caches.wait_for_newest().await?;
                self.review_token(&object["spec"])?
            }
            "SelfSubjectReview" => json!({"userInfo": call.user.to_json()}),
            "SubjectAccessReview" => {
                self.review_access(call, &user_of(&object["spec"]), &object["spec"], None).await?
            }
            "LocalSubjectAccessReview" => {
                let namespace = Some(call.info.namespace.as_str());
                self.review_access(call, &user_of(&object["spec"]), &object["spec"], namespace).await?
            }
            "SelfSubjectAccessReview" => self.review_access(call, &call.user, &object["spec"], None).await?,
            "SelfSubjectRulesReview" => {
                let namespace = object["spec"]["namespace"].as_str().unwrap_or_default();
                if namespace.is_empty() {
                    return Err(Status::bad_request("no namespace on request"));
                }
                self.registry.authorizer.rules_of(&call.user, namespace).to_json()
            }
            "Binding" => {
                return bind(&self.registry.objects, call, &object, dry_run).await;
            }
            other => {
                return Err(Status::not_implemented(format!("{other} is not answered by this server yet")));
            }
        };
        if object["metadata"]["creationTimestamp"].is_null() && call.kind.kind == "SelfSubjectReview" {
            object["metadata"]["creationTimestamp"] = now();
        }
        object["status"] = status;
        Ok(object)
    }

    fn review_token(&self, spec: &Value) -> Result<Value, Status> {
        let token = spec["token"].as_str().unwrap_or_default();
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let asked: Vec<String> = spec["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        let audiences = if asked.is_empty() { self.authenticator.audiences.clone() } else { asked };
        Ok(match self.authenticator.user_of_token(token, &audiences) {
            Ok((user, accepted)) => {
                json!({"authenticated": true, "user": user.to_json(), "audiences": accepted})
            }
            Err(_) => json!({"error": "invalid bearer token"}),
        })
    }

    /// `namespace` is that which the review is in, where it is in one.
    async fn review_access(
        &self,
        call: &Call,
        user: &UserInfo,
        spec: &Value,
        namespace: Option<&str>,
    ) -> Result<Value, Status> {
        let question = Question::read(&call.kind.kind, spec, user)?;
        if let Some(namespace) = namespace
            && question.namespace() != namespace
        {
            let why = "spec.resourceAttributes.namespace must match namespace";
            return Err(Status::bad_request(format!("{why}: {namespace}")));
        }
        let decision = self.registry.authorizer.authorize(&question.attributes()).await;
        let mut status = json!({"allowed": decision.is_allowed()});
        if decision.opinion == Opinion::Deny {
            status["denied"] = true.into();
        }
        if !decision.reason.is_empty() {
            status["reason"] = decision.reason.into();
        }
        let errors: Vec<String> = decision.error.into_iter().chain(question.faults).collect();
        if !errors.is_empty() {
            status["evaluationError"] = errors.join("; ").into();
        }
        Ok(status)
    }
}
