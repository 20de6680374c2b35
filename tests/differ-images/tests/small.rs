//! A small part of the judge for every run of the tests; `cargo xtask test` says where containerd is.

#[cfg(target_arch = "x86_64")]
use std::path::{Path, PathBuf};
use std::process::Command;

/// Needs root and `SKIFF_TEST_CONTAINERD`, the folder with `containerd` and `ctr`: without it there is nobody to compare with.
fn judge(arguments: &[&str]) {
    let Some(containerd) = std::env::var_os("SKIFF_TEST_CONTAINERD") else {
        eprintln!("SKIFF_TEST_CONTAINERD is not set, see `cargo xtask test`: nothing is compared");
        return;
    };
    let mut judge = Command::new(env!("CARGO_BIN_EXE_skiff-differ-images"));
    let output =
        judge.arg("--containerd").arg(containerd).args(arguments).output().expect("starting the judge");
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{why}");
}

#[cfg(target_arch = "x86_64")]
fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recorded").join(name)
}

#[test]
fn odd_images_come_to_what_containerd_makes_of_them() {
    judge(&["--seed", "1", "--images", "40", "--strict"]);
}

/// On x86-64, whose variants are among what is known.
#[cfg(target_arch = "x86_64")]
#[test]
fn what_is_known_to_differ_does_and_for_the_reason_that_is_given() {
    judge(&["--cases", &recorded("known.jsonl").display().to_string(), "--strict", "--all-known"]);
}
