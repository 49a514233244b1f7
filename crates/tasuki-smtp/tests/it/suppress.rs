//! Addresses that a principal's mail does not go to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tasuki_core::{
    Shared, Snapshot,
    ids::PrincipalId,
    store::{
        SuppressionStore as _,
        audit::Actor,
        suppress::{Subject, Suppressed, SuppressedFilter},
    },
};
use tasuki_proto::names::ReversePath;
use tasuki_smtp::{Automatic, MailConfig, MxAnswer, Whom};

use crate::{
    sink::Sink,
    support::{House, Names},
};

const NEWS: &[&str] = &["mail:send:x.org", "mail:class:bulk"];
const TEXT: &str = "Subject: news\r\n\r\nhello";

/// A next hop with these words to RCPT.
async fn hop(words: &'static [(&'static str, &'static str)]) -> Sink {
    Sink::scripted(move |line| {
        let local = line
            .strip_prefix("RCPT TO:<")?
            .split('@')
            .next()?
            .trim_matches('"');
        let found = words.iter().find(|(name, _)| *name == local)?;
        Some(found.1.to_owned())
    })
    .await
}

async fn on_the_list(house: &House) -> Vec<String> {
    let rows = house.store.suppressed(&SuppressedFilter::default(), 100).await;
    rows.unwrap()
        .iter()
        .map(|(_, row)| row.subject.to_string())
        .collect()
}

/// What a service is answered to RCPT.
async fn rcpt(house: &House, name: &str, password: &str, to: &str) -> String {
    let mut client = house.login(name, password).await;
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.ask(&format!("RCPT TO:<{to}>")).await
}

async fn id_of(house: &House, name: &str) -> PrincipalId {
    house.accounts.by_name(name).await.unwrap().unwrap().id
}

async fn change(house: &House, add: Vec<Suppressed>, remove: &[&str]) -> (usize, usize) {
    let remove = remove
        .iter()
        .map(|text| (Subject::parse(text).unwrap(), None))
        .collect();
    let entry = Actor::gateway("test").entry(house.clock.wall(), "mail.suppress", "x", "");
    house.handle.change_suppressed(add, remove, entry).await.unwrap()
}

