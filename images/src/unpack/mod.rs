//! A layer's blob into a directory that overlayfs can use.
//!
//! [`tar_stream`] reads the format ([`sparse`] that of files with holes), [`writer`] makes the files, beside what [`lower`] layers
//! have; all take every byte for hostile.

mod lower;
mod sparse;
mod tar_stream;
mod writer;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::blobs::LayerSize;
use crate::name::Digest;
use crate::{Caps, PullCause};

pub(crate) use tar_stream::{Kind, TarStream};

/// Memory that a zstd frame may ask for, as a power of two: 128 MiB, what every encoder stays below unless
/// told otherwise.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Room for headers and padding over what the files themselves may take.
const HEADER_BYTES_PER_ENTRY: u64 = 2048;

/// Unpacks `blob` into the empty directory `into`, and checks that it is `diff_id` once decompressed. `lower` are the
/// directories of the layers it will lie on, the highest first: a directory that the layer has no entry for is as there.
pub(crate) fn unpack(
    blob: &Path,
    diff_id: &Digest,
    into: &Path,
    lower: &[PathBuf],
    caps: &Caps,
) -> Result<LayerSize, PullCause> {
    let failed = |detail: String| PullCause::Unpack { diff_id: diff_id.to_string(), detail };
    let file = File::open(blob).map_err(PullCause::io("open", blob))?;
    let plain = decompressed(file).map_err(|err| failed(err.to_string()))?;
    let limit = caps.layer_bytes.saturating_add(caps.layer_entries.saturating_mul(HEADER_BYTES_PER_ENTRY));
    let mut reader = Hashing { inner: plain, hash: Sha256::new(), left: limit };

    let mut layer = writer::LayerWriter::new(into, lower, caps).map_err(|err| failed(err.to_string()))?;
    let mut stream = TarStream::new(&mut reader);
    while let Some(entry) = stream.next_entry().map_err(|err| failed(err.to_string()))? {
        layer.add(&entry, &mut stream).map_err(|err| {
            let name = String::from_utf8_lossy(&entry.path).chars().take(200).collect::<String>();
            failed(format!("{name:?}: {err}"))
        })?;
    }
    let size = layer.finish().map_err(|err| failed(err.to_string()))?;
    // What follows the end of the archive is part of the digest, too.
    io::copy(&mut reader, &mut io::sink()).map_err(|err| failed(err.to_string()))?;
    let found = Digest::of_hash(&reader.hash.finalize());
    if found != *diff_id {
        return Err(PullCause::WrongDigest {
            what: "layer",
            digest: diff_id.to_string(),
            found: found.to_string(),
        });
    }
    Ok(size)
}

/// By what the bytes are, not by what the media type claims.
pub(crate) fn decompressed(file: File) -> io::Result<Box<dyn Read>> {
    let mut file = BufReader::with_capacity(256 << 10, file);
    let start = file.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(file)));
    }
    // A frame, or one of those to be skipped, which may come first: `pzstd` and seekable formats begin so.
    let is_zstd =
        start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
    if is_zstd {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(file))
}

/// Hashes what passes, and stops a bomb.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    left: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| io::Error::other("layer is too large"))?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
