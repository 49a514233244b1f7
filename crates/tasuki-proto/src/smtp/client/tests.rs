#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    names::{Mailbox, ReversePath},
    smtp::{BodyType, EnhancedCode, Notify, OriginalRecipient, Recipient, ReturnPart},
};

fn config(security: Security, login: bool) -> ClientConfig {
    ClientConfig {
        protocol: Protocol::Smtp,
        helo: "relay.example".into(),
        security,
        login: login.then(|| Login {
            username: "alice".into(),
            proof: Proof::Password(Password::new("secret".into())),
        }),
        max_recipients: 100,
        timeouts: Timeouts::default(),
    }
}

fn job(recipients: &[&str]) -> Job {
    let mut envelope = Envelope::new(ReversePath::parse("a@x.org").unwrap());
    envelope.recipients = recipients
        .iter()
        .map(|r| Recipient::plain(Mailbox::parse(r).unwrap()))
        .collect();
    Job {
        envelope,
        size: 9,
        eight_bit: false,
    }
}

/// A client, and what it did as text: `C: line` for what it writes, and the names of events.
struct Run {
    client: Client,
    now: Instant,
    log: Vec<String>,
    input: BytesMut,
    results: Vec<Result<Reply, ClientFailure>>,
    closed: Option<Option<ClientFailure>>,
}

impl Run {
    #[allow(clippy::disallowed_methods)]
    fn new(config: ClientConfig, tls: Option<bool>) -> Self {
        let now = Instant::now();
        let client = Client::new(config, tls, now);
        Self {
            client,
            now,
            log: vec![],
            input: BytesMut::new(),
            results: vec![],
            closed: None,
        }
    }

    fn turn(&mut self) {
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::Write(bytes) => {
                    let text = String::from_utf8(bytes.to_vec()).unwrap();
                    self.log.extend(text.lines().map(|l| format!("C: {l}")));
                }
                Event::StartTls => self.log.push("StartTls".into()),
                Event::Ready => self.log.push("Ready".into()),
                Event::Done(results) => {
                    self.log.push("Done".into());
                    self.results = results;
                }
                Event::Closed(why) => {
                    self.log.push("Closed".into());
                    self.closed = Some(why);
                }
            }
        }
    }

    /// Gives the server's lines (octet by octet, which must not matter) and returns what the client did.
    fn server(&mut self, lines: &str) -> Vec<String> {
        for b in lines.bytes() {
            self.input.extend_from_slice(&[b]);
            self.client.handle_input(self.now, &mut self.input);
        }
        self.turn();
        std::mem::take(&mut self.log)
    }

    fn start(&mut self, job: Job) -> Vec<String> {
        self.client.start(self.now, job);
        self.turn();
        std::mem::take(&mut self.log)
    }

    fn body(&mut self, text: &'static str) -> Vec<String> {
        assert!(self.client.wants_body());
        self.client
            .handle_body(self.now, Bytes::from_static(text.as_bytes()));
        self.client.handle_body_end(self.now);
        self.turn();
        std::mem::take(&mut self.log)
    }

    fn failure(&self, at: usize) -> &ClientFailure {
        self.results[at].as_ref().unwrap_err()
    }

    fn closed_by(&self) -> &ClientFailure {
        self.closed.as_ref().unwrap().as_ref().unwrap()
    }
}

fn ready(offers: &str) -> Run {
    let mut run = Run::new(config(Security::Opportunistic, false), None);
    run.server("220 x\r\n");
    assert_eq!(run.server(&format!("250-x\r\n{offers}250 HELP\r\n")), ["Ready"]);
    run
}