fn by_hand(house: &House, text: &str, principal: Option<PrincipalId>) -> Suppressed {
    Suppressed {
        subject: Subject::parse(text).unwrap(),
        principal,
        reason: "she asked us to".into(),
        by: Some("alice".into()),
        since: house.clock.wall(),
        until: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mailbox_that_its_server_does_not_have_is_refused_at_the_next_rcpt() {
    let sink = hop(&[("gone+spring", "550 5.1.1 no such user")]).await;
    let house = House::with_sink(&sink, |c| c.relay_domains = vec!["y.org".parse().unwrap()]).await;
    let news = house.service("news", NEWS).await;
    let mut client = house.login("news", &news).await;
    client
        .mail("a@x.org", &["gone+spring@y.org", "there@y.org"], TEXT)
        .await;
    house
        .until("the entry", |look| look.figure("suppressed_addresses_total") == 1)
        .await;
    let reply = rcpt(&house, "news", &news, "Gone+summer@Y.org").await;
    assert!(reply.starts_with("550 5.1.1 suppressed since 20"), "{reply}");
    assert!(reply.contains("550 5.1.1 no such user"), "{reply}");
    assert!(
        reply.contains("tasuki mail suppress remove 'gone@y.org'"),
        "{reply}"
    );
    assert_eq!(house.labelled("refused_total", "reason=\"suppressed\""), 1);
    assert!(
        rcpt(&house, "news", &news, "there@y.org")
            .await
            .starts_with("250")
    );
    // Its mail only: neither another principal's, nor a stranger's to a domain of ours.
    assert!(
        rcpt(&house, "app", &house.password, "gone@y.org")
            .await
            .starts_with("250")
    );
    let mut stranger = house.relay().await;
    stranger.expect("EHLO c", "250").await;
    stranger.expect("MAIL FROM:<s@bank.org>", "250").await;
    stranger.expect("RCPT TO:<gone@y.org>", "250").await;
    // The explanation says the same.
    let from = ReversePath::parse("a@x.org").unwrap();
    let to = "gone@y.org".parse().unwrap();
    let told = house
        .handle
        .explain(&from, &to, &Whom::Named("news".into()))
        .await
        .unwrap();
    assert!(
        !told.accepted && told.reply.contains("suppressed since"),
        "{told:?}"
    );
    // While the list cannot be read, nothing is decided.
    house.store.unavailable.store(true, Ordering::SeqCst);
    client.expect("MAIL FROM:<a@x.org>", "250").await;
    client.expect("RCPT TO:<gone@y.org>", "450 4.1.1").await;
    house.store.unavailable.store(false, Ordering::SeqCst);
    // It ends by itself.
    house.clock.advance(Duration::from_secs(30 * 86_400 - 60));
    assert!(rcpt(&house, "news", &news, "gone@y.org").await.starts_with("550"));
    house.clock.advance(Duration::from_secs(120));
    assert!(rcpt(&house, "news", &news, "gone@y.org").await.starts_with("250"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_a_filter_or_is_not_plain_suppresses_nobody() {
    let sink = hop(&[
        ("filter", "550 5.1.1 unknown user"),
        ("bare", "550 User unknown"),
        ("policy", "550 5.7.1 user unknown to you"),
        ("full", "552 5.2.2 over quota"),
        ("really", "550 5.1.1 no such user"),
        ("mine", "550 5.1.1 no such user"),
    ])
    .await;
    let hosts = |host: &str| MxAnswer::Hosts(vec![(10, host.into())]);
    let local = "127.0.0.1".parse().unwrap();
    let names = Names(
        vec![
            ("docomo.ne.jp", hosts("mfsmax.docomo.ne.jp")),
            ("behind.example", hosts("lsean.ezweb.ne.jp")),
            ("y.org", hosts("mx.y.org")),
        ],
        vec![
            ("mfsmax.docomo.ne.jp", local),
            ("lsean.ezweb.ne.jp", local),
            ("mx.y.org", local),
        ],
        Default::default(),
    );
    let port = sink.addr.port();
    let house = House::start(names, |c| {
        c.delivery.mx_port = port;
        c.delivery.danger_private_addresses = true;
    })
    .await;
    let news = house.service("news", NEWS).await;
    let mut client = house.login("news", &news).await;
    let doubtful = [
        "filter@docomo.ne.jp",
        "filter@behind.example",
        "bare@y.org",
        "policy@y.org",
        "full@y.org",
    ];
    for to in doubtful {
        client.mail("a@x.org", &[to], TEXT).await;
    }
    // Transactional mail has somebody who reads its bounce.
    let mut app = house.submission().await;
    app.mail("a@x.org", &["mine@y.org"], TEXT).await;
    house
        .until("the bounces", |look| look.figure("bounced_recipients_total") == 6)
        .await;
    // Words are heard in their order: with this one all others were.
    client.mail("a@x.org", &["really@y.org"], TEXT).await;
    house
        .until("the entry", |look| look.figure("suppressed_addresses_total") == 1)
        .await;
    assert_eq!(on_the_list(&house).await, ["really@y.org"]);
    for to in doubtful {
        let reply = rcpt(&house, "news", &news, to).await;
        assert!(reply.starts_with("250"), "{to}: {reply}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_mail_ends_what_came_by_itself() {
    let is_there = Arc::new(AtomicBool::new(false));
    let says = Arc::clone(&is_there);
    let sink = Sink::scripted(move |line| {
        let refused = line.starts_with("RCPT TO:<gone@") && !says.load(Ordering::SeqCst);
        refused.then(|| "550 5.1.1 no such user".to_owned())
    })
    .await;
    let names = Names(
        vec![("y.org", MxAnswer::Hosts(vec![(10, "mx.y.org".into())]))],
        vec![("mx.y.org", "127.0.0.1".parse().unwrap())],
        Default::default(),
    );
    let port = sink.addr.port();
    let house = House::start(names, |c| {
        c.delivery.mx_port = port;
        c.delivery.danger_private_addresses = true;
        c.suppression.automatic = Automatic::All;
    })
    .await;
    let news = house.service("news", NEWS).await;
    let mut app = house.submission().await;
    let mut client = house.login("news", &news).await;
    client.mail("a@x.org", &["gone@y.org"], TEXT).await;
    app.mail("a@x.org", &["gone@y.org"], TEXT).await;
    house
        .until("both entries", |look| {
            look.figure("suppressed_addresses_total") == 2
        })
        .await;
    let (app_id, password) = (id_of(&house, "app").await, house.password.clone());
    assert_eq!(
        change(&house, vec![by_hand(&house, "*@z.org", Some(app_id))], &[]).await,
        (1, 0)
    );
    assert!(
        rcpt(&house, "app", &password, "gone@y.org")
            .await
            .starts_with("550")
    );
    // A stranger's mail goes through, for the list is not about it.
    house.allow_loopback();
    is_there.store(true, Ordering::SeqCst);
    let mut stranger = house.relay().await;
    stranger.expect("EHLO c", "250").await;
    stranger.mail("s@y.org", &["gone@y.org"], TEXT).await;
    let ended = async {
        while on_the_list(&house).await != ["*@z.org"] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended)
        .await
        .unwrap();
    assert!(rcpt(&house, "news", &news, "gone@y.org").await.starts_with("250"));
    assert!(
        rcpt(&house, "app", &password, "gone@y.org")
            .await
            .starts_with("250")
    );
    assert!(
        rcpt(&house, "app", &password, "any@z.org")
            .await
            .starts_with("550")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_that_others_may_send_to_a_listed_address_costs_one_writing_a_second() {
    let sink = Sink::start().await;
    let names = Names(
        vec![("y.org", MxAnswer::Hosts(vec![(10, "mx.y.org".into())]))],
        vec![("mx.y.org", "127.0.0.1".parse().unwrap())],
        Default::default(),
    );
    let port = sink.addr.port();
    let house = House::start(names, |c| {
        c.delivery.mx_port = port;
        c.delivery.danger_private_addresses = true;
    })
    .await;
    house.service("news", NEWS).await;
    let news = Some(id_of(&house, "news").await);
    change(&house, vec![by_hand(&house, "bob@y.org", news)], &[]).await;
    let begun = tokio::time::Instant::now();
    let mut client = house.submission().await;
    for n in 1..=40 {
        client.mail("a@x.org", &["bob@y.org"], TEXT).await;
        sink.wait(n).await;
    }
    house
        .until("the word", |_| {
            house.store.unsuppressed.load(Ordering::SeqCst) > 0
        })
        .await;
    let written = house.store.unsuppressed.load(Ordering::SeqCst) as u64;
    let most = begun.elapsed().as_secs() + 2;
    assert!(written <= most, "{written} writings, {most} may be");
    assert_eq!(on_the_list(&house).await, ["bob@y.org"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_list_counts_at_once_and_spares_postmasters_and_bounces() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    let bounces = house
        .service("bounces", &["mail:send:<>", "mail:send:x.org"])
        .await;
    let password = house.password.clone();
    let answer = async |to: &str| rcpt(&house, "app", &password, to).await;
    assert!(answer("bob@y.org").await.starts_with("250"));
    let all = vec![
        by_hand(&house, "bob@y.org", None),
        by_hand(&house, "*@z.org", None),
    ];
    assert_eq!(change(&house, all, &[]).await, (2, 0));
    for (to, expect) in [
        ("bob@y.org", "550 5.1.1"),
        ("BOB+x@y.org", "550 5.1.1"),
        ("eve@z.org", "550 5.1.1"),
        ("postmaster@z.org", "250"),
        ("eve@sub.z.org", "250"),
    ] {
        let reply = answer(to).await;
        assert!(reply.starts_with(expect), "{to}: {reply}");
    }
    let mut client = house.login("bounces", &bounces).await;
    client.expect("MAIL FROM:<>", "250").await;
    client.expect("RCPT TO:<bob@y.org>", "250").await;
    client.expect("RSET", "250").await;
    // The switch works without a restart.
    let reload = |enforce| {
        let mut config: MailConfig = house.config.clone();
        config.suppression.enforce = enforce;
        house.handle.apply(&Snapshot {
            engine: config,
            shared: Arc::new(Shared {
                host: Some("relay.example".parse().unwrap()),
                ..Shared::default()
            }),
        })
    };
    let applied = reload(false);
    assert_eq!(applied.changed, ["mail.suppression"]);
    assert!(answer("bob@y.org").await.starts_with("250"));
    reload(true);
    assert!(answer("bob@y.org").await.starts_with("550"));
    assert_eq!(change(&house, vec![], &["bob@y.org"]).await, (0, 1));
    assert!(answer("bob@y.org").await.starts_with("250"));
    // In the next life the list is there again.
    let (_, dir) = house.stop().await;
    let hop = crate::support::plain_smarthost(sink.addr);
    let house = House::on(dir, Names::default(), |c| {
        c.smarthosts = vec![hop];
        c.default_route = "hop".into();
    })
    .await;
    let read = async {
        while !rcpt(&house, "bounces", &bounces, "eve@z.org")
            .await
            .starts_with("550")
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.unwrap();
}
