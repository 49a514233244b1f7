//! Runs `data/smtp/*.txt` against the server session.
//!
//! `#` is a comment (it cites the rule), `@` sets the stage, `C:` is a line of the client, `R:` raw octets without a line
//! end (both with `\r \n \0 \t \\ \xHH` escapes); neighbouring `C:` and `R:` are one write. `S:` is a line of the server and
//! `E:` an event, with `*` for anything; `T: +5m` lets time pass, `H: +5m` too, in which the shell did not read; `CLOSE` is the client hanging up, `DRAIN` the gateway stopping, `A: n` the late answer to the nth open question. Every dialogue runs whole, in single
//! octets, and in pieces of random length, and must go the same way each time.
//!
//! The runner is the policy: logins `alice`/`secret` are good, a certificate is alice's, senders and recipients at `refused.example` are not, a
//! body with `DISKFULL` cannot be stored, data with `ENVID=full` may not come, and a recipient at `slow.example` is answered only at `A: n`.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tasuki_proto::{
    names::Domain,
    scram::{Binding, ITERATIONS, Verifier},
    smtp::{
        Reply,
        server::{Event, Question, ServerConfig, Session, Ticket},
    },
};

struct Stage {
    config: ServerConfig,
    tls: bool,
    whole_only: bool,
    bindings: Vec<Binding>,
    external: bool,
}

impl Stage {
    fn parse(text: &str) -> Self {
        let mut config = ServerConfig::new(Domain::parse("relay.example").unwrap());
        config.starttls = true;
        config.auth = true;
        let mut stage = Self {
            config,
            tls: false,
            whole_only: false,
            bindings: vec![],
            external: false,
        };
        for line in text.lines().filter_map(|l| l.strip_prefix("@ ")) {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            match key {
                "tls" => stage.tls = true,
                "scram" => stage.config.scram = true,
                "binding" => {
                    stage.bindings.push(Binding {
                        name: "tls-exporter",
                        data: value.as_bytes().to_vec(),
                    });
                }
                "certificate" => stage.external = true,
                "require-tls" => stage.config.require_tls = true,
                "whole" => stage.whole_only = true,
                "no-starttls" => stage.config.starttls = false,
                "max-size" => stage.config.data.max_size = value.parse().unwrap(),
                "max-recipients" => stage.config.max_recipients = value.parse().unwrap(),
                "max-received" => stage.config.data.max_received = value.parse().unwrap(),
                "greet-pause" => stage.config.timers.greet_pause = duration(value),
                "max-errors" => stage.config.max_errors = value.parse().unwrap(),
                "soft-errors" => stage.config.soft_errors = value.parse().unwrap(),
                other => panic!("unknown stage direction {other}"),
            }
        }
        stage
    }
}

struct Run {
    session: Session,
    now: Instant,
    input: BytesMut,
    transcript: Vec<String>,
    body: Option<Vec<u8>>,
    later: Vec<Ticket>,
}

impl Run {
    fn new(stage: &Stage) -> Self {
        #[allow(clippy::disallowed_methods)]
        let now = Instant::now();
        let mut session = Session::new(Arc::new(stage.config.clone()), stage.tls, now);
        session.set_bindings(stage.bindings.clone());
        session.set_external(stage.external);
        let mut run = Self {
            session,
            now,
            input: BytesMut::new(),
            transcript: vec![],
            body: None,
            later: vec![],
        };
        run.turn();
        run
    }

