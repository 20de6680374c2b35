//! The AOT cache: `<state>/aot/<engine>/<digest>.cwasm`, filled by processes of their own, and a checksum beside each. Native
//! code that a disk has changed would be run as it is: it is checked before it is first used, and compiled again.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use crate::compile;

/// What is limited is the compiler's CPU time; a machine may have other things to do. One that gets none for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(3600);
/// Compilers at once; each uses all processors. Others wait in line.
const MAX_COMPILERS: usize = 2;
/// Of what the compiler says, as much goes into an event.
const MAX_MESSAGE_BYTES: u64 = 2048;
/// A larger Wasm file is refused before anything reads it.
const MAX_MODULE_BYTES: u64 = 256 << 20;
/// No compiler had room for more.
const MAX_CODE_BYTES: u64 = compile::MAX_MEMORY_BYTES;
const CODE: &str = "cwasm";
const CHECKSUM: &str = "sha256";

#[derive(Debug, thiserror::Error)]
pub enum AotError {
    #[error("invalid Wasm module: {0}")]
    Invalid(String),
    #[error("the image holds native code ({0}); only Wasm is run")]
    Native(&'static str),
    #[error("the Wasm module has {bytes} bytes; at most {MAX_MODULE_BYTES} are compiled")]
    TooLarge { bytes: u64 },
    #[error("compile the Wasm module: {0}")]
    Compile(String),
    #[error("compile the Wasm module: not done after {} s of CPU time", compile::MAX_CPU_SECONDS)]
    CpuTime,
    #[error("compile the Wasm module: the compiler had not ended after {} s", STUCK_AFTER.as_secs())]
    Stuck,
    #[error("AOT cache: {operation} {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

/// Where the native code of `digest` lies, for engines that are `compatibility`.
pub(crate) fn cached(state_dir: &Path, compatibility: &str, digest: &str) -> PathBuf {
    state_dir.join("aot").join(compatibility).join(format!("{digest}.{CODE}"))
}

/// The file with the checksum of native code.
pub(crate) fn checksum(code: &Path) -> PathBuf {
    code.with_extension(CHECKSUM)
}

/// Which content a file has, as far as its directory tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileVersion {
    inode: u64,
    bytes: u64,
    modified: Option<SystemTime>,
}

impl FileVersion {
    pub(crate) fn of(path: &Path) -> io::Result<FileVersion> {
        let file = fs::metadata(path)?;
        Ok(FileVersion { inode: file.ino(), bytes: file.len(), modified: file.modified().ok() })
    }
}

/// What a compiler took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compiled {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
}

pub(crate) struct AotCache {
    state_dir: PathBuf,
    compatibility: String,
    command: Vec<OsString>,
    /// Code that had its checksum when this process first used it.
    sound: Arc<Mutex<HashMap<PathBuf, FileVersion>>>,
    /// One lock a digest that is being compiled.
    in_work: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    places: tokio::sync::Semaphore,
}

impl AotCache {
    pub(crate) fn open(
        state_dir: &Path,
        compatibility: String,
        command: Vec<OsString>,
    ) -> Result<AotCache, AotError> {
        let directory = state_dir.join("aot").join(&compatibility);
        fs::create_dir_all(&directory).map_err(|source| AotError::Io {
            operation: "make",
            path: directory.clone(),
            source,
        })?;
        Ok(AotCache {
            state_dir: state_dir.to_owned(),
            compatibility,
            command,
            sound: Arc::default(),
            in_work: Mutex::default(),
            places: tokio::sync::Semaphore::new(MAX_COMPILERS),
        })
    }

    /// Where the native code of a module lies, or will.
    pub(crate) fn code(&self, digest: &str) -> PathBuf {
        cached(&self.state_dir, &self.compatibility, digest)
    }

    /// Removes the code of other engines, and of modules that are not in `digests`. What a host has loaded
    /// stays mapped. Blocks.
    pub(crate) fn retain(&self, digests: &HashSet<String>) -> Result<(), AotError> {
        let root = self.state_dir.join("aot");
        let fail = |path: &Path, source| AotError::Io { operation: "clean", path: path.to_owned(), source };
        for entry in fs::read_dir(&root).map_err(|err| fail(&root, err))? {
            let path = entry.map_err(|err| fail(&root, err))?.path();
            if path.file_name().and_then(|name| name.to_str()) != Some(&self.compatibility) {
                skiff_tree::remove(&path).map_err(|err| fail(&path, err.into()))?;
            }
        }
        let ours = root.join(&self.compatibility);
        for entry in fs::read_dir(&ours).map_err(|err| fail(&ours, err))? {
            let path = entry.map_err(|err| fail(&ours, err))?.path();
            let name = path.file_name().and_then(|name| name.to_str()?.rsplit_once('.'));
            let is_known =
                |(digest, kind): (&str, &str)| [CODE, CHECKSUM].contains(&kind) && digests.contains(digest);
            if !name.is_some_and(is_known) {
                fs::remove_file(&path).map_err(|err| fail(&path, err))?;
            }
        }
        Ok(())
    }