#[test]
fn a_mail_goes_out_in_one_group_where_pipelining_is_offered() {
    let mut run = ready("250-PIPELINING\r\n250-SIZE 1000\r\n");
    let sent = run.start(job(&["b@y.org", "c@z.org"]));
    assert_eq!(
        sent,
        [
            "C: MAIL FROM:<a@x.org> SIZE=9",
            "C: RCPT TO:<b@y.org>",
            "C: RCPT TO:<c@z.org>",
            "C: DATA"
        ]
    );
    run.server("250 ok\r\n250 ok\r\n550 5.1.1 unknown\r\n354 go\r\n");
    assert_eq!(run.body(".dot\r\nend\r\n"), ["C: ..dot", "C: end", "C: ."]);
    assert_eq!(run.server("250 2.0.0 taken\r\n"), ["Done", "Ready"]);
    assert_eq!(run.results[0].as_ref().unwrap().text, "taken");
    assert!(run.failure(1).is_permanent());
    // Nothing was left open at the server, so the next mail starts at once.
    assert_eq!(run.start(job(&["b@y.org"]))[0], "C: MAIL FROM:<a@x.org> SIZE=9");
}

#[test]
fn a_mail_goes_out_step_by_step_where_it_is_not() {
    let mut run = ready("");
    assert_eq!(
        run.start(job(&["b@y.org", "c@z.org"])),
        ["C: MAIL FROM:<a@x.org>"]
    );
    assert_eq!(run.server("250 ok\r\n"), ["C: RCPT TO:<b@y.org>"]);
    assert_eq!(run.server("450 4.2.1 later\r\n"), ["C: RCPT TO:<c@z.org>"]);
    assert_eq!(run.server("250 ok\r\n"), ["C: DATA"]);
    run.server("354 go\r\n");
    run.body("x\r\n");
    assert_eq!(run.server("250 taken\r\n"), ["Done", "Ready"]);
    assert!(run.failure(0).judges_message() && !run.failure(0).is_permanent());
    assert!(run.results[1].is_ok());
    run.client.quit(run.now);
    run.turn();
    assert_eq!(std::mem::take(&mut run.log), ["C: QUIT"]);
    assert_eq!(run.server("221 bye\r\n"), ["Closed"]);
    assert_eq!(run.closed, Some(None));
}

#[test]
fn data_accepted_without_recipients_is_ended_by_an_empty_message() {
    let mut run = ready("250-PIPELINING\r\n");
    run.start(job(&["b@y.org"]));
    assert_eq!(run.server("250 ok\r\n550 5.1.1 unknown\r\n354 go\r\n"), ["C: ."]);
    assert_eq!(run.server("250 whatever\r\n"), ["Done", "Ready"]);
    assert!(run.failure(0).is_permanent());
}

#[test]
fn a_refused_mail_is_followed_by_rset_with_the_next() {
    let mut run = ready("250-PIPELINING\r\n");
    run.start(job(&["b@y.org"]));
    assert_eq!(
        run.server("550 5.7.1 no\r\n503 no\r\n503 no\r\n"),
        ["Done", "Ready"]
    );
    assert_eq!(
        (run.failure(0).stage, run.failure(0).is_permanent()),
        (Stage::Mail, true)
    );
    assert_eq!(
        run.start(job(&["b@y.org"]))[..2],
        ["C: RSET", "C: MAIL FROM:<a@x.org>"]
    );
    run.server("250 reset\r\n250 ok\r\n250 ok\r\n354 go\r\n");
    run.body("x\r\n");
    run.server("250 taken\r\n");
    assert!(run.results[0].is_ok());
}

#[test]
fn starttls_discards_what_came_in_the_clear_and_says_ehlo_again() {
    let mut run = Run::new(config(Security::Required, true), None);
    assert_eq!(run.server("220 x\r\n"), ["C: EHLO relay.example"]);
    assert_eq!(
        run.server("250-x\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n"),
        ["C: STARTTLS"]
    );
    run.input
        .extend_from_slice(b"220 go\r\n250-x\r\n250 AUTH LOGIN\r\n");
    run.client.handle_input(run.now, &mut run.input);
    assert!(run.input.is_empty(), "what follows 220 is dropped");
    run.turn();
    run.client.handle_tls(run.now, true);
    assert_eq!(run.server(""), ["StartTls", "C: EHLO relay.example"]);
    assert_eq!(
        run.server("250-x\r\n250 AUTH PLAIN\r\n"),
        ["C: AUTH PLAIN AGFsaWNlAHNlY3JldA=="]
    );
    assert_eq!(run.server("235 2.7.0 in\r\n"), ["Ready"]);
}