    /// The shell's loop: input, events, answers, until nothing moves.
    fn turn(&mut self) {
        loop {
            let before = (self.input.len(), self.session.wants_input());
            self.session.handle_input(self.now, &mut self.input);
            let mut moved = before != (self.input.len(), self.session.wants_input());
            while let Some(event) = self.session.poll_event() {
                moved = true;
                self.event(event);
            }
            if !moved {
                return;
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Reply(bytes) => {
                let text = String::from_utf8(bytes.to_vec()).unwrap();
                let lines = text
                    .strip_suffix("\r\n")
                    .expect("a reply ends with CRLF")
                    .split("\r\n");
                self.transcript.extend(lines.map(|line| format!("S: {line}")));
            }
            Event::Ask(ticket, question) => self.answer(ticket, &question),
            Event::Body { piece, header } => {
                assert_eq!(
                    header.is_some(),
                    self.body.is_none(),
                    "the header comes with the first piece only"
                );
                self.body.get_or_insert_default().extend_from_slice(&piece);
            }
            Event::Discard(error) => {
                self.body = None;
                let why = error.map_or("by the client".to_owned(), |e| format!("{e:?}"));
                self.transcript.push(format!("E: Discard {why}"));
            }
            Event::MessageEnd(ticket, message) => {
                let body = self.body.take().expect("a message has at least one piece");
                assert_eq!(body.len() as u64, message.size);
                let to: Vec<_> = message
                    .envelope
                    .recipients
                    .iter()
                    .map(|r| r.mailbox.to_string())
                    .collect();
                let (from, to, text) = (
                    &message.envelope.from,
                    to.join(","),
                    String::from_utf8_lossy(&body),
                );
                let tls = if message.envelope.require_tls {
                    " requiretls"
                } else {
                    ""
                };
                self.transcript
                    .push(format!("E: Message from=<{from}> to=<{to}>{tls} body={text:?}"));
                let full = text.contains("DISKFULL");
                let reply = if full {
                    Reply::new(452, (4, 3, 1), "disk full")
                } else {
                    Reply::new(250, (2, 0, 0), "queued as 1")
                };
                self.session.handle_answer(self.now, ticket, reply);
            }
            Event::StartTls => {
                self.transcript.push("E: StartTls".into());
                self.input.clear();
                self.session.handle_tls(self.now);
            }
            Event::Close(why) => self.transcript.push(format!("E: Close {why:?}")),
        }
    }

    fn answer(&mut self, ticket: Ticket, question: &Question) {
        let refused = Reply::new(550, (5, 7, 1), "not allowed");
        let ok = Reply::new(250, (2, 1, 0), "ok");
        let reply = match question {
            Question::Auth(c) if c.login == "alice" && c.password.reveal() == "secret" => {
                Reply::new(235, (2, 7, 0), "authenticated")
            }
            Question::ScramKeys(login) if login == "busy" => Reply::new(454, (4, 7, 0), "not now"),
            Question::ScramKeys(login) => {
                let keys = (login == "alice").then(|| Verifier::of("secret", b"salt", ITERATIONS));
                let keys = keys.into_iter().collect();
                return self
                    .session
                    .handle_scram(self.now, ticket, &[0; 18], b"salt", keys);
            }
            Question::External(name) if ["", "alice"].contains(&name.as_str()) => {
                Reply::new(235, (2, 7, 0), "authenticated")
            }
            Question::ScramProved(0) => Reply::new(235, (2, 7, 0), "authenticated"),
            Question::ScramProved(_) | Question::ScramRefused | Question::External(_) => {
                Reply::new(535, (5, 7, 8), "authentication failed")
            }
            Question::Auth(_) => Reply::new(535, (5, 7, 8), "authentication failed"),
            Question::Mail => {
                let envelope = self.session.envelope().unwrap();
                let domain = envelope
                    .from
                    .mailbox()
                    .and_then(|m| m.domain())
                    .map(Domain::as_str);
                if domain == Some("refused.example") {
                    refused
                } else {
                    ok
                }
            }
            Question::Recipient(mailbox) => match mailbox.domain().map(Domain::as_str) {
                Some("refused.example") => refused,
                Some("slow.example") => return self.later.push(ticket),
                _ => ok,
            },
            Question::Data
                if self
                    .session
                    .envelope()
                    .is_some_and(|e| e.envid.as_deref() == Some("full")) =>
            {
                Reply::new(452, (4, 3, 1), "disk full")
            }
            Question::Data => ok,
        };
        self.session.handle_answer(self.now, ticket, reply);
    }

    fn write(&mut self, octets: &[u8], mut piece: impl FnMut() -> usize) {
        let mut rest = octets;
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(piece().clamp(1, rest.len()));
            self.input.extend_from_slice(head);
            self.turn();
            rest = tail;
        }
    }

    fn pass(&mut self, by: Duration) {
        let until = self.now + by;
        // Deadlines on the way fire at their time, as a shell's timer would let them.
        while let Some(due) = self.session.poll_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.session.handle_timeout(self.now);
            self.turn();
        }
        self.now = until;
    }
}

fn duration(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.len() - 1);
    let number: u64 = number.parse().unwrap();
    Duration::from_secs(number * if unit == "m" { 60 } else { 1 })
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'\\' {
            out.push(b);
            continue;
        }
        out.push(match bytes.next().unwrap() {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => {
                let hex: Vec<u8> = bytes.by_ref().take(2).collect();
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            other => panic!("unknown escape \\{}", char::from(other)),
        });
    }
    out
}

fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap()) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        last = Some(part);
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    match last {
        Some(part) => rest.is_empty() || part.is_empty() || text.ends_with(part),
        None => rest.is_empty(),
    }
}

