//! `kill -9`, again and again, with many senders, many destinations, and every end that a mail can have: each accepted
//! mail is delivered, given back or waiting, and repeats are few.
//!
//! Here it is 20,000 mails in ten rounds; `scripts/crash` runs ten rounds of 20,000 each.

use std::collections::BTreeSet;

use crate::support::figures::Figures;
use crate::support::gateway::Gateway;
use crate::support::mail::{self, Report, Sink};
use crate::support::postgres::Postgres;
use crate::support::{PATIENCE, eventually, free_port, loopback, within};

const SENDERS: usize = 20;
/// The last but one refuses every recipient, the last one is never there.
const DESTINATIONS: usize = 50;
/// Connections to one destination at once; those to all together stay below `mail.delivery.max_connections`.
const CONNECTIONS: usize = 8;

/// What a run can be told by the environment.
fn size(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error}"))
    })
}

struct Scene {
    gateway: Gateway,
    /// Takes the mail.
    sink: Sink,
    /// Takes what comes back to the senders.
    home: Sink,
    _refusing: Sink,
}

impl Scene {
    /// With the store that `store` names.
    fn set(store: &str) -> Self {
        // A second for each mail: much is under way at any time.
        let sink = Sink::start(&["-w", "1", "-m", "1000"]);
        let refusing = Sink::start(&["-f", "RCPT"]);
        let home = Sink::start(&[]);
        let domains: Vec<String> = (0..DESTINATIONS)
            .map(|number| format!("d{number}.test"))
            .collect();
        let mut routes: Vec<_> = domains
            .iter()
            .map(|domain| (domain.as_str(), sink.address))
            .collect();
        routes[DESTINATIONS - 2].1 = refusing.address;
        routes[DESTINATIONS - 1].1 = loopback(free_port());
        routes.push(("shop.test", home.address));
        let connections = format!("tls = \"none\"\nconnections = {CONNECTIONS}\n");
        let office = "[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n";
        let config = Gateway::smarthosts(&routes).replace("tls = \"none\"\n", &connections) + office;
        let gateway = Gateway::start_on(store, &config);
        gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
        Self {
            gateway,
            sink,
            home,
            _refusing: refusing,
        }
    }

    /// Sends until the next hop has some and much more is accepted, kills the gateway, and starts it again.
    fn round(&mut self, round: usize, mails: usize) -> Report {
        let port = self.gateway.address("mail.relay").port().to_string();
        // Each round at another moment. Nobody sends the rest until the next hop has something, however fast we are.
        let share = mails * (round % 4 + 2) / 8;
        let arguments = format!(
            "--port {port} --sender orders@shop.test --recipient ID@dNUMBER.test --destinations {DESTINATIONS} \
             --count {mails} --hold-after {share} --connections {SENDERS} --size 2000 --name r{round}-"
        );
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let (mut client, events) = mail::send_in_background(&arguments, self.gateway.directory());
        let mut report = Report::default();
        let mut take_until = |accepted: usize| {
            while report.accepted.len() < accepted {
                assert!(
                    !report.take(events.next_json()),
                    "the client ended before the gateway: {} accepted, {:?}",
                    report.accepted.len(),
                    report.refused.first()
                );
            }
        };
        take_until(share);
        eventually("the next hop has some of this round", || {
            let prefix = format!("r{round}-");
            let arrived = self.sink.whole_ids();
            arrived.iter().any(|id| id.starts_with(&prefix)).then_some(())
        });
        client.tell("the rest");
        take_until(share + SENDERS);
        self.gateway.kill();
        while !report.take(events.next_json()) {}
        assert!(!report.unanswered.is_empty(), "nothing was on its way in");
        let arrived = self.sink.whole_ids();
        let (here, not) = report
            .accepted
            .iter()
            .partition::<Vec<_>, _>(|id| arrived.contains(*id));
        assert!(
            !here.is_empty() && not.len() > SENDERS,
            "nothing was in flight: {} arrived, {} waiting",
            here.len(),
            not.len()
        );
        self.gateway.restart();
        report
    }

