//! Policies against upstream's.

mod mutate;
mod validate;
mod world;
