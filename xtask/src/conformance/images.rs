//! The images of upstream's tests, from Debian packages and the programs built here.
//!
//! Each has the name it has at registry.k8s.io, which the cluster finds in the local registry. An image is a stack of
//! layers that several share: `busybox`, `users`, `tools`, `agnhost` and what is the image's own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::programs::Programs;
use crate::command::output;
use crate::fixtures::{Image, Served, archive, rootfs};
use crate::peers;

/// What tests run inside the images; their libraries follow from their dependencies.
const PACKAGES: [&str; 9] = [
    "bash",
    "bind9-dnsutils",
    "bind9-host",
    "curl",
    "iproute2",
    "libc-bin",
    "netcat-openbsd",
    "util-linux",
    "wget",
];
/// Debian's busybox has none.
const PRINTENV: &str = "#!/bin/sh\nfor name; do eval \"printf '%s\\n' \\\"\\${$name?}\\\"\"; done\n";
/// What lists connections, and the libraries that `PACKAGES` do not bring.
const CONNTRACK: [&str; 3] = ["conntrack", "libnetfilter-conntrack3", "libnfnetlink0"];
/// Where upstream lists the images of its tests.
const MANIFEST: &str = "test/utils/image/manifest.go";
const SEARCH_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n";

/// Builds the images and puts them into the registry; one that is there as it should be is kept.
pub(super) fn publish(programs: &Programs, served: &Served) -> Result<()> {
    let dir = programs.dir.join("images");
    let layer = |name: &str, fill: &dyn Fn(&Path) -> Result<()>| layer(&dir, name, fill);
    let busybox = rootfs::busybox(&served.dir)?;
    let users = layer("users", &users)?;
    let shell = layer("shell", &|tree| shell(&dir, tree))?;
    let tools = layer("tools", &|tree| tools(&dir, tree))?;
    let agnhost = layer("agnhost", &|tree| agnhost_files(programs, tree))?;
    let manifest = programs.kubernetes.join(MANIFEST);
    let manifest =
        fs::read_to_string(&manifest).with_context(|| format!("reading {}", manifest.display()))?;
    let push = |layers: &[&Path], name: &str, config: Value| {
        let full = match name {
            "etcd" | "pause" => name.to_owned(),
            "distroless-iptables" => format!("build-image/{name}"),
            _ => format!("e2e-test-images/{name}"),
        };
        for tag in tags(&manifest, name) {
            // Of different versions upstream has different images, so they must differ here.
            let mut config = with_defaults(config.clone());
            config["Labels"] = json!({"tag": tag});
            Image::linux(layers, config).push(&dir, &served.address, &full, tag)?;
        }
        anyhow::Ok(())
    };

    let agnhost_layers: [&Path; 4] = [&busybox, &users, &tools, &agnhost];
    let config = json!({"Entrypoint": ["/agnhost"], "Cmd": ["pause"], "WorkingDir": "/"});
    push(&agnhost_layers, "agnhost", config)?;
    for name in ["kitten", "nautilus"] {
        let page = layer(name, &|tree| animal(programs, name, tree))?;
        let layers = [agnhost_layers.as_slice(), &[&page]].concat();
        push(&layers, name, json!({"Entrypoint": ["/agnhost"], "Cmd": ["test-webserver"]}))?;
    }
    push(&[&busybox, &users, &shell], "busybox", json!({"Cmd": ["sh"]}))?;
    push(&[&busybox, &users, &shell], "nonroot", json!({"Cmd": ["sh"], "User": "1234"}))?;
    push(&[&busybox, &users, &tools], "glibc-dns-testing", json!({"Cmd": ["bash"]}))?;
    let conntrack = layer("conntrack", &|tree| conntrack(&dir, tree))?;
    push(&[&busybox, &users, &tools, &conntrack], "distroless-iptables", json!({"Cmd": ["sh"]}))?;
    let nginx = rootfs::nginx(&served.dir)?;
    let config = json!({
        "Entrypoint": ["/usr/sbin/nginx", "-g", "daemon off;"],
        "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT",
    });
    push(&[&nginx], "nginx", config)?;
    let program = |name: &'static str, at: &'static str, mode: u32| {
        layer(name, &move |tree| copy(&programs.path(name), tree, at, mode))
    };
    let nonewprivs = program("nonewprivs", "usr/local/bin/nnp", 0o6755)?;
    push(&[&busybox, &users, &shell, &nonewprivs], "nonewprivs", json!({"Cmd": ["nnp"]}))?;
    let segments = program("regression-issue-74839", "regression-issue-74839", 0o755)?;
    let config = json!({"Entrypoint": ["/regression-issue-74839"]});
    push(&[&busybox, &users, &segments], "regression-issue-74839", config)?;
    let sample = program("sample-apiserver", "sample-apiserver", 0o755)?;
    push(&[&users, &sample], "sample-apiserver", json!({"Entrypoint": ["/sample-apiserver"]}))?;
    let etcd = layer("etcd", &|tree| etcd(tree))?;
    push(&[&users, &etcd], "etcd", json!({"Cmd": ["/usr/local/bin/etcd"]}))?;
    let pause = program("pause", "pause", 0o755)?;
    push(&[&pause], "pause", json!({"Entrypoint": ["/pause"], "User": "65535:65535"}))
}

