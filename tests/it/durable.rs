//! The order "stable storage, then `250`", read from the kernel's side.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};

use crate::support::gateway::Gateway;
use crate::support::postgres::Postgres;
use crate::support::process::{Running, tool_as_root};
use crate::support::{PATIENCE, eventually};

/// One system call of the trace, complete.
#[derive(Debug)]
struct Call {
    /// Where it began and where it ended, as lines of the trace.
    begun: usize,
    ended: usize,
    text: String,
}

/// Joins `unfinished` and `resumed` halves; they are in the order in which the kernel saw them.
fn calls(trace: &str) -> Vec<Call> {
    let mut open: Vec<(String, usize, String)> = Vec::new();
    let mut calls = Vec::new();
    for (number, line) in trace.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let rest = rest.trim_start();
        if let Some(begin) = rest.strip_suffix("<unfinished ...>") {
            open.push((thread.to_owned(), number, begin.to_owned()));
        } else if rest.starts_with("<... ") {
            let at = open.iter().position(|(of, ..)| of == thread);
            let Some((_, begun, begin)) = at.map(|at| open.swap_remove(at)) else {
                continue;
            };
            let text = begin + rest.split_once("resumed>").map_or("", |(_, rest)| rest);
            calls.push(Call {
                begun,
                ended: number,
                text,
            });
        } else {
            calls.push(Call {
                begun: number,
                ended: number,
                text: rest.to_owned(),
            });
        }
    }
    // What the trace does not show the end of has begun all the same: a last reply, for example.
    calls.extend(open.into_iter().map(|(_, begun, text)| Call {
        begun,
        ended: usize::MAX,
        text,
    }));
    calls.sort_by_key(|call| call.begun);
    calls
}

fn is_sync(call: &Call, file: &str) -> bool {
    (call.text.starts_with("fdatasync(") || call.text.starts_with("fsync("))
        && call.text.contains(file)
        && call.text.trim_end().ends_with("= 0")
}

fn is_write(call: &Call, file: &str) -> bool {
    let written = ["pwrite64(", "write(", "writev(", "pwritev("];
    written.iter().any(|name| call.text.starts_with(name)) && call.text.contains(file)
}

/// Whether between two lines of the trace `file` is written and then synced, both complete.
fn is_stable(calls: &[Call], file: &str, (from, to): (usize, usize)) -> bool {
    let within: Vec<&Call> = calls.iter().filter(|c| c.begun > from && c.ended < to).collect();
    let written = within.iter().filter(|c| is_write(c, file)).map(|c| c.ended).min();
    written.is_some_and(|written| within.iter().any(|c| is_sync(c, file) && c.begun > written))
}

struct Client {
    stream: TcpStream,
    replies: BufReader<TcpStream>,
}

impl Client {
    fn connect(gateway: &Gateway) -> Self {
        let stream = TcpStream::connect(gateway.address("mail.relay")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let replies = BufReader::new(stream.try_clone().unwrap());
        let mut client = Self { stream, replies };
        client.expect("220");
        client
    }

    fn expect(&mut self, start: &str) {
        loop {
            let mut line = String::new();
            self.replies.read_line(&mut line).unwrap();
            assert!(line.starts_with(start), "{line}");
            if line.as_bytes().get(3) != Some(&b'-') {
                return;
            }
        }
    }

    fn say(&mut self, text: &str, start: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
        self.expect(start);
    }

    fn send(&mut self, body: &str) {
        self.say("MAIL FROM:<orders@shop.test>\r\n", "250");
        self.say("RCPT TO:<someone@far.test>\r\n", "250");
        self.say("DATA\r\n", "354");
        self.say(
            &format!("Subject: traced\r\n\r\n{body}.\r\n"),
            "250 2.0.0 queued as ",
        );
    }
}

#[test]
fn strace_sees_stable_storage_before_each_250() {
    // A body above 16 KiB is in a segment, a smaller one beside its envelope.
    let scene = Scene::set("");
    scene.stable_before_each_250(&Vec::new, "tasuki.db-wal", Some("/segments/"));
}

#[test]
fn strace_sees_postgresqls_log_on_stable_storage_before_each_250() {
    let postgres = Postgres::start();
    let scene = Scene::set(&postgres.url());
    // The commit is there when one of PostgreSQL's processes has synced the log: a backend of ours, or its WAL writer.
    scene.stable_before_each_250(&|| postgres.processes(), "/pg_wal/", None);
}

/// A gateway with a next hop that never accepts: nothing is settled meanwhile, so whatever is written is a mail that comes
/// in.
struct Scene {
    gateway: Gateway,
    _next_hop: TcpListener,
}

impl Scene {
    fn set(store: &str) -> Self {
        let next_hop = TcpListener::bind("127.0.0.1:0").unwrap();
        let gateway = Gateway::start_on(
            store,
            &format!(
                "{}\n{}",
                Gateway::smarthost(next_hop.local_addr().unwrap()),
                "[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n"
            ),
        );
        gateway.cli(&["service", "add", "shop", "--send-as", "shop.test"]);
        Self {
            gateway,
            _next_hop: next_hop,
        }
    }

