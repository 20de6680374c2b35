//! The wire format: numbers, lengths, fields, and the envelope, which is read by hand.

/// Why bytes are no message. Worded as upstream's generated code words it.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("empty data")]
    Empty,
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    #[error("empty body")]
    NoBody,
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { kind: String, api_version: String },
    #[error("unexpected EOF")]
    UnexpectedEnd,
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: wrong wireType = {wire_type} for field {field}")]
    WireType { wire_type: u8, field: String },
    #[error("proto: {message}: illegal tag {number} (wire type {wire_type})")]
    IllegalTag { message: String, number: u64, wire_type: u8 },
    #[error("proto: unexpected end of group")]
    EndGroup,
    #[error("proto: illegal wireType {0}")]
    IllegalWireType(u8),
    #[error("proto: field {field} is no valid UTF-8")]
    NotUtf8 { field: String },
    #[error("proto: field {field} holds no JSON: {source}")]
    NotJson { field: String, source: serde_json::Error },
    #[error("proto: field {field} is no number that JSON has")]
    NotFinite { field: String },
    #[error("proto: field {field} is a time that cannot be: {seconds} s, {nanos} ns")]
    NoTime { field: String, seconds: i64, nanos: i32 },
    #[error("proto: messages are nested more than {0} deep")]
    TooDeep(usize),
    #[error("proto: more than {0} values")]
    TooMany(usize),
}

/// Wire types.
pub(super) const VARINT: u8 = 0;
pub(super) const FIXED64: u8 = 1;
pub(super) const DELIMITED: u8 = 2;
const START_GROUP: u8 = 3;
const END_GROUP: u8 = 4;
const FIXED32: u8 = 5;

/// Groups, which upstream never writes, are skipped this deep.
const MAX_GROUPS: usize = 32;

/// Reads fields off a message.
#[derive(Clone, Copy)]
pub(super) struct Reader<'b> {
    bytes: &'b [u8],
}

/// One field: its number and what it holds.
pub(super) struct FieldBytes<'b> {
    pub(super) number: u64,
    pub(super) wire_type: u8,
    /// Of a varint or fixed field its bits, otherwise 0.
    pub(super) bits: u64,
    /// Of a delimited field what it holds, otherwise nothing.
    pub(super) bytes: &'b [u8],
}

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Reader<'b> {
        Reader { bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.bytes.split_first().ok_or(DecodeError::UnexpectedEnd)?;
            self.bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Overflow)
    }

    pub(super) fn take(&mut self, count: u64) -> Result<&'b [u8], DecodeError> {
        let count = usize::try_from(count).map_err(|_| DecodeError::UnexpectedEnd)?;
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(DecodeError::UnexpectedEnd)?;
        self.bytes = rest;
        Ok(taken)
    }

    pub(super) fn fixed64(&mut self) -> Result<u64, DecodeError> {
        let bytes: [u8; 8] = self.take(8)?.try_into().map_err(|_| DecodeError::UnexpectedEnd)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The next field, `None` at the end. Groups are skipped whole: no type of ours has one. `message` is what
    /// is being read, for the message of an error.
    pub(super) fn field(&mut self, message: &str) -> Result<Option<FieldBytes<'b>>, DecodeError> {
        loop {
            if self.is_empty() {
                return Ok(None);
            }
            let (number, wire_type) = self.tag(message)?;
            let mut field = FieldBytes { number, wire_type, bits: 0, bytes: &[] };
            match wire_type {
                VARINT => field.bits = self.varint()?,
                FIXED64 => field.bits = self.fixed64()?,
                DELIMITED => {
                    let length = self.varint()?;
                    field.bytes = self.take(length)?;
                }
                START_GROUP => {
                    self.skip_group(message)?;
                    continue;
                }
                END_GROUP => return Err(DecodeError::EndGroup),
                FIXED32 => _ = self.take(4)?,
                other => return Err(DecodeError::IllegalWireType(other)),
            }
            return Ok(Some(field));
        }
    }

    fn tag(&mut self, message: &str) -> Result<(u64, u8), DecodeError> {
        let tag = self.varint()?;
        let (number, wire_type) = (tag >> 3, (tag & 7) as u8);
        // Field numbers have 29 bits.
        if number == 0 || number >= 1 << 29 {
            return Err(DecodeError::IllegalTag { message: message.to_owned(), number, wire_type });
        }
        Ok((number, wire_type))
    }

    fn skip_group(&mut self, message: &str) -> Result<(), DecodeError> {
        let mut open = 1;
        while open > 0 {
            match self.tag(message)?.1 {
                VARINT => _ = self.varint()?,
                FIXED64 => _ = self.take(8)?,
                DELIMITED => {
                    let length = self.varint()?;
                    self.take(length)?;
                }
                START_GROUP if open == MAX_GROUPS => return Err(DecodeError::TooDeep(MAX_GROUPS)),
                START_GROUP => open += 1,
                END_GROUP => open -= 1,
                FIXED32 => _ = self.take(4)?,
                other => return Err(DecodeError::IllegalWireType(other)),
            }
        }
        Ok(())
    }
}

