//! A person logs in once for a smarthost: a code is shown, confirmed in any browser, and the refresh token is sealed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tasuki_core::{seal::SealError, store::audit::Actor};
use tasuki_proto::{
    oauth::{Asker, DeviceStart, Grant, TokenError, device_answer, device_form, token_answer, token_form},
    smtp::server::Password as Hidden,
};

use super::{post, refresh_token_of};
use crate::{
    config::{Granting, OAuth, Smarthost},
    deliver::login::{self, Secret},
    engine::Handle,
};

/// Logins that wait for somebody's confirmation.
#[derive(Default)]
pub(super) struct Logins(Mutex<HashMap<Arc<str>, Waiting>>);

#[derive(Clone)]
struct Waiting {
    code: Hidden,
    ends_at: Instant,
    interval: Duration,
    ask_at: Instant,
}

/// How a login stands.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum LoginAnswer {
    /// A person has to go there and type this in.
    Confirm {
        /// Where.
        verification_uri: String,
        /// What.
        user_code: String,
        /// Seconds left.
        expires_s: u64,
        /// Seconds until it is worth while to ask how it stands.
        ask_again_s: u64,
    },
    /// Nobody has confirmed it yet.
    Pending {
        /// Seconds until it is worth while to ask again.
        ask_again_s: u64,
    },
    /// The login works.
    Done,
}