    /// Between the go-ahead and the `250` of each mail `envelope` is written and then synced by the gateway or the store's
    /// processes; with a large body `body`, too.
    fn stable_before_each_250(&self, store: &dyn Fn() -> Vec<u32>, envelope: &str, body: Option<&str>) {
        let small = "0123456789\r\n".repeat(100);
        let large = "0123456789\r\n".repeat(20_000);
        let bodies = [&small, &large, &small, &large, &small];
        let mut client = Client::connect(&self.gateway);
        client.say("EHLO client.test\r\n", "250");
        // Connections to the store are there after the first mail, and what is asked once has been asked.
        client.send(&small);
        let watched: Vec<u32> = store().into_iter().chain([self.gateway.id()]).collect();
        let text = self.trace(&watched, &mut client, &bodies);
        let calls = calls(&text);
        let replies = |start: &str| -> Vec<usize> {
            let start = format!("\"{start}");
            let said = calls.iter().filter(|c| c.text.contains(&start));
            said.map(|c| c.begun).collect()
        };
        let (go_ahead, queued) = (replies("354 "), replies("250 2.0.0 queued as "));
        assert_eq!(
            (go_ahead.len(), queued.len()),
            (bodies.len(), bodies.len()),
            "{text}"
        );
        for ((from, to), sent) in go_ahead.into_iter().zip(queued).zip(bodies) {
            let excerpt = || {
                let lines: Vec<&str> = text.lines().skip(from).take(to - from + 1).collect();
                lines.join("\n")
            };
            assert!(
                is_stable(&calls, envelope, (from, to)),
                "the envelope:\n{}",
                excerpt()
            );
            if let Some(body) = body.filter(|_| sent.len() > 16 * 1024) {
                assert!(is_stable(&calls, body, (from, to)), "the body:\n{}", excerpt());
            }
        }
    }

    /// What these processes do while the mails are sent.
    fn trace(&self, watched: &[u32], client: &mut Client, bodies: &[&String]) -> String {
        let trace = self.gateway.directory().join("trace");
        let mut strace = tool_as_root("strace");
        strace.args(["-f", "-y", "-s", "48", "-o"]).arg(&trace);
        strace.args([
            "-e",
            "trace=fsync,fdatasync,write,writev,pwrite64,pwritev,sendto,sendmsg",
        ]);
        for process in watched {
            strace.args(["-p", &process.to_string()]);
        }
        let mut running = Running::start(
            "strace",
            &mut strace,
            &self.gateway.directory().join("strace.log"),
        );
        eventually("strace watches all of them", || {
            running.assert_runs();
            let log = running.log();
            watched
                .iter()
                .all(|process| log.contains(&format!("Process {process} attached")))
                .then_some(())
        });
        for body in bodies {
            client.send(body);
        }
        let text = eventually("the trace shows the last reply", || {
            let text = std::fs::read_to_string(&trace).ok()?;
            (text.matches("\"250 2.0.0 queued as ").count() == bodies.len()).then_some(text)
        });
        running.terminate();
        text
    }
}

#[test]
fn the_reader_of_the_trace_tells_a_late_sync() {
    let good = "1 write(9<socket:[1]>, \"354 go\", 6) = 6\n\
                2 pwrite64(7</d/tasuki.db-wal>, \"x\", 1, 0) = 1\n\
                2 fdatasync(7</d/tasuki.db-wal> <unfinished ...>\n\
                1 write(3, \"\", 1) = 1\n\
                2 <... fdatasync resumed>) = 0\n\
                1 write(9<socket:[1]>, \"250 2.0.0 queued as 1\", 20) = 20\n";
    assert!(is_stable(&calls(good), "tasuki.db-wal", (0, 5)));
    let late = "1 write(9<socket:[1]>, \"354 go\", 6) = 6\n\
                2 pwrite64(7</d/tasuki.db-wal>, \"x\", 1, 0) = 1\n\
                2 fdatasync(7</d/tasuki.db-wal> <unfinished ...>\n\
                1 write(9<socket:[1]>, \"250 2.0.0 queued as 1\", 20) = 20\n\
                2 <... fdatasync resumed>) = 0\n";
    assert!(!is_stable(&calls(late), "tasuki.db-wal", (0, 3)));
    let before = "1 write(9<socket:[1]>, \"354 go\", 6) = 6\n\
                  2 fdatasync(7</d/tasuki.db-wal>) = 0\n\
                  2 pwrite64(7</d/tasuki.db-wal>, \"x\", 1, 0) = 1\n\
                  1 write(9<socket:[1]>, \"250 2.0.0 queued as 1\", 20) = 20\n";
    assert!(!is_stable(&calls(before), "tasuki.db-wal", (0, 3)));
    let failed = good.replace("resumed>) = 0", "resumed>) = -1 EIO (Input/output error)");
    assert!(!is_stable(&calls(&failed), "tasuki.db-wal", (0, 5)));
}
