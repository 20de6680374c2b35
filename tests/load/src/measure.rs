//! One measurement each. All take their own time bound from the caller.

pub mod abuse;
pub mod access;
pub mod apply;
pub mod create;
pub mod custom;
pub mod dns;
pub mod idle;
pub mod list;
pub mod pods;
pub mod proxy;
pub mod schedule;
pub mod start;
pub mod watch;
pub mod web;
