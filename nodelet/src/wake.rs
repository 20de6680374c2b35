//! Who wakes a pod's worker: anything that knows its UID. A wake carries nothing; wakes while the
//! worker is busy become one.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Default)]
pub(crate) struct Wakers {
    workers: Mutex<HashMap<String, Arc<Notify>>>,
    /// Which pod a sandbox is of, to wake the right worker for a runtime event.
    sandboxes: Mutex<HashMap<String, String>>,
}

impl Wakers {
    pub(crate) fn register(&self, uid: &str) -> Arc<Notify> {
        self.workers.lock().entry(uid.to_owned()).or_default().clone()
    }

    pub(crate) fn unregister(&self, uid: &str) {
        self.workers.lock().remove(uid);
        self.sandboxes.lock().retain(|_, pod| pod != uid);
    }

    pub(crate) fn note_sandbox(&self, sandbox_id: &str, uid: &str) {
        let mut sandboxes = self.sandboxes.lock();
        if sandboxes.get(sandbox_id).is_none_or(|known| known != uid) {
            sandboxes.insert(sandbox_id.to_owned(), uid.to_owned());
        }
    }

    pub(crate) fn wake(&self, uid: &str) {
        if let Some(notify) = self.workers.lock().get(uid) {
            notify.notify_one();
        }
    }

    /// Wakes the sandbox's pod; a sandbox not seen before may be anyone's, so everyone looks.
    pub(crate) fn wake_sandbox(&self, sandbox_id: &str) {
        let uid = self.sandboxes.lock().get(sandbox_id).cloned();
        match uid {
            Some(uid) => self.wake(&uid),
            None => self.wake_all(),
        }
    }

    pub(crate) fn wake_all(&self) {
        for notify in self.workers.lock().values() {
            notify.notify_one();
        }
    }
}
