//! A mail engine in this process, with everything around it, and a client that speaks line by line.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tasuki_core::{
    Deps, EngineKind, Shared,
    accounts::{Accounts, Role},
    acl::{Acl, Action, Effect, Origin, RuleSpec},
    bans::Bans,
    budget::Budget,
    clock::Clock,
    events::EventBus,
    health::Health,
    limits::Limits,
    metrics::Metrics,
    pool::CpuPool,
    seal::Secrets,
    shutdown::{Drained, Shutdown},
    store::{
        MailStore,
        audit::Actor,
        mail::{QueueFilter, QueueRow},
    },
    tls::{Tls, TlsConfig},
};
use tasuki_proto::names::Domain;
use tasuki_smtp::{
    Addrs, Engine, Handle, LookupError, MailConfig, MxAnswer, Resolver, SmarthostConfig, SmarthostTls,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{faulty::Faulty, sink::Sink, talk::Talk};

/// A running engine.
pub(crate) struct House {
    pub(crate) addrs: Addrs,
    pub(crate) handle: Handle,
    pub(crate) store: Arc<Faulty>,
    pub(crate) acl: Acl,
    pub(crate) clock: Clock,
    pub(crate) tls: Tls,
    pub(crate) budget: Budget,
    pub(crate) config: MailConfig,
    pub(crate) health: Health,
    pub(crate) secrets: Secrets,
    pub(crate) accounts: Accounts,
    pub(crate) events: EventBus,
    /// Of the service `app`.
    pub(crate) password: String,
    metrics: Metrics,
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<Drained>,
    dir: tempfile::TempDir,
}

/// What a look at the store and the figures shows.
pub(crate) struct Look<'a> {
    house: &'a House,
    pub(crate) rows: Vec<QueueRow>,
}

impl Look<'_> {
    /// Recipients of all mail that is not settled.
    pub(crate) fn waiting(&self) -> usize {
        self.rows.iter().map(|row| row.recipients.len()).sum()
    }

    /// The last error of each waiting delivery.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.rows
            .iter()
            .filter_map(|row| row.last_error.clone())
            .collect()
    }

    pub(crate) fn figure(&self, name: &str) -> i64 {
        self.house.figure(name)
    }
}

