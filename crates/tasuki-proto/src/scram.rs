//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677), the server's side, as values.
//!
//! Only for generated secrets: a stored verifier of a password that a person made up would be easier to guess at than
//! its argon2id hash. One name may have several secrets with one salt; the proof says which one was used.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

#[cfg(test)]
mod tests;

/// Iterations of PBKDF2. RFC 7677 4 wants at least 4096; secrets of 130 random bits need no more.
pub const ITERATIONS: u32 = 4096;
/// Longest nonce of a client that is taken.
const MAX_NONCE: usize = 256;

type Key = [u8; 32];

/// What is stored of a secret: enough to check a proof, not enough to make one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Verifier {
    /// SHA-256 of the client's key.
    pub stored_key: Key,
    /// With this the server proves that it knows the secret too.
    pub server_key: Key,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier(..)")
    }
}

impl Verifier {
    /// The verifier of a secret.
    pub fn of(secret: &str, salt: &[u8], iterations: u32) -> Self {
        let salted = salted_password(secret.as_bytes(), salt, iterations);
        let client_key = hmac(&salted, &[b"Client Key"]);
        Self {
            stored_key: Sha256::digest(client_key).into(),
            server_key: hmac(&salted, &[b"Server Key"]),
        }
    }
}

/// What a client may bind its login to, and the octets that both ends of the TLS session see (RFC 9266).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Such as `tls-exporter`.
    pub name: &'static str,
    /// The octets.
    pub data: Vec<u8>,
}

/// Why a message of the client is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// Not the syntax of RFC 5802 7.
    #[error("the SCRAM message is malformed")]
    Malformed,
    /// An extension that must be understood, or acting for somebody else.
    #[error("an extension of SCRAM is not supported")]
    Unsupported,
    /// The client's view of channel binding and ours differ: somebody may be in between (RFC 5802 6).
    #[error("the channel binding does not fit")]
    Binding,
    /// The proof fits no secret.
    #[error("the proof is wrong")]
    Proof,
}

/// The client's first message, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFirst {
    /// The login name.
    pub login: String,
    nonce: String,
    bare: String,
    header: String,
    binding: Option<String>,
}

impl ClientFirst {
    /// Parses the message. `plus` says which mechanism the client chose, `offered` whether the other one with channel
    /// binding was offered to it.
    pub fn parse(text: &str, plus: bool, offered: bool) -> Result<Self, ScramError> {
        let mut parts = text.splitn(3, ',');
        let (Some(flag), Some(authzid), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ScramError::Malformed);
        };
        let binding = match (flag.strip_prefix("p="), flag) {
            (Some(name), _) if plus => Some(name.to_owned()),
            // A client that could bind, and thinks that we cannot, was lied to about what we offer.
            (None, "y") if offered => return Err(ScramError::Binding),
            (None, "n" | "y") if !plus => None,
            _ => return Err(ScramError::Binding),
        };
        if !authzid.is_empty() {
            return Err(ScramError::Unsupported);
        }
        let mut attributes = bare.split(',');
        let name = match attributes.next() {
            Some(name) if name.starts_with("m=") => return Err(ScramError::Unsupported),
            Some(name) => name.strip_prefix("n=").ok_or(ScramError::Malformed)?,
            None => return Err(ScramError::Malformed),
        };
        let nonce = attributes.next().and_then(|r| r.strip_prefix("r="));
        let nonce = nonce
            .filter(|nonce| is_nonce(nonce))
            .ok_or(ScramError::Malformed)?;
        Ok(Self {
            login: unescape(name).ok_or(ScramError::Malformed)?,
            nonce: nonce.to_owned(),
            bare: bare.to_owned(),
            header: format!("{flag},{authzid},"),
            binding,
        })
    }

    /// Our first message, and the exchange that waits for the client's final one. `seed` is fresh randomness.
    pub fn challenge(self, seed: &[u8; 18], salt: &[u8], verifiers: Vec<Verifier>) -> (Exchange, String) {
        let nonce = format!("{}{}", self.nonce, STANDARD.encode(seed));
        let first = format!("r={nonce},s={},i={ITERATIONS}", STANDARD.encode(salt));
        let exchange = Exchange {
            first: self,
            nonce,
            server_first: first.clone(),
            verifiers,
        };
        (exchange, first)
    }
}