/// The versions of an image that upstream's tests ask for.
fn tags<'m>(manifest: &'m str, image: &str) -> Vec<&'m str> {
    let name = format!(", \"{image}\", \"");
    // What cannot be had upstream either must not be had here.
    let lines =
        manifest.lines().filter(|line| !line.contains("PrivateRegistry") && !line.contains("Invalid"));
    let tags = lines.filter_map(|line| line.trim().strip_prefix("configs[")?.split_once(&name));
    tags.filter_map(|(_, tag)| tag.strip_suffix("\"}")).collect()
}

/// The one that upstream's programs run with here, whatever the tag says.
fn etcd(tree: &Path) -> Result<()> {
    let programs = peers::Programs::open()?;
    programs.require("etcd")?;
    copy(&programs.path("etcd"), tree, "usr/local/bin/etcd", 0o755)
}

fn with_defaults(mut config: Value) -> Value {
    config["Env"] = json!([SEARCH_PATH]);
    config
}

/// Made anew each time, so that it is never older than what it is made of; the push knows whether it changed.
fn layer(dir: &Path, name: &str, fill: &dyn Fn(&Path) -> Result<()>) -> Result<PathBuf> {
    let tree = dir.join(format!("{name}.tree"));
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
    }
    fs::create_dir_all(&tree).with_context(|| format!("creating {}", tree.display()))?;
    fill(&tree).with_context(|| format!("filling the layer {name}"))?;
    archive(&tree, &dir.join(format!("{name}.tar")))
}

fn users(tree: &Path) -> Result<()> {
    for folder in ["home", "var/www", "usr/bin", "usr/sbin", "sbin"] {
        folder_of(tree, folder, 0o755)?;
    }
    for folder in ["tmp", "var/tmp"] {
        folder_of(tree, folder, 0o1777)?;
    }
    write(tree, "etc/passwd", PASSWD)?;
    write(tree, "etc/group", GROUP)?;
    write(tree, "etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")?;
    Ok(symlink("/bin/busybox", tree.join("usr/bin/env"))?)
}

/// Debian's busybox, as a shell, drops variables such as `data-1`, which upstream's hands on, and prefers its own
/// applets to programs of the search path.
fn shell(dir: &Path, tree: &Path) -> Result<()> {
    unpack(dir, "bash-static", tree)?;
    fs::remove_dir_all(tree.join("usr/share"))?;
    link_program(tree, "bash-static", "bin/sh")
}

/// Downloads a package once.
fn unpack(dir: &Path, package: &str, tree: &Path) -> Result<()> {
    let debs = dir.join("debs");
    fs::create_dir_all(&debs).with_context(|| format!("creating {}", debs.display()))?;
    let prefix = format!("{package}_");
    let mut there = fs::read_dir(&debs)?.flatten().map(|entry| entry.path());
    let deb =
        there.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
    rootfs::extract(&deb.map_or_else(|| rootfs::download(&debs, package), Ok)?, tree)
}

/// Programs and libraries, without what is only read by people.
fn tools(dir: &Path, tree: &Path) -> Result<()> {
    for package in with_libraries()? {
        unpack(dir, &package, tree)?;
    }
    remove_texts(tree)?;
    link_program(tree, "bash", "bin/sh")?;
    link_program(tree, "nc.openbsd", "usr/bin/nc")?;
    // A static busybox dies in its wget here. This one is to try once, as that does.
    write(tree, "etc/wgetrc", "tries = 1\n")?;
    write_program(tree, "usr/bin/printenv", PRINTENV)?;
    // A Debian whose libraries are all below /usr has this link in base-files.
    if !tree.join("lib64").exists() && tree.join("usr/lib64").exists() {
        symlink("usr/lib64", tree.join("lib64"))?;
    }
    Ok(())
}

