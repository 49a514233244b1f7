//! Minecraft's VarInt: LEB128 of a 32-bit two's complement number, five bytes at most.

/// A VarInt went on for more bytes than its place allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a number goes on for more than {max_bytes} bytes")]
pub struct VarIntTooLong {
    /// What its place allows: 5 for a field, 3 for a frame's length.
    pub max_bytes: usize,
}

/// Reads a VarInt of at most `max_bytes` (at most 5) from the start of `input`: the value and how many bytes it took,
/// or `None` while its last byte is not there yet.
pub fn read_varint(input: &[u8], max_bytes: usize) -> Result<Option<(i32, usize)>, VarIntTooLong> {
    let max_bytes = max_bytes.min(5);
    let mut value = 0u32;
    for (index, byte) in input.iter().take(max_bytes).enumerate() {
        // The fifth byte has four useful bits; like the game, we let the rest fall off.
        value |= u32::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value.cast_signed(), index + 1)));
        }
    }
    if input.len() >= max_bytes {
        Err(VarIntTooLong { max_bytes })
    } else {
        Ok(None)
    }
}

/// Appends `value` in its shortest form.
pub fn write_varint(out: &mut Vec<u8>, value: i32) {
    let mut rest = value.cast_unsigned();
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends a string in the game's form: byte length, then UTF-8.
pub(super) fn write_string(out: &mut Vec<u8>, text: &str) {
    write_varint(out, i32::try_from(text.len()).unwrap_or(i32::MAX));
    out.extend_from_slice(text.as_bytes());
}

/// One frame around `body` (packet id and data).
pub(super) fn frame(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 3);
    write_varint(&mut out, i32::try_from(body.len()).unwrap_or(i32::MAX));
    out.extend_from_slice(body);
    out
}

/// Reads the fields of one complete frame; running out of bytes is an error here, not a wait.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

/// A frame ended inside a field, or a field is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadField;

impl<'a> Fields<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(super) fn varint(&mut self) -> Result<i32, BadField> {
        let (value, used) = read_varint(self.rest, 5).map_err(|_| BadField)?.ok_or(BadField)?;
        self.rest = &self.rest[used..];
        Ok(value)
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], BadField> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(BadField)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, BadField> {
        self.bytes(2).map(|two| u16::from_be_bytes([two[0], two[1]]))
    }

    /// A string of at most `max_units` UTF-16 units, which is how the game counts.
    pub(super) fn string(&mut self, max_units: usize) -> Result<&'a str, BadField> {
        let length = usize::try_from(self.varint()?).map_err(|_| BadField)?;
        if length > max_units * 3 {
            return Err(BadField);
        }
        let text = std::str::from_utf8(self.bytes(length)?).map_err(|_| BadField)?;
        if text.encode_utf16().count() > max_units {
            Err(BadField)
        } else {
            Ok(text)
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}
