//! Access tokens for logins at smarthosts: got, kept until shortly before they end, got again.
//!
//! **Invariant:** a token that cannot be got is a failure of the route, never of a mail; and no secret or token is in an
//! error, a log or a debug print.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::{rand::SystemRandom, rsa::KeyPair, signature::RSA_PKCS1_SHA256};
use tasuki_core::store::audit::Actor;
use tasuki_proto::{
    oauth::{Asker, Grant, ServiceAccount, Statement, Token, TokenError, token_answer, token_form},
    smtp::{
        client::{Login, Proof},
        server::Password as Hidden,
    },
};

use crate::{
    config::{Granting, OAuth, Smarthost},
    context::Context,
    deliver::login::Secret,
};

mod device;

pub use device::{LoginAnswer, LoginError};

/// A token is replaced this long before its end, or at half its life if that is shorter.
const EARLY: Duration = Duration::from_secs(300);
/// How long a token server may take, and most that it may say.
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_ANSWER: usize = 64 * 1024;

/// The name under which a smarthost's refresh token is sealed.
pub(crate) fn refresh_token_of(smarthost: &str) -> String {
    format!("mail.oauth.{smarthost}")
}

/// Tokens by smarthost, as many as the configuration has had; and logins that somebody is about to confirm.
#[derive(Default)]
pub(crate) struct Tokens {
    by_smarthost: Mutex<HashMap<Arc<str>, Place>>,
    pub(self) device: device::Logins,
}

/// Where a smarthost's token is; whoever fetches it holds the place.
type Place = Arc<tokio::sync::Mutex<Option<Kept>>>;

/// A token, and the secret and user it was got for.
struct Kept {
    access: Hidden,
    good_until: Instant,
    of: ([u8; 32], Option<String>),
}

impl Tokens {
    fn place(&self, smarthost: &Smarthost) -> Place {
        let mut all = self.by_smarthost.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(Arc::clone(&smarthost.name)).or_default())
    }

    /// A token for a login, and whether it is one that was kept. Several connections wait for one question.
    pub(crate) async fn token(
        &self,
        context: &Context,
        smarthost: &Smarthost,
        oauth: &OAuth,
        secret: &Secret,
    ) -> Result<(Hidden, bool), String> {
        let place = self.place(smarthost);
        let mut kept = place.lock().await;
        let of = (secret.fingerprint(), smarthost.username.clone());
        let now = context.deps.clock.now();
        if let Some(kept) = kept
            .as_ref()
            .filter(|kept| kept.of == of && now < kept.good_until)
        {
            return Ok((kept.access.clone(), true));
        }
        *kept = None;
        let token = fetch(context, smarthost, oauth, secret).await;
        let token =
            token.map_err(|why| format!("no access token for smarthost {}: {why}", smarthost.name))?;
        // The next question is asked with the new refresh token.
        let of = match (&token.refresh, &oauth.grant) {
            (Some(new), Granting::Device { .. }) => {
                keep_refresh_token(context, smarthost, secret, new).await;
                let secret = Secret {
                    password: secret.password.clone(),
                    granted: Some(new.clone()),
                };
                (secret.fingerprint(), of.1)
            }
            _ => of,
        };
        let early = EARLY.min(token.expires_in / 2);
        *kept = Some(Kept {
            access: token.access.clone(),
            good_until: now + token.expires_in - early,
            of,
        });
        Ok((token.access, false))
    }

    /// A server refused this login: its token is not used again.
    pub(crate) async fn forget(&self, smarthost: &Smarthost, login: Option<&Login>) {
        let place = self.place(smarthost);
        let mut kept = place.lock().await;
        if let (Some(Proof::AccessToken(refused)), Some(there)) = (login.map(|l| &l.proof), kept.as_ref())
            && *refused == there.access
        {
            *kept = None;
        }
    }

    /// Somebody logged in anew.
    async fn keep(&self, context: &Context, smarthost: &Smarthost, token: Token, secret: &Secret) {
        let place = self.place(smarthost);
        let early = EARLY.min(token.expires_in / 2);
        *place.lock().await = Some(Kept {
            access: token.access,
            good_until: context.deps.clock.now() + token.expires_in - early,
            of: (secret.fingerprint(), smarthost.username.clone()),
        });
    }
}

