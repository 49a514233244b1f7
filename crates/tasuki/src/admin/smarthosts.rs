//! Smarthosts: how they do, and the secrets of our logins there.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_core::EngineKind;
use tasuki_core::seal::{SealError, Secret};
use tasuki_core::store::mail::LaneKey;
use tasuki_smtp::{LoginAnswer, LoginError, OAuthFlow, SmarthostConfig};

use super::Admin;
use super::auth::Caller;
use super::engines::switched_off;
use super::problem::{Answer, Input, Problem};

pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    let mail = engine(&admin)?;
    let live = admin.live.load_full();
    let mut all = Vec::new();
    for smarthost in &live.config.mail.smarthosts {
        let lane = LaneKey(format!("via:{}", smarthost.name));
        let lanes = mail.lanes_of(&lane);
        let lane = lanes.first();
        all.push(json!({
            "name": smarthost.name,
            "host": smarthost.host.as_ref().or(smarthost.preset.as_ref()),
            "username": smarthost.username,
            "secret": secret(&admin, smarthost).await?,
            "works": lane.is_none_or(|lane| lane.failures == 0),
            "last_error": lane.and_then(|lane| lane.last_error.clone()),
        }));
    }
    Ok(Json(json!({"smarthosts": all})))
}

/// Where a smarthost's secret is; never the secret.
async fn secret(admin: &Admin, smarthost: &SmarthostConfig) -> Answer<String> {
    if let Some(oauth) = &smarthost.oauth {
        if let Some(path) = &oauth.key_file {
            return Ok(path.display().to_string());
        }
        if oauth.flow == OAuthFlow::DeviceCode {
            let token = admin
                .secrets
                .load(&format!("mail.oauth.{}", smarthost.name))
                .await?;
            return Ok(match token {
                Some(_) => "logged in".to_owned(),
                None => format!("missing: tasuki mail smarthost login {}", smarthost.name),
            });
        }
    }
    Ok(if let Some(path) = &smarthost.password_file {
        path.display().to_string()
    } else if let Some(name) = &smarthost.password_secret {
        match admin.secrets.load(name).await? {
            Some(_) => "stored".to_owned(),
            None => format!("missing: tasuki mail smarthost password {}", smarthost.name),
        }
    } else if smarthost.password.is_some() {
        "in the configuration".to_owned()
    } else {
        "none".to_owned()
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPassword {
    password: Secret,
}

pub(super) async fn set_password(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    caller: Caller,
    Input(input): Input<NewPassword>,
) -> Answer<StatusCode> {
    let mail = engine(&admin)?;
    let live = admin.live.load_full();
    let smarthost = named(&live.config.mail.smarthosts, &name)?;
    let Some(secret) = &smarthost.password_secret else {
        return Err(Problem::conflict(format!(
            "the password of smarthost {name} is not kept in the store: give it password_secret = {name:?} in place of \
             password or password_file, and reload"
        )));
    };
    if input.password.expose().is_empty() || input.password.expose().contains(['\r', '\n', '\0']) {
        return Err(Problem::bad("a password is one line that is not empty"));
    }
    let audit = caller.audit(admin.clock.wall(), "mail.smarthost.password", &name, "");
    let password = input.password.expose().as_bytes();
    admin.secrets.replace(secret, password, audit).await?;
    mail.secrets_changed();
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn begin_login(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    _caller: Caller,
) -> Answer<Json<LoginAnswer>> {
    Ok(Json(engine(&admin)?.begin_login(&name).await?))
}

pub(super) async fn poll_login(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    Caller(actor): Caller,
) -> Answer<Json<LoginAnswer>> {
    Ok(Json(engine(&admin)?.poll_login(&name, &actor).await?))
}

impl From<LoginError> for Problem {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Unknown(_) => Self::missing(error.to_string()),
            LoginError::NoOAuth(_) | LoginError::NotBegun => Self::conflict(error.to_string()),
            LoginError::Failed(_) => Self::new(StatusCode::BAD_GATEWAY, error.to_string()),
            LoginError::Seal(error) => error.into(),
        }
    }
}

fn named<'a>(all: &'a [SmarthostConfig], name: &str) -> Answer<&'a SmarthostConfig> {
    all.iter()
        .find(|smarthost| smarthost.name == name)
        .ok_or_else(|| Problem::missing(format!("there is no smarthost {name:?} in mail.smarthosts")))
}

fn engine(admin: &Admin) -> Answer<&tasuki_smtp::Handle> {
    let mail = admin.engines.mail.as_ref();
    mail.ok_or_else(|| switched_off(EngineKind::Mail))
}

impl From<SealError> for Problem {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Store(error) => error.into(),
            SealError::WrongKey(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}
