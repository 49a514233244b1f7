//! Mail that comes in by other doors than a password, and what is said of it afterwards: client certificates, locked
//! accounts, copiers, delivery notices and signatures, each judged by programs that nobody here wrote.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::gateway::Gateway;
use crate::support::mail::{self, Message, Sink};
use crate::support::postgres::Postgres;
use crate::support::{client, eventually, process};

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A self-signed certificate and its key, by openssl.
fn certificate(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (cert, key) = (
        folder.join(format!("{name}.pem")),
        folder.join(format!("{name}.key")),
    );
    let mut command = process::tool("openssl");
    command.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "30",
    ]);
    command
        .args(["-subj", &format!("/CN={name}"), "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert);
    process::succeed(&mut command);
    (cert, key)
}

fn by_certificate(
    gateway: &Gateway,
    listener: &str,
    (cert, key): &(PathBuf, PathBuf),
    sender: &str,
) -> Value {
    let port = gateway.address(listener).port().to_string();
    let mut command = process::python(&client("certificate.py"));
    command.args([
        "--port",
        &port,
        "--sender",
        sender,
        "--recipient",
        "someone@far.test",
    ]);
    command.arg("--certificate").arg(cert).arg("--key").arg(key);
    if listener == "mail.submissions" {
        command.arg("--implicit");
    }
    serde_json::from_str(&process::succeed(&mut command)).unwrap()
}

/// What `openssl s_client` hears of EHLO and AUTH EXTERNAL, and whether it resumed the session in `ticket`.
fn s_client(gateway: &Gateway, (cert, key): &(PathBuf, PathBuf), ticket: &Path) -> (String, bool) {
    let mut command = process::tool("openssl");
    command.args(["s_client", "-starttls", "smtp", "-crlf", "-ign_eof", "-connect"]);
    command.arg(gateway.address("mail.submission").to_string());
    command.arg("-cert").arg(cert).arg("-key").arg(key);
    let known = ticket.exists();
    command
        .arg(if known { "-sess_in" } else { "-sess_out" })
        .arg(ticket);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut heard = String::new();
    // One line at a time: the server sends away whoever does not wait.
    for (line, until) in [
        ("EHLO client.test\n", "250 DSN"),
        ("AUTH EXTERNAL =\n", "\n"),
        ("QUIT\n", "221 "),
    ] {
        input.write_all(line.as_bytes()).unwrap();
        let begun = heard.len();
        let mut buffer = [0; 4096];
        while !heard[begun..].contains(until) {
            match output.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(n) => heard += &String::from_utf8_lossy(&buffer[..n]),
            }
        }
    }
    drop(input);
    let _ = child.wait();
    let resumed = heard.contains("Reused, TLSv1.3");
    (heard, resumed)
}

fn certificates_log_in(gateway: &Gateway, sink: &Sink) {
    gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
    let pair = certificate(gateway.directory(), "shop");
    let file = pair.0.to_str().unwrap();
    let refused = by_certificate(gateway, "mail.submission", &pair, "orders@shop.test");
    assert_eq!(refused["login"][0], 504, "{refused}");
    let made = gateway.json(&["service", "certificate", "add", "shop", file, "--json"]);
    assert!(
        made["note"].is_null() && made["fingerprint"].as_str().unwrap().len() == 64,
        "{made}"
    );
    assert_eq!(
        gateway.fails(&["service", "certificate", "add", "shop", file]).0,
        65,
        "it is listed already"
    );
    for listener in ["mail.submission", "mail.submissions", "mail.relay"] {
        let said = by_certificate(gateway, listener, &pair, "orders@shop.test");
        assert!(
            said["offered"].as_array().unwrap().contains(&json!("EXTERNAL")),
            "{listener}: {said}"
        );
        assert_eq!(
            (&said["login"][0], &said["sent"]),
            (&json!(235), &json!(true)),
            "{listener}: {said}"
        );
        let forged = by_certificate(gateway, listener, &pair, "boss@bank.test");
        assert_eq!(forged["refused"][0], 550, "{listener}: {forged}");
    }
    eventually("the mails arrive", || {
        let ours = sink
            .messages()
            .iter()
            .filter(|m| m.text.contains("Subject: by key"))
            .count();
        (ours == 3).then_some(())
    });
    // A session that is resumed knows what was revoked in between.
    let ticket = gateway.directory().join("ticket");
    let (heard, resumed) = s_client(gateway, &pair, &ticket);
    assert!(
        !resumed && heard.contains("EXTERNAL\r\n") && heard.contains("235 2.7.0"),
        "{heard}"
    );
    let (heard, resumed) = s_client(gateway, &pair, &ticket);
    assert!(resumed && heard.contains("235 2.7.0"), "{heard}");
    let id = made["id"].to_string();
    let listed = gateway.cli(&["service", "certificate", "list"]);
    assert!(
        listed.contains("CN=shop") && listed.contains(made["fingerprint"].as_str().unwrap()),
        "{listed}"
    );
    gateway.cli(&["service", "certificate", "revoke", &id]);
    let (heard, resumed) = s_client(gateway, &pair, &ticket);
    assert!(
        resumed && !heard.contains("EXTERNAL\r\n") && heard.contains("504 5.5.4"),
        "{heard}"
    );
    let audit = gateway.cli(&["audit"]);
    for action in ["certificate.add", "credential.remove"] {
        assert!(audit.contains(action), "{audit}");
    }
    gateway.assert_healthy();
}

