//! Turns `proto/cri.proto` into Rust, without `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/cri.proto");
    let descriptors = protox::compile(["cri.proto"], ["proto"])?;
    prost_build::Config::new()
        // Skiff keeps these messages in small JSON records on disk; a record written by an older
        // version lacks the fields that came later.
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".", "#[serde(default)]")
        // Passwords and tokens must not reach a log through `{:?}`.
        .skip_debug(["runtime.v1.AuthConfig"])
        .btree_map(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
