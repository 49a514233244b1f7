//! Mail that waits behind a route which does not work goes as soon as what was wrong with it is changed.

use std::{path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tasuki_core::{
    clock::Clock,
    events::EventBus,
    seal::Secret,
    store::audit::Actor,
    tls::{Tls, TlsConfig},
};
use tasuki_smtp::{MailConfig, MxAnswer, RouteConfig, SmarthostConfig, SmarthostTls};

use crate::{
    sink::Sink,
    support::{House, Names, plain_smarthost},
};

/// A smarthost that a login can be given to: its certificate is for `localhost` and from a CA that the gateway believes.
pub(crate) struct Provider {
    pub(crate) sink: Sink,
    pub(crate) trust: TlsConfig,
    pub(crate) keys: tempfile::TempDir,
    /// What the certificate is from.
    pub(crate) tls: Tls,
}

impl Provider {
    pub(crate) async fn start(
        offers: &[&'static str],
        script: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        tasuki_core::tls::install_provider();
        let keys = tempfile::tempdir().unwrap();
        let (clock, host) = (Clock::system(), Some("localhost"));
        let events = EventBus::new(clock.clone());
        let tls = Tls::load(&TlsConfig::default(), keys.path(), host, clock, events).unwrap();
        Self {
            sink: Sink::with(offers, Some(tls.server(&[])), Arc::new(script)).await,
            trust: TlsConfig {
                extra_ca: vec![keys.path().join("ca.pem")],
                ..TlsConfig::default()
            },
            keys,
            tls,
        }
    }

    pub(crate) fn smarthost(&self) -> SmarthostConfig {
        SmarthostConfig {
            host: Some("localhost".into()),
            tls: Some(SmarthostTls::Starttls),
            username: Some("user".into()),
            ..plain_smarthost(self.sink.addr)
        }
    }
}

fn route(domain: &str, via: &str) -> RouteConfig {
    RouteConfig {
        domain: Some(domain.parse().unwrap()),
        sender: None,
        principal: None,
        via: via.into(),
        source: None,
    }
}

/// Knows one password.
fn knows(password: &str) -> impl Fn(&str) -> Option<String> + Send + Sync + 'static {
    let good = format!("AUTH PLAIN {}", STANDARD.encode(format!("\0user\0{password}")));
    move |line| (line.starts_with("AUTH") && line != good).then(|| "535 5.7.8 bad credentials".into())
}

pub(crate) fn reload(house: &House, config: MailConfig) {
    let shared = Arc::new(tasuki_core::Shared {
        host: Some("relay.example".parse().unwrap()),
        ..tasuki_core::Shared::default()
    });
    house.handle.apply(&tasuki_core::Snapshot {
        shared,
        engine: config,
    });
}

pub(crate) async fn send(house: &House, to: &[&str]) {
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    for to in to {
        client.mail("a@x.org", &[to], "Subject: hi\r\n\r\nx").await;
    }
}

/// Where the password is.
#[derive(Clone, Copy, Debug)]
enum Kept {
    InTheFile,
    Sealed,
    InTheConfiguration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_goes_at_once_when_a_refused_secret_is_replaced() {
    for kept in [Kept::InTheFile, Kept::Sealed, Kept::InTheConfiguration] {
        let provider = Provider::start(&["AUTH PLAIN"], knows("new")).await;
        let file: PathBuf = provider.keys.path().join("password");
        std::fs::write(&file, "old\n").unwrap();
        let mut hop = provider.smarthost();
        match kept {
            Kept::InTheFile => hop.password_file = Some(file.clone()),
            Kept::Sealed => hop.password_secret = Some("provider".into()),
            Kept::InTheConfiguration => hop.password = Some(Secret::new("old".into())),
        }
        let other = Sink::scripted(|line| (line == "banner").then(|| "421 4.3.2 busy".into())).await;
        let mut other_hop = plain_smarthost(other.addr);
        other_hop.name = "other".into();
        let house = House::trusting(provider.trust.clone(), |c| {
            c.smarthosts = vec![hop, other_hop];
            c.default_route = "hop".into();
            c.routes = vec![route("z.org", "other")];
        })
        .await;
        house.allow_loopback();
        let entry = || Actor::gateway("test").entry(house.clock.wall(), "secret", "provider", "");
        house.secrets.replace("provider", b"old", entry()).await.unwrap();
        send(&house, &["b@y.org", "c@y.org", "d@y.org", "b@z.org"]).await;
        house.until("the deferral", |h| h.errors().len() == 4).await;
        let said = house.health.conditions();
        assert!(
            said.iter()
                .any(|(key, c)| key == "mail.route.hop" && c.sentence.contains("535"))
        );
        assert!(provider.sink.received().is_empty());
        let others = other.connections();
        let mut config = house.config.clone();
        match kept {
            Kept::InTheFile => std::fs::write(&file, "new\n").unwrap(),
            Kept::Sealed => house.secrets.replace("provider", b"new", entry()).await.unwrap(),
            Kept::InTheConfiguration => config.smarthosts[0].password = Some(Secret::new("new".into())),
        }
        match kept {
            Kept::Sealed => house.handle.secrets_changed(),
            Kept::InTheFile | Kept::InTheConfiguration => reload(&house, config),
        }
        // No time has passed but that of the network.
        provider.sink.wait(3).await;
        house.nothing_is_lost(1).await;
        let left = house.health.conditions();
        assert!(
            left.iter().all(|(key, _)| key == "mail.route.other"),
            "{kept:?}: {left:?}"
        );
        assert_eq!(
            other.connections(),
            others,
            "{kept:?}: the other route still rests"
        );
        assert_eq!(house.figure("bounced_recipients_total"), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_stays_wrong_is_not_tried_without_end() {
    let provider = Provider::start(&["AUTH PLAIN"], knows("new")).await;
    let dead = Sink::scripted(|line| (line == "banner").then(|| "421 4.3.2 busy".into())).await;
    let house = House::trusting(provider.trust.clone(), |c| {
        let mut hop = provider.smarthost();
        hop.password = Some(Secret::new("old".into()));
        let mut other = plain_smarthost(dead.addr);
        other.name = "other".into();
        c.smarthosts = vec![hop, other];
        c.default_route = "hop".into();
        c.routes = vec![route("z.org", "other")];
    })
    .await;
    house.allow_loopback();
    send(&house, &["b@y.org", "b@z.org"]).await;
    house.until("the deferral", |h| h.errors().len() == 2).await;
    for _ in 0..3 {
        reload(&house, house.config.clone());
        house.handle.secrets_changed();
    }
    // That the other one is released shows that the looks before are over.
    let good = Sink::start().await;
    let mut config = house.config.clone();
    config.smarthosts[1].port = Some(good.addr.port());
    reload(&house, config);
    good.wait(1).await;
    assert_eq!(provider.sink.connections(), 1);
    house.nothing_is_lost(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_that_waits_finds_its_new_way_when_the_routes_change() {
    let sink = Sink::start().await;
    let names = Names(
        vec![("y.org", MxAnswer::Implicit), ("z.org", MxAnswer::Implicit)],
        // Nobody listens there.
        vec![("y.org", [127, 0, 0, 9].into()), ("z.org", [127, 0, 0, 9].into())],
        Default::default(),
    );
    let gone = Sink::start().await.addr;
    let house = House::start(names, |c| {
        c.delivery.mx_port = 9;
        c.delivery.connect_timeout = Duration::from_secs(2);
        c.delivery.danger_private_addresses = true;
        c.smarthosts = vec![SmarthostConfig {
            name: "late".into(),
            ..plain_smarthost(gone)
        }];
    })
    .await;
    house.allow_loopback();
    send(&house, &["b@y.org", "b@z.org"]).await;
    house.until("the deferral", |h| h.errors().len() == 2).await;
    let mut config = house.config.clone();
    config.smarthosts[0] = SmarthostConfig {
        name: "hop".into(),
        ..plain_smarthost(sink.addr)
    };
    config.default_route = "hop".into();
    reload(&house, config);
    sink.wait(2).await;
    house.nothing_is_lost(0).await;
}
