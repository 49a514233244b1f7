//! Mail: senders and next hops that nobody here wrote.

use std::process::Command;

use crate::support::gateway::{Gateway, NAME};
use crate::support::mail::{self, Sink};
use crate::support::postgres::Postgres;
use crate::support::servers::{MailServer, Make};
use crate::support::{client, eventually, process};

/// A service that may send as `shop.test`, with its password.
fn shop(gateway: &Gateway) -> String {
    let made = gateway.json(&["service", "add", "shop", "--send-as", "shop.test", "--json"]);
    made["password"].as_str().unwrap().to_owned()
}

fn swaks(gateway: &Gateway, listener: &str, recipient: &str, more: &[&str]) -> std::process::Output {
    let address = gateway.address(listener);
    let mut command = Command::new(process::find("swaks"));
    command
        .args([
            "--server",
            &address.ip().to_string(),
            "--port",
            &address.port().to_string(),
        ])
        .args([
            "--ehlo",
            "client.test",
            "--from",
            "orders@shop.test",
            "--to",
            recipient,
        ])
        .args(["--h-Subject", "sent by swaks", "--body", "swaks says hello"])
        .args(more);
    process::output(&mut command)
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn swaks_smtplib_and_smtp_source_send_and_smtp_sink_gets_every_byte() {
    let sink = Sink::start(&[]);
    let gateway = Gateway::start(&format!(
        "{}\n{}",
        Gateway::smarthost(sink.address),
        "[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n"
    ));
    let password = shop(&gateway);
    main_path(&gateway, &sink, &password);

    // smtp-source: 8 sessions at once, 60 messages, each to a recipient of its own.
    let relay = gateway.address("mail.relay").to_string();
    let mut source = process::tool("smtp-source");
    source.args([
        "-s",
        "8",
        "-m",
        "60",
        "-l",
        "4096",
        "-N",
        "-f",
        "bulk@shop.test",
        "-t",
        "list@far.test",
        &relay,
    ]);
    process::succeed(&mut source);
    eventually("all 60 messages of smtp-source arrive", || {
        let recipients: std::collections::BTreeSet<String> = sink
            .messages()
            .iter()
            .filter_map(|message| message.header("X-Rcpt-Args").map(str::to_owned))
            .filter(|recipient| recipient.ends_with("list@far.test>"))
            .collect();
        (recipients.len() == 60).then_some(())
    });
}

/// STARTTLS and implicit TLS, AUTH PLAIN and LOGIN, 8-bit text, and what arrives.
fn main_path(gateway: &Gateway, sink: &Sink, password: &str) {
    let login = ["--auth-user", "shop", "--auth-password", password];
    for (listener, tls, method) in [
        ("mail.submission", "--tls", "PLAIN"),
        ("mail.submission", "--tls", "LOGIN"),
        ("mail.submissions", "--tlsc", "PLAIN"),
    ] {
        let mut more = vec![tls, "--auth", method];
        more.extend(login);
        let output = swaks(gateway, listener, "someone@far.test", &more);
        assert!(output.status.success(), "{listener} {method}: {}", said(&output));
    }

    let directory = gateway.directory();
    let ca = gateway.ca_file();
    let mut reports = Vec::new();
    for (listener, tls, sender, name) in [
        ("mail.submission", "starttls", "orders@shop.test", "starttls-"),
        ("mail.submissions", "implicit", "orders@shop.test", "implicit-"),
    ] {
        let port = gateway.address(listener).port().to_string();
        reports.push(mail::send(
            &[
                "--port",
                &port,
                "--tls",
                tls,
                "--ca-file",
                &ca,
                "--ca-without-name",
                "--user",
                "shop",
                "--password",
                password,
                "--sender",
                sender,
                "--recipient",
                "someone@far.test",
                "--count",
                "3",
                "--name",
                name,
            ],
            directory,
        ));
    }
    for report in &reports {
        assert_eq!(report.accepted.len(), 3, "{report:?}");
    }
    let messages = eventually("all six messages of smtplib and three of swaks arrive", || {
        let messages = sink.messages();
        let ours = messages
            .iter()
            .filter(|message| message.whole_id().is_some())
            .count();
        let swaks = messages
            .iter()
            .filter(|message| message.body().contains("swaks says hello"))
            .count();
        (ours == 6 && swaks == 3).then_some(messages)
    });
    for message in messages.iter().filter(|message| message.whole_id().is_some()) {
        let id = message.whole_id().unwrap();
        let expected = format!(
            "こんにちは、世界。\n.\n..a line that begins with dots\n\n   spaces at both ends   \n{}\nEND {id}\n",
            "0123456789".repeat(60)
        );
        assert_eq!(message.body().trim_end(), expected.trim_end(), "the body of {id}");
        assert!(
            message.text.contains(
                "
Received: from client.test"
            ),
            "{}",
            message.text
        );
    }
}

#[test]
fn the_main_path_holds_on_postgresql_too() {
    let postgres = Postgres::start();
    let sink = Sink::start(&[]);
    let gateway = Gateway::start_on(&postgres.url(), &Gateway::smarthost(sink.address));
    let password = shop(&gateway);
    main_path(&gateway, &sink, &password);
}

#[test]
fn a_real_postfix_is_the_next_hop() {
    let postfix = MailServer::next_hop(Make::Postfix);
    let gateway = Gateway::start(&Gateway::smarthost(postfix.address));
    let password = shop(&gateway);
    let port = gateway.address("mail.submission").port().to_string();
    let report = mail::send(
        &[
            "--port",
            &port,
            "--tls",
            "starttls",
            "--user",
            "shop",
            "--password",
            &password,
            "--sender",
            "orders@shop.test",
            "--recipient",
            "box@next.test",
            "--count",
            "20",
            "--connections",
            "4",
            "--size",
            "40000",
        ],
        gateway.directory(),
    );
    assert_eq!(report.accepted.len(), 20, "{report:?}");
    // An address in UTF-8 goes only to a next hop that takes such (RFC 6531); smtp-sink does not.
    let report = mail::send(
        &[
            "--port",
            &port,
            "--tls",
            "starttls",
            "--user",
            "shop",
            "--password",
            &password,
            "--sender",
            "注文@shop.test",
            "--recipient",
            "box@next.test",
            "--name",
            "utf8-",
        ],
        gateway.directory(),
    );
    assert_eq!(report.accepted.len(), 1, "{report:?}");
    eventually(
        &format!("Postfix has all of them; its log:\n{}", postfix.log()),
        || {
            let whole = postfix
                .messages()
                .iter()
                .filter(|message| message.whole_id().is_some())
                .count();
            (whole == 21).then_some(())
        },
    );
}

#[test]
fn open_relay_is_refused_on_every_listener() {
    let sink = Sink::start(&[]);
    let gateway = Gateway::start(&Gateway::smarthost(sink.address));
    let output = swaks(&gateway, "mail.relay", "victim@elsewhere.test", &[]);
    assert!(!output.status.success());
    assert!(said(&output).contains("550 5.7.1"), "{}", said(&output));
    let output = swaks(&gateway, "mail.submission", "victim@elsewhere.test", &["--tls"]);
    assert!(said(&output).contains("530 5.7.0"), "{}", said(&output));
    let output = swaks(&gateway, "mail.submissions", "victim@elsewhere.test", &["--tlsc"]);
    assert!(said(&output).contains("530 5.7.0"), "{}", said(&output));

    // A login may send as its own domain only, and is not offered in the clear.
    let password = shop(&gateway);
    let login = [
        "--auth",
        "PLAIN",
        "--auth-user",
        "shop",
        "--auth-password",
        &password,
    ];
    let output = swaks(&gateway, "mail.submission", "someone@far.test", &login);
    assert!(
        said(&output).contains("Auth not attempted") || said(&output).contains("not advertise"),
        "{}",
        said(&output)
    );
    let mut forged = vec!["--tls", "--from", "boss@bank.test"];
    forged.extend(login);
    let output = swaks(&gateway, "mail.submission", "someone@far.test", &forged);
    assert!(said(&output).contains("5.7.1"), "{}", said(&output));
    assert!(!output.status.success());
    assert!(sink.messages().is_empty());
}

#[test]
fn mail_refused_for_good_comes_back_as_a_delivery_status_notification() {
    let refusing = Sink::start(&["-f", "RCPT"]);
    let home = Sink::start(&[]);
    let gateway = Gateway::start(&Gateway::smarthosts(&[
        ("far.test", refusing.address),
        ("shop.test", home.address),
    ]));
    let password = shop(&gateway);
    let login = [
        "--tls",
        "--auth",
        "PLAIN",
        "--auth-user",
        "shop",
        "--auth-password",
        &password,
    ];
    let output = swaks(&gateway, "mail.submission", "nobody@far.test", &login);
    assert!(output.status.success(), "{}", said(&output));
    let message = eventually("the sender is told", || {
        home.messages()
            .pop()
            .filter(|message| message.text.contains("\n--"))
    });
    assert_eq!(message.header("X-Mail-Args"), Some("<>"));
    // RFC 3461 6.2: nobody wants a notification about a notification.
    assert_eq!(
        message.header("X-Rcpt-Args"),
        Some("<orders@shop.test> NOTIFY=NEVER")
    );
    let kind = message.text.replace("\n\t", " ").replace("\n ", " ");
    assert!(
        kind.contains("multipart/report") && kind.contains("report-type=delivery-status"),
        "{}",
        message.text
    );
    assert!(
        message.text.contains("Final-Recipient: rfc822;") && message.text.contains("Action: failed"),
        "{}",
        message.text
    );
    assert!(message.text.contains("Status: 5."), "{}", message.text);
}

#[test]
fn msmtp_and_nodemailer_send_with_a_checked_certificate() {
    let sink = Sink::start(&[]);
    let gateway = Gateway::start(&Gateway::smarthost(sink.address));
    let password = shop(&gateway);
    let ca = gateway.ca_file();
    for (listener, implicit) in [("mail.submission", false), ("mail.submissions", true)] {
        let port = gateway.address(listener).port().to_string();
        msmtp(&gateway, &port, implicit, &password);
        let mut command = process::node(&client("node/mail.js"));
        command.args(["--port", &port, "--user", "shop", "--password", &password]);
        command.args(["--from", "orders@shop.test", "--to", "someone@far.test"]);
        command.args(["--ca", &ca, "--name", NAME]);
        if implicit {
            command.arg("--implicit");
        }
        let said: serde_json::Value = serde_json::from_str(&process::succeed(&mut command)).unwrap();
        assert_eq!(
            said["accepted"],
            serde_json::json!(["someone@far.test"]),
            "{said}"
        );
    }
    // The attachment is 100,000 times the octet 7 in base64. The sink writes while it receives.
    let octets = |text: &str| {
        text.lines()
            .filter(|line| line.starts_with("BwcH"))
            .map(|line| line.trim_end_matches('=').len() * 6 / 8)
            .sum::<usize>()
    };
    eventually("two mails of each arrive whole", || {
        let messages = sink.messages();
        let of = |words: &str| messages.iter().filter(|m| m.text.contains(words)).count();
        let with_attachment = messages.iter().filter(|m| octets(&m.text) == 100_000).count();
        let of_nodemailer = of("<p>nodemailer says <b>hello</b></p>");
        ((of("msmtp says hello"), of_nodemailer, with_attachment) == (2, 2, 2)).then_some(())
    });
}

/// Hands in one mail with msmtp, as cron jobs do.
#[track_caller]
fn msmtp(gateway: &Gateway, port: &str, implicit: bool, password: &str) {
    use std::os::unix::fs::PermissionsExt;
    let file = gateway.directory().join("msmtprc");
    let starttls = if implicit { "off" } else { "on" };
    let ca = gateway.ca_file();
    let text = format!(
        "account default\nhost 127.0.0.1\nport {port}\nfrom orders@shop.test\nauth on\nuser shop\npassword {password}\n\
         tls on\ntls_starttls {starttls}\ntls_trust_file {ca}\ntls_host_override {NAME}\n"
    );
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = process::tool("msmtp");
    command.arg("-C").arg(&file).arg("someone@far.test");
    let mail = "From: orders@shop.test\nTo: someone@far.test\nSubject: from cron\n\nmsmtp says hello\n";
    process::feed(&mut command, mail.as_bytes());
}