#[test]
fn a_broken_handshake_is_told_from_a_broken_conversation() {
    let mut run = Run::new(config(Security::Opportunistic, false), None);
    run.server("220 x\r\n");
    run.server("250-x\r\n250 STARTTLS\r\n");
    run.server("220 go\r\n");
    run.client
        .handle_error(run.now, "the certificate is nonsense".into());
    run.turn();
    assert_eq!(run.closed_by().stage, Stage::StartTls);
}

#[test]
fn login_is_spoken_where_plain_is_not_offered() {
    let mut run = Run::new(config(Security::Implicit, true), Some(true));
    run.server("220 x\r\n");
    assert_eq!(run.server("250-x\r\n250 AUTH LOGIN\r\n"), ["C: AUTH LOGIN"]);
    assert_eq!(run.server("334 VXNlcm5hbWU6\r\n"), ["C: YWxpY2U="]);
    assert_eq!(run.server("334 UGFzc3dvcmQ6\r\n"), ["C: c2VjcmV0"]);
    assert_eq!(run.server("235 in\r\n"), ["Ready"]);
}

#[test]
fn credentials_are_never_sent_without_verified_tls() {
    for (security, tls, offers) in [
        (Security::Plain, None, "250 AUTH PLAIN\r\n"),
        (Security::Opportunistic, None, "250 AUTH PLAIN\r\n"),
        (Security::Implicit, Some(false), "250 AUTH PLAIN\r\n"),
        (Security::Required, None, "250 AUTH PLAIN\r\n"),
    ] {
        let mut run = Run::new(config(security, true), tls);
        run.server("220 x\r\n");
        assert_eq!(
            run.server(&format!("250-x\r\n{offers}")),
            ["Closed"],
            "{security:?}"
        );
        assert!(!run.closed_by().judges_message());
    }
}

#[test]
fn refusals_before_mail_are_the_routes_and_never_judge() {
    let table: [(&[&str], Stage); 6] = [
        (&["554 5.7.1 go away\r\n"], Stage::Banner),
        (&["421 4.3.2 busy\r\n"], Stage::Banner),
        (&["220 x\r\n", "550 5.7.1 no\r\n"], Stage::Ehlo),
        (
            &["220 x\r\n", "250-x\r\n250 STARTTLS\r\n", "550 5.7.1 no\r\n"],
            Stage::StartTls,
        ),
        (&["220 x\r\n", "250 x\r\n"], Stage::StartTls),
        (&["220 x\r\n", "hello\r\n"], Stage::Ehlo),
    ];
    for (lines, stage) in table {
        let mut run = Run::new(config(Security::Required, true), None);
        for line in lines {
            run.server(line);
        }
        assert_eq!(run.closed_by().stage, stage, "{lines:?}");
        assert!(!run.closed_by().judges_message() && !run.closed_by().is_permanent());
    }
    let mut run = Run::new(config(Security::Implicit, true), Some(true));
    run.server("220 x\r\n");
    run.server("250-x\r\n250 AUTH PLAIN\r\n");
    run.server("535 5.7.8 wrong\r\n");
    assert_eq!(
        (run.closed_by().stage, run.closed_by().is_permanent()),
        (Stage::Auth, false)
    );
}