fn play(name: &str, text: &str, stage: &Stage, mut piece: impl FnMut() -> usize) {
    let mut run = Run::new(stage);
    let mut seen = 0;
    let mut pending: Vec<u8> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let at = format!("{name}:{}", number + 1);
        if let Some(client) = line.strip_prefix("C:") {
            pending.extend_from_slice(&unescape(client.strip_prefix(' ').unwrap_or(client)));
            pending.extend_from_slice(b"\r\n");
            continue;
        }
        if let Some(raw) = line.strip_prefix("R: ") {
            pending.extend_from_slice(&unescape(raw));
            continue;
        }
        if !pending.is_empty() {
            run.write(&std::mem::take(&mut pending), &mut piece);
        }
        if line.starts_with("S: ") || line.starts_with("E: ") {
            let got = run.transcript.get(seen).map_or("nothing", String::as_str);
            assert!(
                matches(line, got),
                "{at}: expected {line:?}, got {got:?}\n{:#?}",
                run.transcript
            );
            seen += 1;
        } else if let Some(by) = line.strip_prefix("H: +") {
            run.now += duration(by);
            run.session.handle_held(duration(by));
            run.session.handle_timeout(run.now);
            run.turn();
        } else if let Some(by) = line.strip_prefix("T: +") {
            assert_eq!(
                run.transcript.len(),
                seen,
                "{at}: unexpected {:?}",
                run.transcript.last()
            );
            run.pass(duration(by));
        } else if let Some(index) = line.strip_prefix("A: ") {
            let ticket = run.later.remove(index.parse().unwrap());
            run.session
                .handle_answer(run.now, ticket, Reply::new(250, (2, 1, 5), "ok at last"));
            run.turn();
        } else if line == "CLOSE" {
            run.session.handle_eof(run.now);
            run.turn();
        } else if line == "CUT" {
            run.session.handle_cut(run.now);
            run.turn();
        } else if line == "DRAIN" {
            run.session.handle_drain(run.now);
            run.turn();
        } else {
            assert!(
                line.is_empty() || line.starts_with(['#', '@']),
                "{at}: what is {line:?}?"
            );
        }
    }
    run.write(&pending, &mut piece);
    assert_eq!(
        run.transcript.len(),
        seen,
        "{name}: left over {:?}",
        &run.transcript[seen..]
    );
}

#[test]
fn every_dialogue_goes_as_written_in_pieces_of_any_size() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/data/smtp");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let stage = Stage::parse(&text);
        count += 1;
        play(&name, &text, &stage, || usize::MAX);
        if stage.whole_only {
            continue;
        }
        play(&name, &text, &stage, || 1);
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            play(&name, &text, &stage, || rng.random_range(1..40));
        }
    }
    assert!(count >= 20, "only {count} dialogues were found");
}

/// Whatever comes, the session neither panics nor answers with anything but whole lines, nor grows.
#[test]
fn random_input_never_breaks_the_session() {
    let words: [&[u8]; 30] = [
        b"EHLO x\r\n",
        b"HELO\r\n",
        b"MAIL FROM:<a@x.org>",
        b" SIZE=9",
        b"\r\n",
        b"RCPT TO:<b@y.org>\r\n",
        b"DATA\r\n",
        b".\r\n",
        b"\r",
        b"\n",
        b"\0",
        b"\xff\xfe",
        b"RSET\r\n",
        b"AUTH PLAIN ",
        b"AGFsaWNlAHNlY3JldA==",
        b"AUTH LOGIN\r\n",
        b"STARTTLS\r\n",
        b"<",
        b"\"",
        b"NOOP\r\n",
        b"VRFY x\r\n",
        b"QUIT\r\n",
        b"RCPT TO:<c@slow.example>\r\n",
        b"aaaaaaaaaaaaaaaa",
        b"BDAT 9\r\n",
        b"BDAT 9 LAST\r\n",
        b"BDAT 0 LAST\r\n",
        b"BDAT x\r\n",
        b"AUTH SCRAM-SHA-256 biwsbj1hbGljZSxyPWFiYw==\r\n",
        b"Yz1iaXdzLHI9YSxwPWE=\r\n",
    ];
    for seed in 0..3000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let stage = Stage::parse(if seed % 2 == 0 {
            "@ tls\n@ scram"
        } else {
            "@ max-errors 1000"
        });
        let mut run = Run::new(&stage);
        for _ in 0..rng.random_range(1..60) {
            let word = words[rng.random_range(0..words.len())];
            run.write(word, || usize::MAX);
            match rng.random_range(0..20) {
                0 if !run.later.is_empty() => {
                    let ticket = run.later.swap_remove(rng.random_range(0..run.later.len()));
                    run.session
                        .handle_answer(run.now, ticket, Reply::new(250, (2, 1, 5), "late"));
                    run.turn();
                }
                1 => run.pass(Duration::from_secs(rng.random_range(0..400))),
                2 => run.write(&word.repeat(1000), || 4096),
                _ => {}
            }
            assert!(run.input.len() <= 64 * 1024 || !run.session.wants_input());
        }
    }
}
