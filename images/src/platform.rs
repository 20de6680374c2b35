//! Which of an index's images this machine runs best.
//!
//! Source: containerd's `platforms` package, for names that mean the same and for what 64-bit machines run besides. Unlike
//! its default, we rank the variants of a CPU by what this one has: `v3` before the plain one where it runs, and never one that does not.

use serde::{Deserialize, Deserializer, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default, deserialize_with = "or_empty")]
    pub(crate) architecture: String,
    #[serde(default, deserialize_with = "or_empty")]
    pub(crate) os: String,
    /// `v7` of an ARM, `v3` of an x86-64.
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    pub(crate) variant: String,
}

fn or_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

/// What a machine runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    /// As Kubernetes names it.
    pub(crate) architecture: &'static str,
    /// Of x86-64's levels the highest that the CPU has.
    pub(crate) level: u8,
}

/// Behind all images of the machine's own architecture.
const FOREIGN: u8 = 100;

impl Host {
    pub(crate) fn this() -> Host {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Host { architecture, level: level() }
    }
}

#[cfg(target_arch = "x86_64")]
fn level() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("cmpxchg16b")
        && has!("popcnt")
        && has!("sse3")
        && has!("ssse3")
        && has!("sse4.1")
        && has!("sse4.2");
    let v3 = has!("avx")
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("f16c")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe");
    let v4 = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (v2, v3, v4) {
        (true, true, true) => 4,
        (true, true, false) => 3,
        (true, false, _) => 2,
        (false, ..) => 1,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn level() -> u8 {
    1
}

impl Platform {
    /// How well a machine runs it, 0 the best; `None` if it does not.
    pub(crate) fn rank(&self, host: Host) -> Option<u8> {
        // One that names no system means that of whoever asks.
        let means_linux = if self.os.is_empty() {
            !self.architecture.is_empty()
        } else {
            self.os.eq_ignore_ascii_case("linux")
        };
        if !means_linux {
            return None;
        }
        let (architecture, variant) = self.normalized();
        match (host.architecture, architecture.as_str()) {
            ("amd64", "amd64") => {
                let level = if variant.is_empty() { 1 } else { variant.strip_prefix('v')?.parse().ok()? };
                (1..=host.level).contains(&level).then(|| host.level - level)
            }
            ("amd64", "386") => Some(FOREIGN),
            ("arm64", "arm64") => matches!(variant.as_str(), "" | "v8").then_some(0),
            ("arm64", "arm") => match variant.as_str() {
                "v8" => Some(FOREIGN),
                "v7" => Some(FOREIGN + 1),
                "v6" => Some(FOREIGN + 2),
                "v5" => Some(FOREIGN + 3),
                _ => None,
            },
            (own, other) => (own == other).then_some(0),
        }
    }

    /// Whether it says nothing.
    pub(crate) fn is_unsaid(&self) -> bool {
        self.os.is_empty() && self.architecture.is_empty()
    }

    pub(crate) fn is_wasm(&self) -> bool {
        matches!(self.architecture.as_str(), "wasm" | "wasm32")
            || matches!(self.os.as_str(), "wasi" | "wasip1" | "wasip2")
    }

    /// The architecture and variant by one name of each.
    fn normalized(&self) -> (String, String) {
        let (architecture, mut variant) =
            (self.architecture.to_ascii_lowercase(), self.variant.to_ascii_lowercase());
        if variant.starts_with(|c: char| c.is_ascii_digit()) {
            variant.insert(0, 'v');
        }
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386" | "i686" | "x86", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "v8") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "") => ("arm", "v7"),
            other => other,
        };
        (architecture.to_owned(), variant.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(host: (&'static str, u8), architecture: &str, variant: &str) -> Option<u8> {
        let text = String::from;
        let platform =
            Platform { os: text("linux"), architecture: text(architecture), variant: text(variant) };
        platform.rank(Host { architecture: host.0, level: host.1 })
    }

    #[test]
    fn a_machine_never_takes_what_its_cpu_cannot_run() {
        for (variant, wanted) in [
            ("", Some(1)),
            ("v1", Some(1)),
            ("v2", Some(0)),
            ("v3", None),
            ("v9", None),
            ("vx", None),
            ("v0", None),
        ] {
            assert_eq!(rank(("amd64", 2), "amd64", variant), wanted, "{variant}");
        }
        assert_eq!(rank(("arm64", 1), "arm64", "v9"), None);
        assert_eq!(rank(("amd64", 4), "arm64", ""), None);
        assert_eq!(rank(("arm64", 1), "amd64", ""), None);
    }

    #[test]
    fn a_platform_without_a_system_is_of_this_one_and_one_without_anything_of_none() {
        let of = |os: &str, architecture: &str| {
            let (os, architecture) = (os.to_owned(), architecture.to_owned());
            let platform = Platform { os, architecture, variant: String::new() };
            platform.rank(Host { architecture: "amd64", level: 1 })
        };
        assert_eq!(of("", "amd64"), Some(0));
        for (os, architecture) in [("", ""), ("linux", ""), ("windows", "amd64"), ("unknown", "unknown")] {
            assert_eq!(of(os, architecture), None, "{os}/{architecture}");
        }
    }

    #[test]
    fn names_that_mean_the_same_are_the_same() {
        for name in ["amd64", "x86_64", "x86-64", "X86_64"] {
            assert_eq!(rank(("amd64", 1), name, ""), Some(0), "{name}");
        }
        for (name, variant) in [("arm64", ""), ("aarch64", "v8"), ("arm64", "8"), ("AARCH64", "")] {
            assert_eq!(rank(("arm64", 1), name, variant), Some(0), "{name} {variant}");
        }
        assert_eq!(rank(("arm64", 1), "armhf", ""), rank(("arm64", 1), "arm", "7"));
        assert_eq!(rank(("amd64", 1), "i686", ""), Some(FOREIGN), "behind all of its own");
    }

    #[test]
    fn the_level_of_this_machine_is_one_that_there_is() {
        assert!((1..=4).contains(&Host::this().level));
    }
}
