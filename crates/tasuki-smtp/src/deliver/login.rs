//! What a login at a smarthost is made of: its secret as it is now, and what is sent.

use aws_lc_rs::digest::{Context as Digest, SHA256};
use tasuki_proto::smtp::{
    client::{Login, Proof},
    server::Password as Hidden,
};

use crate::{
    config::{Granting, OAuth, Password, Smarthost},
    context::Context,
    oauth,
};

/// What somebody must have given us for a login.
#[derive(Debug)]
pub(crate) struct Secret {
    /// The password; with OAuth the application's secret.
    pub(crate) password: Option<Hidden>,
    /// With OAuth: the refresh token, or the content of the key file.
    pub(crate) granted: Option<Hidden>,
}

impl Secret {
    /// The same for the same secret, and tells nothing of it.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut digest = Digest::new(&SHA256);
        for part in [&self.password, &self.granted].into_iter().flatten() {
            digest.update(part.reveal().as_bytes());
            digest.update(&[0]);
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest.finish().as_ref());
        fingerprint
    }
}

/// A smarthost's secret as it is now; `None` if it wants no login.
pub(crate) async fn secret(context: &Context, smarthost: &Smarthost) -> Result<Option<Secret>, String> {
    let password = match &smarthost.password {
        Password::None => None,
        Password::Given(secret) => Some(secret.expose().to_owned()),
        Password::File(path) => {
            let text = read(path).await?;
            Some(text.lines().next().unwrap_or_default().to_owned())
        }
        Password::Sealed(name) => {
            let cure = format!(
                "there is no sealed secret {name:?}: tasuki mail smarthost password {}",
                smarthost.name
            );
            Some(sealed(context, name).await?.ok_or(cure)?)
        }
    };
    let granted = match smarthost.oauth.as_ref().map(|oauth| &oauth.grant) {
        None | Some(Granting::Client { .. }) => None,
        Some(Granting::Device { .. }) => {
            let cure = format!(
                "nobody has logged in to it yet: tasuki mail smarthost login {}",
                smarthost.name
            );
            let token = sealed(context, &oauth::refresh_token_of(&smarthost.name)).await?;
            Some(token.ok_or(cure)?)
        }
        Some(Granting::Account { key_file, .. }) => Some(read(key_file).await?),
    };
    if password.is_none() && granted.is_none() {
        return Ok(None);
    }
    Ok(Some(Secret {
        password: password.map(Hidden::new),
        granted: granted.map(Hidden::new),
    }))
}

async fn read(path: &std::path::Path) -> Result<String, String> {
    let text = tokio::fs::read_to_string(path).await;
    text.map_err(|e| format!("{}: {e}", path.display()))
}

async fn sealed(context: &Context, name: &str) -> Result<Option<String>, String> {
    let bytes = context.deps.secrets.load(name).await.map_err(|e| e.to_string())?;
    let text = bytes.map(|bytes| String::from_utf8(bytes.to_vec()));
    text.transpose()
        .map_err(|_| format!("the sealed secret {name:?} is not text"))
}

/// What is sent to log in, and whether it was kept from before.
pub(super) async fn login(
    context: &Context,
    smarthost: &Smarthost,
    secret: Option<&Secret>,
) -> Result<(Option<Login>, bool), String> {
    let (Some(username), Some(secret)) = (smarthost.username.clone(), secret) else {
        return Ok((None, false));
    };
    let (proof, is_kept) = match (&smarthost.oauth, &secret.password) {
        (Some(oauth), _) => token(context, smarthost, oauth, secret).await?,
        (None, Some(password)) => (Proof::Password(password.clone()), false),
        (None, None) => return Ok((None, false)),
    };
    Ok((Some(Login { username, proof }), is_kept))
}

async fn token(
    context: &Context,
    smarthost: &Smarthost,
    oauth: &OAuth,
    secret: &Secret,
) -> Result<(Proof, bool), String> {
    let (token, is_kept) = context.tokens.token(context, smarthost, oauth, secret).await?;
    Ok((Proof::AccessToken(token), is_kept))
}
