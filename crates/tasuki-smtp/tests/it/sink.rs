//! A next hop that takes mail as it is told to, and remembers it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

/// A mail that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    pub(crate) text: String,
    /// The n-th connection.
    pub(crate) connection: usize,
    pub(crate) tls: bool,
    pub(crate) login: bool,
    /// In which TLS agreed on keys.
    pub(crate) group: Option<rustls::NamedGroup>,
}

/// What to answer instead of the usual: the command line (or `banner`, `end`), and the reply if it is another one.
pub(crate) type Script = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Sink {
    pub(crate) addr: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    offers: Vec<&'static str>,
    script: Mutex<Script>,
    tls: Option<Arc<rustls::ServerConfig>>,
    received: Mutex<Vec<Received>>,
    commands: Mutex<Vec<String>>,
    connections: Mutex<usize>,
    peers: Mutex<Vec<std::net::IpAddr>>,
    arrived: Notify,
}

impl Sink {
    pub(crate) async fn start() -> Self {
        Self::with(
            &["PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 0"],
            None,
            Arc::new(|_| None),
        )
        .await
    }

    pub(crate) async fn scripted(script: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Self::with(&["PIPELINING", "8BITMIME", "SMTPUTF8"], None, Arc::new(script)).await
    }

    pub(crate) async fn with(
        offers: &[&'static str],
        tls: Option<Arc<rustls::ServerConfig>>,
        script: Script,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, offers, tls, script)
    }

    /// One at an address that is bound already.
    pub(crate) fn on(
        listener: TcpListener,
        offers: &[&'static str],
        tls: Option<Arc<rustls::ServerConfig>>,
        script: Script,
    ) -> Self {
        let inner = Arc::new(Inner {
            offers: offers.to_vec(),
            script: Mutex::new(script),
            tls,
            received: Mutex::default(),
            commands: Mutex::default(),
            connections: Mutex::new(0),
            peers: Mutex::default(),
            arrived: Notify::new(),
        });
        let sink = Self {
            addr: listener.local_addr().unwrap(),
            inner: Arc::clone(&inner),
        };
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                inner.peers.lock().unwrap().push(peer.ip());
                let number = {
                    let mut connections = inner.connections.lock().unwrap();
                    *connections += 1;
                    *connections
                };
                let inner = Arc::clone(&inner);
                tokio::spawn(async move { inner.serve(stream, number).await });
            }
        });
        sink
    }

    pub(crate) fn script(&self, script: impl Fn(&str) -> Option<String> + Send + Sync + 'static) {
        *self.inner.script.lock().unwrap() = Arc::new(script);
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.inner.received.lock().unwrap().clone()
    }

    pub(crate) fn commands(&self) -> Vec<String> {
        self.inner.commands.lock().unwrap().clone()
    }

    /// Where each connection was from.
    pub(crate) fn peers(&self) -> Vec<std::net::IpAddr> {
        self.inner.peers.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        *self.inner.connections.lock().unwrap()
    }

    /// Waits until this many mails have arrived.
    pub(crate) async fn wait(&self, count: usize) -> Vec<Received> {
        let arrived = async {
            loop {
                let notified = self.inner.arrived.notified();
                let received = self.received();
                if received.len() >= count {
                    return received;
                }
                notified.await;
            }
        };
        let late = |_| {
            panic!(
                "{} of {count} mails arrived: {:?}",
                self.received().len(),
                self.commands()
            )
        };
        tokio::time::timeout(Duration::from_secs(20), arrived)
            .await
            .unwrap_or_else(late)
    }
}

enum Next {
    Go,
    Quit,
    StartTls,
}

#[derive(Default)]
struct Talk {
    from: String,
    to: Vec<String>,
    /// MAIL was refused.
    no_mail: bool,
    tls: bool,
    login: bool,
    group: Option<rustls::NamedGroup>,
    number: usize,
}

