//! What of built-in admission may be turned off.

use std::str::FromStr;

use thiserror::Error;

/// What an administrator may turn off of built-in admission, by upstream's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmissionPlugin {
    /// Pods run as an account of their namespace, and find its token.
    ServiceAccount,
    /// Pods stay for five minutes on a node that is away.
    DefaultTolerationSeconds,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "no plug-in of admission {name:?} can be turned off here; these can: ServiceAccount, DefaultTolerationSeconds"
)]
pub struct UnknownPlugin {
    name: String,
}

impl FromStr for AdmissionPlugin {
    type Err = UnknownPlugin;

    fn from_str(name: &str) -> Result<AdmissionPlugin, UnknownPlugin> {
        match name {
            "ServiceAccount" => Ok(AdmissionPlugin::ServiceAccount),
            "DefaultTolerationSeconds" => Ok(AdmissionPlugin::DefaultTolerationSeconds),
            _ => Err(UnknownPlugin { name: name.to_owned() }),
        }
    }
}
