//! One image, as what it is made of: small enough to read, whole enough to be made again.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes that are mostly text: in JSON with `\x..` for what is not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text(pub Vec<u8>);

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        Text(text.as_bytes().to_vec())
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0.escape_ascii().to_string())
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Text, D::Error> {
        let text = String::deserialize(from)?;
        unescaped(&text)
            .map(Text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no escaped text")))
    }
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        out.push(match byte {
            b'\\' => match rest.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => {
                    let digits = [rest.next()?, rest.next()?];
                    u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                }
                other => other,
            },
            other => other,
        });
    }
    Some(out)
}

/// What the image is odd in. The rest of it is ordinary, so that one oddity does not hide the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Theme {
    Layers,
    Packing,
    Config,
    Manifest,
    Index,
    Registry,
}

pub const THEMES: [Theme; 6] =
    [Theme::Layers, Theme::Packing, Theme::Config, Theme::Manifest, Theme::Index, Theme::Registry];

impl Theme {
    pub fn text(self) -> &'static str {
        match self {
            Theme::Layers => "entries of layers",
            Theme::Packing => "compression, endings",
            Theme::Config => "configs",
            Theme::Manifest => "manifests",
            Theme::Index => "indexes",
            Theme::Registry => "registries",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    pub theme: Theme,
    /// The lowest first.
    pub layers: Vec<Layer>,
    #[serde(default)]
    pub config: ConfigOdd,
    #[serde(default)]
    pub manifest: ManifestOdd,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Index>,
    #[serde(default)]
    pub mood: Mood,
    /// Pulled by the digest, not the tag.
    #[serde(default)]
    pub by_digest: bool,
}

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Layer {
    pub entries: Vec<Entry>,
    #[serde(default)]
    pub packing: Packing,
    #[serde(default)]
    pub media_type: MediaType,
    #[serde(default)]
    pub ending: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Packing {
    #[default]
    Plain,
    Gzip,
    GzipMembers,
    GzipThenGarbage,
    GzipThenZeros,
    GzipCut,
    Zstd,
    ZstdFrames,
    ZstdSkippableFirst,
    ZstdSkippableLast,
    ZstdCut,
    ZstdThenGarbage,
    Bzip2Magic,
}

pub const PACKINGS: [Packing; 13] = [
    Packing::Plain,
    Packing::Gzip,
    Packing::GzipMembers,
    Packing::GzipThenGarbage,
    Packing::GzipThenZeros,
    Packing::GzipCut,
    Packing::Zstd,
    Packing::ZstdFrames,
    Packing::ZstdSkippableFirst,
    Packing::ZstdSkippableLast,
    Packing::ZstdCut,
    Packing::ZstdThenGarbage,
    Packing::Bzip2Magic,
];

/// What the descriptor says of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum MediaType {
    /// What is true.
    #[default]
    Right,
    OciTar,
    OciGzip,
    OciZstd,
    DockerGzip,
    DockerTar,
    NonDistributable,
    DockerForeign,
    Unknown,
    Empty,
}

pub const MEDIA_TYPES: [MediaType; 10] = [
    MediaType::Right,
    MediaType::OciTar,
    MediaType::OciGzip,
    MediaType::OciZstd,
    MediaType::DockerGzip,
    MediaType::DockerTar,
    MediaType::NonDistributable,
    MediaType::DockerForeign,
    MediaType::Unknown,
    MediaType::Empty,
];

/// How the archive ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Ending {
    #[default]
    TwoBlocks,
    None,
    OneBlock,
    ManyBlocks,
    Garbage,
    /// An entry after the end.
    Entry,
    /// One block of zeros, then an entry.
    OneBlockThenEntry,
    /// In the middle of a header.
    CutHeader,
    /// In the middle of the last file.
    CutContent,
    /// The padding of the last file is missing.
    CutPadding,
    /// Less than a block of zeros.
    ShortBlock,
}

