//! Two hundred subscribers, and a gateway that is killed ten times while it sends to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::fediverse::Instance;
use crate::support::gateway::Gateway;
use crate::support::postgres::Postgres;
use crate::support::{eventually, within};

const HOSTS: usize = 200;
const ROUNDS: usize = 10;
/// Written in each round, each followed by an edit.
const POSTS: usize = 3;
/// Requests of the crowd are small.
const MAX_BODY: usize = 1 << 20;

/// The ids that came to each host, in their order, repeated ones too.
type Arrivals = Arc<Mutex<BTreeMap<String, Vec<String>>>>;

/// All of 127.0.1.0/24 at one port: hosts that say they are Mastodons and take everything.
struct Crowd {
    port: u16,
    arrivals: Arrivals,
}

impl Crowd {
    fn start() -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let arrivals = Arrivals::default();
        let shared = Arc::clone(&arrivals);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let arrivals = Arc::clone(&shared);
                let small = std::thread::Builder::new().stack_size(256 * 1024);
                // A connection that breaks is the other side's end, and no fault here.
                small.spawn(move || serve(stream, &arrivals)).unwrap();
            }
        });
        Self { port, arrivals }
    }

    fn hosts(&self) -> impl Iterator<Item = String> {
        let port = self.port;
        (1..=HOSTS).map(move |number| format!("127.0.1.{number}:{port}"))
    }

    /// As `tasuki fedi import --from csv` takes them.
    fn list(&self) -> String {
        let mut list = "actor,inbox,style\n".to_owned();
        for host in self.hosts() {
            writeln!(list, "http://{host}/actor,http://{host}/inbox,mastodon").unwrap();
        }
        list
    }

    fn arrived(&self) -> usize {
        self.arrivals.lock().unwrap().values().map(Vec::len).sum()
    }

    /// Hosts that lack one of these.
    fn lacking(&self, wanted: &BTreeSet<String>) -> Vec<String> {
        let arrivals = self.arrivals.lock().unwrap();
        let lacks = |host: &String| {
            let got: BTreeSet<&String> = arrivals.get(host).into_iter().flatten().collect();
            wanted.iter().any(|id| !got.contains(id))
        };
        self.hosts().filter(lacks).collect()
    }

    /// In each host the first copy of a post comes before the first of its edit.
    fn assert_in_order(&self, pairs: &[(String, String)]) {
        let arrivals = self.arrivals.lock().unwrap();
        for (host, ids) in arrivals.iter() {
            for (post, edit) in pairs {
                let first = |wanted: &String| ids.iter().position(|id| id == wanted);
                assert!(first(post) < first(edit), "{host}: {edit} came before {post}");
            }
        }
    }
}

/// Requests of one connection.
fn serve(stream: TcpStream, arrivals: &Arrivals) -> Option<()> {
    let ours: SocketAddr = stream.local_addr().ok()?;
    let mut answers = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let (method, path) = line.split_once(' ')?;
        let (method, path) = (method.to_owned(), path.split(' ').next()?.to_owned());
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok().filter(|read| *read > 0)?;
            match header.trim().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().ok().filter(|length| *length <= MAX_BODY)?;
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let (status, answer) = match (method.as_str(), path.as_str()) {
            ("POST", "/inbox") => {
                let got: Value = serde_json::from_slice(&body).ok()?;
                let id = got["id"].as_str()?.to_owned();
                // Taken before it is answered: who is told 202 must not lack it.
                arrivals
                    .lock()
                    .unwrap()
                    .entry(ours.to_string())
                    .or_default()
                    .push(id);
                ("202 Accepted", Value::Null)
            }
            ("GET", "/.well-known/nodeinfo") => {
                let rel = "http://nodeinfo.diaspora.software/ns/schema/2.0";
                let link = json!({"rel": rel, "href": format!("http://{ours}/nodeinfo/2.0")});
                ("200 OK", json!({"links": [link]}))
            }
            ("GET", "/nodeinfo/2.0") => (
                "200 OK",
                json!({"version": "2.0", "software": {"name": "mastodon", "version": "4.5.4"}}),
            ),
            _ => ("404 Not Found", Value::Null),
        };
        let answer = if answer.is_null() {
            String::new()
        } else {
            answer.to_string()
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        answers.write_all((head + &answer).as_bytes()).ok()?;
    }
}

/// What the author was told of.
#[derive(Default)]
struct Written {
    accepted: BTreeSet<String>,
    /// A post and its edit, both accepted.
    pairs: Vec<(String, String)>,
}

/// Posts and their edits, until nobody answers any more.
fn write(author: &Instance) -> Written {
    let mut written = Written::default();
    let id_if_taken = |sent: &Value| {
        let status = &sent[0]["status"];
        assert!(status == 202 || status.is_null(), "one was refused: {sent}");
        (status == 202).then(|| sent[0]["id"].as_str().unwrap().to_owned())
    };
    for number in 0..POSTS {
        let sent = author.control("publish", &json!({"text": format!("post {number}")}));
        let Some(post) = id_if_taken(&sent) else { break };
        written.accepted.insert(post.clone());
        let edit = json!({"kind": "update", "target": sent[0]["object"]});
        let Some(edit) = id_if_taken(&author.control("publish", &edit)) else {
            break;
        };
        written.accepted.insert(edit.clone());
        written.pairs.push((post, edit));
    }
    written
}

#[test]
fn two_hundred_hosts_get_everything_in_order_although_the_gateway_is_killed_ten_times() {
    kill_ten_times(Gateway::start(Gateway::FEDIVERSE));
}

#[test]
fn two_hundred_hosts_get_everything_in_order_although_the_gateway_is_killed_ten_times_on_postgresql() {
    let postgres = Postgres::start();
    kill_ten_times(Gateway::start_on(&postgres.url(), Gateway::FEDIVERSE));
}

fn kill_ten_times(mut gateway: Gateway) {
    let crowd = Crowd::start();
    let list = gateway.directory().join("crowd.csv");
    std::fs::write(&list, crowd.list()).unwrap();
    gateway.cli(&["fedi", "import", "--from", "csv", list.to_str().unwrap()]);
    let author = Instance::start("mastodon", "127.0.0.1", gateway.directory(), &[]);
    author.subscribe(&gateway.relay_inbox());
    let mut all = Written::default();
    let mut in_flight = 0;
    for round in 0..ROUNDS {
        let before = crowd.arrived();
        let written = std::thread::scope(|scope| {
            let writing = scope.spawn(|| write(&author));
            // Each round is killed at another point of the fan-out.
            let share = HOSTS / 4 + round * HOSTS / 4;
            eventually("the fan-out is under way", || {
                (crowd.arrived() >= before + share).then_some(())
            });
            gateway.kill();
            writing.join().unwrap()
        });
        in_flight += usize::from(!crowd.lacking(&written.accepted).is_empty());
        all.accepted.extend(written.accepted);
        all.pairs.extend(written.pairs);
        gateway.restart();
    }
    assert!(in_flight >= ROUNDS / 2, "{in_flight} kills hit a fan-out");
    let last = write(&author);
    assert_eq!(last.pairs.len(), POSTS, "nobody disturbs the last ones");
    all.accepted.extend(last.accepted);
    all.pairs.extend(last.pairs);
    within(Duration::from_secs(180), "every host has everything", || {
        crowd.lacking(&all.accepted).is_empty().then_some(())
    });
    crowd.assert_in_order(&all.pairs);
    gateway.assert_healthy();
}
