//! How long tasks that follow something wait before they begin anew.

use std::time::Duration;

pub(crate) const RETRY_MIN: Duration = Duration::from_millis(50);
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(30);
