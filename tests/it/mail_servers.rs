//! The gateway between two mail servers of other makes: Postfix, Exim, sendmail. What a mail carries beside its text
//! arrives: what its sender wants to know (RFC 3461), and addresses in UTF-8 (RFC 6531).

use crate::support::eventually;
use crate::support::figures::all_mail_is_settled;
use crate::support::gateway::Gateway;
use crate::support::mail::{self, Message, Report};
use crate::support::servers::{MailServer, Make};

/// client -> upstream -> gateway -> next hop.
struct Chain {
    next_hop: MailServer,
    gateway: Gateway,
    upstream: MailServer,
}

impl Chain {
    fn of(make: Make) -> Self {
        Self::between(make, make)
    }

    fn between(before: Make, behind: Make) -> Self {
        let next_hop = MailServer::next_hop(behind);
        let office = "[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n";
        let gateway = Gateway::start(&(Gateway::smarthost(next_hop.address) + office));
        gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
        let upstream = MailServer::upstream(before, gateway.address("mail.relay"));
        Self {
            next_hop,
            gateway,
            upstream,
        }
    }

    /// Hands mail to the upstream with smtplib.
    #[track_caller]
    fn send(&self, arguments: &[&str]) -> Report {
        let port = self.upstream.address.port().to_string();
        let mut all = vec!["--port", &port];
        all.extend(arguments);
        mail::send(&all, self.gateway.directory())
    }

    /// Waits for a mail at the next hop.
    #[track_caller]
    fn arrives(&self, what: &str, is_it: impl Fn(&Message) -> bool) -> Message {
        eventually(what, || self.next_hop.messages().into_iter().find(&is_it))
    }
}

/// What the sender asks for with its mail; the notification must repeat the id and the first recipient.
fn wishes<'a>(notify: &'a str, envelope_id: &'a str) -> [&'a str; 8] {
    let first = "rfc822;first@list.test";
    [
        "--ret",
        "HDRS",
        "--notify",
        notify,
        "--envid",
        envelope_id,
        "--orcpt",
        first,
    ]
}

fn works_before_and_behind(make: Make) {
    let chain = Chain::of(make);
    let plain = [
        "--sender",
        "orders@shop.test",
        "--recipient",
        "box@next.test",
        "--count",
        "12",
        "--connections",
        "3",
        "--size",
        "40000",
    ];
    let report = chain.send(&plain);
    assert_eq!(report.accepted.len(), 12, "{report:?}");
    eventually("all twelve arrive whole", || {
        let messages = chain.next_hop.messages();
        let whole = messages.iter().filter(|message| message.whole_id().is_some());
        (whole.count() == 12).then_some(())
    });

    tells_what_was_asked(&chain);

    // Nobody wants to know.
    let mut arguments = vec![
        "--sender",
        "orders@shop.test",
        "--recipient",
        "nobody@elsewhere.test",
    ];
    arguments.extend(["--name", "silent-", "--notify", "NEVER"]);
    assert_eq!(chain.send(&arguments).accepted.len(), 1);
    eventually("the gateway has given it up", || {
        (all_mail_is_settled(&chain.gateway).bounced == 2).then_some(())
    });
    let told = chain.next_hop.messages();
    assert!(
        !told
            .iter()
            .any(|message| message.text.contains("nobody@elsewhere.test"))
    );
    chain.gateway.assert_healthy();
}

fn tells_what_was_asked(chain: &Chain) {
    // Success is told by the last server that knows how, and it knows what the first was asked.
    let mut arguments = vec!["--sender", "orders@shop.test", "--recipient", "box@next.test"];
    arguments.extend(["--name", "wanted-"]);
    arguments.extend(wishes("SUCCESS,FAILURE", "ORDER-7"));
    assert_eq!(chain.send(&arguments).accepted.len(), 1);
    let told = chain.arrives("the sender is told of the delivery", |message| {
        notifies(message, "delivered") && message.text.contains("box@next.test")
    });
    assert_repeats_the_wishes(&told, "ORDER-7");

    // Failure is told by the gateway, when its next hop refuses.
    let mut arguments = vec![
        "--sender",
        "orders@shop.test",
        "--recipient",
        "someone@elsewhere.test",
    ];
    arguments.extend(["--name", "refused-"]);
    arguments.extend(wishes("FAILURE", "ORDER+2B8"));
    assert_eq!(chain.send(&arguments).accepted.len(), 1);
    let told = chain.arrives("the sender is told of the refusal", |message| {
        notifies(message, "failed") && message.text.contains("someone@elsewhere.test")
    });
    assert!(
        told.text.contains("Reporting-MTA: dns; relay.test"),
        "{}",
        told.text
    );
    assert_repeats_the_wishes(&told, "ORDER+8");
    // RET=HDRS (RFC 3461 4.3): the header comes back, the text does not.
    assert!(told.text.contains("X-Test-Id: refused-0"), "{}", told.text);
    assert!(!told.text.contains("END refused-0"), "{}", told.text);
}

/// Every make before every other one: what one says, another understands through the gateway.
fn mixed(pairs: [(Make, Make); 3]) {
    for (before, behind) in pairs {
        let chain = Chain::between(before, behind);
        tells_what_was_asked(&chain);
        assert_eq!(
            all_mail_is_settled(&chain.gateway).bounced,
            1,
            "{before:?} {behind:?}"
        );
        chain.gateway.assert_healthy();
    }
}

#[test]
fn notifications_hold_between_postfix_exim_and_sendmail() {
    mixed([
        (Make::Postfix, Make::Exim),
        (Make::Exim, Make::Sendmail),
        (Make::Sendmail, Make::Postfix),
    ]);
}