fn conntrack(dir: &Path, tree: &Path) -> Result<()> {
    for package in CONNTRACK {
        unpack(dir, package, tree)?;
    }
    remove_texts(tree)
}

fn remove_texts(tree: &Path) -> Result<()> {
    for folder in ["etc", "var", "usr/share", "usr/include", "lib/systemd", "usr/lib/systemd"] {
        let path = tree.join(folder);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

fn link_program(tree: &Path, program: &str, link: &str) -> Result<()> {
    let found = ["bin", "usr/bin"].into_iter().find(|folder| tree.join(folder).join(program).exists());
    let folder = found.with_context(|| format!("the packages have no {program}"))?;
    folder_of(tree, "bin", 0o755)?;
    let link = tree.join(link);
    if fs::symlink_metadata(&link).is_ok() {
        fs::remove_file(&link)?;
    }
    Ok(symlink(format!("/{folder}/{program}"), link)?)
}

fn with_libraries() -> Result<BTreeSet<String>> {
    let flags = ["recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"];
    let flags = flags.map(|kind| format!("--no-{kind}"));
    let text = output(Command::new("apt-cache").args(["depends", "--recurse"]).args(flags).args(PACKAGES))?;
    // Indented lines are the relations; what stands alone is a package, or in angle brackets a virtual one.
    let names = text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_alphanumeric()));
    let wanted = names.filter(|name| {
        let library = name.starts_with("lib") || name.starts_with("zlib") || name.starts_with("bind9-libs");
        let unused = ["libpam", "libperl", "libdebconf"].iter().any(|prefix| name.starts_with(prefix));
        PACKAGES.contains(name) || (library && !unused)
    });
    Ok(wanted.map(str::to_owned).collect())
}

fn agnhost_files(programs: &Programs, tree: &Path) -> Result<()> {
    copy(&programs.path("agnhost"), tree, "agnhost", 0o755)?;
    symlink("agnhost", tree.join("agnhost-2"))?;
    folder_of(tree, "uploads", 0o755)?;
    folder_of(tree, "home/user-defined-in-image", 0o777)?;
    for name in ["localhost.crt", "localhost.key"] {
        let from = programs.kubernetes.join("test/images/agnhost/porter").join(name);
        copy(&from, tree, name, 0o644)?;
    }
    let user = "user-defined-in-image";
    write(tree, "etc/passwd", &format!("{PASSWD}{user}:x:1000:1000::/home/{user}:/bin/sh\n"))?;
    write(tree, "etc/group", &format!("{GROUP}{user}:x:1000:\ngroup-defined-in-image:x:50000:{user}\n"))?;
    // The test of image volumes looks for the words; upstream's image stands on Alpine.
    write(tree, "etc/os-release", "NAME=\"stand-in for Alpine Linux\"\nID=skiff\n")
}

fn animal(programs: &Programs, name: &str, tree: &Path) -> Result<()> {
    let html = programs.kubernetes.join("test/images").join(name).join("html");
    for file in [format!("{name}.jpg"), "data.json".to_owned()] {
        copy(&html.join(&file), tree, &file, 0o644)?;
    }
    Ok(())
}

fn folder_of(tree: &Path, at: &str, mode: u32) -> Result<()> {
    let path = tree.join(at);
    fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", path.display()))
}

fn write(tree: &Path, at: &str, text: &str) -> Result<()> {
    let path = tree.join(at);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

fn write_program(tree: &Path, at: &str, text: &str) -> Result<()> {
    write(tree, at, text)?;
    let path = tree.join(at);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("setting the mode of {}", path.display()))
}

fn copy(from: &Path, tree: &Path, at: &str, mode: u32) -> Result<()> {
    let to = tree.join(at);
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
    fs::set_permissions(&to, fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::tags;

    #[test]
    fn an_image_has_the_versions_that_tests_ask_for() {
        let manifest = "\tconfigs[AgnhostPrev] = Config{list.PromoterE2eRegistry, \"agnhost\", \"2.55\"}\n\
                        \tconfigs[Agnhost] = Config{list.PromoterE2eRegistry, \"agnhost\", \"2.66.1\"}\n\
                        \tconfigs[AgnhostPrivate] = Config{list.PrivateRegistry, \"agnhost\", \"2.6\"}\n\
                        \tconfigs[Agnhosts] = Config{list.PromoterE2eRegistry, \"agnhosts\", \"3\"}\n";
        assert_eq!(tags(manifest, "agnhost"), ["2.55", "2.66.1"]);
    }
}
