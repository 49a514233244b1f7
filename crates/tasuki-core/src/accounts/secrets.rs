//! Secrets: how generated ones look, how all of them are hashed.

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::digest::{SHA256, digest};

use crate::seal::Secret;
use crate::store::accounts::CredentialKind;

/// What generated secrets begin with, so that the kind is known before the look-up, and a secret that somebody
/// published by mistake can be found by scanners.
const PREFIXES: [(CredentialKind, &str); 3] = [
    (CredentialKind::Token, "tsk_"),
    (CredentialKind::AppPassword, "tsp_"),
    (CredentialKind::EnrolCode, "tsc_"),
];

/// Base 32 without letters that look like digits, so that a secret can be read from paper.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 26 times 5 bits are 130 random bits.
const LENGTH: usize = 26;

/// A fresh secret of this kind, which must be one that is generated.
pub(super) fn generate(kind: CredentialKind) -> Secret {
    let prefix = PREFIXES
        .iter()
        .find(|(k, _)| *k == kind)
        .map_or("", |(_, prefix)| *prefix);
    let mut random = [0; LENGTH];
    aws_lc_rs::rand::fill(&mut random).expect("the operating system gives random bytes");
    let digits = random.iter().map(|b| char::from(ALPHABET[usize::from(b & 31)]));
    Secret::new(prefix.chars().chain(digits).collect())
}

/// The kind that the beginning of `secret` tells; `None` for a password.
pub(super) fn kind_of(secret: &str) -> Option<CredentialKind> {
    PREFIXES
        .iter()
        .find(|(_, prefix)| secret.starts_with(prefix))
        .map(|(kind, _)| *kind)
}

/// Hex SHA-256. Enough for secrets with 130 random bits: nobody tries them all. The look-up by hash leaks no more by
/// its time than how hashes compare.
pub(super) fn hash_generated(secret: &str) -> String {
    use std::fmt::Write;
    let hash = digest(&SHA256, secret.as_bytes());
    hash.as_ref()
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

/// argon2id with 19 MiB, 2 passes, 1 lane: the first choice of OWASP's password storage cheat sheet.
fn argon2() -> Argon2<'static> {
    let params = Params::new(19 * 1024, 2, 1, None).expect("these parameters are within argon2's limits");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// The PHC string of a password. Takes about 20 ms: for the CPU pool.
pub(super) fn hash_password(password: &str) -> Result<String, argon2::password_hash::Error> {
    Ok(argon2().hash_password(password.as_bytes())?.to_string())
}

/// Whether the password belongs to the PHC string; without one, takes as long and says no. For the CPU pool.
pub(super) fn verify_password(password: &str, phc: Option<&str>) -> bool {
    let parsed = phc.and_then(|text| PasswordHash::new(text).ok());
    match parsed {
        Some(hash) => argon2().verify_password(password.as_bytes(), &hash).is_ok(),
        None => {
            let _ = hash_password(password);
            false
        }
    }
}
