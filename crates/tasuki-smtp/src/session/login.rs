//! Who the client is: by password, or by SCRAM.

use tasuki_core::{EngineKind, accounts::AuthError};
use tasuki_proto::{
    scram::Binding,
    smtp::{
        Reply,
        server::{Credentials, Session, Ticket},
    },
};

use super::Shell;
use crate::connect::Socket;

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
            Ok(principal) => {
                self.login = Some(principal);
                LOGGED_IN
            }
            Err(error) => self.login_refused(error),
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

    pub(super) fn scram_proved(&mut self, which: usize) -> Reply {
        let Some(login) = self.scram.take() else {
            return LOGIN_REFUSED;
        };
        let accounts = &self.context.deps.accounts;
        match accounts.scram_proved(EngineKind::Mail, self.ip(), &login, which) {
            Ok(principal) => {
                self.login = Some(principal);
                LOGGED_IN
            }
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
