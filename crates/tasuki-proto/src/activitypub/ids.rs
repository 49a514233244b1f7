//! Names of the fediverse as types: actors, objects, inboxes, keys, and the authority (host and port) they live on.
//!
//! A name keeps the exact bytes it came with, because peers compare ids byte for byte; the authority beside it is
//! canonical (lower case, punycode, default port left out), because trust decisions compare hosts.

use std::fmt;
use std::sync::Arc;

use url::{Host, Url};

/// Longest name accepted, in bytes.
pub const MAX_ID_BYTES: usize = 2048;

/// Why a text is not a usable name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// More than [`MAX_ID_BYTES`].
    #[error("the id is longer than {MAX_ID_BYTES} bytes")]
    TooLong,
    /// Not an absolute URL, or one with spaces, control characters or backslashes.
    #[error("the id is not an absolute URL")]
    NotAUrl,
    /// Neither https nor http.
    #[error("the id is not an https URL")]
    Scheme,
    /// No host, or credentials in front of it.
    #[error("the id has no plain host")]
    Host,
}

/// Host and port of a URL, canonical: lower case, punycode, and the port only when it is not the scheme's own.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Authority(Arc<str>);

impl Authority {
    /// Reads `host` or `host:port` as operators write it and peers send it in `Host`; a default port of https is left out.
    ///
    /// # Errors
    /// [`IdError`] when the text is not a host.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.len() > 300 {
            return Err(IdError::TooLong);
        }
        if text.is_empty() || text.contains(['/', '?', '#', '@', '\\']) || has_blank(text) {
            return Err(IdError::Host);
        }
        let url = Url::parse(&format!("https://{text}/")).map_err(|_| IdError::Host)?;
        Self::of(&url).ok_or(IdError::Host)
    }

    /// The authority of a parsed URL, when it has a host.
    pub fn of(url: &Url) -> Option<Self> {
        let host = match url.host()? {
            Host::Domain(name) => name.trim_end_matches('.').to_ascii_lowercase(),
            Host::Ipv4(ip) => ip.to_string(),
            Host::Ipv6(ip) => format!("[{ip}]"),
        };
        if host.is_empty() {
            return None;
        }
        Some(Self(match url.port() {
            Some(port) => format!("{host}:{port}").into(),
            None => host.into(),
        }))
    }

    /// The whole, as compared: `host` or `host:port`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host alone, for domain rules, which know no ports.
    pub fn host(&self) -> &str {
        match self.0.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.0,
        }
    }

    /// Whether the host is `domain` or below it, at a label boundary: `evil.com` holds `a.evil.com`, not `notevil.com`.
    pub fn is_within(&self, domain: &str) -> bool {
        let host = self.host();
        host == domain
            || host
                .strip_suffix(domain)
                .is_some_and(|front| front.ends_with('.'))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A checked absolute http(s) URL with the exact text it came with.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Name {
    text: Arc<str>,
    authority: Authority,
}

impl Name {
    fn parse(text: &str) -> Result<Self, IdError> {
        if text.len() > MAX_ID_BYTES {
            return Err(IdError::TooLong);
        }
        // The URL parser silently drops tabs and newlines and turns backslashes around: what was compared would not be
        // what is fetched.
        if has_blank(text) || text.contains('\\') {
            return Err(IdError::NotAUrl);
        }
        let url = Url::parse(text).map_err(|_| IdError::NotAUrl)?;
        if !matches!(url.scheme(), "https" | "http") {
            return Err(IdError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(IdError::Host);
        }
        let authority = Authority::of(&url).ok_or(IdError::Host)?;
        Ok(Self {
            text: text.into(),
            authority,
        })
    }

    fn url(&self) -> Url {
        Url::parse(&self.text).expect("the text was parsed when the name was made")
    }
}

fn has_blank(text: &str) -> bool {
    text.chars().any(|c| c.is_whitespace() || c.is_control())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash)]
        pub struct $type(Name);

        impl $type {
            /// Checks and takes the text.
            ///
            /// # Errors
            /// [`IdError`] says what is wrong with it.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                Name::parse(text).map(Self)
            }

            /// The exact text.
            pub fn as_str(&self) -> &str {
                &self.0.text
            }

            /// Host and port it lives on.
            pub fn authority(&self) -> &Authority {
                &self.0.authority
            }

            /// The parsed URL, without its fragment, as it is fetched or posted to.
            pub fn url(&self) -> Url {
                let mut url = self.0.url();
                url.set_fragment(None);
                url
            }

            /// The text up to the fragment.
            pub fn without_fragment(&self) -> &str {
                self.0.text.split('#').next().unwrap_or_default()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0.text)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($type), "({})"), self.0.text)
            }
        }
    };
}

name_type! {
    /// The id of an actor: a person, a service, an instance.
    ActorId
}
name_type! {
    /// The id of an activity or of an object.
    ObjectId
}
name_type! {
    /// Where activities for somebody are posted.
    InboxUrl
}
name_type! {
    /// The `keyId` of a signature: an actor's id with a fragment, or a URL of its own.
    KeyId
}

impl KeyId {
    /// The actor whose key this most likely is, by the two conventions in use: `ACTOR#fragment`, and GoToSocial's
    /// `ACTOR/main-key`. Only a fetch of the actor proves it.
    pub fn likely_actor(&self) -> Option<ActorId> {
        let bare = self.without_fragment();
        let actor = bare.strip_suffix("/main-key").unwrap_or(bare);
        ActorId::parse(actor).ok()
    }
}

impl ActorId {
    /// The actor's id seen as an object's id: profiles are updated and deleted as objects.
    pub fn as_object(&self) -> ObjectId {
        ObjectId(self.0.clone())
    }
}
