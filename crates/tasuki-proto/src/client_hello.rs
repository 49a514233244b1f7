//! The first message of a TLS client, read without answering it: which name it wants and which protocols it offers.
//!
//! A front door needs both before it knows who shall speak TLS with that client. What is read here decides routes only;
//! the one who terminates TLS reads the same bytes again and judges them in full.

#[cfg(test)]
mod tests;

/// A ClientHello must fit in this many bytes on the wire. Post-quantum key shares need about 1,500.
pub const MAX_SIZE_BYTES: usize = 16 * 1024;

/// It may be cut into so many TLS records. Some clients split it in two to get past middleboxes.
const MAX_RECORDS: usize = 16;

/// What a client asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// RFC 6066 3: the name it wants, in lower case.
    pub server_name: Option<String>,
    /// RFC 7301: the protocols it offers, in its order of preference.
    pub alpn: Vec<Vec<u8>>,
}

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// Too few bytes to tell; read more, up to [`MAX_SIZE_BYTES`].
    Incomplete,
    /// A whole ClientHello.
    Hello(ClientHello),
    /// Not TLS at all: the first byte begins no handshake record.
    NotTls,
    /// It began as TLS and went wrong.
    Malformed(&'static str),
}

/// Why a ClientHello is not answered (RFC 8446 6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alert {
    /// It is not what RFC 8446 says.
    DecodeError,
    /// The one who would answer cannot, through no fault of the client's.
    InternalError,
    /// RFC 6066 3: nobody here has the name.
    UnrecognizedName,
}

impl Alert {
    /// The fatal alert as a record, before any key exists.
    pub fn record(self) -> [u8; 7] {
        let description = match self {
            Self::DecodeError => 50,
            Self::InternalError => 80,
            Self::UnrecognizedName => 112,
        };
        [21, 3, 3, 0, 2, 2, description]
    }
}

/// Reads the bytes that a client has sent so far.
pub fn read(bytes: &[u8]) -> Opening {
    match handshake(bytes) {
        Ok(message) => hello(&message).map_or(Opening::Malformed("the ClientHello is cut short"), |hello| {
            hello.map_or_else(Opening::Malformed, Opening::Hello)
        }),
        Err(opening) => opening,
    }
}

impl ClientHello {
    /// Whether it offers `protocol`.
    pub fn offers(&self, protocol: &[u8]) -> bool {
        self.alpn.iter().any(|offered| offered == protocol)
    }
}

/// RFC 8446 5.1: takes the handshake message out of its records.
fn handshake(mut bytes: &[u8]) -> Result<Vec<u8>, Opening> {
    match bytes.first() {
        None => return Err(Opening::Incomplete),
        Some(0x16) => {}
        Some(_) => return Err(Opening::NotTls),
    }
    if bytes.len() > MAX_SIZE_BYTES {
        return Err(Opening::Malformed("the ClientHello is too long"));
    }
    let mut message = Vec::new();
    for _ in 0..MAX_RECORDS {
        let Some((&[kind, major, _, high, low], rest)) = bytes.split_first_chunk::<5>() else {
            return Err(Opening::Incomplete);
        };
        if kind != 0x16 || major != 3 {
            return Err(Opening::Malformed(
                "a record of another kind inside the ClientHello",
            ));
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 {
            return Err(Opening::Malformed("an empty record"));
        }
        message.extend_from_slice(&rest[..length.min(rest.len())]);
        match message.first_chunk::<4>() {
            Some([kind, ..]) if *kind != 1 => return Err(Opening::Malformed("not a ClientHello")),
            Some(&[_, a, b, c]) => {
                let needed = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
                if needed > MAX_SIZE_BYTES {
                    return Err(Opening::Malformed("the ClientHello is too long"));
                }
                if message.len() >= needed {
                    message.truncate(needed);
                    message.drain(..4);
                    return Ok(message);
                }
            }
            None => {}
        }
        if rest.len() < length {
            return Err(Opening::Incomplete);
        }
        bytes = &rest[length..];
    }
    Err(Opening::Malformed("too many records"))
}

/// RFC 8446 4.1.2. `None` means that it is cut short.
fn hello(message: &[u8]) -> Option<Result<ClientHello, &'static str>> {
    let mut rest = Reader(message);
    rest.take(2 + 32)?; // legacy_version, random
    let session = usize::from(rest.u8()?);
    rest.take(session)?;
    let suites = usize::from(rest.u16()?);
    rest.take(suites)?;
    let compressions = usize::from(rest.u8()?);
    rest.take(compressions)?;
    let mut hello = ClientHello::default();
    if rest.0.is_empty() {
        return Some(Ok(hello)); // RFC 5246 7.4.1.2: no extensions at all
    }
    let length = usize::from(rest.u16()?);
    let mut extensions = Reader(rest.take(length)?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let length = usize::from(extensions.u16()?);
        let body = Reader(extensions.take(length)?);
        match kind {
            0 => match server_name(body)? {
                Ok(name) => hello.server_name = Some(name),
                Err(problem) => return Some(Err(problem)),
            },
            16 => hello.alpn = alpn(body)?,
            _ => {}
        }
    }
    Some(Ok(hello))
}

fn server_name(mut body: Reader<'_>) -> Option<Result<String, &'static str>> {
    let length = usize::from(body.u16()?);
    let mut names = Reader(body.take(length)?);
    // RFC 6066 3: host_name is the only type there is, and it must not occur twice.
    if names.u8()? != 0 {
        return Some(Err("a server name of an unknown type"));
    }
    let length = usize::from(names.u16()?);
    let name = names.take(length)?;
    let name = name.strip_suffix(b".").unwrap_or(name);
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if name.is_empty() || name.len() > 253 || !name.iter().all(plain) {
        return Some(Err("a server name that is no host name"));
    }
    Some(Ok(String::from_utf8_lossy(name).to_ascii_lowercase()))
}

fn alpn(mut body: Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let length = usize::from(body.u16()?);
    let mut list = Reader(body.take(length)?);
    let mut names = Vec::new();
    while !list.0.is_empty() {
        let length = usize::from(list.u8()?);
        names.push(list.take(length)?.to_vec());
    }
    Some(names)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}