    /// Sees to it that the native code of the Wasm file `module` is in the cache, as the compiler wrote it; `None` if it was
    /// there. `begins` is called with the file's size when it is not. Dropping the future ends the compiler.
    pub(crate) async fn ensure(
        &self,
        module: &Path,
        digest: &str,
        begins: impl FnOnce(u64),
    ) -> Result<Option<Compiled>, AotError> {
        let target = cached(&self.state_dir, &self.compatibility, digest);
        if self.is_sound(&target).await {
            return Ok(None);
        }
        let bytes = check(module)?;
        begins(bytes);
        let lock = self.in_work.lock().entry(digest.to_owned()).or_default().clone();
        let result = {
            let _turn = lock.lock().await;
            match self.is_sound(&target).await {
                true => Ok(None),
                false => self.compile(module, &target).await.map(Some),
            }
        };
        let mut in_work = self.in_work.lock();
        // Two: the map's and this one.
        if Arc::strong_count(&lock) <= 2 {
            in_work.remove(digest);
        }
        result
    }

    /// Whether there is code and it has its checksum.
    async fn is_sound(&self, code: &Path) -> bool {
        let (sound, code) = (self.sound.clone(), code.to_owned());
        let looked = tokio::task::spawn_blocking(move || {
            let version = FileVersion::of(&code)?;
            if sound.lock().get(&code) == Some(&version) {
                return Ok(true);
            }
            let is_sound =
                fs::read_to_string(checksum(&code))?.trim() == digest_up_to(&code, MAX_CODE_BYTES)?;
            match is_sound {
                true => drop(sound.lock().insert(code, version)),
                false => {
                    tracing::warn!(path = %code.display(), "native code is damaged; it is compiled again")
                }
            }
            Ok::<bool, io::Error>(is_sound)
        });
        match looked.await {
            Ok(Ok(is_sound)) => is_sound,
            Ok(Err(err)) => {
                if err.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%err, "native code cannot be read; it is compiled again");
                }
                false
            }
            Err(_) => false,
        }
    }

    async fn compile(&self, module: &Path, target: &Path) -> Result<Compiled, AotError> {
        let _place = self.places.acquire().await.map_err(|_| AotError::Stuck)?;
        let began = Instant::now();
        let Some((program, args)) = self.command.split_first() else {
            return Err(AotError::Compile("no compile command is configured".to_owned()));
        };
        let mut compiler = Command::new(program)
            .args(args)
            .arg("--input")
            .arg(module)
            .arg("--output")
            .arg(target)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|err| AotError::Compile(format!("start {program:?}: {err}")))?;
        let (stdout, stderr) = (compiler.stdout.take(), compiler.stderr.take());
        let run = async {
            let said = text(stderr).await?;
            let took = text(stdout).await?;
            Ok::<_, io::Error>((compiler.wait().await?, took, said))
        };
        let (status, took, said) = match tokio::time::timeout(STUCK_AFTER, run).await {
            Err(_) => return Err(AotError::Stuck),
            Ok(ended) => ended.map_err(|err| AotError::Compile(format!("wait for the compiler: {err}")))?,
        };
        match status.code() {
            Some(0) => Ok(Compiled {
                wall: began.elapsed(),
                cpu: Duration::from_millis(took.parse().unwrap_or_default()),
            }),
            Some(code) if code == i32::from(compile::EXIT_INVALID) => Err(AotError::Invalid(said)),
            Some(_) => Err(AotError::Compile(said)),
            None if status.signal() == Some(libc::SIGXCPU) => Err(AotError::CpuTime),
            None => Err(AotError::Compile(format!(
                "the compiler was ended by a signal ({status}), as when it needs more than its {} MiB of memory {said}",
                compile::MAX_MEMORY_BYTES >> 20,
            ))),
        }
    }
}

/// What a compiler says, as far as anyone wants to know.
async fn text(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut said = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MAX_MESSAGE_BYTES).read_to_end(&mut said).await?;
    }
    Ok(String::from_utf8_lossy(&said).trim().to_owned())
}

/// Refuses what is not Wasm without asking a compiler; the file's size of what may be.
fn check(module: &Path) -> Result<u64, AotError> {
    let io = |operation, source| AotError::Io { operation, path: module.to_owned(), source };
    let mut file = fs::File::open(module).map_err(|err| io("open", err))?;
    let bytes = file.metadata().map_err(|err| io("look at", err))?.len();
    if bytes > MAX_MODULE_BYTES {
        return Err(AotError::TooLarge { bytes });
    }
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(|err| io("read", err))?;
    match magic.as_slice() {
        b"\0asm" => Ok(bytes),
        b"\x7fELF" => Err(AotError::Native("ELF or .cwasm")),
        _ => Err(AotError::Invalid("the file does not start with the magic number \"\\0asm\"".to_owned())),
    }
}

/// The SHA-256 of bytes, in hex.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The SHA-256 of a module's file, in hex; of one that is too large to be compiled, not of all of it. Blocks.
pub(crate) fn digest(path: &Path) -> io::Result<String> {
    digest_up_to(path, MAX_MODULE_BYTES + 1)
}

fn digest_up_to(path: &Path, max_bytes: u64) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut fs::File::open(path)?.take(max_bytes), &mut hasher)?;
    Ok(hex::encode(hasher.finalize()))
}