#[test]
fn a_mail_is_not_judged_by_what_means_the_route() {
    for reply in [
        "421 4.7.0 slow down",
        "530 5.7.0 STARTTLS first",
        "535 5.7.8 no",
        "550 5.7.30 basic auth is over",
    ] {
        let failure = ClientFailure::new(Stage::Mail, Problem::Refused(parse(reply)));
        assert!(!failure.judges_message(), "{reply}");
    }
    for problem in [
        Problem::Closed,
        Problem::TimedOut,
        Problem::Io("reset".into()),
        Problem::Ours("disk".into()),
    ] {
        assert!(!ClientFailure::new(Stage::EndOfData, problem).judges_message());
    }
    assert!(ClientFailure::new(Stage::EndOfData, Problem::Refused(parse("554 5.7.1 spam"))).is_permanent());
}

fn parse(line: &str) -> Reply {
    ReplyParser::default()
        .parse(&mut BytesMut::from(format!("{line}\r\n").as_bytes()))
        .unwrap()
        .unwrap()
}

#[test]
fn a_connection_lost_in_a_mail_leaves_its_open_recipients_to_be_tried_again() {
    let mut run = ready("250-PIPELINING\r\n");
    run.start(job(&["b@y.org", "c@z.org"]));
    run.server("250 ok\r\n550 5.1.1 unknown\r\n");
    run.client.handle_eof(run.now);
    assert_eq!(run.server(""), ["Done", "Closed"]);
    assert!(run.failure(0).is_permanent());
    assert_eq!(
        run.failure(1),
        &ClientFailure::new(Stage::Recipient, Problem::Closed)
    );
}

#[test]
fn a_server_without_ehlo_gets_helo() {
    let mut run = Run::new(config(Security::Opportunistic, false), None);
    run.server("220 x\r\n");
    assert_eq!(run.server("500 what\r\n"), ["C: HELO relay.example"]);
    assert_eq!(run.server("250 x\r\n"), ["Ready"]);
}

#[test]
fn refused_starttls_goes_on_in_the_clear_only_where_that_is_allowed() {
    let mut run = Run::new(config(Security::Opportunistic, false), None);
    run.server("220 x\r\n");
    run.server("250-x\r\n250 STARTTLS\r\n");
    assert_eq!(run.server("454 4.7.0 not now\r\n"), ["Ready"]);
}

#[test]
fn parameters_go_only_where_they_are_offered() {
    let mut mail = job(&["b@y.org"]);
    mail.eight_bit = true;
    mail.envelope.ret = Some(ReturnPart::Headers);
    mail.envelope.envid = Some("QQ+2B1".into());
    mail.envelope.recipients[0].notify = Some(Notify::NEVER);
    mail.envelope.recipients[0].orcpt = OriginalRecipient::parse("rfc822;b+2Bx@y.org").ok();
    let mut run = ready("250-PIPELINING\r\n250-DSN\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n");
    assert_eq!(
        run.start(mail.clone())[..2],
        [
            "C: MAIL FROM:<a@x.org> BODY=8BITMIME RET=HDRS ENVID=QQ+2B1",
            "C: RCPT TO:<b@y.org> NOTIFY=NEVER ORCPT=rfc822;b+2Bx@y.org"
        ]
    );
    let mut run = ready("250-PIPELINING\r\n");
    assert_eq!(
        run.start(mail)[..2],
        ["C: MAIL FROM:<a@x.org>", "C: RCPT TO:<b@y.org>"]
    );
}

#[test]
fn what_the_next_hop_cannot_take_is_refused_without_asking_it() {
    let check = |offers: &str, mail: Job, code: EnhancedCode| {
        let mut run = ready(offers);
        assert_eq!(run.start(mail), ["Done", "Ready"]);
        assert!(run.failure(0).is_permanent());
        assert_eq!(run.failure(0).reply().unwrap().enhanced, Some(code));
    };
    check("250-SIZE 8\r\n", job(&["b@y.org"]), EnhancedCode(5, 3, 4));
    check("", job(&["太郎@y.org"]), EnhancedCode(5, 6, 7));
    let mut eight = job(&["b@y.org"]);
    (eight.eight_bit, eight.envelope.body) = (true, BodyType::EightBitMime);
    check("", eight, EnhancedCode(5, 6, 3));
}