/// Why a login does not come about.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// No such smarthost.
    #[error("there is no smarthost {0:?} in mail.smarthosts")]
    Unknown(String),
    /// It has no tokens.
    #[error("smarthost {0} has a password: `login` is for one with oauth")]
    NoOAuth(String),
    /// Nothing was begun, or it ended.
    #[error("no login is under way: begin again")]
    NotBegun,
    /// The provider, in its own words, or the way there.
    #[error("{0}")]
    Failed(String),
    /// The token could not be kept.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl Logins {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// Begins a login at a smarthost with `device_code`; for the other flows, gets a token to prove that it works.
    ///
    /// # Errors
    /// See [`LoginError`].
    pub async fn begin_login(&self, name: &str) -> Result<LoginAnswer, LoginError> {
        let (smarthost, oauth) = self.with_oauth(name)?;
        let context = &self.context;
        let Granting::Device {
            client_id,
            device_url,
            ..
        } = &oauth.grant
        else {
            let secret = login::secret(context, &smarthost)
                .await
                .map_err(LoginError::Failed)?;
            let secret = secret.ok_or(LoginError::NotBegun)?;
            let token = context.tokens.token(context, &smarthost, &oauth, &secret).await;
            token.map_err(LoginError::Failed)?;
            self.secrets_changed();
            return Ok(LoginAnswer::Done);
        };
        let answer = post(context, device_url, device_form(client_id, &oauth.scope)).await;
        let (status, body) = answer.map_err(LoginError::Failed)?;
        let start: DeviceStart =
            device_answer(status, &body).map_err(|error| LoginError::Failed(error.to_string()))?;
        let now = context.deps.clock.now();
        context.tokens.device.lock().insert(
            Arc::clone(&smarthost.name),
            Waiting {
                code: start.device_code,
                ends_at: now + start.expires_in,
                interval: start.interval,
                ask_at: now + start.interval,
            },
        );
        Ok(LoginAnswer::Confirm {
            verification_uri: start.verification_uri,
            user_code: start.user_code,
            expires_s: start.expires_in.as_secs(),
            ask_again_s: start.interval.as_secs(),
        })
    }

    /// Asks whether somebody has confirmed the login that was begun, at most as often as the provider allows. Once it is,
    /// the refresh token is sealed and mail that waits for the smarthost is tried.
    ///
    /// # Errors
    /// See [`LoginError`].
    pub async fn poll_login(&self, name: &str, actor: &Actor) -> Result<LoginAnswer, LoginError> {
        let (smarthost, oauth) = self.with_oauth(name)?;
        let context = &self.context;
        let Granting::Device {
            client_id, token_url, ..
        } = &oauth.grant
        else {
            return Err(LoginError::NotBegun);
        };
        let logins = &context.tokens.device;
        let now = context.deps.clock.now();
        let waiting = logins.lock().get(&smarthost.name).cloned();
        let waiting = waiting.ok_or(LoginError::NotBegun)?;
        if now >= waiting.ends_at {
            logins.lock().remove(&smarthost.name);
            return Err(LoginError::Failed(
                "nobody confirmed the login in time".to_owned(),
            ));
        }
        if now < waiting.ask_at {
            let wait = waiting.ask_at.saturating_duration_since(now);
            return Ok(LoginAnswer::Pending {
                ask_again_s: wait.as_secs() + 1,
            });
        }
        let password = client_secret(self, &smarthost).await?;
        let asker = Asker {
            client_id: Some(client_id),
            client_secret: password.as_ref(),
            scope: &oauth.scope,
        };
        let form = token_form(asker, Grant::Device(&waiting.code));
        let (status, body) = post(context, token_url, form).await.map_err(LoginError::Failed)?;
        let token = match token_answer(status, &body) {
            Ok(token) => token,
            Err(TokenError::Pending) => return Ok(self.later(&smarthost, waiting.interval)),
            Err(TokenError::SlowDown) => {
                return Ok(self.later(&smarthost, waiting.interval + Duration::from_secs(5)));
            }
            Err(error) => {
                logins.lock().remove(&smarthost.name);
                return Err(LoginError::Failed(error.to_string()));
            }
        };
        logins.lock().remove(&smarthost.name);
        let Some(refresh) = token.refresh.clone() else {
            let problem =
                "the provider gave no refresh token: the scope needs offline_access, or what it calls that";
            return Err(LoginError::Failed(problem.to_owned()));
        };
        let now = context.deps.clock.wall();
        let audit = actor.entry(now, "mail.smarthost.login", name, "");
        let sealed = refresh_token_of(name);
        let secrets = &context.deps.secrets;
        secrets
            .replace(&sealed, refresh.reveal().as_bytes(), audit)
            .await?;
        let secret = Secret {
            password,
            granted: Some(refresh),
        };
        context.tokens.keep(context, &smarthost, token, &secret).await;
        self.secrets_changed();
        Ok(LoginAnswer::Done)
    }

    fn later(&self, smarthost: &Smarthost, interval: Duration) -> LoginAnswer {
        let context = &self.context;
        let mut logins = context.tokens.device.lock();
        if let Some(waiting) = logins.get_mut(&smarthost.name) {
            waiting.interval = interval;
            waiting.ask_at = context.deps.clock.now() + interval;
        }
        LoginAnswer::Pending {
            ask_again_s: interval.as_secs(),
        }
    }

    fn with_oauth(&self, name: &str) -> Result<(Arc<Smarthost>, OAuth), LoginError> {
        let settings = self.context.settings.load();
        let mut all = settings.ways.smarthosts();
        let smarthost = all.find(|smarthost| &*smarthost.name == name);
        let smarthost = smarthost.ok_or_else(|| LoginError::Unknown(name.to_owned()))?;
        let oauth = smarthost.oauth.clone();
        let oauth = oauth.ok_or_else(|| LoginError::NoOAuth(name.to_owned()))?;
        Ok((Arc::clone(smarthost), oauth))
    }
}

/// The application's secret, if it has one.
async fn client_secret(handle: &Handle, smarthost: &Smarthost) -> Result<Option<Hidden>, LoginError> {
    let without_grant = Smarthost {
        oauth: None,
        ..smarthost.clone()
    };
    let secret = login::secret(&handle.context, &without_grant).await;
    Ok(secret
        .map_err(LoginError::Failed)?
        .and_then(|secret| secret.password))
}
