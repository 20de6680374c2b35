//! `skiff wasm`: Wasm files and images, without a cluster.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Subcommand;
use skiff_runtime_wasm::tool::{Directory, Import, Inspection, Run, Workshop};

use crate::layout::Layout;
use crate::node::open_images;
use crate::role::Role;

/// As of a container that names none.
const DEFAULT_PORT: u16 = 8080;

#[derive(Subcommand, Debug)]
pub(crate) enum WasmCommand {
    /// Say what a Wasm file, or an image of this node, needs, and whether it would start
    Inspect {
        /// A file, or the name of an image
        subject: String,
    },
    /// Run a Wasm file as a pod would: a command until it ends, a server until it is asked to (Ctrl-C)
    Run {
        file: PathBuf,
        /// A variable of its environment
        #[arg(long, short = 'e', value_name = "NAME=VALUE")]
        env: Vec<String>,
        /// A directory that it is given; without a path of its own it has the same
        #[arg(long, short = 'v', value_name = "DIRECTORY[:PATH[:ro]]")]
        volume: Vec<String>,
        /// Where a server listens [default: $PORT as given by --env, else 8080]
        #[arg(long, short = 'p')]
        port: Option<u16>,
        /// Bytes of memory that it may have
        #[arg(long, value_name = "BYTES")]
        memory: Option<u64>,
        /// Its arguments
        #[arg(last = true)]
        args: Vec<String>,
    },
}

pub(crate) fn run(command: WasmCommand, layout: &Layout) -> Result<ExitCode> {
    match command {
        WasmCommand::Inspect { subject } => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("starting the async runtime")?;
            let (module, workshop) = subject_of(&subject, layout)?;
            let inspected = runtime.block_on(workshop.inspect(&module)).map_err(anyhow::Error::new)?;
            print!("{}", text(&inspected));
            Ok(if inspected.refusal.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        WasmCommand::Run { file, env, volume, port, memory, args } => {
            let envs = env.iter().map(|pair| variable(pair)).collect::<Result<Vec<_>>>()?;
            let asked = envs.iter().find(|(name, _)| name == "PORT").map(|(_, port)| port.parse());
            let port = match (port, asked) {
                (Some(port), _) => port,
                (None, Some(port)) => port.context("the variable PORT is no port")?,
                (None, None) => DEFAULT_PORT,
            };
            let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            let run = Run {
                args: [vec![name], args].concat(),
                envs,
                directories: volume.iter().map(|text| directory(text)).collect::<Result<_>>()?,
                port,
                memory_bytes: memory,
                module: file,
            };
            let exit_code = own_workshop()?.run(run).map_err(anyhow::Error::new)?;
            Ok(ExitCode::from(u8::try_from(exit_code & 0xff).unwrap_or(1)))
        }
    }
}

/// What is inspected, and where its native code lies: that of images beside their containers'.
fn subject_of(subject: &str, layout: &Layout) -> Result<(PathBuf, Workshop)> {
    let path = Path::new(subject);
    if path.is_file() {
        return Ok((path.to_owned(), own_workshop()?));
    }
    let images = open_images(layout).with_context(|| {
        format!("there is no file {subject:?}, and the images of this node cannot be read")
    })?;
    let image = images
        .resolve(subject)
        .ok_or_else(|| anyhow!("there is no file {subject:?}, and no image of that name on this node"))?;
    let module = images.wasm_module(&image).map_err(anyhow::Error::new)?;
    Ok((module, workshop(&layout.wasm())?))
}

fn workshop(directory: &Path) -> Result<Workshop> {
    Workshop::open(directory, Role::WasmCompile.command()?).map_err(anyhow::Error::new)
}

/// This user's: what was compiled once need not be again.
fn own_workshop() -> Result<Workshop> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let caches = named
        .filter(|path| path.is_absolute())
        .or_else(home)
        .context("neither XDG_CACHE_HOME nor HOME says where compiled modules are to be kept")?;
    workshop(&caches.join("skiff").join("wasm"))
}

fn variable(pair: &str) -> Result<(String, String)> {
    match pair.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => bail!("--env {pair:?} is not NAME=VALUE"),
    }
}

fn directory(text: &str) -> Result<Directory> {
    let mut parts = text.split(':');
    let on_node = parts.next().unwrap_or_default();
    let in_guest = parts.next().unwrap_or(on_node);
    let is_read_only = match (parts.next(), parts.next()) {
        (None, _) => false,
        (Some("ro"), None) => true,
        _ => bail!("--volume {text:?} is not DIRECTORY[:PATH[:ro]]"),
    };
    if on_node.is_empty() || in_guest.is_empty() {
        bail!("--volume {text:?} is not DIRECTORY[:PATH[:ro]]");
    }
    Ok(Directory { on_node: on_node.into(), in_guest: in_guest.to_owned(), is_read_only })
}

fn text(inspected: &Inspection) -> String {
    let compiled = match inspected.code_bytes {
        Some(bytes) => format!("before: {bytes} bytes of native code"),
        None => "not before".to_owned(),
    };
    let starts = match &inspected.refusal {
        None => "would start".to_owned(),
        Some(why) => format!("would not start: {why}"),
    };
    let import = |import: &Import| {
        let note = if import.is_offered { "" } else { " (not offered)" };
        format!("  {}{note}\n", import.name)
    };
    let imports: String = inspected.imports.iter().map(import).collect();
    let exports: String = inspected.exports.iter().map(|name| format!("  {name}\n")).collect();
    format!(
        "kind:     {}\nsize:     {} bytes\ncompiled: {compiled}\nstart:    {starts}\nimports:\n{imports}exports:\n{exports}",
        inspected.kind, inspected.bytes,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_a_directory_with_a_path_and_perhaps_read_only() {
        let parsed = |text: &str| {
            directory(text).map(|found| (found.on_node, found.in_guest, found.is_read_only)).ok()
        };
        assert_eq!(parsed("/a"), Some(("/a".into(), "/a".to_owned(), false)));
        assert_eq!(parsed("a:/b:ro"), Some(("a".into(), "/b".to_owned(), true)));
        assert!(parsed("").is_none() && parsed("/a:/b:rw").is_none() && parsed("/a:").is_none());
        assert_eq!(variable("A=b=c").unwrap(), ("A".to_owned(), "b=c".to_owned()));
        assert!(variable("=b").is_err() && variable("A").is_err());
    }

    #[test]
    fn what_is_not_offered_is_said_beside_its_name_and_why_it_does_not_start() {
        let import = |name: &str, is_offered| Import { name: name.to_owned(), is_offered };
        let inspected = Inspection {
            kind: "core module".to_owned(),
            bytes: 9,
            code_bytes: None,
            imports: vec![import("env f", false), import("wasi g", true)],
            exports: vec!["_start".to_owned()],
            refusal: Some("no".to_owned()),
        };
        let expected = "kind:     core module\nsize:     9 bytes\ncompiled: not before\nstart:    would not start: no\n\
            imports:\n  env f (not offered)\n  wasi g\nexports:\n  _start\n";
        assert_eq!(text(&inspected), expected);
    }
}