#[test]
fn a_refused_promise_of_tls_judges_the_mail_that_asked_for_it_and_no_other() {
    let refused_at = |stage: Stage, require_tls: bool| {
        let mut run = Run::new(config(Security::Implicit, false), Some(true));
        run.server("220 x\r\n");
        assert_eq!(run.server("250-x\r\n250 REQUIRETLS\r\n"), ["Ready"]);
        let mut mail = job(&["b@y.org"]);
        mail.envelope.require_tls = require_tls;
        run.start(mail);
        for (at, yes) in [
            (Stage::Mail, "250 ok\r\n"),
            (Stage::Recipient, "250 ok\r\n"),
            (Stage::Data, "354 go\r\n"),
        ] {
            if at == stage {
                break;
            }
            run.server(yes);
        }
        if stage == Stage::EndOfData {
            run.body("x\r\n");
        }
        run.server("550 5.7.30 REQUIRETLS support required\r\n");
        let failure = run.failure(0);
        assert_eq!(failure.stage, stage);
        (
            failure.is_permanent(),
            matches!(failure.problem, Problem::Unfit(_)),
        )
    };
    for stage in [Stage::Mail, Stage::Recipient, Stage::Data, Stage::EndOfData] {
        // Another server of the domain may keep to it; if none does, the mail comes back.
        assert_eq!(refused_at(stage, true), (true, true), "{stage:?}");
        // Without REQUIRETLS it is said of our login, and mail does not come back for that.
        assert_eq!(refused_at(stage, false), (false, false), "{stage:?}");
    }
}

#[test]
fn every_wait_has_an_end() {
    let mut run = Run::new(config(Security::Plain, false), None);
    let due = run.client.poll_timeout().unwrap();
    assert_eq!(due - run.now, Duration::from_secs(300));
    run.client.handle_timeout(due);
    run.turn();
    assert_eq!(
        run.closed_by(),
        &ClientFailure::new(Stage::Banner, Problem::TimedOut)
    );
    let mut run = ready("250-PIPELINING\r\n");
    assert_eq!(run.client.poll_timeout(), None);
    run.start(job(&["b@y.org"]));
    run.server("250 ok\r\n250 ok\r\n354 go\r\n");
    run.body("x\r\n");
    assert_eq!(
        run.client.poll_timeout().unwrap() - run.now,
        Duration::from_secs(600)
    );
}

#[test]
fn a_message_that_cannot_be_brought_never_gets_its_final_dot() {
    let mut run = ready("250-PIPELINING\r\n");
    run.start(job(&["b@y.org"]));
    run.server("250 ok\r\n250 ok\r\n354 go\r\n");
    run.client.handle_body(run.now, Bytes::from_static(b"half\r\n"));
    run.client.abort_body("the segment is unreadable".into());
    assert_eq!(run.server(""), ["C: half", "Done", "Closed"]);
    assert!(!run.failure(0).judges_message());
}

#[test]
fn bdat_goes_where_chunking_is_offered_and_waits_for_a_recipient() {
    let mut run = ready("250-PIPELINING\r\n250-CHUNKING\r\n");
    assert_eq!(
        run.start(job(&["b@y.org", "c@y.org"])),
        [
            "C: MAIL FROM:<a@x.org>",
            "C: RCPT TO:<b@y.org>",
            "C: RCPT TO:<c@y.org>"
        ]
    );
    assert!(run.server("250 ok\r\n550 5.1.1 unknown\r\n").is_empty());
    assert_eq!(run.server("250 ok\r\n"), ["C: BDAT 9 LAST"]);
    // A dot at a line's start is an octet like any other.
    assert_eq!(run.body(".x\r\n.\r\nz\n"), ["C: .x", "C: .", "C: z"]);
    assert_eq!(run.server("250 taken\r\n"), ["Done", "Ready"]);
    assert!(run.failure(0).is_permanent() && run.results[1].is_ok());
    // Nobody wants the next one, so its octets stay here.
    run.start(job(&["b@y.org"]));
    assert_eq!(run.server("250 ok\r\n550 5.1.1 unknown\r\n"), ["Done", "Ready"]);
    assert_eq!(run.start(job(&["b@y.org"]))[0], "C: RSET");
}