/// Microsoft's refresh tokens end after 90 days, and each use brings a new one; others can be used but once.
async fn keep_refresh_token(context: &Context, smarthost: &Smarthost, secret: &Secret, new: &Hidden) {
    if secret.granted.as_ref() == Some(new) {
        return;
    }
    let (name, now) = (refresh_token_of(&smarthost.name), context.deps.clock.wall());
    let audit = Actor::gateway("mail").entry(now, "mail.smarthost.token", &*smarthost.name, "renewed");
    let replaced = context
        .deps
        .secrets
        .replace(&name, new.reveal().as_bytes(), audit);
    if let Err(error) = replaced.await {
        tracing::error!(smarthost = %smarthost.name, %error, "the new refresh token cannot be stored; if the old one no longer works: tasuki mail smarthost login");
    }
}

async fn fetch(
    context: &Context,
    smarthost: &Smarthost,
    oauth: &OAuth,
    secret: &Secret,
) -> Result<Token, String> {
    let asker = |client_id| Asker {
        client_id,
        client_secret: secret.password.as_ref(),
        scope: &oauth.scope,
    };
    let granted = || secret.granted.as_ref().ok_or("its secret is missing");
    let (url, form) = match &oauth.grant {
        Granting::Client { client_id, token_url } => {
            let form = token_form(asker(Some(client_id)), Grant::ClientCredentials);
            (token_url.clone(), form)
        }
        Granting::Device {
            client_id, token_url, ..
        } => {
            let form = token_form(asker(Some(client_id)), Grant::Refresh(granted()?));
            (token_url.clone(), form)
        }
        Granting::Account { key_file, token_url } => {
            let named = |why: String| format!("{}: {why}", key_file.display());
            let account = ServiceAccount::parse(granted()?.reveal()).map_err(|e| named(e.to_string()))?;
            let url = token_url.clone().or_else(|| account.token_uri.clone());
            let url = url.filter(|url| url.starts_with("https://"));
            let url = url.ok_or_else(|| named("its token_uri is no https:// address".to_owned()))?;
            let subject = smarthost.username.as_deref().unwrap_or_default();
            let statement = state(context, &account, subject, &oauth.scope, &url)
                .await
                .map_err(named)?;
            (url, token_form(asker(None), Grant::Assertion(&statement)))
        }
    };
    let (status, body) = post(context, &url, form).await?;
    token_answer(status, &body).map_err(|error| match (&error, &oauth.grant) {
        (TokenError::Refused(words), Granting::Device { .. }) if words.starts_with("invalid_grant") => {
            format!(
                "{error}; log in again: tasuki mail smarthost login {}",
                smarthost.name
            )
        }
        _ => error.to_string(),
    })
}

/// Signs a service account's statement, on the CPU pool.
async fn state(
    context: &Context,
    account: &ServiceAccount,
    subject: &str,
    scope: &str,
    audience: &str,
) -> Result<Hidden, String> {
    let statement = Statement {
        issuer: &account.client_email,
        subject,
        scope,
        audience,
        key_id: account.key_id.as_deref(),
        now: u64::try_from(context.deps.clock.wall().unix_seconds()).unwrap_or(0),
    };
    let input = statement.signing_input();
    let der = account.key_der().map_err(|e| e.to_string())?;
    let signed = context.deps.pool.run(move || {
        let key = KeyPair::from_pkcs8(&der).map_err(|e| format!("its private_key: {e}"))?;
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            input.as_bytes(),
            &mut signature,
        )
        .map_err(|_| "its private_key cannot sign".to_owned())?;
        Ok(Statement::signed(&input, &signature))
    });
    signed.await.map_err(|e| e.to_string())?
}

/// Posts a form; the status and the body.
async fn post(context: &Context, url: &str, form: String) -> Result<(u16, Vec<u8>), String> {
    use std::error::Error as _;
    let failed = |error: reqwest::Error| {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        text
    };
    let tls = rustls::ClientConfig::clone(&context.deps.tls.client());
    // Tokens are got once an hour, so nothing is kept open.
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .timeout(PATIENCE)
        .build()
        .map_err(failed)?;
    let request = client
        .post(url)
        .header("content-type", "application/x-www-form-urlencoded")
        .header("accept", "application/json")
        .body(form);
    let mut response = request.send().await.map_err(failed)?;
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&piece);
        if body.len() > MAX_ANSWER {
            return Err(format!("the answer of {url} is too long"));
        }
    }
    Ok((status, body))
}
