//! People, services and tokens.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_core::EngineKind;
use tasuki_core::accounts::{Grant, MakeError, PrincipalKind, Role, Scope, Terms};
use tasuki_core::config::duration;
use tasuki_core::ids::CredentialId;
use tasuki_core::seal::Secret;
use tasuki_core::store::accounts::{Credential, CredentialKind, Principal};

use super::auth::Caller;
use super::problem::{Answer, Input, Problem};
use super::{Admin, secrets};

/// The name of the user that the first start makes.
pub(crate) const FIRST_ADMIN: &str = "admin";

pub(super) async fn users(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    Ok(Json(
        json!({"users": admin.principals(PrincipalKind::Person).await?}),
    ))
}

pub(super) async fn services(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    Ok(Json(
        json!({"services": admin.principals(PrincipalKind::Service).await?}),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewUser {
    name: String,
    #[serde(default)]
    role: Role,
    #[serde(default)]
    grants: Vec<Grant>,
    #[serde(default)]
    password: Option<String>,
}

pub(super) async fn add_user(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Input(input): Input<NewUser>,
) -> Answer<(StatusCode, Json<Value>)> {
    let (password, shown) = chosen_or_made(input.password);
    let made = admin
        .accounts
        .create_person(&input.name, &password, input.role, input.grants, &caller.0)
        .await?;
    let mut answer = shown_principal(&made);
    answer["password"] = json!(shown);
    Ok((StatusCode::CREATED, Json(answer)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPassword {
    #[serde(default)]
    password: Option<String>,
}

pub(super) async fn set_password(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    caller: Caller,
    Input(input): Input<NewPassword>,
) -> Answer<Json<Value>> {
    let (password, shown) = chosen_or_made(input.password);
    admin.accounts.set_password(&name, &password, &caller.0).await?;
    if name == FIRST_ADMIN {
        admin.forget_initial_password();
    }
    Ok(Json(json!({"name": name, "password": shown})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    #[serde(default)]
    add: Vec<Grant>,
    #[serde(default)]
    remove: Vec<Grant>,
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    disabled: Option<bool>,
}

pub(super) async fn change(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    caller: Caller,
    Input(input): Input<Change>,
) -> Answer<Json<Value>> {
    let mut principal = admin.named(&name).await?;
    if let Some(strange) = input.remove.iter().find(|g| !principal.grants.contains(g)) {
        return Err(Problem::missing(format!("{name} has no grant {strange}")));
    }
    let demoted = input.role.is_some_and(|role| role < Role::Admin) || input.disabled == Some(true);
    if demoted && principal.role == Role::Admin {
        admin.keep_one_admin(&principal).await?;
    }
    if let Some(role) = input.role.filter(|role| *role != principal.role) {
        principal = admin.accounts.set_role(&name, role, &caller.0).await?;
    }
    let mut grants = principal.grants.clone();
    grants.retain(|g| !input.remove.contains(g));
    for grant in input.add {
        if !grants.contains(&grant) {
            grants.push(grant);
        }
    }
    if grants != principal.grants {
        principal = admin.accounts.set_grants(&name, grants, &caller.0).await?;
    }
    if let Some(disabled) = input.disabled.filter(|disabled| *disabled != principal.disabled) {
        principal = admin.accounts.set_disabled(&name, disabled, &caller.0).await?;
    }
    if principal.kind == PrincipalKind::Agent
        && let Some(tunnel) = &admin.engines.tunnel
    {
        // It comes back with the grants of now, or not at all.
        tunnel.disconnect(principal.id);
    }
    Ok(Json(shown_principal(&principal)))
}

pub(super) async fn remove_user(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    caller: Caller,
) -> Answer<StatusCode> {
    let principal = admin.of_kind(&name, PrincipalKind::Person).await?;
    if principal.role == Role::Admin {
        admin.keep_one_admin(&principal).await?;
    }
    admin.accounts.delete(&name, &caller.0).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewService {
    name: String,
    #[serde(default)]
    grants: Vec<Grant>,
    /// How long its first password holds.
    #[serde(default)]
    valid_for: Option<String>,
}

pub(super) async fn add_service(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Input(input): Input<NewService>,
) -> Answer<(StatusCode, Json<Value>)> {
    let terms = Terms {
        valid_for: input.valid_for.as_deref().map(span).transpose()?,
        ..Terms::labelled("first")
    };
    let expires_at = terms.valid_for.map(|d| admin.clock.wall().plus(d).to_string());
    let made = admin
        .accounts
        .create_service_with(&input.name, Role::None, input.grants, terms, &caller.0)
        .await?;
    let password = made.secret.expose();
    let mut answer = shown_principal(&made.principal);
    answer["expires_at"] = json!(expires_at);
    answer["example"] = json!(admin.mail_example(&made.principal, password));
    answer["password"] = json!(password);
    Ok((StatusCode::CREATED, Json(answer)))
}

pub(super) async fn remove_service(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    caller: Caller,
) -> Answer<StatusCode> {
    admin.of_kind(&name, PrincipalKind::Service).await?;
    admin.accounts.delete(&name, &caller.0).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn tokens(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    let tokens = admin.all_of_kind(CredentialKind::Token).await?;
    let shown: Vec<Value> = tokens
        .iter()
        .map(|(principal, token)| {
            let mut shown = shown_credential(principal, token);
            shown["role"] = json!(token.scope.role(principal.role));
            shown
        })
        .collect();
    Ok(Json(json!({"tokens": shown})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    name: String,
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    valid_for: Option<String>,
    #[serde(default)]
    label: String,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    engine: Option<EngineKind>,
}

pub(super) async fn add_token(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Input(input): Input<NewToken>,
) -> Answer<(StatusCode, Json<Value>)> {
    let terms = Terms {
        label: input.label,
        scope: Scope::new(input.read_only, input.engine),
        valid_for: input.valid_for.as_deref().map(span).transpose()?,
    };
    let owner = match admin.store.principal_by_name(&input.name).await? {
        Some(principal) => may_own_token(principal, input.role)?,
        None => admin.token_service(&input.name, input.role, &caller).await?,
    };
    let (token, secret) = admin.accounts.new_token(&owner.name, terms, &caller.0).await?;
    let mut answer = shown_credential(&owner, &token);
    answer["token"] = json!(secret.expose());
    answer["role"] = json!(token.scope.role(owner.role));
    Ok((StatusCode::CREATED, Json(answer)))
}

pub(super) async fn app_passwords(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    let passwords = admin.all_of_kind(CredentialKind::AppPassword).await?;
    let shown: Vec<Value> = passwords
        .iter()
        .map(|(principal, credential)| shown_credential(principal, credential))
        .collect();
    Ok(Json(json!({"app_passwords": shown})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewAppPassword {
    name: String,
    #[serde(default)]
    valid_for: Option<String>,
    #[serde(default)]
    label: String,
    #[serde(default)]
    engine: Option<EngineKind>,
}

pub(super) async fn add_app_password(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Input(input): Input<NewAppPassword>,
) -> Answer<(StatusCode, Json<Value>)> {
    let owner = admin.named(&input.name).await?;
    if owner.kind == PrincipalKind::Agent || owner.kind == PrincipalKind::Instance {
        return Err(Problem::conflict(format!(
            "{} is {}, which proves itself by a key and has no passwords",
            owner.name,
            kind_name(owner.kind)
        )));
    }
    let terms = Terms {
        label: input.label,
        scope: Scope::new(false, input.engine),
        valid_for: input.valid_for.as_deref().map(span).transpose()?,
    };
    let (credential, secret) = admin
        .accounts
        .new_app_password(&owner.name, terms, &caller.0)
        .await?;
    let mut answer = shown_credential(&owner, &credential);
    answer["password"] = json!(secret.expose());
    Ok((StatusCode::CREATED, Json(answer)))
}

pub(super) async fn remove_app_password(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<i64>,
    caller: Caller,
) -> Answer<StatusCode> {
    let all = admin.all_of_kind(CredentialKind::AppPassword).await?;
    let (owner, found) = all
        .iter()
        .find(|(_, c)| c.id == CredentialId(id))
        .ok_or_else(|| {
            Problem::missing(format!(
                "there is no app password {id}; see `tasuki service passwords`"
            ))
        })?;
    admin.remove(owner, found, &caller).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A credential for people; its hash stays inside.
pub(super) fn shown_credential(owner: &Principal, credential: &Credential) -> Value {
    json!({
        "id": credential.id,
        "principal": owner.name,
        "label": credential.label,
        "scope": Some(&credential.scope).filter(|scope| **scope != Scope::FULL),
        "created_at": credential.created_at.to_string(),
        "expires_at": credential.expires_at.map(|t| t.to_string()),
    })
}

fn may_own_token(principal: Principal, role: Option<Role>) -> Answer<Principal> {
    let name = &principal.name;
    if role.is_some_and(|role| role != principal.role) {
        return Err(Problem::conflict(format!(
            "{name} has the role {}, and a token acts with its owner's role; change it with \
             `tasuki user grant {name} --role ...`, or make the token under a new name",
            principal.role
        )));
    }
    if principal.role == Role::None {
        return Err(Problem::conflict(format!(
            "{name} may do nothing in the admin API; give a role first: tasuki user grant {name} --role viewer"
        )));
    }
    Ok(principal)
}

pub(super) async fn remove_token(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<i64>,
    caller: Caller,
) -> Answer<StatusCode> {
    let all = admin.all_of_kind(CredentialKind::Token).await?;
    let (owner, token) = all
        .iter()
        .find(|(_, token)| token.id == CredentialId(id))
        .ok_or_else(|| Problem::missing(format!("there is no token {id}; see `tasuki token list`")))?;
    // A service that a token made has nothing left without it.
    let last_of_service = owner.kind == PrincipalKind::Service
        && owner.grants.is_empty()
        && admin.store.credentials(owner.id).await?.len() == 1;
    if last_of_service {
        admin.accounts.delete(&owner.name, &caller.0).await?;
    } else {
        admin.remove(owner, token, &caller).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

impl Admin {
    async fn principals(&self, kind: PrincipalKind) -> Answer<Vec<Value>> {
        let all = self.store.principals().await?;
        Ok(all
            .iter()
            .filter(|p| p.kind == kind)
            .map(shown_principal)
            .collect())
    }

    pub(super) async fn named(&self, name: &str) -> Answer<Principal> {
        self.store
            .principal_by_name(name)
            .await?
            .ok_or_else(|| Problem::missing(format!("there is nobody called {}", quoted(name))))
    }

    pub(super) async fn of_kind(&self, name: &str, kind: PrincipalKind) -> Answer<Principal> {
        let principal = self.named(name).await?;
        if principal.kind == kind {
            return Ok(principal);
        }
        Err(Problem::conflict(format!(
            "{name} is a {}, not a {}",
            kind_name(principal.kind),
            kind_name(kind)
        )))
    }

    /// A service of its own for a token that belongs to no person.
    async fn token_service(&self, name: &str, role: Option<Role>, caller: &Caller) -> Answer<Principal> {
        let role = role.filter(|role| *role != Role::None).ok_or_else(|| {
            Problem::missing(format!(
                "there is nobody called {}; with --role viewer (or operator, admin) the token makes a service of this name",
                quoted(name)
            ))
        })?;
        let made = self
            .accounts
            .create_service(name, role, Vec::new(), &caller.0)
            .await?;
        // It has a token only: the password that every service begins with is of no use here. What SCRAM needs of it goes
        // with it.
        let mut credentials = self.store.credentials(made.principal.id).await?;
        credentials.retain(|credential| credential.kind != CredentialKind::ScramSha256);
        for credential in credentials {
            self.remove(&made.principal, &credential, caller).await?;
        }
        Ok(made.principal)
    }

    async fn keep_one_admin(&self, leaving: &Principal) -> Answer<()> {
        let others = self.store.principals().await?;
        let another = others.iter().any(|p| {
            p.id != leaving.id && p.kind == PrincipalKind::Person && p.role == Role::Admin && !p.disabled
        });
        if another {
            return Ok(());
        }
        Err(Problem::conflict(format!(
            "{} is the last admin; make another one first: tasuki user add NAME --role admin",
            leaving.name
        )))
    }

    /// Removes a credential; the audit says what it was.
    pub(super) async fn remove(
        &self,
        owner: &Principal,
        credential: &Credential,
        caller: &Caller,
    ) -> Answer<()> {
        let kind = match credential.kind {
            CredentialKind::Token => "token",
            CredentialKind::AppPassword => "app password",
            CredentialKind::ScramSha256 => "SCRAM verifier",
            CredentialKind::Password => "password",
            CredentialKind::EnrolCode => "code",
            CredentialKind::AgentKey => "key",
            CredentialKind::Certificate => "certificate",
        };
        let detail = format!("{kind} {:?} of {}", credential.label, owner.name);
        let removed = self.accounts.remove_credential(credential.id, &detail, &caller.0);
        Ok(removed.await?)
    }

    pub(super) async fn all_of_kind(&self, kind: CredentialKind) -> Answer<Vec<(Principal, Credential)>> {
        let mut found = Vec::new();
        for principal in self.store.principals().await? {
            for credential in self.store.credentials(principal.id).await? {
                if credential.kind == kind {
                    found.push((principal.clone(), credential));
                }
            }
        }
        Ok(found)
    }
}

/// The password a caller chose, or a new one, which is then shown once.
fn chosen_or_made(chosen: Option<String>) -> (Secret, Option<String>) {
    match chosen {
        Some(password) => (Secret::new(password), None),
        None => {
            let made = secrets::password();
            (Secret::new(made.clone()), Some(made))
        }
    }
}

/// A time as a person writes it.
pub(super) fn span(text: &str) -> Answer<Duration> {
    let time = duration::parse(text).map_err(Problem::bad)?;
    if time < Duration::from_secs(1) {
        return Err(Problem::bad(format!(
            "{text:?} is too short: it would be over at once"
        )));
    }
    Ok(time)
}

impl From<MakeError> for Problem {
    fn from(error: MakeError) -> Self {
        match error {
            MakeError::BadName(_) | MakeError::WeakPassword(_) | MakeError::BadCertificate(_) => {
                Self::bad(error.to_string())
            }
            MakeError::WrongKind { .. } => Self::conflict(error.to_string()),
            MakeError::Unavailable(_) => Self::unavailable(error.to_string()),
            MakeError::Store(error) => error.into(),
        }
    }
}

/// What a caller sent, cut and escaped.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

pub(super) const fn kind_name(kind: PrincipalKind) -> &'static str {
    match kind {
        PrincipalKind::Person => "person",
        PrincipalKind::Service => "service",
        PrincipalKind::Agent => "agent",
        PrincipalKind::Instance => "instance",
    }
}

pub(super) fn shown_principal(principal: &Principal) -> Value {
    json!({
        "id": principal.id,
        "name": principal.name,
        "kind": kind_name(principal.kind),
        "role": principal.role,
        "grants": principal.grants,
        "disabled": principal.disabled,
        "created_at": principal.created_at.to_string(),
    })
}