#[test]
fn notifications_hold_between_sendmail_exim_and_postfix() {
    mixed([
        (Make::Sendmail, Make::Exim),
        (Make::Exim, Make::Postfix),
        (Make::Postfix, Make::Sendmail),
    ]);
}

fn notifies(message: &Message, action: &str) -> bool {
    message.text.contains("message/delivery-status")
        && message.text.to_lowercase().contains(&format!("action: {action}"))
}

/// RFC 3464 2.2.1 and 2.3.1: as they were given, without the encoding of SMTP (RFC 3461 4).
#[track_caller]
fn assert_repeats_the_wishes(told: &Message, envelope_id: &str) {
    let bare = told.text.replace("rfc822; ", "rfc822;").to_lowercase();
    for line in [
        format!("original-envelope-id: {}\n", envelope_id.to_lowercase()),
        "original-recipient: rfc822;first@list.test\n".to_owned(),
    ] {
        assert!(bare.contains(&line), "{line}: {}", told.text);
    }
}

#[test]
fn postfix_works_before_and_behind_the_gateway() {
    works_before_and_behind(Make::Postfix);
}

#[test]
fn exim_works_before_and_behind_the_gateway() {
    works_before_and_behind(Make::Exim);
}

#[test]
fn sendmail_works_before_and_behind_the_gateway() {
    works_before_and_behind(Make::Sendmail);
}

fn carries_utf8_addresses(chain: &Chain) {
    for (sender, recipient, name) in [
        ("注文@shop.test", "box@next.test", "sender-"),
        ("orders@shop.test", "箱@next.test", "recipient-"),
    ] {
        let report = chain.send(&["--sender", sender, "--recipient", recipient, "--name", name]);
        assert_eq!(report.accepted.len(), 1, "{report:?}");
        let arrived = chain.arrives("the mail with an address in UTF-8", |message| {
            message.whole_id() == Some(&format!("{name}0"))
        });
        assert_eq!(arrived.header("Return-Path"), Some(&*format!("<{sender}>")));
        assert_eq!(arrived.header("To"), Some(&*format!("<{recipient}>")));
    }
    chain.gateway.assert_healthy();
}

#[test]
fn postfix_gets_and_gives_addresses_in_utf_8() {
    carries_utf8_addresses(&Chain::of(Make::Postfix));
    carries_utf8_addresses(&Chain::between(Make::Postfix, Make::Exim));
}

#[test]
fn exim_gets_and_gives_addresses_in_utf_8() {
    carries_utf8_addresses(&Chain::of(Make::Exim));
    carries_utf8_addresses(&Chain::between(Make::Exim, Make::Postfix));
}

/// Debian's sendmail is built without SMTPUTF8: nothing is altered for it, the sender is told (RFC 6531 3.2), whichever
/// server before the gateway the mail came from.
#[test]
fn an_address_in_utf_8_that_the_next_hop_cannot_take_comes_back() {
    for before in [Make::Postfix, Make::Exim] {
        comes_back(&Chain::between(before, Make::Sendmail));
    }
}

fn comes_back(chain: &Chain) {
    let report = chain.send(&["--sender", "orders@shop.test", "--recipient", "箱@next.test"]);
    assert_eq!(report.accepted.len(), 1, "{report:?}");
    let told = chain.arrives("the sender is told", |message| {
        message.text.contains("Action: failed")
    });
    assert!(told.text.contains("5.6.7"), "{}", told.text);
    assert!(
        !chain
            .next_hop
            .messages()
            .iter()
            .any(|message| message.whole_id().is_some())
    );
}

#[test]
fn postfix_gets_mail_over_verified_tls_and_none_over_tls_that_nobody_vouches_for() {
    let next_hop = MailServer::next_hop_over_tls();
    let smarthost = format!(
        "[mail]\ndefault_route = \"hop\"\n[mail.delivery]\nretry = [\"1s\"]\n\
         [[mail.smarthosts]]\nname = \"hop\"\nhost = \"localhost\"\nport = {}\ntls = \"starttls\"\n\
         [[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n",
        next_hop.address.port()
    );
    let send = |gateway: &Gateway, name: &str| {
        let port = gateway.address("mail.relay").port().to_string();
        let to = ["--sender", "orders@shop.test", "--recipient", "box@next.test"];
        let mut all = vec!["--port", &port, "--name", name];
        all.extend(to);
        let report = mail::send(&all, gateway.directory());
        assert_eq!(report.accepted.len(), 1, "{report:?}");
    };
    // Nobody has told this gateway of the CA, so its mail waits, and Postfix sees nothing of it.
    let stranger = Gateway::start(&smarthost);
    stranger.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    send(&stranger, "stranger-");
    eventually("the mail waits for a better certificate", || {
        let queue = stranger.cli(&["mail", "queue", "--json"]);
        queue.contains("invalid peer certificate").then_some(())
    });
    let trust = format!("[tls]\nextra_ca = [{:?}]\n", next_hop.ca());
    let gateway = Gateway::start(&(smarthost + &trust));
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    send(&gateway, "friend-");
    let message = eventually("the mail arrives", || next_hop.messages().pop());
    assert!(
        message.whole_id().is_some_and(|id| id.contains("friend-")),
        "{message:?}"
    );
    let received = message.text.replace("\n\t", " ");
    assert!(received.contains("(using TLSv1.3 with cipher "), "{received}");
    assert!(received.contains("with ESMTPS id "), "{received}");
    assert_eq!(next_hop.messages().len(), 1);
}
