//! What became of the TLS of one session, in the terms of RFC 8460 4.3.

use std::net::IpAddr;

use rustls::{CertificateError, Error};
use rustls_pki_types::ServerName;
use tasuki_proto::{
    names::Domain,
    smtp::{
        Reply,
        client::{ClientFailure, Problem, Security, Stage},
        tlsrpt::{FailureDetail, ResultType},
    },
};

use crate::{
    connect::{Connection, Dialer},
    context::Context,
    tls_policy::{Trouble, Watched},
};

impl Trouble {
    /// Why a handshake failed.
    pub(crate) fn of_tls(error: &Error) -> Self {
        let result = match error {
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => ResultType::CertificateHostMismatch,
            Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ) => ResultType::CertificateExpired,
            Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
                return Self::new(
                    ResultType::CertificateNotTrusted,
                    "no TLSA record names the certificate",
                );
            }
            Error::InvalidCertificate(_) | Error::NoCertificatesPresented => {
                ResultType::CertificateNotTrusted
            }
            _ => ResultType::ValidationFailure,
        };
        Self::new(result, &error.to_string())
    }

    /// The same of the error that a connection gives.
    pub(crate) fn of_io(error: &std::io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        inner.map_or_else(
            || Self::new(ResultType::ValidationFailure, &error.to_string()),
            Self::of_tls,
        )
    }
}

/// Counts a session that began, if its domain's sessions are counted and it came far enough to tell.
pub(crate) fn note(context: &Context, dialer: &Dialer, open: &Connection, failure: Option<&ClientFailure>) {
    let Some(watched) = &dialer.demand.watched else {
        return;
    };
    let trouble = match failure {
        Some(failure) => match broken(dialer, open, failure) {
            Some(trouble) => Some(trouble),
            // The server was away or refused us: that says nothing about its TLS.
            None => return,
        },
        None if open.is_protected() => watched
            .trouble
            .clone()
            .or_else(|| tried_out(context, watched, open)),
        None if dialer.tls_is_known_broken => Some(Trouble::new(
            ResultType::ValidationFailure,
            "TLS failed with this server before, so it was not tried again",
        )),
        // The session before this one told of it.
        None if dialer.client.security == Security::Plain => return,
        None if open.offers_starttls() => Some(Trouble::new(
            ResultType::StarttlsNotSupported,
            "STARTTLS was offered and then refused",
        )),
        None => Some(no_starttls()),
    };
    let detail = trouble.map(|trouble| {
        let to = open.candidate();
        FailureDetail {
            sending_mta_ip: open.local_ip().map(|ip| ip.to_canonical()),
            receiving_mx_hostname: Some(to.host.clone()),
            receiving_ip: Some(to.addr.ip().to_canonical()),
            ..FailureDetail::new(trouble.result, &trouble.words)
        }
    });
    context
        .tls_sessions
        .note(context, watched, &open.candidate().host, detail);
}

fn no_starttls() -> Trouble {
    Trouble::new(ResultType::StarttlsNotSupported, "")
}

/// What of a failure is about TLS.
fn broken(dialer: &Dialer, open: &Connection, failure: &ClientFailure) -> Option<Trouble> {
    match (failure.stage, &failure.problem) {
        (Stage::StartTls, Problem::NoTls) => Some(no_starttls()),
        (Stage::StartTls, Problem::Refused(reply)) => {
            Some(Trouble::new(ResultType::StarttlsNotSupported, &reply.to_string()))
        }
        (Stage::StartTls, _) => {
            let unknown = || Trouble::new(ResultType::ValidationFailure, &failure.to_string());
            Some(open.tls_trouble().cloned().unwrap_or_else(unknown))
        }
        // It does not know EHLO, so it cannot know STARTTLS.
        (Stage::Ehlo, Problem::Refused(reply))
            if reply.is_permanent() && dialer.client.security == Security::Required =>
        {
            Some(Trouble::new(
                ResultType::StarttlsNotSupported,
                &Reply::to_string(reply),
            ))
        }
        _ => None,
    }
}

/// What a policy in testing would have stopped (RFC 8461 5).
fn tried_out(context: &Context, watched: &Watched, open: &Connection) -> Option<Trouble> {
    let policy = watched.testing.as_ref()?;
    let host = &open.candidate().host;
    if !Domain::parse(host).is_ok_and(|host| policy.policy.allows(&host)) {
        return Some(Trouble::unlisted());
    }
    let name = match host.parse::<IpAddr>() {
        Ok(ip) => ServerName::from(ip),
        Err(_) => ServerName::try_from(host.as_str()).ok()?,
    };
    let chain = open.peer_certificates();
    let judged = context.deps.tls.judge(chain, &name);
    judged.err().map(|error| Trouble::of_tls(&error))
}
