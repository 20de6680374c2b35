//! The virtual machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::disk::Disk;
use super::share::Share;

/// How long until the guest gives its first sign. A kernel that says nothing under KVM is not waited for as long as one that is
/// emulated.
const FIRST_SIGN_KVM: Duration = Duration::from_secs(60);
const FIRST_SIGN_EMULATED: Duration = Duration::from_secs(600);
/// For everything; emulated, most of it is waiting.
const ALL: Duration = Duration::from_secs(75 * 60);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const MEMORY_MIB: u32 = 3072;
const PROCESSORS: u32 = 2;

#[derive(Clone, Copy, Debug)]
enum Acceleration {
    Kvm,
    Emulated,
}

/// Boots the guest and waits until it has switched itself off.
pub(super) fn run(disk: &Disk, share: &Share, dir: &Path) -> Result<()> {
    let console = dir.join("console.log");
    let can_try = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if can_try {
        eprintln!("booting the guest with KVM");
        match Machine::boot(Acceleration::Kvm, disk, share, &console)?.first_sign(FIRST_SIGN_KVM)? {
            Some(machine) => return machine.until_off(),
            None => eprintln!("it gave no sign with KVM; emulating instead"),
        }
    }
    eprintln!("booting the guest, emulated; its console is {}", console.display());
    let machine = Machine::boot(Acceleration::Emulated, disk, share, &console)?;
    match machine.first_sign(FIRST_SIGN_EMULATED)? {
        Some(machine) => machine.until_off(),
        None => bail!("the guest gave no sign; its console is {}", console.display()),
    }
}

struct Machine {
    qemu: Child,
    out: PathBuf,
    console: PathBuf,
    begun: Instant,
}

impl Machine {
    fn boot(how: Acceleration, disk: &Disk, share: &Share, console: &Path) -> Result<Machine> {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "q35", "-nodefaults", "-display", "none", "-monitor", "none"]);
        match how {
            Acceleration::Kvm => qemu.args(["-accel", "kvm", "-cpu", "host"]),
            Acceleration::Emulated => qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max"]),
        };
        qemu.args(["-smp", &PROCESSORS.to_string(), "-m", &MEMORY_MIB.to_string()]);
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        qemu.arg("-kernel").arg(&disk.kernel).arg("-initrd").arg(&disk.initrd);
        qemu.args(["-append", "root=/dev/vda rw console=ttyS0"]);
        // Restricted: what the guest sends goes nowhere.
        qemu.args(["-nic", "user,model=virtio-net-pci,restrict=on", "-device", "virtio-rng-pci"]);
        // What the guest writes is gone with qemu, but not with a reboot.
        qemu.arg("-drive").arg(format!("file={},if=virtio,format=raw,snapshot=on", disk.image.display()));
        qemu.arg("-virtfs")
            .arg(format!("local,path={},mount_tag=host,security_model=none", share.dir.display()));
        let qemu = qemu.stdin(Stdio::null()).spawn().context("starting qemu")?;
        Ok(Machine { qemu, out: share.out(), console: console.to_owned(), begun: Instant::now() })
    }

    /// `None` if there was none in time; the machine is off then.
    fn first_sign(mut self, patience: Duration) -> Result<Option<Machine>> {
        while self.begun.elapsed() < patience {
            if self.out.join("booted").exists() {
                eprintln!("it runs after {} s", self.begun.elapsed().as_secs());
                return Ok(Some(self));
            }
            if self.qemu.try_wait().context("looking at qemu")?.is_some() {
                return Ok(None);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(None)
    }

    fn until_off(mut self) -> Result<()> {
        while self.begun.elapsed() < ALL {
            if let Some(status) = self.qemu.try_wait().context("looking at qemu")? {
                if !status.success() {
                    bail!("qemu ended with {status}; the guest's console is {}", self.console.display());
                }
                eprintln!("it is off after {} s", self.begun.elapsed().as_secs());
                return Ok(());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        bail!(
            "the guest was not done in {} min; its console is {}",
            ALL.as_secs() / 60,
            self.console.display()
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A machine that is off already needs none of it.
        if self.qemu.kill().is_ok() {
            _ = self.qemu.wait();
        }
    }
}
