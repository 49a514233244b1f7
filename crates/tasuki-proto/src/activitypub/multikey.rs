//! Keys and signatures in one line: multibase base58btc (`z…`) around a multicodec prefix, as FEP-521a publishes keys.

/// Longest text decoded: an RSA-4096 key takes about 730 characters, and decoding grows with the square.
const MAX_CHARS: usize = 1500;

const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// A public key as `publicKeyMultibase` holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Multikey {
    /// Multicodec `ed25519-pub`, 0xed.
    Ed25519([u8; 32]),
    /// Multicodec `rsa-pub`, 0x1205: PKCS#1 in DER.
    Rsa(Vec<u8>),
}

impl Multikey {
    /// Reads the text; other kinds of keys are of no use here.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = decode(text)?;
        match bytes.as_slice() {
            // The prefixes as unsigned varints.
            [0xed, 0x01, key @ ..] => Some(Self::Ed25519(key.try_into().ok()?)),
            [0x85, 0x24, key @ ..] if !key.is_empty() => Some(Self::Rsa(key.to_vec())),
            _ => None,
        }
    }
}

/// The bytes of a multibase text in base58btc, the one base that keys and proofs use (FEP-521a, FEP-8b32).
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix('z')?;
    if digits.len() > MAX_CHARS {
        return None;
    }
    // The number in base 256, lowest byte first.
    let mut bytes: Vec<u8> = Vec::with_capacity(digits.len());
    for digit in digits.bytes() {
        let mut carry = ALPHABET.iter().position(|known| *known == digit)?;
        for byte in &mut bytes {
            carry += usize::from(*byte) * 58;
            *byte = (carry & 0xff) as u8;
            carry >>= 8;
        }
        while carry > 0 {
            bytes.push((carry & 0xff) as u8);
            carry >>= 8;
        }
    }
    // Leading ones stand for leading zeros.
    bytes.extend(digits.bytes().take_while(|digit| *digit == b'1').map(|_| 0));
    bytes.reverse();
    Some(bytes)
}
