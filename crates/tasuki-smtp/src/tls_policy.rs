//! What TLS a mail's next hop must have, and the connections that keep to it.
//!
//! For each server of a domain there is one [`Demand`]: what the operator asks (`mail.tls_policy`), else what the domain
//! publishes, else opportunistic TLS. **Invariant:** a demand is never lowered by what a server does. A server that does
//! not meet it gets no mail, in the clear least of all; the mail waits, and its sender is told why when it expires.

use std::sync::Arc;

use rustls_pki_types::ServerName;
use tasuki_core::store::tls::StsPolicy;
use tasuki_proto::{
    names::Domain,
    smtp::{
        Reply,
        client::{ClientFailure, Problem, Security, Stage},
        tlsrpt::{ResultType, SessionPolicy},
    },
};

pub(crate) mod dane;
mod fetch;
mod lookup;
mod require;
mod sts;

pub(crate) use lookup::{Noted, demands, demands_on};
pub(crate) use require::{no_safe_server, raised};
pub(crate) use sts::Sts;

use crate::{
    config::{Settings, TlsLevel},
    connect::{Connection, Dialer},
    context::{Context, Job},
    dns::TlsaRecord,
    route::NextHop,
};

/// How well a connection must be protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// In the clear.
    Plain,
    /// TLS where it works (RFC 7435).
    May,
    /// TLS with any certificate.
    Encrypt,
    /// TLS with a certificate that a CA gave for the server's name.
    Verify,
    /// TLS with a certificate that these records name.
    Dane(Arc<[TlsaRecord]>),
}

/// Where a demand comes from; for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Basis {
    /// Nobody asks anything.
    Nothing,
    /// `mail.tls_policy`.
    Configured(TlsLevel),
    /// The domain's MTA-STS policy.
    Sts,
    /// The server's TLSA records.
    Dane,
    /// The mail's REQUIRETLS.
    Required,
    /// The rule for the receiver, `mail.providers`.
    Provider,
}

/// What is wrong with the TLS of a server or domain, in the terms of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) result: ResultType,
    pub(crate) words: String,
}

impl Trouble {
    pub(crate) fn new(result: ResultType, words: &str) -> Self {
        Self {
            result,
            words: words.to_owned(),
        }
    }

    /// The server is not one of those that an MTA-STS policy lists.
    pub(crate) fn unlisted() -> Self {
        Self::new(
            ResultType::ValidationFailure,
            "the MX host is not one that the policy lists",
        )
    }
}

/// Under which policy sessions are counted for reports (RFC 8460).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    /// The recipients' domain.
    pub(crate) domain: Domain,
    pub(crate) policy: SessionPolicy,
    /// What is wrong with the policy itself, whatever a session does.
    pub(crate) trouble: Option<Trouble>,
    /// A policy that is only tried out: what it would have stopped is counted, and goes on.
    pub(crate) testing: Option<Arc<StsPolicy>>,
}

impl Watched {
    fn new(domain: &Domain, policy: SessionPolicy) -> Self {
        Self {
            domain: domain.clone(),
            policy,
            trouble: None,
            testing: None,
        }
    }
}

/// What TLS to one server must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    pub(crate) level: Level,
    pub(crate) basis: Basis,
    /// Of the recipients; absent for an address literal.
    domain: Option<Domain>,
    /// The name that TLS asks for, if it is not the server's in the MX record (RFC 7672 2.2.3).
    pub(crate) tls_name: Option<String>,
    /// How its sessions are counted, if they are.
    pub(crate) watched: Option<Arc<Watched>>,
}

impl Demand {
    /// Opportunistic TLS.
    pub(crate) const NOTHING: Self = Self {
        level: Level::May,
        basis: Basis::Nothing,
        domain: None,
        tls_name: None,
        watched: None,
    };

