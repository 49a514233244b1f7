//! OAuth 2.0 as a client without a browser: what is posted, and what the answers say.
//!
//! The client credentials grant (RFC 6749 4.4), the device grant (RFC 8628) with its refresh tokens, and the JWT bearer
//! grant (RFC 7523) with which Google takes a service account's key. The shell posts forms and signs; nothing here knows
//! a clock or a key. No debug print shows a token.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::json;

use crate::smtp::server::Password as Hidden;

#[cfg(test)]
mod tests;

/// How long a token holds whose server does not say so (RFC 6749 5.1 leaves it open), and how long we believe any.
const USUAL: Duration = Duration::from_secs(3600);
const LONGEST: Duration = Duration::from_secs(86_400);
/// RFC 8628 3.2: seconds between two questions, if the server does not say.
const INTERVAL: u64 = 5;
/// Longest part of a server's own words that is kept.
const MAX_WORDS: usize = 300;

/// What is asked of a token endpoint.
#[derive(Debug, Clone, Copy)]
pub enum Grant<'a> {
    /// As the application itself.
    ClientCredentials,
    /// For a user who allowed it earlier.
    Refresh(&'a Hidden),
    /// For a user who may be about to allow it.
    Device(&'a Hidden),
    /// By a signed statement; see [`Statement`].
    Assertion(&'a Hidden),
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The application's id; absent with a statement.
    pub client_id: Option<&'a str>,
    /// The application's secret, if it has one.
    pub client_secret: Option<&'a Hidden>,
    /// What for.
    pub scope: &'a str,
}

/// The form that asks a token endpoint for a token. Holds secrets.
pub fn token_form(asker: Asker<'_>, grant: Grant<'_>) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    let (kind, scope) = match grant {
        Grant::ClientCredentials => ("client_credentials", Some(asker.scope)),
        Grant::Refresh(_) => ("refresh_token", Some(asker.scope)),
        Grant::Device(_) => ("urn:ietf:params:oauth:grant-type:device_code", None),
        // The statement names its scope itself.
        Grant::Assertion(_) => ("urn:ietf:params:oauth:grant-type:jwt-bearer", None),
    };
    form.append_pair("grant_type", kind);
    match grant {
        Grant::ClientCredentials => {}
        Grant::Refresh(token) => drop(form.append_pair("refresh_token", token.reveal())),
        Grant::Device(code) => drop(form.append_pair("device_code", code.reveal())),
        Grant::Assertion(text) => drop(form.append_pair("assertion", text.reveal())),
    }
    if let Some(scope) = scope {
        form.append_pair("scope", scope);
    }
    if let Some(id) = asker.client_id {
        form.append_pair("client_id", id);
    }
    if let Some(secret) = asker.client_secret {
        form.append_pair("client_secret", secret.reveal());
    }
    form.finish()
}

/// The form that begins a device grant.
pub fn device_form(client_id: &str, scope: &str) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .append_pair("client_id", client_id)
        .append_pair("scope", scope)
        .finish()
}

/// A token to log in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What goes to the mail server.
    pub access: Hidden,
    /// What gets the next one, in place of the one before.
    pub refresh: Option<Hidden>,
    /// How long it holds.
    pub expires_in: Duration,
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The user has not decided yet (device grant).
    #[error("nobody has confirmed the login yet")]
    Pending,
    /// The user has not decided yet, and we ask too often: wait five seconds longer from now on (RFC 8628 3.5).
    #[error("nobody has confirmed the login yet, and it was asked for too often")]
    SlowDown,
    /// The server said no, in its own words.
    #[error("{0}")]
    Refused(String),
    /// What it said is no answer.
    #[error("the answer is none of a token server (HTTP {0})")]
    Garbage(u16),
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: Option<String>,
    refresh_token: Option<String>,
    expires_in: Option<Seconds>,
    error: Option<String>,
    error_description: Option<String>,
}

/// A number, which older servers write as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(u64),
    Text(String),
}

impl Seconds {
    fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

/// Reads the answer of a token endpoint.
///
/// # Errors
/// See [`TokenError`].
pub fn token_answer(status: u16, body: &[u8]) -> Result<Token, TokenError> {
    let answer: TokenAnswer = serde_json::from_slice(body).map_err(|_| TokenError::Garbage(status))?;
    if let Some(error) = answer.error {
        return Err(match error.as_str() {
            "authorization_pending" => TokenError::Pending,
            "slow_down" => TokenError::SlowDown,
            _ => TokenError::Refused(words(&error, answer.error_description.as_deref())),
        });
    }
    let access = answer.access_token.filter(|token| is_token(token));
    let access = access.ok_or(TokenError::Garbage(status))?;
    let seconds = answer.expires_in.and_then(|seconds| seconds.number());
    Ok(Token {
        access: Hidden::new(access),
        refresh: answer
            .refresh_token
            .filter(|token| is_token(token))
            .map(Hidden::new),
        expires_in: seconds.map_or(USUAL, Duration::from_secs).min(LONGEST),
    })
}

/// RFC 6749 A.12: visible characters. Anything else could end the line that carries it to a mail server (XOAUTH2 has ^A
/// as its separator).
fn is_token(text: &str) -> bool {
    (1..=16 * 1024).contains(&text.len()) && text.bytes().all(|b| (0x20..0x7f).contains(&b))
}

/// The beginning of a device grant: what a person has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStart {
    /// For us, to ask with.
    pub device_code: Hidden,
    /// For the person, to type in.
    pub user_code: String,
    /// Where.
    pub verification_uri: String,
    /// How long the codes hold.
    pub expires_in: Duration,
    /// How long to wait between two questions.
    pub interval: Duration,
}