    /// The ids of the mails in the queue.
    fn waiting(&self) -> BTreeSet<String> {
        let listed = self
            .gateway
            .json(&["mail", "queue", "--limit", "10000", "--json"]);
        let rows = listed["queue"].as_array().unwrap().iter();
        rows.flat_map(|row| row["recipients"].as_array().unwrap().clone())
            .filter_map(|recipient| Some(recipient.as_str()?.split('@').next()?.to_owned()))
            .collect()
    }

    /// The ids of the mails that came back to their sender.
    fn given_back(&self) -> BTreeSet<String> {
        let domain = format!("@d{}.test", DESTINATIONS - 2);
        let messages = self.home.messages();
        let lines = messages.iter().flat_map(|message| message.text.lines());
        let recipients = lines.filter_map(|line| line.strip_prefix("Final-Recipient: rfc822;"));
        recipients
            .filter_map(|recipient| recipient.trim().strip_suffix(&domain).map(str::to_owned))
            .collect()
    }
}

#[test]
fn mail_of_20_senders_to_50_destinations_survives_kill_9_again_and_again() {
    killed_again_and_again("");
}

#[test]
fn mail_of_20_senders_to_50_destinations_survives_kill_9_on_postgresql() {
    let postgres = Postgres::start();
    killed_again_and_again(&postgres.url());
}

fn killed_again_and_again(store: &str) {
    let (rounds, mails) = (size("TASUKI_CRASH_ROUNDS", 10), size("TASUKI_CRASH_MAILS", 2000));
    let mut scene = Scene::set(store);
    let (mut accepted, mut unanswered) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..rounds {
        let report = scene.round(round, mails);
        assert!(report.refused.is_empty(), "{:?}", report.refused);
        unanswered.extend(
            report
                .unanswered
                .iter()
                .filter_map(|event| event["unanswered"].as_str().map(str::to_owned)),
        );
        accepted.extend(report.accepted);
    }
    // What is neither delivered nor given back can only be what nobody takes.
    let patience = PATIENCE + std::time::Duration::from_millis(20 * (rounds * mails) as u64);
    let waiting = within(
        patience,
        "only mail for the host that is away still waits",
        || {
            let waiting = scene.waiting();
            waiting
                .iter()
                .all(|id| number_of(id) % DESTINATIONS == DESTINATIONS - 1)
                .then_some(waiting)
        },
    );
    let (arrived, given_back) = (scene.sink.whole_ids(), scene.given_back());
    let lost: Vec<_> = accepted
        .iter()
        .filter(|id| !arrived.contains(*id) && !given_back.contains(*id) && !waiting.contains(*id))
        .collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
    for id in arrived.iter().chain(&given_back).chain(&waiting) {
        assert!(
            accepted.contains(id) || unanswered.contains(id),
            "{id} was never taken"
        );
    }
    assert!(!given_back.is_empty() && !waiting.is_empty(), "every end occurs");
    assert!(arrived.is_disjoint(&waiting) && arrived.is_disjoint(&given_back));

    // At a kill: the deliveries under way, and those of the last 100 ms, whose settlements were not yet written. At a second
    // for each mail these are a tenth of the first.
    let repeated = scene.sink.arrivals().len() - arrived.len();
    let under_way = CONNECTIONS * DESTINATIONS;
    assert!(
        repeated <= rounds * (under_way + under_way / 10),
        "{repeated} came twice in {rounds} rounds"
    );
    println!(
        "{rounds} rounds: {} accepted, {} delivered, {} given back, {} waiting, {repeated} repeated",
        accepted.len(),
        arrived.len(),
        given_back.len(),
        waiting.len()
    );
    within(PATIENCE, "the figures add up", || {
        let figures = Figures::of(&scene.gateway);
        figures.mail_adds_up().then_some(())
    });
    scene.gateway.assert_healthy();
}

/// `r1-17` is number 17 of round 1.
fn number_of(id: &str) -> usize {
    id.split('-')
        .nth(1)
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}