const ASKS: &str = "[mail]\nclient_certificates = true\n";

#[test]
fn a_certificate_logs_in_by_smtplib_and_openssl_until_it_is_revoked() {
    let sink = Sink::start(&[]);
    let gateway = Gateway::start(&Gateway::smarthost(sink.address).replace("[mail]\n", ASKS));
    certificates_log_in(&gateway, &sink);
}

#[test]
fn a_certificate_logs_in_on_postgresql_too() {
    let postgres = Postgres::start();
    let sink = Sink::start(&[]);
    let config = Gateway::smarthost(sink.address).replace("[mail]\n", ASKS);
    let gateway = Gateway::start_on(&postgres.url(), &config);
    certificates_log_in(&gateway, &sink);
}

/// An SMTP dialogue by hand; replies are read whole.
struct Raw(TcpStream);

impl Raw {
    fn open(gateway: &Gateway, listener: &str) -> Self {
        let stream = TcpStream::connect(gateway.address(listener)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut raw = Self(stream);
        let greeting = raw.reply();
        assert!(greeting.starts_with("220"), "{greeting}");
        raw
    }

    fn reply(&mut self) -> String {
        let mut text = String::new();
        let mut buffer = [0; 1024];
        loop {
            let last = text.lines().last().unwrap_or_default();
            if text.ends_with('\n') && last.as_bytes().get(3) == Some(&b' ') {
                return text;
            }
            match self.0.read(&mut buffer) {
                Ok(0) | Err(_) => return text,
                Ok(n) => text += &String::from_utf8_lossy(&buffer[..n]),
            }
        }
    }

    fn say(&mut self, line: &str) -> String {
        self.0.write_all(line.as_bytes()).unwrap();
        self.reply()
    }

    #[track_caller]
    fn expect(&mut self, line: &str, start: &str) {
        let reply = self.say(line);
        assert!(reply.starts_with(start), "{line:?}: {reply}");
    }
}

#[test]
fn a_person_who_goes_on_over_the_cap_is_locked_shown_and_let_in_again_by_command() {
    let sink = Sink::start(&[]);
    let limits = "[mail.limits]\nrecipients_per_hour = 1\n[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"hanako\"\n";
    let gateway = Gateway::start(&(Gateway::smarthost(sink.address) + limits));
    gateway.cli(&["user", "add", "hanako", "--grant", "mail:send:shop.test"]);
    assert!(gateway.json(&["status", "--json"])["healthy"] == true);
    for _ in 0..13 {
        let mut session = Raw::open(&gateway, "mail.relay");
        session.expect("EHLO client.test\r\n", "250");
        if !session.say("MAIL FROM:<h@shop.test>\r\n").starts_with("250") {
            break;
        }
        for n in 0..9 {
            // Whoever is locked, or is refused too often, is told so and cut off.
            if session
                .say(&format!("RCPT TO:<r{n}@far.test>\r\n"))
                .starts_with("421")
            {
                break;
            }
        }
    }
    let reason = eventually("status tells of the lock", || {
        let status = gateway.json(&["status", "--json"]);
        let reasons = status["reasons"].as_array().unwrap().clone();
        reasons
            .into_iter()
            .find(|reason| reason.as_str().unwrap().contains("hanako is locked"))
    });
    let words = reason.as_str().unwrap();
    assert!(
        words.contains("tasuki user unlock hanako") && words.contains("stolen password"),
        "{words}"
    );
    assert_eq!(gateway.fails(&["status", "--check"]).0, 69);
    assert!(gateway.cli(&["audit"]).contains("user.lock"));
    gateway.cli(&["user", "unlock", "hanako"]);
    eventually("status is clear again", || {
        (gateway.json(&["status", "--json"])["healthy"] == true).then_some(())
    });
    let mut session = Raw::open(&gateway, "mail.relay");
    session.expect("EHLO client.test\r\n", "250");
    session.expect("MAIL FROM:<h@shop.test>\r\n", "250");
    let reply = session.say("RCPT TO:<r@far.test>\r\n");
    assert!(reply.starts_with("250"), "{reply}");
}

const DEVICES: &str = r#"
[mail.devices]
listen = ["127.0.0.1:0"]
listen_tls = ["127.0.0.1:0"]
[[mail.devices.list]]
name = "Copier 2F"
net = ["127.0.0.1/32"]
service = "copier"
sender = "scan@shop.test"
contact = "it@shop.test"
recipients = ["partner.test"]
"#;

fn scan(gateway: &Gateway, listener: &str, from: &str, to: &str, more: &[&str]) -> std::process::Output {
    let address = gateway.address(listener);
    let mut command = Command::new(process::find("swaks"));
    command.args([
        "--server",
        &address.ip().to_string(),
        "--port",
        &address.port().to_string(),
    ]);
    command.args(["--ehlo", "copier", "--from", "copier@copier.local", "--to", to]);
    command.args([
        "--header",
        &format!("From: {from}"),
        "--h-Subject",
        "scan",
        "--body",
        "a page",
    ]);
    process::output(command.args(more))
}

#[track_caller]
fn one(sink: &Sink, what: &str, is_it: impl Fn(&Message) -> bool) -> Message {
    eventually(what, || sink.messages().into_iter().find(&is_it))
}

#[test]
fn copiers_send_without_a_login_by_swaks_smtplib_and_old_firmware_within_their_limits() {
    let (sink, refusing) = (Sink::start(&[]), Sink::start(&["-f", "RCPT"]));
    let routes = Gateway::smarthosts(&[("*", sink.address), ("partner.test", refusing.address)]);
    let mut gateway = Gateway::start(&(routes + DEVICES));
    let add = [
        "service",
        "add",
        "copier",
        "--class",
        "device",
        "--send-as",
        "shop.test",
        "--daily",
        "7",
    ];
    gateway.cli(&add);

    // Plain and under TLS: a From that is owned stays, another one is replaced and gets the answers.
    for (listener, tls, from) in [
        ("mail.devices", None, "Boss <boss@bank.test>"),
        ("mail.devices", Some("--tls"), "Scans <scans@shop.test>"),
        ("mail.devices_tls", Some("--tlsc"), "Boss <chief@bank.test>"),
    ] {
        let output = scan(&gateway, listener, from, "anna@shop.test", tls.as_slice());
        assert!(output.status.success(), "{listener}: {}", said(&output));
        assert!(
            !said(&output).contains("AUTH"),
            "no login is offered: {}",
            said(&output)
        );
    }
    for (reply_to, from) in [
        (Some("boss@bank.test"), "\"Copier 2F\" <scan@shop.test>"),
        (None, "Scans <scans@shop.test>"),
        (Some("chief@bank.test"), "\"Copier 2F\" <scan@shop.test>"),
    ] {
        let is_it = |m: &Message| m.header("Reply-To") == reply_to && m.header("From") == Some(from);
        let scan = one(&sink, "the scan", is_it);
        assert!(
            scan.header("X-Mail-Args").unwrap().starts_with("<it@shop.test>"),
            "{}",
            scan.text
        );
    }
    let output = scan(
        &gateway,
        "mail.devices",
        "a@shop.test",
        "someone@elsewhere.test",
        &[],
    );
    assert!(
        said(&output).contains("550 5.7.1 relaying denied"),
        "{}",
        said(&output)
    );

    // Python's smtplib; the next hop refuses, and whoever looks after the copier is told.
    let port = gateway.address("mail.devices").port().to_string();
    let arguments = [
        "--port",
        &port,
        "--sender",
        "copier@copier.local",
        "--recipient",
        "box@partner.test",
    ];
    assert_eq!(mail::send(&arguments, gateway.directory()).accepted.len(), 1);
    let notice = one(&sink, "the notice", |m| m.text.contains("Action: failed"));
    assert!(
        notice
            .header("X-Rcpt-Args")
            .unwrap()
            .starts_with("<it@shop.test>"),
        "{}",
        notice.text
    );

    // Old firmware ends its lines with LF, and a dot between two of them ends nothing.
    let mut raw = Raw::open(&gateway, "mail.devices");
    let offers = raw.say("EHLO copier\r\n");
    assert!(offers.contains("SIZE 52428800\r\n"), "{offers}");
    raw.expect("MAIL FROM:<old@copier.local> SIZE=52428801\r\n", "552 5.3.4");
    raw.expect("MAIL FROM:<old@copier.local>\r\n", "250");
    raw.expect("RCPT TO:<anna@shop.test>\r\n", "250");
    raw.expect("DATA\r\n", "354");
    raw.expect(
        "Subject: old firmware\n\none\n.\nMAIL FROM:<evil@shop.test>\ntwo\n\r\n.\r\n",
        "250",
    );
    let old = one(&sink, "the old one", |m| m.text.contains("Subject: old firmware"));
    assert!(
        old.body()
            .starts_with("one\n.\nMAIL FROM:<evil@shop.test>\ntwo\n"),
        "{}",
        old.text
    );

    // Large scans: larger than other mail may be, and not too large.
    let page = format!("{}\r\n", "p".repeat(998)).repeat(1024);
    for (mib, reply) in [(30, "250"), (51, "552 5.3.4")] {
        raw.expect("MAIL FROM:<old@copier.local>\r\n", "250");
        raw.expect("RCPT TO:<anna@shop.test>\r\n", "250");
        raw.expect("DATA\r\n", "354");
        raw.0
            .write_all(format!("Subject: {mib} MiB\r\n\r\n").as_bytes())
            .unwrap();
        for _ in 0..mib + 1 {
            raw.0.write_all(page.as_bytes()).unwrap();
        }
        raw.expect(".\r\n", reply);
    }
    // Six of seven recipients of the day are used.
    raw.expect("MAIL FROM:<old@copier.local>\r\n", "250");
    raw.expect("RCPT TO:<anna@shop.test>\r\n", "250");
    raw.expect("RCPT TO:<bob@shop.test>\r\n", "451 4.7.1 the daily cap of 7");
    gateway.assert_healthy();

    // A listener or a device that the whole world reaches is a mistake, unless somebody insists.
    for (layer, key) in [
        ("listen = [\"0.0.0.0:2526\"]", "mail.devices.listen"),
        ("listen_tls = [\"[::]:2527\"]", "mail.devices.listen"),
        ("listen = [\"198.51.100.1:2526\"]", "mail.devices.listen"),
    ] {
        let before = gateway.config_text();
        gateway.change_config(&format!("[mail.devices]\n{layer}\n"));
        let (code, words) = gateway.fails(&["check"]);
        assert!(
            code == 64 && words.contains(key) && words.contains("is public"),
            "{layer}: {words}"
        );
        gateway.change_config("[mail.devices]\ndanger_public_listen = true\n");
        gateway.cli(&["check"]);
        gateway.write_config(&before);
    }
}

/// What Python's email package and flufl.bounce see in a notice.
fn read_notice(message: &Message) -> Value {
    let mut command = process::python(&client("notice.py"));
    serde_json::from_str(&process::feed(&mut command, message.text.as_bytes())).unwrap()
}

#[test]
fn notices_are_understood_by_pythons_email_package_and_by_flufl_bounce() {
    let home = Sink::start(&[]);
    let without_dsn = Sink::start(&["-N"]);
    let (refusing, busy) = (Sink::start(&["-f", "RCPT"]), Sink::start(&["-r", "RCPT"]));
    let routes = Gateway::smarthosts(&[
        ("shop.test", home.address),
        ("plain.test", without_dsn.address),
        ("gone.test", refusing.address),
        ("busy.test", busy.address),
    ]);
    let waits = "[mail.delivery]\ndelay_notice = \"1s\"\nexpire_transactional = \"6s\"\n";
    let networks = "[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n";
    let gateway = Gateway::start(&(routes + networks + "\n").replace("[mail.delivery]\n", waits));
    gateway.cli(&[
        "service",
        "add",
        "shop",
        "--send-as",
        "shop.test",
        "--class",
        "transactional",
    ]);
    let port = gateway.address("mail.relay").port().to_string();
    for (to, notify) in [
        ("a@plain.test", "SUCCESS"),
        ("b@gone.test", "FAILURE"),
        ("c@busy.test", "DELAY,FAILURE"),
        ("d@gone.test", "NEVER"),
        ("e@gone.test", "SUCCESS,DELAY"),
    ] {
        let report = mail::send(
            &[
                "--port",
                &port,
                "--sender",
                "orders@shop.test",
                "--recipient",
                to,
                "--notify",
                notify,
                "--envid",
                "ORDER+2B7",
                "--orcpt",
                "rfc822;list+2B1@origin.test",
                "--ret",
                "FULL",
            ],
            gateway.directory(),
        );
        assert_eq!(report.accepted.len(), 1, "{to}: {report:?}");
    }
    for (to, action, status, temporary, permanent) in [
        ("a@plain.test", "relayed", "2.0.0", false, false),
        ("b@gone.test", "failed", "5.", false, true),
        ("c@busy.test", "delayed", "4.", true, false),
        ("c@busy.test", "failed", "5.4.7", false, true),
    ] {
        let field = format!("Final-Recipient: rfc822; {to}\n");
        let is_it = |m: &Message| m.text.contains(&field) && m.text.contains(&format!("Action: {action}\n"));
        let seen = read_notice(&one(&home, &format!("{action} {to}"), is_it));
        assert_eq!(seen["defects"], json!([]), "{seen}");
        assert_eq!(
            (&seen["type"], &seen["report"]),
            (&json!("multipart/report"), &json!("delivery-status"))
        );
        let parts = ["text/plain", "message/delivery-status", "text/rfc822-headers"];
        assert_eq!(seen["parts"], json!(parts), "{seen}");
        assert_eq!(seen["auto"], "auto-replied");
        assert_eq!(seen["to"], "orders@shop.test");
        assert_eq!(seen["message"]["Reporting-MTA"], "dns; relay.test");
        assert_eq!(seen["message"]["Original-Envelope-Id"], "ORDER+7");
        let about = &seen["recipients"][0];
        assert_eq!(seen["recipients"].as_array().unwrap().len(), 1, "{seen}");
        assert_eq!(about["Action"], action);
        assert_eq!(about["Original-Recipient"], "rfc822; list+1@origin.test");
        assert!(about["Status"].as_str().unwrap().starts_with(status), "{seen}");
        assert!(
            !seen["header"].as_str().unwrap().contains("\nEND "),
            "the body stays here: {seen}"
        );
        // By the address that the sender knows.
        let addresses = |told: bool| {
            if told {
                json!(["list+1@origin.test"])
            } else {
                json!([])
            }
        };
        assert_eq!(seen["permanent"], addresses(permanent), "{seen}");
        assert_eq!(seen["temporary"], addresses(temporary), "{seen}");
        let words = seen["words"].as_str().unwrap();
        assert!(
            words.contains(to) && !words.is_ascii(),
            "in English and Japanese: {words}"
        );
    }
    // Nobody is told of the others, and nothing is left.
    eventually("all is settled", || {
        (gateway.json(&["mail", "queue", "--json"])["queue"] == json!([])).then_some(())
    });
    assert_eq!(home.messages().len(), 4);
}

#[test]
fn dkimpy_verifies_both_signatures_by_the_record_that_is_printed() {
    let sink = Sink::start(&[]);
    let gateway = Gateway::start(&Gateway::smarthost(sink.address));
    let made = gateway.json(&["service", "add", "shop", "--send-as", "shop.test", "--json"]);
    let zone = gateway.directory().join("zone.txt");
    std::fs::write(
        &zone,
        gateway.cli(&["mail", "dkim", "add", "shop.test", "--selector", "mail"]),
    )
    .unwrap();
    let port = gateway.address("mail.submission").port().to_string();
    let mut send = process::python(&client("dkim_check.py"));
    send.args([
        "send",
        &port,
        "shop",
        made["password"].as_str().unwrap(),
        "orders@shop.test",
        "someone@far.test",
    ]);
    let cases: Vec<String> = serde_json::from_str(&process::succeed(&mut send)).unwrap();
    assert!(cases.len() >= 9, "{cases:?}");
    let files = eventually("all of them arrive", || {
        let files = sink.files();
        (files.len() == cases.len()).then_some(files)
    });
    let mut verify = process::python(&client("dkim_check.py"));
    verify.arg("verify").arg(&zone).args(&files);
    let verdict: Value = serde_json::from_str(&process::succeed(&mut verify)).unwrap();
    assert_eq!(
        verdict["records"],
        json!(["maile._domainkey.shop.test", "mailr._domainkey.shop.test"])
    );
    for case in &cases {
        let mail = &verdict["mails"][case];
        assert_eq!(
            mail["as it is"],
            json!({"rsa-sha256": true, "ed25519-sha256": true}),
            "{case}: {mail}"
        );
        assert_eq!(
            mail["forged"],
            json!({"rsa-sha256": false, "ed25519-sha256": false}),
            "{case}: {mail}"
        );
    }
}
