//! The guest declares much more memory than it touches.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=--initial-memory=33554432");
}