/// Names for tests.
#[derive(Default)]
pub(crate) struct Names(
    pub(crate) Vec<(&'static str, MxAnswer)>,
    pub(crate) Vec<(&'static str, IpAddr)>,
    /// TXT records, which may change.
    pub(crate) Arc<std::sync::Mutex<Vec<(String, String)>>>,
);

#[async_trait::async_trait]
impl Resolver for Names {
    async fn mx(&self, domain: &str) -> Result<MxAnswer, LookupError> {
        if domain == "servfail.example" {
            return Err(LookupError {
                name: domain.into(),
                problem: "SERVFAIL".into(),
            });
        }
        Ok(self
            .0
            .iter()
            .find(|(d, _)| *d == domain)
            .map_or(MxAnswer::NoDomain, |(_, a)| a.clone()))
    }
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, LookupError> {
        Ok(self
            .1
            .iter()
            .filter(|(h, _)| *h == host)
            .map(|(_, ip)| *ip)
            .collect())
    }
    async fn names(&self, ip: IpAddr) -> Result<Vec<String>, LookupError> {
        let here = self.1.iter().filter(|(_, theirs)| *theirs == ip);
        Ok(here.map(|(host, _)| (*host).to_owned()).collect())
    }
    async fn txt(&self, name: &str) -> Result<Vec<String>, LookupError> {
        let texts = self.2.lock().unwrap();
        let texts = texts.iter().filter(|(n, _)| n == name);
        Ok(texts.map(|(_, text)| text.clone()).collect())
    }
}

/// A smarthost without protection.
pub(crate) fn plain_smarthost(addr: SocketAddr) -> SmarthostConfig {
    SmarthostConfig {
        name: "hop".into(),
        host: Some(addr.ip().to_string()),
        port: Some(addr.port()),
        tls: Some(SmarthostTls::None),
        ..SmarthostConfig::default()
    }
}

impl House {
    /// An engine whose mail goes to `sink`.
    pub(crate) async fn with_sink(sink: &Sink, change: impl FnOnce(&mut MailConfig)) -> Self {
        let hop = plain_smarthost(sink.addr);
        Self::start(Names::default(), move |config| {
            config.smarthosts = vec![hop];
            config.default_route = "hop".into();
            change(config);
        })
        .await
    }

    pub(crate) async fn start(names: Names, change: impl FnOnce(&mut MailConfig)) -> Self {
        Self::build(tempfile::tempdir().unwrap(), names, TlsConfig::default(), change).await
    }

    /// An engine with these names that believes further CAs.
    pub(crate) async fn with(names: Names, tls: TlsConfig, change: impl FnOnce(&mut MailConfig)) -> Self {
        Self::build(tempfile::tempdir().unwrap(), names, tls, change).await
    }

    /// The same on a data directory of an earlier life.
    pub(crate) async fn on_with(
        dir: tempfile::TempDir,
        names: Names,
        tls: TlsConfig,
        change: impl FnOnce(&mut MailConfig),
    ) -> Self {
        Self::build(dir, names, tls, change).await
    }

    /// An engine that asks real name servers.
    pub(crate) async fn resolving(tls: TlsConfig, change: impl FnOnce(&mut MailConfig)) -> Self {
        Self::build(tempfile::tempdir().unwrap(), None, tls, change).await
    }

    /// The same on a data directory of an earlier life.
    pub(crate) async fn resolving_on(dir: tempfile::TempDir, change: impl FnOnce(&mut MailConfig)) -> Self {
        Self::build(dir, None, TlsConfig::default(), change).await
    }

    /// An engine that believes further CAs.
    pub(crate) async fn trusting(tls: TlsConfig, change: impl FnOnce(&mut MailConfig)) -> Self {
        Self::build(tempfile::tempdir().unwrap(), Names::default(), tls, change).await
    }

    /// An engine on a data directory, perhaps of an earlier life.
    pub(crate) async fn on(
        dir: tempfile::TempDir,
        names: Names,
        change: impl FnOnce(&mut MailConfig),
    ) -> Self {
        Self::build(dir, names, TlsConfig::default(), change).await
    }

    async fn build(
        dir: tempfile::TempDir,
        names: impl Into<Option<Names>>,
        trust: TlsConfig,
        change: impl FnOnce(&mut MailConfig),
    ) -> Self {
        let names = names.into();
        tasuki_core::tls::install_provider();
        let free: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut config = MailConfig::default();
        config.relay.listen = vec![free];
        config.submission.listen = vec![free];
        config.submissions.listen = vec![free];
        config.delivery.retry = vec![tasuki_smtp::RetryDelay(Duration::from_secs(60))];
        change(&mut config);
        let clock = Clock::adjustable();
        let events = EventBus::new(clock.clone());
        let whole = tasuki_store::open(tasuki_store::DEFAULT_URL, dir.path())
            .await
            .unwrap();
        let node = whole.join("test").await.unwrap();
        let store = Arc::new(Faulty::new(Arc::clone(&whole)));
        let bans = Bans::new(Arc::clone(&whole) as _, clock.clone(), events.clone());
        let pool = CpuPool::new(1, 16).unwrap();
        let tls = Tls::load(
            &trust,
            dir.path(),
            Some("relay.example"),
            clock.clone(),
            events.clone(),
        )
        .unwrap();
        let metrics = Metrics::new();
        let health = Health::new();
        let acl = Acl::new();
        let budget = Budget::new(64 << 20);
        let mail: Arc<dyn MailStore> = Arc::clone(&store) as _;
        let accounts = Accounts::new(
            Arc::clone(&whole) as _,
            bans.clone(),
            pool.clone(),
            clock.clone(),
            events.clone(),
        );
        let password = make_accounts(&accounts).await;
        let secrets = Secrets::new(whole, [7; 32]);
        let deps = Deps {
            sockets: Default::default(),
            store: mail,
            node,
            accounts: accounts.clone(),
            acl: acl.clone(),
            limits: Limits::new(clock.clone()),
            bans,
            budget: budget.clone(),
            pool,
            clock: clock.clone(),
            events: events.clone(),
            metrics: metrics.engine(EngineKind::Mail),
            health: health.clone(),
            secrets: secrets.clone(),
            tls: tls.clone(),
            shared: Arc::new(Shared {
                host: Some(Domain::parse("relay.example").unwrap()),
                ..Shared::default()
            }),
        };
        let engine = match names {
            Some(names) => Engine::build_with_resolver(config.clone(), deps, Arc::new(names)).await,
            None => Engine::build(config.clone(), deps).await,
        };
        let engine = engine.unwrap();
        let (addrs, handle) = (engine.addrs(), engine.handle());
        let shutdown = Shutdown::new(Duration::from_secs(5));
        let task = tokio::spawn(engine.run(shutdown.clone()));
        Self {
            addrs,
            handle,
            store,
            acl,
            clock,
            tls,
            budget,
            config,
            health,
            secrets,
            accounts,
            events,
            password,
            metrics,
            shutdown,
            task,
            dir,
        }
    }

    /// Lets clients on loopback relay by a rule.
    pub(crate) fn allow_loopback(&self) {
        let rule = RuleSpec {
            effect: Effect::Allow,
            engine: Some(EngineKind::Mail),
            action: Some(Action::Relay),
            from: vec!["127.0.0.0/8".parse().unwrap()],
            principal: None,
            domain: None,
            reason: "tests".into(),
        };
        self.acl.replace(vec![(Origin::File(1), rule)]);
    }

    /// Makes a service with these grants; its password.
    pub(crate) async fn service(&self, name: &str, grants: &[&str]) -> String {
        let grants = grants.iter().map(|g| g.parse().unwrap()).collect();
        let made = self
            .accounts
            .create_service(name, Role::None, grants, &Actor::gateway("test"))
            .await
            .unwrap();
        made.secret.expose().to_owned()
    }

    /// Ends the engine in order; what is left is in the directory.
    pub(crate) async fn stop(self) -> (Drained, tempfile::TempDir) {
        let grace = self.shutdown.grace();
        self.stop_within(grace).await
    }

    /// The same with another time for what is under way.
    pub(crate) async fn stop_within(self, grace: Duration) -> (Drained, tempfile::TempDir) {
        self.shutdown.begin_within(grace);
        let drained = tokio::time::timeout(Duration::from_secs(15), self.task)
            .await
            .unwrap()
            .unwrap();
        self.store.inner.close().await;
        (drained, self.dir)
    }

    pub(crate) async fn look(&self) -> Look<'_> {
        Look {
            house: self,
            rows: self.store.queue(&QueueFilter::default(), 10_000).await.unwrap(),
        }
    }

    /// A figure of the engine.
    pub(crate) fn figure(&self, name: &str) -> i64 {
        let text = self.metrics.encode();
        let line = text.lines().find(|l| {
            l.strip_prefix("tasuki_mail_")
                .and_then(|l| l.strip_prefix(name))
                .is_some_and(|l| l.starts_with(' '))
        });
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// A figure with these labels; 0 if it is not there yet.
    pub(crate) fn labelled(&self, name: &str, labels: &str) -> i64 {
        let text = self.metrics.encode();
        let start = format!("tasuki_mail_{name}{{{labels}}} ");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(&start));
        lines.next().map_or(0, |value| value.parse().unwrap())
    }

    /// Waits until a condition holds that only figures and the store tell.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Look<'_>) -> bool) {
        let all = async {
            while !holds(&self.look().await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), all).await;
        assert!(
            ended.is_ok(),
            "{what} did not come; {:?} {:#?}",
            self.handle.status(),
            self.look().await.rows
        );
    }

    /// The sum that must hold (in recipients); also waits for this many to be left in the store.
    pub(crate) async fn nothing_is_lost(&self, waiting: usize) {
        self.until("the settlement", |look| look.waiting() == waiting)
            .await;
        let sum = [
            "delivered_recipients_total",
            "bounced_recipients_total",
            "dropped_recipients_total",
            "waiting_recipients",
        ];
        let sum: i64 = sum.iter().map(|name| self.figure(name)).sum();
        assert_eq!(
            self.figure("accepted_recipients_total") + self.figure("inherited_recipients_total"),
            sum
        );
        if self.figure("inherited_recipients_total") == 0 {
            assert_eq!(self.figure("waiting_recipients"), waiting as i64);
        }
    }

    /// One in the morning: what a test does in a day then falls into one day, whenever it runs.
    pub(crate) fn next_morning(&self) {
        let day = 86_400_000;
        let left = day - self.clock.wall().0.rem_euclid(day);
        let until_one = (left + day / 24).unsigned_abs();
        self.clock.advance(Duration::from_millis(until_one));
    }

    pub(crate) async fn relay(&self) -> Talk<TcpStream> {
        Talk::connect(self.addrs.relay[0]).await
    }

    /// A session through a load balancer that begins with this header.
    pub(crate) async fn proxied(&self, header: &[u8]) -> Talk<TcpStream> {
        let mut stream = TcpStream::connect(self.addrs.relay[0]).await.unwrap();
        stream.write_all(header).await.unwrap();
        let mut talk = Talk::on(stream);
        assert!(talk.reply().await.starts_with("220"));
        talk
    }

    /// A session through a load balancer that begins with this header, and how it is greeted.
    pub(crate) async fn banner_behind(&self, header: &[u8]) -> (Talk<TcpStream>, String) {
        let mut stream = TcpStream::connect(self.addrs.relay[0]).await.unwrap();
        stream.write_all(header).await.unwrap();
        let mut talk = Talk::on(stream);
        let said = talk.reply().await;
        (talk, said)
    }

    /// The first line of a server that may not be welcoming.
    pub(crate) async fn banner(&self, addr: SocketAddr) -> String {
        let mut talk = Talk::on(TcpStream::connect(addr).await.unwrap());
        talk.reply().await
    }

    /// A session of the service `app` on the submission port, logged in.
    pub(crate) async fn submission(&self) -> Talk<tokio_rustls::client::TlsStream<TcpStream>> {
        self.login("app", &self.password).await
    }

    /// A session on the submission port under TLS, not logged in.
    pub(crate) async fn secured(&self) -> Talk<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut talk = Talk::connect(self.addrs.submission[0]).await;
        talk.expect("EHLO client.example", "250").await;
        talk.expect("STARTTLS", "220").await;
        talk.start_tls(&self.tls).await
    }

    /// A session on the submission port, logged in.
    pub(crate) async fn login(
        &self,
        name: &str,
        password: &str,
    ) -> Talk<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut talk = Talk::connect(self.addrs.submission[0]).await;
        talk.expect("EHLO client.example", "250").await;
        talk.expect("STARTTLS", "220").await;
        let mut talk = talk.start_tls(&self.tls).await;
        talk.expect("EHLO client.example", "250").await;
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(format!("\0{name}\0{password}"));
        talk.expect(&format!("AUTH PLAIN {text}"), "235").await;
        talk
    }
}

/// `app` may send as x.org; `office` too, for networks. The password of `app`, if it was made now.
async fn make_accounts(accounts: &Accounts) -> String {
    let actor = Actor::gateway("test");
    let mut password = String::new();
    for name in ["office", "app"] {
        let grants = vec!["mail:send:x.org".parse().unwrap()];
        // In a second life they are there already.
        if let Ok(made) = accounts.create_service(name, Role::None, grants, &actor).await {
            password = made.secret.expose().to_owned();
        }
    }
    password
}
