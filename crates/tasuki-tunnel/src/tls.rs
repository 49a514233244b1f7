//! Keys of both ends and the TLS that proves them.
//!
//! Neither side has a certificate that anybody signed: each shows a self-signed one, and is known by the SHA-256 of its
//! public key (SPKI). The agent pins the gateway's, the gateway looks the agent's up. TLS 1.3 only.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, Error, NamedGroup};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tasuki_core::tls::{PeerCheck, Verifier, provider};
use tasuki_proto::tunnel::{ALPN, SERVER_NAME};

/// A public key's fingerprint: SHA-256 of its SPKI, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// The text is not a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key fingerprint has 64 hexadecimal digits")]
pub struct BadFingerprint;

impl Fingerprint {
    /// The fingerprint of a certificate's key.
    pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let parsed = webpki::EndEntityCert::try_from(certificate)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        Ok(Self::of_spki(&parsed.subject_public_key_info()))
    }

    fn of_spki(spki: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, spki).as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = BadFingerprint;

    /// Accepts any case, and colons between the bytes as other programs print them.
    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let digits: Vec<u8> = text
            .bytes()
            .filter(|byte| *byte != b':')
            .map(|byte| char::from(byte).to_digit(16).map(|digit| digit as u8))
            .collect::<Option<_>>()
            .ok_or(BadFingerprint)?;
        let pairs: Vec<u8> = digits
            .chunks(2)
            .map(|pair| pair.iter().fold(0, |sum, digit| sum * 16 + digit))
            .collect();
        if digits.len() != 64 {
            return Err(BadFingerprint);
        }
        pairs.try_into().map(Self).map_err(|_| BadFingerprint)
    }
}

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the tunnel key is damaged")]
pub struct BadKey(#[source] pub(crate) rcgen::Error);

/// A key of our own with its certificate.
pub(crate) struct Identity {
    key: PrivatePkcs8KeyDer<'static>,
    certificate: CertificateDer<'static>,
    fingerprint: Fingerprint,
}

impl Identity {
    /// A new key (ECDSA P-256) as PKCS #8.
    pub(crate) fn generate() -> Vec<u8> {
        rcgen::KeyPair::generate()
            .expect("the system has random numbers")
            .serialize_der()
    }

    /// The identity of a stored key. The certificate is made anew each time; only the key counts.
    pub(crate) fn from_pkcs8(der: &[u8]) -> Result<Self, BadKey> {
        let key = PrivatePkcs8KeyDer::from(der.to_vec());
        let pair = rcgen::KeyPair::try_from(&key).map_err(BadKey)?;
        let certificate = rcgen::CertificateParams::new(vec![SERVER_NAME.to_owned()])
            .and_then(|params| params.self_signed(&pair))
            .map_err(BadKey)?
            .der()
            .clone();
        let fingerprint = Fingerprint::of_certificate(&certificate)
            .map_err(|_| BadKey(rcgen::Error::CouldNotParseCertificate))?;
        Ok(Self {
            key,
            certificate,
            fingerprint,
        })
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn chain(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (
            vec![self.certificate.clone()],
            PrivateKeyDer::Pkcs8(self.key.clone_key()),
        )
    }
}

/// The gateway's side: shows our key, demands any key of the agent and proof that it holds it.
pub(crate) fn server_config(identity: &Identity) -> Result<rustls::ServerConfig, Error> {
    let provider = Arc::new(provider());
    let (chain, key) = identity.chain();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Verifier::new(AnyKey)))
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Sessions are long and every one must prove its key, so resumption has nothing to give.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// How both sides agree on a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyExchange {
    /// With a part that a quantum computer does not break (X25519MLKEM768). The ClientHello needs two packets.
    Hybrid,
    /// Without it, in one packet: some middleboxes swallow the other.
    Classic,
}

impl KeyExchange {
    fn provider(self) -> CryptoProvider {
        let mut provider = provider();
        if self == Self::Classic {
            provider.kx_groups.retain(|group| {
                matches!(
                    group.name(),
                    NamedGroup::X25519 | NamedGroup::secp256r1 | NamedGroup::secp384r1
                )
            });
        }
        provider
    }
}

/// The agent's side: accepts only the pinned key. The flag tells afterwards that another one was shown.
pub(crate) fn client_config(
    identity: &Identity,
    pin: Fingerprint,
    exchange: KeyExchange,
) -> Result<(rustls::ClientConfig, Arc<AtomicBool>), Error> {
    let provider = Arc::new(exchange.provider());
    let mismatch = Arc::new(AtomicBool::new(false));
    let verifier = Verifier::new(PinnedKey {
        pin,
        mismatch: Arc::clone(&mismatch),
    });
    let (chain, key) = identity.chain();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok((config, mismatch))
}

/// Accepts every key whose holder signs the handshake. Who it is gets decided after the Hello.
#[derive(Debug)]
struct AnyKey;

impl PeerCheck for AnyKey {
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: Option<&ServerName<'_>>,
        _now: UnixTime,
    ) -> Result<(), Error> {
        Fingerprint::of_certificate(certificate).map(drop)
    }
}

/// Accepts the one key that came with the enrolment command.
#[derive(Debug)]
struct PinnedKey {
    pin: Fingerprint,
    mismatch: Arc<AtomicBool>,
}

impl PeerCheck for PinnedKey {
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: Option<&ServerName<'_>>,
        _now: UnixTime,
    ) -> Result<(), Error> {
        if Fingerprint::of_certificate(certificate)? == self.pin {
            return Ok(());
        }
        self.mismatch.store(true, Ordering::Relaxed);
        Err(Error::InvalidCertificate(
            CertificateError::ApplicationVerificationFailure,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{BadFingerprint, Fingerprint, Identity, KeyExchange};
    use rustls::NamedGroup;

    #[test]
    fn the_post_quantum_exchange_comes_first_and_can_be_left_out() {
        let groups = |exchange: KeyExchange| {
            let groups = exchange.provider().kx_groups;
            groups.iter().map(|group| group.name()).collect::<Vec<_>>()
        };
        assert_eq!(
            groups(KeyExchange::Hybrid).first(),
            Some(&NamedGroup::X25519MLKEM768)
        );
        let classic = groups(KeyExchange::Classic);
        assert_eq!(classic.first(), Some(&NamedGroup::X25519));
        assert!(!classic.contains(&NamedGroup::X25519MLKEM768));
    }

    #[test]
    fn a_fingerprint_survives_its_text_form_and_belongs_to_the_key() {
        let der = Identity::generate();
        let (one, again) = (
            Identity::from_pkcs8(&der).unwrap(),
            Identity::from_pkcs8(&der).unwrap(),
        );
        assert_eq!(one.fingerprint(), again.fingerprint());
        let text = one.fingerprint().to_string();
        assert_eq!(text.parse(), Ok(one.fingerprint()));
        assert_eq!(text.to_uppercase().parse(), Ok(one.fingerprint()));
        for bad in [
            "",
            "abc",
            &text[1..],
            &format!("{text}0"),
            &text.replace(&text[..1], "x"),
        ] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(BadFingerprint), "{bad}");
        }
    }
}
