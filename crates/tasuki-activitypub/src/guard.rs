//! The address guard: a name that a peer gave is resolved, every address is checked, and the connection goes to a checked
//! address. There is no second look-up between check and connection, so a name cannot point elsewhere by then.
//!
//! **Invariant:** without `danger_allow_private_addresses` no request leaves for a private or special address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::dns::Name;
use tasuki_core::failure::BoxError;
use tasuki_core::net::is_special;
use url::{Host, Url};

/// Longest wait for a name's addresses.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A URL that is not asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Guarded {
    /// Only https is spoken with strangers.
    #[error("{0} is not an https URL")]
    Scheme(String),
    /// The address is private, or the name has no other.
    #[error("{0} has only private or special addresses, which are never asked")]
    Private(String),
}

/// Decides which addresses may be asked; clones share the switch.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    allow_private: Arc<AtomicBool>,
    lookup: Lookup,
}

type Found = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Asks for the addresses of a name.
#[derive(Clone)]
struct Lookup(Arc<dyn Fn(String) -> Found + Send + Sync>);

impl Lookup {
    /// What the machine's resolver says.
    fn system() -> Self {
        Self(Arc::new(|name| {
            Box::pin(async move {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
                Ok(found.collect())
            })
        }))
    }
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lookup")
    }
}

impl Guard {
    pub(crate) fn new(allow_private: bool) -> Self {
        Self {
            allow_private: Arc::new(AtomicBool::new(allow_private)),
            lookup: Lookup::system(),
        }
    }

    /// The operator changed the switch.
    pub(crate) fn set_allow_private(&self, allow: bool) {
        self.allow_private.store(allow, Ordering::Relaxed);
    }

    fn allows(&self, ip: IpAddr) -> bool {
        self.allow_private.load(Ordering::Relaxed) || !is_special(ip)
    }

    /// What can be said before a name is resolved: scheme, and addresses written as such, which no resolver sees.
    pub(crate) fn check(&self, url: &Url) -> Result<(), Guarded> {
        if url.scheme() != "https" && !self.allow_private.load(Ordering::Relaxed) {
            return Err(Guarded::Scheme(url.as_str().chars().take(200).collect()));
        }
        let literal = match url.host() {
            Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            _ => None,
        };
        match literal {
            Some(ip) if !self.allows(ip) => Err(Guarded::Private(ip.to_string())),
            _ => Ok(()),
        }
    }

    /// The addresses of a name, all of them checked: one private address among public ones is no reason to trust the rest
    /// less, but it is left out.
    async fn resolve(self, name: String) -> Result<Vec<SocketAddr>, BoxError> {
        let found = tokio::time::timeout(RESOLVE_TIMEOUT, (self.lookup.0)(name.clone()))
            .await
            .map_err(|_| format!("the name {name} was not resolved within {RESOLVE_TIMEOUT:?}"))??;
        let checked: Vec<SocketAddr> = found.into_iter().filter(|addr| self.allows(addr.ip())).collect();
        if checked.is_empty() {
            return Err(Guarded::Private(name).into());
        }
        Ok(checked)
    }
}

type Addrs = std::vec::IntoIter<SocketAddr>;

/// For the delivery client.
impl tower::Service<Name> for Guard {
    type Response = Addrs;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Addrs, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let guard = self.clone();
        Box::pin(async move { Ok(guard.resolve(name.as_str().to_owned()).await?.into_iter()) })
    }
}

/// For fetches.
impl reqwest::dns::Resolve for Guard {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let addrs = guard.resolve(name.as_str().to_owned()).await?;
            Ok(Box::new(addrs.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{Guard, Lookup};

    fn at(text: &str) -> SocketAddr {
        format!("{text}:0").parse().expect("an address")
    }

    /// A name whose answers are these, one after the other.
    fn guard(answers: &'static [&'static [&'static str]]) -> (Guard, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let mut guard = Guard::new(false);
        guard.lookup = Lookup(Arc::new(move |_| {
            let turn = counter.fetch_add(1, Ordering::SeqCst);
            let answer = answers[turn.min(answers.len() - 1)];
            Box::pin(async move { Ok(answer.iter().map(|text| at(text)).collect()) })
        }));
        (guard, asked)
    }

    #[tokio::test]
    async fn a_name_that_changes_its_answer_is_checked_by_the_answer_that_is_used() {
        let (guard, asked) = guard(&[&["93.184.215.14"], &["127.0.0.1"], &["[fd00::1]"]]);
        let resolve = || guard.clone().resolve("rebinding.example".to_owned());
        // One look-up for one connection: what was checked is what is connected to.
        assert_eq!(resolve().await.expect("public"), [at("93.184.215.14")]);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        for _ in 0..2 {
            let error = resolve().await.expect_err("private").to_string();
            assert!(error.contains("private or special"), "{error}");
        }
    }

    #[tokio::test]
    async fn private_addresses_among_public_ones_are_left_out() {
        let (guard, _) = guard(&[&[
            "10.0.0.1",
            "93.184.215.14",
            "[::1]",
            "[64:ff9b::a00:1]",
            "[2002:7f00:1::]",
        ]]);
        let found = guard
            .resolve("mixed.example".to_owned())
            .await
            .expect("one is public");
        assert_eq!(found, [at("93.184.215.14")]);
    }
}
