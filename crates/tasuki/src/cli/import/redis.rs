//! Relays that keep their subscribers in Redis: yukimochi's Activity-Relay and pub-relay. Read from the running server by its
//! own protocol (RESP2).

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tasuki_core::store::fedi::{
    ForeignRelay, ForeignSubscriber, ModerationEffect, ModerationKind, SubscriptionStyle,
};
use url::Url;

use crate::exit::{self, Fail, Outcome};

/// How long the server may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest text and longest list that is read; a relay has neither.
const MAX_BYTES: usize = 1 << 20;
const MAX_ITEMS: usize = 1 << 20;
const MAX_DEPTH: usize = 4;

/// `relay:subscription:*` are Mastodon style, `relay:follower:*` LitePub style; blocks are fields of two hashes.
pub(super) fn activity_relay(source: &str) -> Outcome<ForeignRelay> {
    let mut server = Server::connect(source)?;
    let mut relay = ForeignRelay::default();
    for (prefix, style) in [
        ("relay:subscription:", SubscriptionStyle::Mastodon),
        ("relay:follower:", SubscriptionStyle::LitePub),
    ] {
        for key in server.keys(prefix)? {
            let mut fields = server.hash(&key)?;
            relay.subscribers.push(ForeignSubscriber {
                actor: fields.remove("actor_id").unwrap_or_default(),
                inbox: fields.remove("inbox_url").unwrap_or_default(),
                style: Some(style),
                follow_id: fields.remove("activity_id"),
                is_pending: false,
            });
        }
    }
    for (key, effect) in [
        ("relay:config:blockedDomain", ModerationEffect::Block),
        ("relay:config:limitedDomain", ModerationEffect::Limit),
    ] {
        let mut domains: Vec<String> = server.hash(key)?.into_keys().collect();
        domains.sort_unstable();
        let rules = domains
            .into_iter()
            .map(|domain| (effect, ModerationKind::Host, domain, String::new()));
        relay.rules.extend(rules);
    }
    Ok(relay)
}

/// One hash for each subscriber, with a state in words.
pub(super) fn pub_relay(source: &str) -> Outcome<ForeignRelay> {
    let mut server = Server::connect(source)?;
    let mut relay = ForeignRelay::default();
    for key in server.keys("relay:subscription:")? {
        let mut fields = server.hash(&key)?;
        let state = fields.remove("state").unwrap_or_default().to_lowercase();
        if state == "unsubscribed" {
            continue;
        }
        relay.subscribers.push(ForeignSubscriber {
            actor: fields.remove("follow_actor_id").unwrap_or_default(),
            inbox: fields.remove("inbox_url").unwrap_or_default(),
            style: Some(SubscriptionStyle::Mastodon),
            follow_id: fields.remove("follow_id"),
            // Pending there means that the Accept has not gone out yet: it subscribes again by itself.
            is_pending: state == "pending",
        });
    }
    Ok(relay)
}

enum Value {
    Text(String),
    Many(Vec<Value>),
    Nil,
}

/// A connection: TCP or a Unix socket.
trait Stream: std::io::Read + std::io::Write {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

struct Server {
    stream: BufReader<Box<dyn Stream>>,
    name: String,
}

impl Server {
    fn connect(source: &str) -> Outcome<Self> {
        let unreachable = |name: &str, e: std::io::Error| {
            Fail::new(
                exit::UNAVAILABLE,
                format!("Redis at {name} cannot be reached: {e}"),
            )
        };
        if let Some(path) = source.strip_prefix("unix:") {
            let stream = UnixStream::connect(path)
                .and_then(|stream| {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    stream.set_write_timeout(Some(PATIENCE))?;
                    Ok(stream)
                })
                .map_err(|e| unreachable(path, e))?;
            return Ok(Self {
                stream: BufReader::new(Box::new(stream)),
                name: path.to_owned(),
            });
        }
        let refuse = |why: String| {
            let form = "redis://[:PASSWORD@]HOST[:PORT][/DATABASE], or unix:/PATH";
            Fail::new(exit::USAGE, format!("{why}: write {form}"))
        };
        let url = Url::parse(source).map_err(|_| refuse("the source is not a URL".to_owned()))?;
        let host = match (url.scheme(), url.host_str()) {
            ("redis", Some(host)) => host,
            (scheme, _) => return Err(refuse(format!("{scheme} is not the URL of a Redis server"))),
        };
        // Without the password.
        let name = format!("{host}:{}", url.port().unwrap_or(6379));
        let stream = TcpStream::connect(&name)
            .and_then(|stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(stream)
            })
            .map_err(|e| unreachable(&name, e))?;
        let mut server = Self {
            stream: BufReader::new(Box::new(stream)),
            name,
        };
        if let Some(password) = url.password() {
            match url.username() {
                "" => server.ask(&["AUTH", password])?,
                user => server.ask(&["AUTH", user, password])?,
            };
        }
        let database = url.path().trim_start_matches('/');
        if !database.is_empty() {
            server.ask(&["SELECT", database])?;
        }
        Ok(server)
    }