pub const ENDINGS: [Ending; 11] = [
    Ending::TwoBlocks,
    Ending::None,
    Ending::OneBlock,
    Ending::ManyBlocks,
    Ending::Garbage,
    Ending::Entry,
    Ending::OneBlockThenEntry,
    Ending::CutHeader,
    Ending::CutContent,
    Ending::CutPadding,
    Ending::ShortBlock,
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub name: Text,
    pub kind: Kind,
    #[serde(default)]
    pub form: Form,
    pub mode: u32,
    pub uid: i64,
    pub gid: i64,
    pub mtime: i64,
    /// PAX records in front.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<(Text, Text)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub odd: Vec<Odd>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Kind {
    File {
        fill: u8,
        size: usize,
    },
    Directory,
    Symlink {
        to: Text,
    },
    Hardlink {
        to: Text,
    },
    Char {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
    Sparse(Sparse),
    /// A file by a flag that is not usual for one.
    Flag {
        flag: u8,
        size: usize,
    },
    /// PAX records for all that follows.
    Global,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sparse {
    OldGnu,
    Pax00,
    Pax01,
    Pax10,
    /// With a map that does not fit.
    Broken,
}

/// How name and numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Form {
    #[default]
    Ustar,
    V7,
    Gnu,
    Pax,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Odd {
    /// A link, directory or the like says that it has content, which it has not.
    ClaimedSize,
    /// A link, directory or the like has content.
    RealSize,
    Base256,
    /// Numbers end in spaces, and begin with them.
    Spaces,
    BlankOwner,
    BlankMode,
    BlankTime,
    SignedChecksum,
    WrongChecksum,
    NoOctal,
    /// `\0` for a file, as V7 had it.
    OldFlag,
    /// Bits of the file type in the mode, as some writers put them there.
    TypeInMode,
    /// A long name of GNU's before it that is another one.
    LongNameToo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ConfigOdd {
    #[default]
    Plain,
    WrongDiffId,
    SwappedDiffIds,
    ExtraDiffId,
    MissingDiffId,
    NoRootfs,
    NullRootfs,
    NullDiffIds,
    RootfsType,
    NullConfig,
    NullFields,
    UnknownFields,
    NoPlatform,
    ForeignPlatform,
    OtherSystem,
    AliasPlatform,
    VariantPlatform,
    WrongTypeOfEnv,
    WrongTypeOfUser,
    OddCreated,
    OddHistory,
    Large,
    NoJson,
    Array,
    MediaType,
    UpperCaseKeys,
}

pub const CONFIG_ODDS: [ConfigOdd; 26] = [
    ConfigOdd::Plain,
    ConfigOdd::WrongDiffId,
    ConfigOdd::SwappedDiffIds,
    ConfigOdd::ExtraDiffId,
    ConfigOdd::MissingDiffId,
    ConfigOdd::NoRootfs,
    ConfigOdd::NullRootfs,
    ConfigOdd::NullDiffIds,
    ConfigOdd::RootfsType,
    ConfigOdd::NullConfig,
    ConfigOdd::NullFields,
    ConfigOdd::UnknownFields,
    ConfigOdd::NoPlatform,
    ConfigOdd::ForeignPlatform,
    ConfigOdd::OtherSystem,
    ConfigOdd::AliasPlatform,
    ConfigOdd::VariantPlatform,
    ConfigOdd::WrongTypeOfEnv,
    ConfigOdd::WrongTypeOfUser,
    ConfigOdd::OddCreated,
    ConfigOdd::OddHistory,
    ConfigOdd::Large,
    ConfigOdd::NoJson,
    ConfigOdd::Array,
    ConfigOdd::MediaType,
    ConfigOdd::UpperCaseKeys,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ManifestOdd {
    #[default]
    Plain,
    Docker,
    NoMediaType,
    NoSchemaVersion,
    SchemaVersion1,
    NullLayers,
    NullAnnotations,
    UnknownFields,
    EmptyManifests,
    Both,
    LayerTooLong,
    LayerTooShort,
    ConfigTooLong,
    NegativeSize,
    NoSize,
    OddDigest,
    UpperCaseDigest,
    NoConfig,
    OtherMediaType,
    Array,
    NoJson,
    LeadingSpace,
    TrailingGarbage,
    Urls,
}

pub const MANIFEST_ODDS: [ManifestOdd; 24] = [
    ManifestOdd::Plain,
    ManifestOdd::Docker,
    ManifestOdd::NoMediaType,
    ManifestOdd::NoSchemaVersion,
    ManifestOdd::SchemaVersion1,
    ManifestOdd::NullLayers,
    ManifestOdd::NullAnnotations,
    ManifestOdd::UnknownFields,
    ManifestOdd::EmptyManifests,
    ManifestOdd::Both,
    ManifestOdd::LayerTooLong,
    ManifestOdd::LayerTooShort,
    ManifestOdd::ConfigTooLong,
    ManifestOdd::NegativeSize,
    ManifestOdd::NoSize,
    ManifestOdd::OddDigest,
    ManifestOdd::UpperCaseDigest,
    ManifestOdd::NoConfig,
    ManifestOdd::OtherMediaType,
    ManifestOdd::Array,
    ManifestOdd::NoJson,
    ManifestOdd::LeadingSpace,
    ManifestOdd::TrailingGarbage,
    ManifestOdd::Urls,
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Index {
    /// Schema 2's list instead of OCI's index.
    pub docker: bool,
    pub media_type: bool,
    pub entries: Vec<Member>,
}

/// An entry of an index. Each leads to an image of one layer with a file that names the entry, so that the tree says who was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub platform: Option<Platform>,
    pub what: MemberKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberKind {
    Image,
    /// The image whose layers the case has.
    Main,
    /// An index of its own with one image in it.
    Nested,
    /// An in-toto statement, as buildkit adds it.
    Attestation,
    /// Not at the registry.
    Missing,
    /// Its descriptor says another size.
    WrongSize,
    UnknownMediaType,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

/// What the registry is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Mood {
    #[default]
    Plain,
    Bearer,
    BearerAfterBasic,
    BearerBesideBasic,
    BearerLowerCase,
    BearerAccessToken,
    BearerNoService,
    BearerNoScope,
    BearerElsewhere,
    BearerWithPassword,
    BearerWrongPassword,
    BearerPerRequest,
    TokenServerBusy,
    TokenServerGone,
    EmptyToken,
    Basic,
    BasicWrongPassword,
    UnknownScheme,
    NoChallenge,
    Forbidden,
    Busy429,
    Busy503,
    Busy500,
    Always429,
    Redirect302,
    Redirect307Elsewhere,
    Redirect308,
    RedirectRelative,
    RedirectManifest,
    RedirectLoop,
    RedirectNowhere,
    Chunked,
    TextType,
    NoType,
    OctetType,
    ParametersOfType,
    NoDigestHeader,
    WrongDigestHeader,
    NoHead,
    HeadNotFound,
    HeadForbidden,
    TruncatedOnce,
    TruncatedOnceNoRange,
    TruncatedAlways,
    CorruptBlob,
    CorruptConfig,
    LongerBlob,
    BlobGone,
    ConfigGone,
    ManifestGone,
    EmptyBlob,
}

pub const MOODS: [Mood; 51] = [
    Mood::Plain,
    Mood::Bearer,
    Mood::BearerAfterBasic,
    Mood::BearerBesideBasic,
    Mood::BearerLowerCase,
    Mood::BearerAccessToken,
    Mood::BearerNoService,
    Mood::BearerNoScope,
    Mood::BearerElsewhere,
    Mood::BearerWithPassword,
    Mood::BearerWrongPassword,
    Mood::BearerPerRequest,
    Mood::TokenServerBusy,
    Mood::TokenServerGone,
    Mood::EmptyToken,
    Mood::Basic,
    Mood::BasicWrongPassword,
    Mood::UnknownScheme,
    Mood::NoChallenge,
    Mood::Forbidden,
    Mood::Busy429,
    Mood::Busy503,
    Mood::Busy500,
    Mood::Always429,
    Mood::Redirect302,
    Mood::Redirect307Elsewhere,
    Mood::Redirect308,
    Mood::RedirectRelative,
    Mood::RedirectManifest,
    Mood::RedirectLoop,
    Mood::RedirectNowhere,
    Mood::Chunked,
    Mood::TextType,
    Mood::NoType,
    Mood::OctetType,
    Mood::ParametersOfType,
    Mood::NoDigestHeader,
    Mood::WrongDigestHeader,
    Mood::NoHead,
    Mood::HeadNotFound,
    Mood::HeadForbidden,
    Mood::TruncatedOnce,
    Mood::TruncatedOnceNoRange,
    Mood::TruncatedAlways,
    Mood::CorruptBlob,
    Mood::CorruptConfig,
    Mood::LongerBlob,
    Mood::BlobGone,
    Mood::ConfigGone,
    Mood::ManifestGone,
    Mood::EmptyBlob,
];

impl Mood {
    /// What both sides are given to log in with.
    pub fn password(self) -> Option<(&'static str, &'static str)> {
        match self {
            Mood::Basic | Mood::BearerWithPassword | Mood::BearerAfterBasic => Some(("me", "secret")),
            Mood::BasicWrongPassword | Mood::BearerWrongPassword => Some(("me", "wrong")),
            _ => None,
        }
    }
}

impl Image {
    /// The same for the same image, in every version.
    pub fn id(&self) -> String {
        // FNV-1a: nobody chooses cases so that they collide.
        let text = serde_json::to_string(self).unwrap_or_default();
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        format!("{hash:016x}")
    }

    /// What it is, for people: only what is not ordinary.
    pub fn text(&self) -> String {
        let mut parts = Vec::new();
        for layer in &self.layers {
            let mut text: Vec<String> = layer.entries.iter().map(Entry::text).collect();
            if layer.packing != Packing::Plain {
                text.push(format!("{:?}", layer.packing));
            }
            if layer.media_type != MediaType::Right {
                text.push(format!("media type {:?}", layer.media_type));
            }
            if layer.ending != Ending::TwoBlocks {
                text.push(format!("ending {:?}", layer.ending));
            }
            parts.push(format!("[{}]", text.join(", ")));
        }
        if self.config != ConfigOdd::Plain {
            parts.push(format!("config {:?}", self.config));
        }
        if self.manifest != ManifestOdd::Plain {
            parts.push(format!("manifest {:?}", self.manifest));
        }
        if let Some(index) = &self.index {
            let of = |member: &Member| {
                let platform = member.platform.as_ref().map_or("none".to_owned(), |p| {
                    format!("{}/{}/{}", p.os, p.architecture, p.variant.as_deref().unwrap_or_default())
                });
                format!("{:?} {platform}", member.what)
            };
            let members: Vec<String> = index.entries.iter().map(of).collect();
            parts.push(format!(
                "{} of ({})",
                if index.docker { "list" } else { "index" },
                members.join(", ")
            ));
        }
        if self.mood != Mood::Plain {
            parts.push(format!("registry {:?}", self.mood));
        }
        if self.by_digest {
            parts.push("by digest".to_owned());
        }
        parts.join(" ")
    }
}

impl Entry {
    fn text(&self) -> String {
        let short = |text: &Text| {
            let text = text.0.escape_ascii().to_string();
            if text.len() > 60 { format!("{}… ({} bytes)", &text[..40], text.len()) } else { text }
        };
        let what = match &self.kind {
            Kind::File { .. } => "file".to_owned(),
            Kind::Directory => "dir".to_owned(),
            Kind::Symlink { to } => format!("symlink to {}", short(to)),
            Kind::Hardlink { to } => format!("hard link to {}", short(to)),
            Kind::Char { major, minor } => format!("char {major}:{minor}"),
            Kind::Block { major, minor } => format!("block {major}:{minor}"),
            Kind::Fifo => "fifo".to_owned(),
            Kind::Sparse(form) => format!("sparse {form:?}"),
            Kind::Flag { flag, .. } => format!("flag {:?}", char::from(*flag)),
            Kind::Global => "global".to_owned(),
        };
        let mut text = format!(
            "{what} {:?} {:o} {}:{} @{}",
            short(&self.name),
            self.mode,
            self.uid,
            self.gid,
            self.mtime
        );
        if self.form != Form::Ustar {
            text += &format!(" {:?}", self.form);
        }
        for (key, value) in &self.records {
            text += &format!(" {}={}", short(key), short(value));
        }
        for odd in &self.odd {
            text += &format!(" {odd:?}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_come_back_from_json() {
        let all = Text((0..=255).collect());
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Text>(&text).unwrap(), all);
    }
}
