//! Certificates by which programs and people log in.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_core::accounts::Terms;
use tasuki_core::ids::CredentialId;
use tasuki_core::store::accounts::CredentialKind;

use super::Admin;
use super::accounts::{shown_credential, span};
use super::auth::Caller;
use super::problem::{Answer, Input, Problem};

pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    let all = admin.all_of_kind(CredentialKind::Certificate).await?;
    let shown: Vec<Value> = all
        .iter()
        .map(|(principal, credential)| {
            let mut shown = shown_credential(principal, credential);
            // A fingerprint of a public key is no secret.
            shown["fingerprint"] = json!(credential.hash);
            shown
        })
        .collect();
    Ok(Json(json!({"certificates": shown})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewCertificate {
    name: String,
    /// PEM.
    certificate: String,
    #[serde(default)]
    valid_for: Option<String>,
    #[serde(default)]
    label: String,
}

pub(super) async fn add(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Input(input): Input<NewCertificate>,
) -> Answer<(StatusCode, Json<Value>)> {
    let owner = admin.named(&input.name).await?;
    let terms = Terms {
        valid_for: input.valid_for.as_deref().map(span).transpose()?,
        ..Terms::labelled(&input.label)
    };
    let pem = input.certificate.as_bytes();
    let (credential, certificate) = admin
        .accounts
        .add_certificate(&owner.name, pem, terms, &caller.0)
        .await?;
    let mut answer = shown_credential(&owner, &credential);
    answer["fingerprint"] = json!(certificate.fingerprint);
    answer["certificate_until"] = json!(certificate.not_after.to_string());
    if !admin.live.load().config.mail.client_certificates {
        answer["note"] =
            json!("clients are not asked for certificates: set client_certificates under [mail]");
    }
    Ok((StatusCode::CREATED, Json(answer)))
}

pub(super) async fn remove(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<i64>,
    caller: Caller,
) -> Answer<StatusCode> {
    let all = admin.all_of_kind(CredentialKind::Certificate).await?;
    let (owner, found) = all
        .iter()
        .find(|(_, c)| c.id == CredentialId(id))
        .ok_or_else(|| {
            Problem::missing(format!(
                "there is no certificate {id}; see `tasuki service certificate list`"
            ))
        })?;
    admin.remove(owner, found, &caller).await?;
    Ok(StatusCode::NO_CONTENT)
}
