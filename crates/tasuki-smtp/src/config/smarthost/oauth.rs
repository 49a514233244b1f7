//! Logins by OAuth 2.0 (AUTH XOAUTH2) in place of a password.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{SmarthostConfig, presets::Preset};

/// How access tokens are got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OAuthFlow {
    /// As an application, with its secret (Microsoft 365: SMTP.SendAsApp).
    ClientCredentials,
    /// As a user who confirmed it once: `tasuki mail smarthost login`.
    DeviceCode,
    /// With the JSON key of a service account (Google Workspace: domain-wide delegation).
    ServiceAccount,
}

/// A login by access tokens. The password keys of the smarthost hold the application's secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OAuthConfig {
    /// How access tokens are got.
    pub flow: OAuthFlow,
    /// Microsoft's directory: its id or a domain of it.
    #[serde(default)]
    pub tenant: Option<String>,
    /// The application's id.
    #[serde(default)]
    pub client_id: Option<String>,
    /// Where tokens are got; presets and key files know it.
    #[serde(default)]
    pub token_url: Option<String>,
    /// Where `device_code` begins; presets know it.
    #[serde(default)]
    pub device_url: Option<String>,
    /// What for; presets know it.
    #[serde(default)]
    pub scope: Option<String>,
    /// The JSON key of a service account.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
}

/// What a preset knows.
pub(super) struct OAuthPreset {
    /// `{tenant}` stands for the directory.
    pub(super) token_url: &'static str,
    /// None: the provider has no such flow for mail.
    pub(super) device_url: Option<&'static str>,
    /// What an application asks for.
    pub(super) app_scope: &'static str,
    /// What it asks for in a user's name.
    pub(super) user_scope: &'static str,
    /// Said when the device flow is asked for and there is none.
    pub(super) no_device: &'static str,
}

/// A login by access tokens, ready for use.
#[derive(Clone, Debug)]
pub(crate) struct OAuth {
    pub(crate) scope: String,
    pub(crate) grant: Granting,
}

/// What a flow needs.
#[derive(Clone, Debug)]
pub(crate) enum Granting {
    Client {
        client_id: String,
        token_url: String,
    },
    Device {
        client_id: String,
        token_url: String,
        device_url: String,
    },
    Account {
        key_file: PathBuf,
        /// In place of the one in the key file.
        token_url: Option<String>,
    },
}

impl OAuthConfig {
    /// Checks it against its smarthost; the key that is wrong, and how.
    pub(super) fn check(
        &self,
        smarthost: &SmarthostConfig,
        preset: &Preset,
    ) -> Result<OAuth, (&'static str, String)> {
        let known = preset.oauth.as_ref();
        if smarthost.username.is_none() {
            let problem = "oauth needs the username of the mailbox that it sends from";
            return Err(("username", problem.to_owned()));
        }
        let client_id = || {
            let missing = || {
                (
                    "oauth.client_id",
                    "this flow needs the application's id".to_owned(),
                )
            };
            self.client_id.clone().ok_or_else(missing)
        };
        let token_url = self.url(
            "oauth.token_url",
            self.token_url.as_ref(),
            known.map(|k| k.token_url),
        )?;
        let needs_token_url = || {
            let problem = "needs the provider's token endpoint (https://...), or preset = \"microsoft365\" or \"gmail\"";
            ("oauth.token_url", problem.to_owned())
        };
        let grant = match self.flow {
            OAuthFlow::ClientCredentials => Granting::Client {
                client_id: client_id()?,
                token_url: token_url.ok_or_else(needs_token_url)?,
            },
            OAuthFlow::DeviceCode => {
                if let (None, Some(known)) = (&self.device_url, known)
                    && known.device_url.is_none()
                {
                    return Err(("oauth.flow", known.no_device.to_owned()));
                }
                let preset = known.and_then(|known| known.device_url);
                let device_url = self.url("oauth.device_url", self.device_url.as_ref(), preset)?;
                let missing = || {
                    let problem = "needs the provider's device authorization endpoint (https://...)";
                    ("oauth.device_url", problem.to_owned())
                };
                Granting::Device {
                    client_id: client_id()?,
                    token_url: token_url.ok_or_else(needs_token_url)?,
                    device_url: device_url.ok_or_else(missing)?,
                }
            }
            OAuthFlow::ServiceAccount => {
                let missing = || {
                    let problem = "this flow needs the JSON key of the service account";
                    ("oauth.key_file", problem.to_owned())
                };
                // The key file knows where it is good for; only what is written here wins over it.
                let token_url = token_url.filter(|_| self.token_url.is_some());
                Granting::Account {
                    key_file: self.key_file.clone().ok_or_else(missing)?,
                    token_url,
                }
            }
        };
        let scope = match (&self.scope, known, self.flow) {
            (Some(scope), ..) => scope.clone(),
            (None, Some(known), OAuthFlow::DeviceCode) => known.user_scope.to_owned(),
            (None, Some(known), _) => known.app_scope.to_owned(),
            (None, None, _) => {
                return Err((
                    "oauth.scope",
                    "needs what the provider calls sending mail".to_owned(),
                ));
            }
        };
        Ok(OAuth { scope, grant })
    }

    /// A given URL, or the preset's with the tenant in it.
    fn url(
        &self,
        key: &'static str,
        given: Option<&String>,
        preset: Option<&str>,
    ) -> Result<Option<String>, (&'static str, String)> {
        if let Some(url) = given {
            let is_good = url.strip_prefix("https://").is_some_and(|rest| {
                !rest.is_empty() && !rest.starts_with('/') && !rest.contains(|c: char| c.is_whitespace())
            });
            if !is_good {
                return Err((
                    key,
                    format!("{url:?} is no https:// address, and secrets go there"),
                ));
            }
            return Ok(Some(url.clone()));
        }
        let Some(preset) = preset.filter(|_| self.flow != OAuthFlow::ServiceAccount) else {
            return Ok(None);
        };
        if !preset.contains("{tenant}") {
            return Ok(Some(preset.to_owned()));
        }
        let plain = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        };
        match &self.tenant {
            Some(tenant) if plain(tenant) => Ok(Some(preset.replace("{tenant}", tenant))),
            _ => {
                let problem =
                    "needs the directory (tenant) id, or a domain of it such as example.onmicrosoft.com";
                Err(("oauth.tenant", problem.to_owned()))
            }
        }
    }
}
