//! What senders are told of their mail (RFC 3461, RFC 3464), on the wire: every wish, every outcome; and how long mail of
//! each class is tried.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use tasuki_core::store::trail::End;
use tasuki_smtp::MailConfig;

use crate::{
    sink::{Received, Sink},
    support::{House, Look},
    talk::Talk,
};

/// NOTIFY as given, and whether success, failure, delay shall be told (RFC 3461 4.1; the default is our choice of what it
/// allows).
const WISHES: [(&str, bool, bool, bool); 9] = [
    ("", false, true, true),
    ("NEVER", false, false, false),
    ("SUCCESS", true, false, false),
    ("FAILURE", false, true, false),
    ("DELAY", false, false, true),
    ("SUCCESS,FAILURE", true, true, false),
    ("SUCCESS,DELAY", true, false, true),
    ("FAILURE,DELAY", false, true, true),
    ("SUCCESS,FAILURE,DELAY", true, true, true),
];

/// One recipient for each wish.
fn address(number: usize) -> String {
    format!("w{number}@y.org")
}

/// Those of the wishes for which `told` holds.
fn wanted(told: impl Fn(&(&str, bool, bool, bool)) -> bool) -> Vec<String> {
    let numbered = WISHES.iter().enumerate();
    numbered
        .filter(|(_, wish)| told(wish))
        .map(|(n, _)| address(n))
        .collect()
}

/// Hands in one mail with all wishes.
async fn send_wishes(house: &House, ret: &str) {
    house.allow_loopback();
    let mut client = house.relay().await;
    client.expect("EHLO c", "250").await;
    client
        .expect(&format!("MAIL FROM:<a@x.org> RET={ret} ENVID=QQ+2B1"), "250")
        .await;
    for (number, (notify, ..)) in WISHES.iter().enumerate() {
        let notify = if notify.is_empty() {
            String::new()
        } else {
            format!(" NOTIFY={notify}")
        };
        let to = address(number);
        client
            .expect(
                &format!("RCPT TO:<{to}>{notify} ORCPT=rfc822;list+2B{number}@z.org"),
                "250",
            )
            .await;
    }
    client.expect("DATA", "354").await;
    client
        .send("Subject: the mail\r\n\r\nthe body of it\r\n.\r\n")
        .await;
    assert!(client.reply().await.starts_with("250"));
}

/// The one notice with this action, and whom it is about.
fn notice(received: &[Received], action: &str) -> (String, Vec<String>) {
    let field = format!("\r\nAction: {action}\r\n");
    let mut notices = received
        .iter()
        .filter(|r| r.from.is_empty() && r.text.contains(&field));
    let notice = notices
        .next()
        .unwrap_or_else(|| panic!("no notice {action} in {received:#?}"));
    assert!(notices.next().is_none(), "one notice tells of all recipients");
    assert_eq!(notice.to, ["a@x.org"]);
    let of = notice
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("Final-Recipient: rfc822; "));
    (notice.text.clone(), of.map(str::to_owned).collect())
}