/// An exchange whose challenge is out.
#[derive(Debug)]
pub struct Exchange {
    first: ClientFirst,
    nonce: String,
    server_first: String,
    verifiers: Vec<Verifier>,
}

/// A proof that fits.
#[derive(Debug, PartialEq, Eq)]
pub struct Proved {
    /// Which of the verifiers it fits.
    pub which: usize,
    /// Our final message, which proves us to the client.
    pub server_final: String,
}

impl Exchange {
    /// The login name.
    pub fn login(&self) -> &str {
        &self.first.login
    }

    /// Checks the client's final message. `bindings` are those of this TLS session.
    pub fn verify(&self, text: &str, bindings: &[Binding]) -> Result<Proved, ScramError> {
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let mut attributes = without_proof.split(',');
        let bound = attributes.next().and_then(|c| c.strip_prefix("c="));
        let nonce = attributes.next().and_then(|r| r.strip_prefix("r="));
        let (Some(bound), Some(nonce)) = (bound, nonce) else {
            return Err(ScramError::Malformed);
        };
        let mut expected = self.first.header.clone().into_bytes();
        if let Some(name) = &self.first.binding {
            let binding = bindings.iter().find(|binding| binding.name == name);
            expected.extend_from_slice(&binding.ok_or(ScramError::Binding)?.data);
        }
        let bound = STANDARD.decode(bound).map_err(|_| ScramError::Malformed)?;
        if bound != expected {
            return Err(ScramError::Binding);
        }
        if nonce != self.nonce {
            return Err(ScramError::Malformed);
        }
        let proof = STANDARD.decode(proof).map_err(|_| ScramError::Malformed)?;
        let proof: Key = proof.try_into().map_err(|_| ScramError::Malformed)?;
        let message = [
            self.first.bare.as_bytes(),
            b",",
            self.server_first.as_bytes(),
            b",",
            without_proof.as_bytes(),
        ];
        let fits = |verifier: &Verifier| {
            let signature = hmac(&verifier.stored_key, &message);
            let mut client_key = proof;
            for (key, signature) in client_key.iter_mut().zip(signature) {
                *key ^= signature;
            }
            // What is compared is a hash, so that the time tells nothing that helps.
            let stored: Key = Sha256::digest(client_key).into();
            stored == verifier.stored_key
        };
        let which = self.verifiers.iter().position(fits).ok_or(ScramError::Proof)?;
        let signature = hmac(&self.verifiers[which].server_key, &message);
        Ok(Proved {
            which,
            server_final: format!("v={}", STANDARD.encode(signature)),
        })
    }
}

/// RFC 5802 7: printable ASCII without a comma.
fn is_nonce(text: &str) -> bool {
    let printable = |b: u8| (b'!'..=b'~').contains(&b) && b != b',';
    (1..=MAX_NONCE).contains(&text.len()) && text.bytes().all(printable)
}

/// RFC 5802 5.1: `=2C` is a comma, `=3D` an equals sign.
fn unescape(name: &str) -> Option<String> {
    if name.is_empty() || name.len() > MAX_NONCE {
        return None;
    }
    let plain = name.replace("=2C", ",").replace("=3D", "\u{0}");
    if plain.contains('=') {
        return None;
    }
    Some(plain.replace('\u{0}', "="))
}

/// RFC 2104 with SHA-256.
fn hmac(key: &[u8], message: &[&[u8]]) -> Key {
    let mut block = [0; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let mut inner = Sha256::new();
    inner.update(block.map(|b| b ^ 0x36));
    for part in message {
        inner.update(part);
    }
    let mut outer = Sha256::new();
    outer.update(block.map(|b| b ^ 0x5c));
    outer.update(inner.finalize());
    outer.finalize().into()
}

/// RFC 5802 2.2, `Hi`: the first block of PBKDF2.
fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let mut round = hmac(password, &[salt, &1u32.to_be_bytes()]);
    let mut sum = round;
    for _ in 1..iterations {
        round = hmac(password, &[&round]);
        for (sum, round) in sum.iter_mut().zip(round) {
            *sum ^= round;
        }
    }
    sum
}
