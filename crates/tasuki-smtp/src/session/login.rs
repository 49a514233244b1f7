//! Who the client is: by password, by SCRAM, or by its certificate; and whether it still is.

use std::sync::Arc;

use tasuki_core::{EngineKind, accounts::AuthError, store::accounts::Principal};
use tasuki_proto::{
    scram::Binding,
    smtp::{
        Reply,
        server::{Credentials, Session, Ticket},
    },
};

use super::{Shell, admission};
use crate::{
    connect::Socket,
    guard::{self, LOGIN_ENDED},
};

const LOGGED_IN: Reply = Reply::new(235, (2, 7, 0), "authentication succeeded");
const LOGIN_REFUSED: Reply = Reply::new(535, (5, 7, 8), "authentication failed");
const LOGIN_TOO_OFTEN: Reply = Reply::new(421, (4, 7, 0), "too many failed logins, try again later");
const LOGIN_UNAVAILABLE: Reply = Reply::new(454, (4, 7, 0), "logins cannot be checked now, try again later");

impl Shell {
    /// What logins may be bound to. Only under TLS 1.3: RFC 9266 has no binding for all of TLS 1.2, and clients would try
    /// `tls-unique` there, which is broken.
    pub(super) fn bindings(&self) -> Vec<Binding> {
        let Socket::Server(tls) = &self.socket else {
            return Vec::new();
        };
        let (_, connection) = tls.get_ref();
        if connection.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
            return Vec::new();
        }
        let exported = connection.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b""));
        let exporter = exported.map(|data: [u8; 32]| Binding {
            name: "tls-exporter",
            data: data.to_vec(),
        });
        let end_point = self.context.deps.tls.end_point().map(|data| Binding {
            name: "tls-server-end-point",
            data,
        });
        exporter.into_iter().chain(end_point).collect()
    }

    pub(super) async fn check_login(&mut self, credentials: &Credentials) -> Reply {
        let (login, password) = (&credentials.login, credentials.password.reveal());
        match self
            .context
            .deps
            .accounts
            .login(EngineKind::Mail, login, password, self.ip())
            .await
        {
            Ok(principal) => self.logged_in(principal).await,
            Err(error) => self.login_refused(error),
        }
    }

    /// Whether the certificate that the client showed lets it log in. If that cannot be told now, it is not offered.
    pub(super) async fn may_log_in_by_certificate(&mut self) -> bool {
        let Some(certificate) = &self.certificate else {
            return false;
        };
        let accounts = &self.context.deps.accounts;
        match accounts.certificate_holder(EngineKind::Mail, certificate).await {
            Ok(holder) => holder.is_some(),
            Err(error) => {
                tracing::error!(%error, "a client's certificate cannot be looked up");
                false
            }
        }
    }

    pub(super) async fn check_certificate(&mut self, wanted: &str) -> Reply {
        let Some(certificate) = &self.certificate else {
            return LOGIN_REFUSED;
        };
        let accounts = &self.context.deps.accounts;
        let login = accounts
            .login_by_certificate(EngineKind::Mail, certificate, wanted, self.ip())
            .await;
        match login {
            Ok(principal) => {
                self.by_certificate = true;
                self.logged_in(principal).await
            }
            Err(error) => self.login_refused(error),
        }
    }

    /// A client that proved who it is; refused if that shows that its secret is in other hands.
    async fn logged_in(&mut self, principal: Arc<Principal>) -> Reply {
        let settings = self.context.settings.load_full();
        if guard::seen_from(&self.context, &settings, &principal, self.ip()).await {
            return self.login_refused(AuthError::Refused);
        }
        self.login = Some(principal);
        LOGGED_IN
    }

    /// Who it is may have been revoked, switched off, or given other grants since; a store that does not answer changes
    /// nothing.
    pub(super) async fn look_again(&mut self) -> Result<(), Reply> {
        let Some(known) = self.principal().map(|principal| principal.id) else {
            return Ok(());
        };
        let accounts = &self.context.deps.accounts;
        let now = match (&self.certificate, self.by_certificate) {
            (Some(certificate), true) => accounts.certificate_holder(EngineKind::Mail, certificate).await,
            _ => accounts.by_id(known).await,
        };
        match now {
            Ok(Some(now)) if now.id == known && !now.disabled => {
                self.context.guard.welcome(known);
                if self.login.is_some() {
                    self.login = Some(now);
                } else {
                    self.network = Some(admission::by_network(now));
                }
                Ok(())
            }
            Ok(_) => Err(LOGIN_ENDED),
            Err(error) => {
                tracing::debug!(%error, "it cannot be told now whether a login is still good");
                Ok(())
            }
        }
    }

    pub(super) fn login_refused(&self, error: AuthError) -> Reply {
        self.context.metrics.refuse("login");
        match error {
            AuthError::Refused => LOGIN_REFUSED,
            AuthError::TooMany => LOGIN_TOO_OFTEN,
            AuthError::Unavailable(error) => {
                tracing::error!(%error, "logins cannot be checked");
                LOGIN_UNAVAILABLE
            }
        }
    }

    pub(super) async fn scram_keys(
        &mut self,
        session: &mut Session,
        ticket: Ticket,
        login: &str,
    ) -> Option<Reply> {
        let deps = &self.context.deps;
        match deps.accounts.scram(EngineKind::Mail, login, self.ip()).await {
            Ok(login) => {
                let now = deps.clock.now();
                session.handle_scram(now, ticket, &rand::random(), login.salt(), login.verifiers());
                self.scram = Some(login);
                None
            }
            Err(error) => Some(self.login_refused(error)),
        }
    }

    pub(super) async fn scram_proved(&mut self, which: usize) -> Reply {
        let Some(login) = self.scram.take() else {
            return LOGIN_REFUSED;
        };
        let accounts = &self.context.deps.accounts;
        match accounts.scram_proved(EngineKind::Mail, self.ip(), &login, which) {
            Ok(principal) => self.logged_in(principal).await,
            Err(error) => self.login_refused(error),
        }
    }

    pub(super) fn scram_refused(&mut self) -> Reply {
        if let Some(login) = self.scram.take() {
            let accounts = &self.context.deps.accounts;
            accounts.scram_refused(EngineKind::Mail, self.ip(), &login);
        }
        self.login_refused(AuthError::Refused)
    }
}
