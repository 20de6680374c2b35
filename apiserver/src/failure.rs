//! Failures below the API as a client is told them.

use skiff_api::Status;

use crate::store::{MAX_VALUE_BYTES, StoreError};

/// A failure of the store as the client is told it.
pub(crate) fn store_failure(error: &StoreError) -> Status {
    match error {
        StoreError::Compacted { .. } => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        StoreError::Overloaded => {
            Status::too_many_requests("the store is overloaded, please try again later", 1)
        }
        StoreError::TooLarge { .. } => {
            Status::too_large(format!("Request entity too large: limit is {}", MAX_VALUE_BYTES))
        }
        StoreError::Closed => Status::unavailable("the server is shutting down"),
        StoreError::Away { .. } | StoreError::TimedOut { .. } => {
            tracing::warn!(error = error as &dyn std::error::Error, "the datastore does not answer");
            match error {
                StoreError::Away { .. } => {
                    Status::unavailable("the datastore cannot be reached, please try again later")
                }
                _ => {
                    Status::timeout("the datastore did not answer in time; what was asked may have been done")
                }
            }
        }
        other => {
            tracing::error!(error = other as &dyn std::error::Error, "the store failed");
            Status::internal(other)
        }
    }
}

pub(crate) fn method_not_allowed() -> Status {
    Status::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
}
