//! Policies against upstream's.

mod mutate;
mod types;
mod validate;
mod world;