/// The envelope: which kind, and its message.
pub(super) struct Unknown<'b> {
    api_version: &'b str,
    kind: &'b str,
    pub(super) raw: Option<&'b [u8]>,
}

impl<'b> Unknown<'b> {
    pub(super) fn read(bytes: &'b [u8]) -> Result<Unknown<'b>, DecodeError> {
        if bytes.is_empty() {
            return Err(DecodeError::Empty);
        }
        let body = bytes.strip_prefix(&super::MAGIC).ok_or(DecodeError::NoMagic)?;
        if body.is_empty() {
            return Err(DecodeError::NoBody);
        }
        let mut unknown = Unknown { api_version: "", kind: "", raw: None };
        let mut fields = Reader::new(body);
        while let Some(field) = fields.field("Unknown")? {
            match field.number {
                1 => unknown.type_meta(delimited(&field, "TypeMeta")?)?,
                2 => unknown.raw = Some(delimited(&field, "Raw")?),
                3 | 4 => _ = delimited(&field, "ContentType")?,
                _ => {}
            }
        }
        Ok(unknown)
    }

    fn type_meta(&mut self, bytes: &'b [u8]) -> Result<(), DecodeError> {
        let mut fields = Reader::new(bytes);
        while let Some(field) = fields.field("TypeMeta")? {
            match field.number {
                1 => self.api_version = text(&field, "APIVersion")?,
                2 => self.kind = text(&field, "Kind")?,
                _ => {}
            }
        }
        Ok(())
    }

    /// What it says it is, or else these.
    pub(super) fn or(&self, api_version: &str, kind: &str) -> (String, String) {
        let either = |said: &str, otherwise: &str| if said.is_empty() { otherwise } else { said }.to_owned();
        (either(self.api_version, api_version), either(self.kind, kind))
    }
}

pub(super) fn delimited<'b>(field: &FieldBytes<'b>, name: &str) -> Result<&'b [u8], DecodeError> {
    expect(field, DELIMITED, name)?;
    Ok(field.bytes)
}

pub(super) fn expect(field: &FieldBytes<'_>, wire_type: u8, name: &str) -> Result<(), DecodeError> {
    if field.wire_type == wire_type {
        return Ok(());
    }
    Err(DecodeError::WireType { wire_type: field.wire_type, field: name.to_owned() })
}

pub(super) fn text<'b>(field: &FieldBytes<'b>, name: &str) -> Result<&'b str, DecodeError> {
    let bytes = delimited(field, name)?;
    std::str::from_utf8(bytes).map_err(|_| DecodeError::NotUtf8 { field: name.to_owned() })
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The head of a delimited field.
pub(super) fn put_length(out: &mut Vec<u8>, number: u16, bytes: usize) {
    put_varint(out, u64::from(number) << 3 | u64::from(DELIMITED));
    put_varint(out, bytes as u64);
}

pub(crate) fn put_delimited(out: &mut Vec<u8>, number: u16, bytes: &[u8]) {
    put_length(out, number, bytes.len());
    out.extend_from_slice(bytes);
}

/// How many bytes a delimited field with a number below 16 takes.
pub(super) fn delimited_bytes(bytes: usize) -> usize {
    let bits = (usize::BITS - (bytes | 1).leading_zeros()) as usize;
    1 + bits.div_ceil(7) + bytes
}