    /// A failure to protect a connection, in the words of the policy that did not allow for it.
    pub(crate) fn judge(&self, host: &str, failure: ClientFailure) -> ClientFailure {
        let about_tls = match failure.stage {
            Stage::StartTls => true,
            // It does not know EHLO, so it cannot know STARTTLS.
            Stage::Ehlo => failure.reply().is_some_and(Reply::is_permanent),
            _ => false,
        };
        if matches!(self.level, Level::Plain | Level::May) || !about_tls {
            return failure;
        }
        unmet(&format!("{} is not met by {host}: {failure}", self.name()))
    }

    /// The policy, for people.
    pub(crate) fn name(&self) -> String {
        let domain = self.domain.as_ref().map_or("this destination", Domain::as_str);
        match self.basis {
            Basis::Nothing => format!("the TLS policy for {domain}"),
            Basis::Dane => format!("DANE for {domain}"),
            Basis::Sts => format!("the MTA-STS policy of {domain}"),
            Basis::Required => format!("REQUIRETLS for {domain}"),
            Basis::Provider => format!("require_tls of the receiver's rule (mail.providers) for {domain}"),
            Basis::Configured(level) => {
                format!("the TLS policy for {domain} (mail.tls_policy: {})", level.word())
            }
        }
    }

    /// Whether it is known which server it must be.
    fn is_authenticated(&self) -> bool {
        matches!(self.level, Level::Verify | Level::Dane(_))
    }

    /// Whether a connection made for another mail is good enough.
    fn accepts(&self, open: &Connection) -> bool {
        let made_for = &open.demand().level;
        match &self.level {
            Level::Plain | Level::May => true,
            Level::Encrypt => open.is_protected(),
            Level::Verify | Level::Dane(_) => *made_for == self.level,
        }
    }
}

/// No server of the domain may be given this mail now. It waits: what is wrong can be put right by the domain's
/// operator, or by ours.
fn unmet(why: &str) -> ClientFailure {
    // RFC 5248, X.7.10: encryption needed.
    let reply = Reply::with_text(450, (4, 7, 10), why.to_owned());
    ClientFailure::new(Stage::StartTls, Problem::TlsPolicy(reply))
}

/// Whether a failure is a demand that was not met. It holds for mail to one domain, and says nothing about other mail to
/// the same servers.
pub(crate) fn is_unmet(failure: &ClientFailure) -> bool {
    matches!(failure.problem, Problem::TlsPolicy(_))
}

/// Whether a connection made for another mail may be used for this one.
pub(crate) async fn may_reuse(
    context: &Context,
    settings: &Settings,
    hop: &NextHop,
    job: &Job,
    open: &Connection,
) -> bool {
    let NextHop::Mx(_) = hop else {
        // To a smarthost all connections are alike.
        return true;
    };
    let again = vec![open.candidate().clone()];
    // Nothing is counted: it is no session of its own.
    match lookup::demands_for(context, settings, hop, job, again, &mut Noted::default()).await {
        // RFC 8689 4.2.1: that it must be this server has to be known for this mail's domain, too.
        Ok(demands) => demands.iter().all(|(_, demand)| {
            demand.accepts(open) && (demand.is_authenticated() || !job.held.envelope.require_tls)
        }),
        Err(_) => false,
    }
}

impl Dialer {
    /// The same, keeping to a demand.
    pub(crate) fn under(&self, context: &Context, demand: Demand) -> Self {
        let mut dialer = self.clone();
        match &demand.level {
            Level::Plain => dialer.client.security = Security::Plain,
            Level::May => {}
            Level::Encrypt => dialer.client.security = Security::Required,
            Level::Dane(records) => {
                let domain = demand.domain.as_ref().map(|domain| domain.as_str().to_owned());
                let domain = domain.and_then(|domain| ServerName::try_from(domain).ok());
                dialer.client.security = Security::Required;
                dialer.tls = dane::client_config(Arc::clone(records), domain);
                dialer.verifies = true;
            }
            Level::Verify => {
                dialer.client.security = Security::Required;
                dialer.tls = context.deps.tls.client();
                dialer.verifies = true;
            }
        }
        dialer.demand = Arc::new(demand);
        dialer
    }
}
