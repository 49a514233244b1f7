//! REQUIRETLS on the way out (RFC 8689 4.2.1): a mail that was taken with it goes to servers whose name and certificate
//! are known to be right, and to no others.
//!
//! The server's name must come from a signed MX record, or a policy must list it (MTA-STS in any mode, or our operator's
//! `mx`), or it is the recipients' domain itself. Its certificate must be for that name, by TLSA or by a CA that we trust.
//! Where all servers were asked and none was safe enough the mail comes back at once, for waiting would only hide it.

use tasuki_proto::{
    names::{Domain, MailHost},
    smtp::{
        Reply,
        client::{ClientFailure, Problem, Stage},
        mta_sts::Mode,
    },
};

use super::{Basis, Demand, Level, Sts, is_unmet, lookup::Refusal, unmet};
use crate::{
    config::{Settings, TlsLevel},
    context::Context,
    route::{Candidate, NextHop},
};

/// What these servers must be for such a mail. Those whose name is not to be trusted stay as they are; the machine does
/// not give them the mail.
pub(crate) async fn raised(
    context: &Context,
    settings: &Settings,
    hop: &NextHop,
    demands: Vec<(Candidate, Demand)>,
) -> Result<Vec<(Candidate, Demand)>, Refusal> {
    let NextHop::Mx(MailHost::Domain(domain)) = hop else {
        return Ok(demands);
    };
    let mut raised = Vec::with_capacity(demands.len());
    for (to, mut demand) in demands {
        let names_are_trusted = match (&demand.level, demand.basis) {
            // Nothing raises what our operator wants in the clear.
            (Level::Plain, _) => {
                raised.push((to, demand));
                continue;
            }
            (Level::Dane(_), _) | (_, Basis::Sts) => true,
            (_, basis) => {
                is_listed(context, settings, domain, &to, basis).await
                    || to.host == domain.as_str()
                    || is_signed(context, domain, &to).await?
            }
        };
        match demand.level {
            Level::Dane(_) => {}
            // A certificate for a name that anybody may have put into the DNS proves nothing.
            Level::Verify if !names_are_trusted => demand.level = Level::Encrypt,
            Level::Verify => {}
            _ if names_are_trusted => (demand.level, demand.basis) = (Level::Verify, Basis::Required),
            _ => {}
        }
        raised.push((to, demand));
    }
    Ok(raised)
}

/// Whether a policy names this server, whatever it asks besides.
async fn is_listed(
    context: &Context,
    settings: &Settings,
    domain: &Domain,
    to: &Candidate,
    basis: Basis,
) -> bool {
    let Ok(host) = Domain::parse(&to.host) else {
        return false;
    };
    if let Basis::Configured(level) = basis {
        let rule = settings.tls_policies.rule_for(domain);
        return level != TlsLevel::None
            && rule.is_some_and(|rule| rule.mx.iter().any(|mx| mx.matches(&host)));
    }
    if !settings.delivery.mta_sts {
        return false;
    }
    let (found, _) = Sts::find(context, settings, domain).await;
    found.is_some_and(|found| found.policy.mode != Mode::None && found.policy.allows(&host))
}

async fn is_signed(context: &Context, domain: &Domain, to: &Candidate) -> Result<bool, Refusal> {
    let signed = context.resolver.mx_is_signed(domain.as_str(), &to.host).await;
    signed.map_err(|error| Refusal {
        failure: unmet(&format!("REQUIRETLS for {}: {error}", domain.as_str())),
        is_known: false,
    })
}

/// What becomes of such a mail when all servers were asked and none could be protected: it comes back (RFC 8689 4.2.1).
pub(crate) fn no_safe_server(failure: &ClientFailure) -> ClientFailure {
    debug_assert!(is_unmet(failure));
    let why = failure
        .reply()
        .map_or_else(|| failure.to_string(), |reply| reply.text.to_string());
    let reply = Reply::with_text(
        550,
        (5, 7, 10),
        format!("the mail requires TLS (REQUIRETLS): {why}"),
    );
    ClientFailure::new(Stage::StartTls, Problem::Unfit(reply))
}
