//! What leaves the gateway in clear, once: a made password, an exported key.

/// Without letters and digits that are taken for one another.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// A password for a person who did not bring one: 100 random bits in groups of five.
pub(crate) fn password() -> String {
    let mut text = String::with_capacity(23);
    for place in 0..20 {
        if place > 0 && place % 5 == 0 {
            text.push('-');
        }
        text.push(char::from(ALPHABET[usize::from(rand::random::<u8>() & 31)]));
    }
    text
}

/// A PKCS#8 private key as PEM.
pub(crate) fn pkcs8_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|b| char::from(*b)));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    pem
}
