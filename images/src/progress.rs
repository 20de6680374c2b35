//! How far a pull has come.

use tokio::sync::watch;

/// Where a pull reports to: the newest state is always there, however slow the reader.
pub type ProgressSender = watch::Sender<Progress>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Asking the registry what the name stands for.
    #[default]
    Resolving,
    Downloading,
    Unpacking,
    Done,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub phase: Phase,
    pub layers: Vec<LayerProgress>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    pub digest: String,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// Reports to a sender, if there is one.
#[derive(Clone, Copy)]
pub(crate) struct Reporter<'a>(pub(crate) Option<&'a ProgressSender>);

impl Reporter<'_> {
    pub(crate) fn phase(self, phase: Phase) {
        self.update(|progress| progress.phase = phase);
    }

    pub(crate) fn layers(self, layers: impl Iterator<Item = (String, u64)>) {
        self.update(|progress| {
            progress.layers = layers
                .map(|(digest, total_bytes)| LayerProgress { digest, done_bytes: 0, total_bytes })
                .collect();
        });
    }

    pub(crate) fn layer(self, index: usize, done_bytes: u64) {
        self.update(|progress| {
            if let Some(layer) = progress.layers.get_mut(index) {
                layer.done_bytes = done_bytes;
            }
        });
    }

    fn update(self, change: impl FnOnce(&mut Progress)) {
        if let Some(sender) = self.0 {
            sender.send_modify(change);
        }
    }
}