#[test]
fn a_chunk_is_neither_longer_nor_shorter_than_was_said() {
    for text in ["longer than nine", "short"] {
        let mut run = ready("250-CHUNKING\r\n");
        run.start(job(&["b@y.org"]));
        run.server("250 ok\r\n");
        assert_eq!(run.server("250 ok\r\n"), ["C: BDAT 9 LAST"]);
        let log = run.body(text);
        assert_eq!(log[log.len() - 2..], ["Done", "Closed"], "{text}");
        assert!(!log.contains(&"C: longer than nine".to_owned()));
        assert!(matches!(run.failure(0).problem, Problem::Ours(_)));
    }
}

#[test]
fn lmtp_has_a_verdict_for_each_recipient_that_was_taken() {
    let mut lmtp = config(Security::Plain, false);
    lmtp.protocol = Protocol::Lmtp;
    let mut run = Run::new(lmtp, None);
    assert_eq!(run.server("220 x\r\n"), ["C: LHLO relay.example"]);
    assert_eq!(run.server("250-x\r\n250 PIPELINING\r\n"), ["Ready"]);
    run.start(job(&["b@y.org", "c@y.org", "d@y.org"]));
    run.server("250 ok\r\n250 ok\r\n550 5.1.1 unknown\r\n250 ok\r\n354 go\r\n");
    run.body("x\r\n");
    assert!(run.server("250 2.0.0 kept\r\n").is_empty());
    assert_eq!(run.server("452 4.2.2 mailbox full\r\n"), ["Done", "Ready"]);
    assert!(run.results[0].is_ok());
    assert_eq!(run.failure(1).stage, Stage::Recipient);
    assert_eq!(
        (run.failure(2).stage, run.failure(2).reply().unwrap().code),
        (Stage::EndOfData, 452)
    );
}

#[test]
fn an_access_token_is_offered_once_and_its_refusal_is_heard() {
    let mut oauth = config(Security::Implicit, true);
    oauth.login = Some(Login {
        username: "user@example.com".into(),
        proof: Proof::AccessToken(Password::new("ya29.token".into())),
    });
    // The example of Google's and Microsoft's documents, with another token.
    let line = "C: AUTH XOAUTH2 dXNlcj11c2VyQGV4YW1wbGUuY29tAWF1dGg9QmVhcmVyIHlhMjkudG9rZW4BAQ==";
    let mut run = Run::new(oauth.clone(), Some(true));
    run.server("220 x\r\n");
    assert_eq!(run.server("250-x\r\n250 AUTH LOGIN XOAUTH2\r\n"), [line]);
    assert_eq!(run.server("334 eyJzdGF0dXMiOiI0MDAifQ==\r\n"), ["C: "]);
    assert_eq!(
        run.server("535 5.7.8 Username and Password not accepted\r\n"),
        ["Closed"]
    );
    assert_eq!(
        (run.closed_by().stage, run.closed_by().judges_message()),
        (Stage::Auth, false)
    );
    let mut run = Run::new(oauth.clone(), Some(true));
    run.server("220 x\r\n");
    run.server("250-x\r\n250 AUTH XOAUTH2\r\n");
    assert_eq!(run.server("235 2.7.0 Accepted\r\n"), ["Ready"]);
    // A token is no password: it is not tried where only passwords are taken.
    let mut run = Run::new(oauth, Some(true));
    run.server("220 x\r\n");
    assert_eq!(run.server("250-x\r\n250 AUTH PLAIN LOGIN\r\n"), ["Closed"]);
    assert_eq!(run.closed_by().problem, Problem::NoMechanism);
}
