//! Asking a next hop whether it has a mailbox: MAIL FROM:<>, RCPT, QUIT, without a message.
//!
//! Only a plain no to the address is a no. Everything else (no connection, 4xx, a refusal of us and not of the address)
//! leaves the question open.

use std::time::Duration;

use bytes::BytesMut;
use rustls_pki_types::ServerName;
use tasuki_core::accept;
use tasuki_proto::{
    names::Mailbox,
    smtp::{Reply, ReplyParser, client::Security},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    config::Settings,
    connect::Socket,
    context::Context,
    route::{self, Candidate, NextHop, RouteError},
};

/// For the whole question at one server; the client waits meanwhile (RFC 5321 4.5.3.2.3 gives us 5 minutes).
const ONE_SERVER: Duration = Duration::from_secs(30);
/// Servers that are asked, at most.
const SERVERS: usize = 2;

/// A next hop's answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Yes,
    No,
    Unclear(String),
}

/// Asks the servers of the recipient's route, one after the other, until one says yes or no.
pub(crate) async fn ask(context: &Context, settings: &Settings, mailbox: &Mailbox) -> Word {
    let lane = route::lane_of(settings, mailbox);
    let (hop, candidates) = match servers(context, settings, &lane).await {
        Ok(found) => found,
        Err(RouteError::Unroutable(_)) => return Word::No,
        Err(error) => return Word::Unclear(error.to_string()),
    };
    let security = match &hop {
        NextHop::Smarthost(smarthost) => smarthost.security,
        NextHop::Mx(_) | NextHop::Group(_) => Security::Opportunistic,
    };
    let mut last = Word::Unclear("the next hop has no server".to_owned());
    for candidate in candidates.into_iter().take(SERVERS) {
        let question = converse(context, settings, security, &candidate, mailbox);
        last = match timeout(ONE_SERVER, question).await {
            Ok(Ok(word)) => word,
            Ok(Err(problem)) => Word::Unclear(format!("{}: {problem}", candidate.host)),
            Err(_) => Word::Unclear(format!("{}: no answer in time", candidate.host)),
        };
        if !matches!(last, Word::Unclear(_)) {
            break;
        }
    }
    last
}

async fn servers(
    context: &Context,
    settings: &Settings,
    lane: &tasuki_core::store::mail::LaneKey,
) -> Result<(NextHop, Vec<Candidate>), RouteError> {
    let hop = match route::next_hop(settings, lane)? {
        // One of them speaks for all.
        NextHop::Group(group) => {
            let order = context.members.in_order(&group, context.deps.clock.now());
            order
                .into_iter()
                .next()
                .map_or(NextHop::Group(group), NextHop::Smarthost)
        }
        hop => hop,
    };
    let candidates = route::candidates(context, settings, &hop, rand::random()).await?;
    Ok((hop, candidates))
}

struct Line {
    socket: Socket,
    input: BytesMut,
    replies: ReplyParser,
}

async fn converse(
    context: &Context,
    settings: &Settings,
    security: Security,
    server: &Candidate,
    mailbox: &Mailbox,
) -> Result<Word, String> {
    let stream = TcpStream::connect(server.addr).await.map_err(|e| e.to_string())?;
    accept::prepare(&stream);
    let mut line = Line {
        socket: Socket::Plain(stream),
        input: BytesMut::new(),
        replies: ReplyParser::default(),
    };
    if security == Security::Implicit {
        line.start_tls(context, &server.host).await?;
    }
    line.expect("the greeting").await?;
    let ehlo = format!("EHLO {}", settings.host);
    let mut offers = line.ehlo(&ehlo).await?;
    let wants_tls = matches!(security, Security::Opportunistic | Security::Required);
    if wants_tls && offers.iter().any(|offer| offer.eq_ignore_ascii_case("STARTTLS")) {
        line.say("STARTTLS").await?;
        line.start_tls(context, &server.host).await?;
        offers = line.ehlo(&ehlo).await?;
    }
    let utf8 = offers.iter().any(|offer| offer.eq_ignore_ascii_case("SMTPUTF8"));
    if mailbox.needs_smtputf8() && !utf8 {
        return Err("the server has no SMTPUTF8 for this address".to_owned());
    }
    let parameter = if mailbox.needs_smtputf8() { " SMTPUTF8" } else { "" };
    line.say(&format!("MAIL FROM:<>{parameter}")).await?;
    let reply = line.ask(&format!("RCPT TO:<{mailbox}>")).await?;
    // The answer is there; how the goodbye goes does not matter.
    let _ = line.ask("QUIT").await;
    Ok(word(&reply))
}

/// 5.1.x and 5.2.x are about the mailbox (RFC 3463 3.2, 3.3); 5.7.x and the like are about us.
fn word(reply: &Reply) -> Word {
    let about_mailbox = reply.enhanced.is_none_or(|code| matches!(code.1, 1 | 2));
    if reply.is_positive() {
        Word::Yes
    } else if reply.is_permanent() && about_mailbox {
        Word::No
    } else {
        Word::Unclear(reply.to_string())
    }
}

impl Line {
    async fn start_tls(&mut self, context: &Context, host: &str) -> Result<(), String> {
        // RFC 3207 4.2: what came in the clear says nothing.
        self.input.clear();
        let Socket::Plain(stream) = std::mem::replace(&mut self.socket, Socket::Gone) else {
            return Err("TLS is on already".to_owned());
        };
        let name = match host.parse::<std::net::IpAddr>() {
            Ok(ip) => ServerName::from(ip),
            Err(_) => ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?,
        };
        // No secret goes out here, so that any certificate will do (RFC 7435).
        let connector = TlsConnector::from(std::sync::Arc::clone(&context.any_tls));
        let tls = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
        self.socket = Socket::Client(Box::new(tls));
        Ok(())
    }

    async fn ehlo(&mut self, ehlo: &str) -> Result<Vec<String>, String> {
        self.replies.keep_lines();
        self.say(ehlo).await?;
        Ok(self.replies.take_lines())
    }

    /// Sends a command that must be answered positively.
    async fn say(&mut self, command: &str) -> Result<(), String> {
        self.write(command).await?;
        self.expect(command).await
    }

    async fn ask(&mut self, command: &str) -> Result<Reply, String> {
        self.write(command).await?;
        self.read().await
    }

    async fn expect(&mut self, what: &str) -> Result<(), String> {
        let reply = self.read().await?;
        if reply.is_positive() {
            Ok(())
        } else {
            Err(format!("{what}: {reply}"))
        }
    }

    async fn write(&mut self, command: &str) -> Result<(), String> {
        let write = async {
            self.socket.write_all(format!("{command}\r\n").as_bytes()).await?;
            self.socket.flush().await
        };
        write.await.map_err(|e| e.to_string())
    }

    async fn read(&mut self) -> Result<Reply, String> {
        loop {
            match self.replies.parse(&mut self.input) {
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => {}
                Err(error) => return Err(error.to_string()),
            }
            match self.socket.read_buf(&mut self.input).await {
                Ok(0) => return Err("the server hung up".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}