impl Inner {
    async fn serve(&self, stream: TcpStream, number: usize) {
        let mut talk = Talk {
            number,
            ..Talk::default()
        };
        let mut stream = BufReader::new(stream);
        // Asked by the script to `close`, the server breaks TLS instead of shaking hands.
        if self.talk(&mut stream, &mut talk, true).await && self.say("handshake", "go") != "close" {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(self.tls.as_ref().unwrap()));
            let Ok(tls) = acceptor.accept(stream.into_inner()).await else {
                return;
            };
            talk.tls = true;
            talk.group = tls
                .get_ref()
                .1
                .negotiated_key_exchange_group()
                .map(|group| group.name());
            self.talk(&mut BufReader::new(tls), &mut talk, false).await;
        }
    }

    fn say(&self, key: &str, usual: &str) -> String {
        let script = Arc::clone(&self.script.lock().unwrap());
        script(key).unwrap_or_else(|| usual.to_owned())
    }

    /// Talks until the end, or STARTTLS (true).
    async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut BufReader<S>,
        talk: &mut Talk,
        greet: bool,
    ) -> bool {
        if greet {
            let banner = self.say("banner", "220 sink ESMTP");
            if stream
                .write_all(format!("{banner}\r\n").as_bytes())
                .await
                .is_err()
                || !banner.starts_with('2')
            {
                return false;
            }
        }
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return false;
            }
            let line = line.trim_end().to_owned();
            self.commands.lock().unwrap().push(line.clone());
            match self.command(&line, stream, talk).await {
                Some(Next::Go) => {}
                Some(Next::StartTls) => return true,
                Some(Next::Quit) | None => return false,
            }
        }
    }

    async fn command<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        line: &str,
        stream: &mut BufReader<S>,
        talk: &mut Talk,
    ) -> Option<Next> {
        let verb = line.get(..4).unwrap_or(line).to_ascii_uppercase();
        let path = || {
            line.split_once('<')
                .and_then(|(_, r)| r.split_once('>'))
                .map_or(String::new(), |(p, _)| p.to_owned())
        };
        if let Some(size) = line.strip_prefix("BDAT ").and_then(|l| l.strip_suffix(" LAST")) {
            let mut text = vec![0; size.parse().unwrap()];
            stream.read_exact(&mut text).await.ok()?;
            return self.end(stream, talk, &text).await;
        }
        let usual = match verb.as_str() {
            "EHLO" | "LHLO" => {
                let starttls = self.tls.is_some() && !talk.tls;
                let mut offers: Vec<&str> = self.offers.clone();
                offers.extend(starttls.then_some("STARTTLS"));
                offers.push("HELP");
                let last = offers.len() - 1;
                let rest: Vec<_> = offers
                    .iter()
                    .enumerate()
                    .map(|(i, o)| format!("250{}{o}", if i == last { " " } else { "-" }))
                    .collect();
                format!("250-sink\r\n{}", rest.join("\r\n"))
            }
            "RCPT" if talk.no_mail => "503 5.5.1 MAIL first".to_owned(),
            "DATA" => "354 go".to_owned(),
            "STAR" => "220 go".to_owned(),
            "AUTH" => "235 2.7.0 in".to_owned(),
            "QUIT" => "221 bye".to_owned(),
            _ => "250 ok".to_owned(),
        };
        let reply = self.say(line, &usual);
        if reply == "close" {
            return None;
        }
        stream.write_all(format!("{reply}\r\n").as_bytes()).await.ok()?;
        let good = reply.starts_with(['2', '3']);
        match verb.as_str() {
            "MAIL" => (talk.from, talk.to, talk.no_mail) = (path(), Vec::new(), !good),
            "RCPT" if good => talk.to.push(path()),
            "AUTH" => talk.login = good,
            "STAR" if good => return Some(Next::StartTls),
            "DATA" if good => return self.data(stream, talk).await,
            "QUIT" => return Some(Next::Quit),
            _ if reply.starts_with("421") => return None,
            _ => {}
        }
        Some(Next::Go)
    }

    async fn data<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut BufReader<S>,
        talk: &mut Talk,
    ) -> Option<Next> {
        let mut text = Vec::new();
        loop {
            let mut line = Vec::new();
            if stream.read_until(b'\n', &mut line).await.ok()? == 0 {
                return None;
            }
            assert!(line.ends_with(b"\r\n"), "only CRLF goes out");
            if line == b".\r\n" {
                break;
            }
            text.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
        }
        self.end(stream, talk, &text).await
    }

    async fn end<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut BufReader<S>,
        talk: &mut Talk,
        text: &[u8],
    ) -> Option<Next> {
        let reply = self.say("end", "250 2.0.0 taken");
        if reply == "close" {
            return None;
        }
        if reply.starts_with('2') && !talk.to.is_empty() {
            let received = Received {
                from: talk.from.clone(),
                to: talk.to.clone(),
                text: String::from_utf8_lossy(text).into_owned(),
                connection: talk.number,
                tls: talk.tls,
                login: talk.login,
                group: talk.group,
            };
            self.received.lock().unwrap().push(received);
        }
        stream.write_all(format!("{reply}\r\n").as_bytes()).await.ok()?;
        self.arrived.notify_waiters();
        Some(Next::Go)
    }
}
