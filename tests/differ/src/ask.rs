//! Many cases to one side, a few at a time.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::answer::Answer;
use crate::case::Case;
use crate::objects::Subject;
use crate::sides::Side;

/// Requests at once.
const CONCURRENCY: usize = 4;

/// The answers, in the order of the cases.
pub async fn ask(side: &Side, subjects: &[Subject], cases: &[Case]) -> Result<Vec<Answer>> {
    let by_id: HashMap<&str, &Subject> =
        subjects.iter().map(|subject| (subject.id.as_str(), subject)).collect();
    stream::iter(cases)
        .map(|case| {
            let subject = by_id.get(case.subject.as_str()).copied();
            async move {
                let subject = subject.with_context(|| format!("no object {}", case.subject))?;
                side.ask(subject, case).await
            }
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await
}