    /// All keys that begin so, without holding the server up.
    fn keys(&mut self, prefix: &str) -> Outcome<Vec<String>> {
        let pattern = format!("{prefix}*");
        let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
        loop {
            let answer = self.ask(&["SCAN", &cursor, "MATCH", &pattern, "COUNT", "1000"])?;
            let Value::Many(mut parts) = answer else {
                return Err(self.strange());
            };
            let (Some(Value::Many(keys)), Some(Value::Text(next))) = (parts.pop(), parts.pop()) else {
                return Err(self.strange());
            };
            found.extend(keys.into_iter().filter_map(text_of));
            if next == "0" || found.len() > MAX_ITEMS {
                break;
            }
            cursor = next;
        }
        // A scan may name a key twice.
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn hash(&mut self, key: &str) -> Outcome<HashMap<String, String>> {
        let Value::Many(parts) = self.ask(&["HGETALL", key])? else {
            return Err(self.strange());
        };
        let mut texts = parts.into_iter().filter_map(text_of);
        let mut fields = HashMap::new();
        while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
            fields.insert(name, value);
        }
        Ok(fields)
    }

    fn ask(&mut self, words: &[&str]) -> Outcome<Value> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        let sent = self.stream.get_mut().write_all(request.as_bytes());
        sent.map_err(|error| self.broken(&error))?;
        self.answer(0)
    }

    fn answer(&mut self, depth: usize) -> Outcome<Value> {
        let mut line = Vec::new();
        let read = (&mut self.stream)
            .take(MAX_BYTES as u64)
            .read_until(b'\n', &mut line);
        read.map_err(|error| self.broken(&error))?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| self.strange())?;
        let length = || rest.parse::<i64>().ok().map(|n| usize::try_from(n).ok());
        match kind {
            "+" | ":" => Ok(Value::Text(rest.to_owned())),
            "-" => Err(Fail::new(
                exit::UNAVAILABLE,
                format!("Redis at {} says: {rest}", self.name),
            )),
            "$" => match length() {
                Some(None) => Ok(Value::Nil),
                Some(Some(n)) if n <= MAX_BYTES => {
                    let mut text = vec![0; n + 2];
                    let read = self.stream.read_exact(&mut text);
                    read.map_err(|error| self.broken(&error))?;
                    text.truncate(n);
                    Ok(Value::Text(String::from_utf8_lossy(&text).into_owned()))
                }
                _ => Err(self.strange()),
            },
            "*" => match length() {
                Some(None) => Ok(Value::Nil),
                Some(Some(n)) if n <= MAX_ITEMS && depth < MAX_DEPTH => (0..n)
                    .map(|_| self.answer(depth + 1))
                    .collect::<Outcome<_>>()
                    .map(Value::Many),
                _ => Err(self.strange()),
            },
            _ => Err(self.strange()),
        }
    }

    fn broken(&self, error: &std::io::Error) -> Fail {
        Fail::new(
            exit::UNAVAILABLE,
            format!("Redis at {} does not answer: {error}", self.name),
        )
    }

    fn strange(&self) -> Fail {
        Fail::new(exit::DATA, format!("{} does not answer as Redis does", self.name))
    }
}

fn text_of(value: Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text),
        Value::Many(_) | Value::Nil => None,
    }
}