#[derive(Deserialize)]
struct DeviceAnswer {
    device_code: Option<String>,
    user_code: Option<String>,
    // Google's older name is verification_url.
    #[serde(alias = "verification_url")]
    verification_uri: Option<String>,
    expires_in: Option<Seconds>,
    interval: Option<Seconds>,
    error: Option<String>,
    error_description: Option<String>,
}

/// Reads the answer of a device authorization endpoint.
///
/// # Errors
/// [`TokenError::Refused`] or [`TokenError::Garbage`].
pub fn device_answer(status: u16, body: &[u8]) -> Result<DeviceStart, TokenError> {
    let garbage = TokenError::Garbage(status);
    let answer: DeviceAnswer = serde_json::from_slice(body).map_err(|_| garbage.clone())?;
    if let Some(error) = answer.error {
        return Err(TokenError::Refused(words(
            &error,
            answer.error_description.as_deref(),
        )));
    }
    let (Some(device_code), Some(user_code), Some(verification_uri)) =
        (answer.device_code, answer.user_code, answer.verification_uri)
    else {
        return Err(garbage);
    };
    if !is_token(&device_code) {
        return Err(garbage);
    }
    let seconds = |given: Option<Seconds>| given.and_then(|seconds| seconds.number());
    Ok(DeviceStart {
        device_code: Hidden::new(device_code),
        user_code: clean(&user_code),
        verification_uri: clean(&verification_uri),
        expires_in: seconds(answer.expires_in)
            .map_or(USUAL, Duration::from_secs)
            .min(LONGEST),
        interval: Duration::from_secs(seconds(answer.interval).unwrap_or(INTERVAL).clamp(1, 300)),
    })
}

fn words(error: &str, description: Option<&str>) -> String {
    match description {
        // Microsoft sets line breaks and trace numbers behind its first sentence.
        Some(text) => format!(
            "{}: {}",
            clean(error),
            clean(text.lines().next().unwrap_or_default())
        ),
        None => clean(error),
    }
}

/// A server's words without what could break a line or a terminal.
fn clean(text: &str) -> String {
    let visible = text.chars().filter(|c| !c.is_control());
    visible.take(MAX_WORDS).collect()
}

/// What a service account states to get a token (RFC 7523 3): who it is, whom it acts for, what for, to whom.
#[derive(Debug, Clone, Copy)]
pub struct Statement<'a> {
    /// The account.
    pub issuer: &'a str,
    /// The user whose mailbox it sends from.
    pub subject: &'a str,
    /// What for.
    pub scope: &'a str,
    /// The token endpoint.
    pub audience: &'a str,
    /// Which of the account's keys signs.
    pub key_id: Option<&'a str>,
    /// Seconds since 1970.
    pub now: u64,
}

impl Statement<'_> {
    /// What is signed with RS256 (RFC 7515 5.1); the signature goes behind it by [`Statement::signed`].
    pub fn signing_input(&self) -> String {
        let mut header = json!({"alg": "RS256", "typ": "JWT"});
        if let Some(id) = self.key_id {
            header["kid"] = json!(id);
        }
        let claims = json!({
            "iss": self.issuer,
            "sub": self.subject,
            "scope": self.scope,
            "aud": self.audience,
            "iat": self.now,
            // Google takes an hour at most.
            "exp": self.now + 3600,
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}", part(&header), part(&claims))
    }

    /// The statement as it is sent.
    pub fn signed(input: &str, signature: &[u8]) -> Hidden {
        Hidden::new(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// A service account's key file, as Google hands it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// The account's address.
    pub client_email: String,
    /// Which key it is.
    pub key_id: Option<String>,
    /// Where it gets its tokens.
    pub token_uri: Option<String>,
    /// The PKCS#8 key, as PEM.
    key: Hidden,
}

/// What is wrong with a key file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// It is no JSON object with client_email and private_key.
    #[error("it is not the JSON key of a service account (client_email, private_key)")]
    Form,
    /// The key in it is no PEM.
    #[error("its private_key is not a PKCS#8 key in PEM")]
    Key,
}

#[derive(Deserialize)]
struct KeyFile {
    client_email: String,
    private_key: String,
    private_key_id: Option<String>,
    token_uri: Option<String>,
}

impl ServiceAccount {
    /// Reads a key file.
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn parse(text: &str) -> Result<Self, KeyFileError> {
        let file: KeyFile = serde_json::from_str(text).map_err(|_| KeyFileError::Form)?;
        let account = Self {
            client_email: file.client_email,
            key_id: file.private_key_id,
            token_uri: file.token_uri,
            key: Hidden::new(file.private_key),
        };
        account.key_der()?;
        Ok(account)
    }

    /// The key as DER.
    ///
    /// # Errors
    /// [`KeyFileError::Key`].
    pub fn key_der(&self) -> Result<Vec<u8>, KeyFileError> {
        let text = self.key.reveal();
        let body = text.split("-----BEGIN PRIVATE KEY-----").nth(1);
        let body = body.and_then(|rest| rest.split("-----END PRIVATE KEY-----").next());
        let body: String = body.ok_or(KeyFileError::Key)?.split_ascii_whitespace().collect();
        base64::engine::general_purpose::STANDARD
            .decode(body)
            .map_err(|_| KeyFileError::Key)
    }
}
