/// How much of an image is let in. The defaults hold any image that is meant to be run.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Bytes of a manifest or an index.
    pub manifest_bytes: u64,
    /// Bytes of an image's config.
    pub config_bytes: u64,
    /// Layers of an image. The kernel stacks at most 500.
    pub n_layers: usize,
    /// Bytes of one blob as it is transferred.
    pub blob_bytes: u64,
    /// Bytes of all files of one unpacked layer.
    pub layer_bytes: u64,
    /// Files, directories and links of one unpacked layer.
    pub layer_entries: u64,
}

impl Default for Caps {
    fn default() -> Caps {
        Caps {
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            n_layers: 256,
            blob_bytes: 32 << 30,
            layer_bytes: 64 << 30,
            layer_entries: 4_000_000,
        }
    }
}