/// RFC 3464 2.2.1 and 2.3.1 want them without the encoding of SMTP; the body never comes back, whatever RET says: a notice
/// goes to whom nobody may have asked.
fn repeats_the_wishes(text: &str) {
    for part in [
        "\r\nOriginal-Envelope-Id: QQ+1\r\n",
        "\r\nOriginal-Recipient: rfc822; list+",
        "Content-Type: multipart/report; report-type=delivery-status;",
        "\r\nContent-Type: text/rfc822-headers\r\n",
        "\r\nSubject: the mail\r\n",
        "\r\nAuto-Submitted: auto-replied\r\n",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(!text.contains("the body of it"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_hop_without_dsn_is_told_no_wishes_and_success_is_told_as_relayed() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    send_wishes(&house, "FULL").await;
    let received = sink.wait(2).await;
    let (text, of) = notice(&received, "relayed");
    assert_eq!(of, wanted(|wish| wish.1));
    repeats_the_wishes(&text);
    for number in [2, 5, 6, 8] {
        assert!(
            text.contains(&format!("Original-Recipient: rfc822; list+{number}@z.org\r\n")),
            "{text}"
        );
    }
    for command in sink.commands() {
        let has = ["NOTIFY", "ORCPT", "RET=", "ENVID"]
            .iter()
            .any(|word| command.contains(word));
        assert!(!has, "{command}");
    }
    house.nothing_is_lost(0).await;
    assert_eq!(sink.received().len(), 2, "nothing else is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_hop_with_dsn_gets_every_wish_and_tells_of_success_itself() {
    for ret in ["FULL", "HDRS"] {
        let sink = Sink::with(&["PIPELINING", "DSN", "8BITMIME"], None, Arc::new(|_| None)).await;
        let house = House::with_sink(&sink, |_| {}).await;
        send_wishes(&house, ret).await;
        sink.wait(1).await;
        house.nothing_is_lost(0).await;
        assert_eq!(
            sink.received().len(),
            1,
            "the notice of success is the next hop's to send"
        );
        let commands = sink.commands();
        let mail = format!("MAIL FROM:<a@x.org> RET={ret} ENVID=QQ+2B1");
        assert!(commands.contains(&mail), "{commands:?}");
        for (number, (notify, ..)) in WISHES.iter().enumerate() {
            let notify = if notify.is_empty() {
                String::new()
            } else {
                format!(" NOTIFY={notify}")
            };
            let line = format!(
                "RCPT TO:<{}>{notify} ORCPT=rfc822;list+2B{number}@z.org",
                address(number)
            );
            assert!(commands.contains(&line), "{line} in {commands:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failure_is_told_to_those_who_want_to_hear_of_it_whatever_the_next_hop_offers() {
    for offers in [&["PIPELINING"][..], &["PIPELINING", "DSN"]] {
        let refuse = |line: &str| {
            line.starts_with("RCPT TO:<w")
                .then(|| "550 5.1.1 no such user".into())
        };
        let sink = Sink::with(offers, None, Arc::new(refuse)).await;
        let house = House::with_sink(&sink, |_| {}).await;
        send_wishes(&house, "HDRS").await;
        let received = sink.wait(1).await;
        let (text, of) = notice(&received, "failed");
        assert_eq!(of, wanted(|wish| wish.2));
        repeats_the_wishes(&text);
        assert!(text.contains("\r\nStatus: 5.1.1\r\nRemote-MTA: dns; "), "{text}");
        assert!(
            text.contains("\r\nDiagnostic-Code: smtp; 550 5.1.1 no such user\r\n"),
            "{text}"
        );
        house.nothing_is_lost(0).await;
        assert_eq!(sink.received().len(), 1);
        if offers.contains(&"DSN") {
            // RFC 3461 6.2: nobody is told of what becomes of a notice.
            assert!(
                sink.commands()
                    .iter()
                    .any(|c| c == "RCPT TO:<a@x.org> NOTIFY=NEVER")
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delay_is_told_once_to_those_who_want_to_hear_of_it_and_then_the_end() {
    let later = |line: &str| line.starts_with("RCPT TO:<w").then(|| "450 4.2.2 full".into());
    let sink = Sink::with(&["PIPELINING", "DSN"], None, Arc::new(later)).await;
    let house = House::with_sink(&sink, |_| {}).await;
    send_wishes(&house, "HDRS").await;
    house.until("the deferral", |look| look.errors().len() == 1).await;
    assert!(sink.received().is_empty(), "a first delay is no news");
    for (attempts, hours) in [(2, 5), (3, 1), (4, 1)] {
        house.clock.advance(Duration::from_secs(hours * 3600));
        house.handle.retry_now();
        let settled = |look: &Look<'_>| look.rows.iter().any(|row| row.attempts == attempts);
        house.until("the next attempt", settled).await;
        sink.wait(1).await;
    }
    house.nothing_is_lost(WISHES.len()).await;
    let (text, of) = notice(&sink.received(), "delayed");
    assert_eq!(of, wanted(|wish| wish.3));
    repeats_the_wishes(&text);
    assert!(
        text.contains("\r\nStatus: 4.2.2\r\n") && text.contains("\r\nWill-Retry-Until: "),
        "{text}"
    );
    house.clock.advance(Duration::from_secs(6 * 86_400));
    house.handle.retry_now();
    let received = sink.wait(2).await;
    let (text, of) = notice(&received, "failed");
    assert_eq!(of, wanted(|wish| wish.2));
    assert!(text.contains("\r\nStatus: 5.4.7\r\n"), "{text}");
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wishes_that_make_no_sense_are_refused() {
    let sink = Sink::start().await;
    let house = House::with_sink(&sink, |_| {}).await;
    house.allow_loopback();
    let mut client = house.relay().await;
    assert!(client.expect("EHLO c", "250").await.contains("DSN"));
    for (line, expect) in [
        ("MAIL FROM:<a@x.org> RET=ALL", "501 5.5.4"),
        ("MAIL FROM:<a@x.org> RET=FULL RET=HDRS", "501 5.5.4"),
        ("MAIL FROM:<a@x.org> ENVID=a+zz", "501 5.5.4"),
        ("MAIL FROM:<a@x.org> ENVID=", "501 5.5.4"),
        ("MAIL FROM:<a@x.org> NOTIFY=NEVER", "555 5.5.4"),
        ("MAIL FROM:<a@x.org>", "250"),
        ("RCPT TO:<b@y.org> NOTIFY=NEVER,SUCCESS", "501 5.5.4"),
        ("RCPT TO:<b@y.org> NOTIFY=SOMETIMES", "501 5.5.4"),
        ("RCPT TO:<b@y.org> NOTIFY=", "501 5.5.4"),
        ("RCPT TO:<b@y.org> ORCPT=b@y.org", "501 5.5.4"),
        ("RCPT TO:<b@y.org> RET=FULL", "555 5.5.4"),
        ("RCPT TO:<b@y.org> NOTIFY=success,delay", "250"),
    ] {
        client.expect(line, expect).await;
    }
}

/// The last look of a mail of this service that nobody takes: when its sender is told of the end.
async fn expires_after(class: &str, state: &str, hours: u64) {
    let later = |line: &str| {
        line.starts_with("RCPT TO:<b@y.org>")
            .then(|| "450 4.2.2 full".into())
    };
    let sink = Sink::scripted(later).await;
    let house = House::with_sink(&sink, |_| {}).await;
    let mut grants = vec!["mail:send:x.org".to_owned()];
    if !class.is_empty() {
        grants.push(format!("mail:class:{class}"));
    }
    let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
    let password = house.service("shop", &grants).await;
    let mut client = house.login("shop", &password).await;
    if state == "route down" {
        sink.script(|line| (line == "banner").then(|| "554 5.3.2 no service".into()));
    }
    let reply = client
        .mail("a@x.org", &["b@y.org"], "Subject: your code\r\n\r\nx")
        .await;
    assert!(reply.starts_with("250"), "{reply}");
    house
        .until("the first failure", |look| look.errors().len() == 1)
        .await;
    let order =
        tasuki_core::store::audit::Actor::gateway("test").entry(house.clock.wall(), "test", "queue", "");
    if state == "held" {
        let all = tasuki_core::store::mail::QueueFilter::default();
        let hold = tasuki_core::store::queue::Order::Hold;
        house.handle.order(&all, &hold, &order).await.unwrap();
    }
    let row = house.look().await.rows[0].clone();
    let patience = row.expires_at.since(row.accepted_at);
    assert_eq!(patience, Duration::from_secs(hours * 3600), "{class} {state}");
    house.clock.advance(Duration::from_secs((hours - 1) * 3600));
    house.handle.retry_now();
    if state == "deferred" {
        let tried = |look: &Look<'_>| look.rows.iter().any(|row| row.attempts == 2);
        house.until("the attempt an hour before the end", tried).await;
    }
    assert_eq!(
        house.figure("bounced_recipients_total"),
        0,
        "{class} {state}: an hour early"
    );
    house.clock.advance(Duration::from_secs(2 * 3600));
    // What takes the notice is there again.
    if state == "route down" {
        sink.script(|line| {
            line.starts_with("RCPT TO:<b@y.org>")
                .then(|| "450 4.2.2 full".into())
        });
    }
    house.handle.retry_now();
    house
        .until("the end", |look| look.figure("bounced_recipients_total") == 1)
        .await;
    let expired = async {
        loop {
            let all = sink.received();
            if let Some(end) = all.iter().find(|r| r.text.contains("\r\nAction: failed\r\n")) {
                return end.text.clone();
            }
            house.handle.retry_now();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let text = tokio::time::timeout(Duration::from_secs(20), expired)
        .await
        .unwrap();
    assert!(text.contains("\r\nStatus: 5.4.7\r\n"), "{class} {state}: {text}");
    house.nothing_is_lost(0).await;
    let (end, words, _) = house.fate("b@y.org").await;
    let said = match state {
        "held" => "it expired while it was held",
        _ => "450 4.2.2 full",
    };
    assert!(
        end == End::Expired && words.contains(said),
        "{class} {state}: {end:?} {words}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactional_mail_is_given_up_after_a_day_in_every_state_and_other_mail_after_five() {
    expires_after("transactional", "deferred", 24).await;
    expires_after("transactional", "held", 24).await;
    expires_after("transactional", "route down", 24).await;
    expires_after("bulk", "deferred", 5 * 24).await;
    expires_after("device", "deferred", 5 * 24).await;
    expires_after("", "deferred", 5 * 24).await;
}

async fn send(house: &House, name: &str, password: &str, subjects: &[&str]) {
    let mut client: Talk<_> = house.login(name, password).await;
    for subject in subjects {
        let reply = client
            .mail("a@x.org", &["b@y.org"], &format!("Subject: {subject}\r\n\r\nx"))
            .await;
        assert!(reply.starts_with("250"), "{reply}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mail_of_a_bulk_service_lets_transactional_mail_go_first() {
    let sink = Sink::start().await;
    let one_connection = |c: &mut MailConfig| c.smarthosts[0].connections = Some(1);
    let house = House::with_sink(&sink, one_connection).await;
    let bulk = house
        .service("news", &["mail:send:x.org", "mail:class:bulk"])
        .await;
    let shop = house
        .service("shop", &["mail:send:x.org", "mail:class:transactional"])
        .await;
    // The next hop thinks about the first mail until all are handed in.
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(Some(wait));
    sink.script(move |line| {
        if line == "end"
            && let Some(wait) = wait.lock().unwrap().take()
        {
            let _ = wait.recv_timeout(Duration::from_secs(20));
        }
        None
    });
    send(&house, "news", &bulk, &["n1", "n2", "n3"]).await;
    send(&house, "shop", &shop, &["s1", "s2"]).await;
    go.send(()).unwrap();
    let received = sink.wait(5).await;
    let subject = |mail: &Received| {
        let mut lines = mail.text.lines();
        lines
            .find_map(|line| line.strip_prefix("Subject: "))
            .unwrap()
            .to_owned()
    };
    let order: Vec<String> = received.iter().map(subject).collect();
    assert_eq!(order, ["n1", "s1", "s2", "n2", "n3"]);
}
