//! The shared Minecraft port: reads what a client wants, finds the agent by name, joins them; or answers by itself, so
//! that a player always reads why nothing can be played.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tasuki_core::EngineKind;
use tasuki_core::accept::{Accepted, Acceptor};
use tasuki_core::clock::Timestamp;
use tasuki_core::limits::Who;
use tasuki_proto::minecraft::{
    self as proto, LegacyPing, Opening, OpeningLimits, Page, StatusPage, StatusTalk, TalkEvent,
};
use tasuki_proto::names::Domain;
use tasuki_proto::tunnel::{EndpointId, StreamHeader, StreamKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::flow::{self, NotJoined, Visit};
use super::registry::Route;
use super::{Inner, admit, proxied};
use crate::config::{MinecraftConfig, for_prefix, times};
use crate::metrics::Door;
use crate::splice::prepare_socket;

/// After this silence `FE` and `FE 01` are legacy pings and not the start of something longer.
const LEGACY_SILENCE: Duration = Duration::from_secs(1);
/// How long a client may take to read a page from us.
const PAGE_TIME: Duration = Duration::from_secs(5);
/// What we still read while closing, so that no unread byte turns our last words into a reset.
const LINGER_BYTES: usize = 16 * 1024;

/// Accepts players until `token` fires.
pub(crate) async fn serve(inner: Arc<Inner>, acceptor: Acceptor, token: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = acceptor.accept() => accepted,
            () = token.cancelled() => return,
        };
        inner.flows.spawn(visit(Arc::clone(&inner), accepted));
    }
}

/// What the client wants.
enum Wish {
    Status,
    Login { player: String },
    Legacy(LegacyPing),
}

/// A client's opening, read and understood.
struct Asked {
    wish: Wish,
    target: proto::Target,
    /// What the local server gets to see of it.
    forward: Vec<u8>,
    /// Bytes behind the handshake, for a status talk of our own.
    rest: BytesMut,
}

/// Why the opening gave nothing to answer.
enum NoOpening {
    Error(proto::OpeningError),
    Closed,
}

impl From<proto::OpeningError> for NoOpening {
    fn from(error: proto::OpeningError) -> Self {
        Self::Error(error)
    }
}

async fn visit(inner: Arc<Inner>, accepted: Accepted) {
    let Accepted {
        mut stream,
        peer,
        permit: _permit,
    } = accepted;
    prepare_socket(&stream);
    let config = inner.config();
    let config = &config.minecraft;
    let deadline = Instant::now() + config.handshake_timeout;
    let peer = match proxied::visitor(&mut stream, peer, &config.proxy_protocol_from, deadline).await {
        Ok(peer) => peer,
        Err(reason) => return flow::turn_away(&inner, stream, reason),
    };
    let Some(_counted) = inner.players.enter(peer.ip(), config.max_connections_per_address) else {
        return flow::turn_away(&inner, stream, "address_full");
    };
    if let Err(reason) = admit::may_visit(&inner, peer.ip(), None) {
        return flow::turn_away(&inner, stream, reason);
    }
    let trusted = config
        .trusted_upstreams
        .iter()
        .any(|net| net.contains(&peer.ip()));
    let asked = match timeout_at(deadline, read_opening(&mut stream, trusted)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(NoOpening::Closed)) => return flow::turn_away(&inner, stream, "no_handshake"),
        Ok(Err(NoOpening::Error(error))) => {
            tracing::debug!(peer.addr = %peer, error = %error, "not a player");
            return flow::turn_away(&inner, stream, "bad_handshake");
        }
        Err(_) => return flow::turn_away(&inner, stream, "slow_handshake"),
    };
    let name = match &asked.target {
        proto::Target::Name(name) => Some(name.clone()),
        proto::Target::Default | proto::Target::Invalid => None,
    };
    if let Err(wait) = within_limits(&inner, config, peer.ip(), name.as_ref(), &asked.wish) {
        inner.metrics.refused("too_many");
        let seconds = (wait.as_secs() + 1).to_string();
        let text = config.texts.of(Page::TooMany).replace("{seconds}", &seconds);
        return answer(stream, asked, Page::TooMany, &text).await;
    }
    if asked.target == proto::Target::Invalid {
        inner.metrics.refused("unknown_host");
        return answer(
            stream,
            asked,
            Page::UnknownHost,
            config.texts.of(Page::UnknownHost),
        )
        .await;
    }
    if let Err(reason) = admit::may_visit(&inner, peer.ip(), name.as_ref()) {
        return flow::turn_away(&inner, stream, reason);
    }
    if let Err((stream, not_joined)) = join(&inner, stream, peer, name, &asked).await {
        inner.metrics.refused(not_joined.label);
        answer(stream, asked, not_joined.page, config.texts.of(not_joined.page)).await;
    }
}

/// Joins the player with an agent, and comes back only if that failed before any local server said anything.
async fn join(
    inner: &Inner,
    stream: TcpStream,
    peer: SocketAddr,
    name: Option<Domain>,
    asked: &Asked,
) -> Result<(), (TcpStream, NotJoined)> {
    let targets = match inner.registry.route_player(name.clone()) {
        Route::Live(targets) => targets,
        Route::Away => return Err((stream, flow::AWAY)),
        Route::Unknown => return Err((stream, UNKNOWN)),
    };
    let Ok(door) = stream.local_addr() else {
        return Err((stream, flow::SILENT));
    };
    let player = match &asked.wish {
        Wish::Login { player } => Some(player.clone()),
        Wish::Status | Wish::Legacy(_) => None,
    };
    let visit = Visit {
        door: Door::Minecraft,
        from: peer,
        name,
        player: player.clone(),
        is_player: player.is_some(),
    };
    let header = StreamHeader {
        kind: StreamKind::Minecraft,
        endpoint: EndpointId(0),
        visitor: peer,
        door,
        player,
        flow: None,
    };
    let limit = inner.config.load().connect_timeout;
    let (target, opened) = match flow::reach(inner, targets, &header, &asked.forward, limit).await {
        Ok(reached) => reached,
        Err(not_joined) => return Err((stream, not_joined)),
    };
    if let Wish::Login { player } = &asked.wish {
        tracing::debug!(peer.addr = %peer, player, tunnel.agent = %target.session.name, "player joins");
    }
    // It has answered already.
    let _ = flow::join(inner, &target, &visit, stream, opened, None).await;
    Ok(())
}

const UNKNOWN: NotJoined = NotJoined {
    page: Page::UnknownHost,
    label: "unknown_host",
};

/// Status and login have separate rates, for the address and for its network. The error is how long to wait.
fn within_limits(
    inner: &Inner,
    config: &MinecraftConfig,
    from: IpAddr,
    name: Option<&Domain>,
    wish: &Wish,
) -> Result<(), Duration> {
    let limits = &inner.deps.limits;
    let engine = EngineKind::Tunnel;
    let (what, rate) = match wish {
        Wish::Status | Wish::Legacy(_) => ("minecraft_status", config.status_rate()),
        Wish::Login { .. } => {
            let now = inner.deps.clock.wall();
            // Everybody comes back at once.
            let rate = match inner.has_just_started(name, now) {
                true => times(config.login_rate(), AFTER_START),
                false => config.login_rate(),
            };
            if inner.regulars.is(from, now) {
                // A budget of its own: a flood from the same network does not use it up.
                let rate = times(rate, REGULARS);
                return limits.take(engine, "minecraft_regular", Who::Address(from), rate);
            }
            ("minecraft_login", rate)
        }
    };
    limits
        .take(engine, what, Who::Address(from), rate)
        .and_then(|()| limits.take(engine, what, Who::Prefix(from), for_prefix(rate)))
}

/// How many times the login budget holds after a start, and that of a regular.
const AFTER_START: u32 = 3;
const REGULARS: u32 = 5;
/// How long a start is "just now".
const JUST_NOW: Duration = Duration::from_secs(60);

impl Inner {
    /// Whether the gateway, or an agent behind the name, came less than a minute ago.
    fn has_just_started(&self, name: Option<&Domain>, now: Timestamp) -> bool {
        now.since(self.started) < JUST_NOW
            || match self.registry.route_player(name.cloned()) {
                Route::Live(targets) => targets
                    .iter()
                    .any(|target| now.since(target.session.since) < JUST_NOW),
                Route::Away | Route::Unknown => false,
            }
    }
}

async fn read_opening(stream: &mut TcpStream, trusted: bool) -> Result<Asked, NoOpening> {
    let limits = if trusted {
        OpeningLimits::trusted()
    } else {
        OpeningLimits::default()
    };
    let mut input = BytesMut::with_capacity(OpeningLimits::default().buffer_bytes());
    loop {
        let silence = match proto::read_opening(&input, &limits)? {
            Opening::Incomplete => None,
            Opening::MaybeLegacy(ping) => Some(ping),
            Opening::Legacy(ping) => return Ok(legacy(ping, input)),
            Opening::Status { handshake, used } => {
                let target = proto::target_of(&handshake.address);
                let rest = input.split_off(used);
                let forward = forwarded(&handshake, &input, &rest, trusted);
                return Ok(Asked {
                    wish: Wish::Status,
                    target,
                    forward,
                    rest,
                });
            }
            Opening::Login {
                handshake,
                handshake_used,
                login,
            } => {
                let target = proto::target_of(&handshake.address);
                let rest = input.split_off(handshake_used);
                let forward = forwarded(&handshake, &input, &rest, trusted);
                return Ok(Asked {
                    wish: Wish::Login { player: login.name },
                    target,
                    forward,
                    rest,
                });
            }
        };
        let room = limits.buffer_bytes().saturating_sub(input.len());
        let mut bounded = (&mut input).limit(room);
        let read = match silence {
            None => stream.read_buf(&mut bounded).await,
            Some(ping) => match tokio::time::timeout(LEGACY_SILENCE, stream.read_buf(&mut bounded)).await {
                Ok(read) => read,
                Err(_) => return Ok(legacy(ping, input)),
            },
        };
        if !matches!(read, Ok(1..)) {
            return match proto::settle_legacy(&input) {
                Some(ping) => Ok(legacy(ping, input)),
                None => Err(NoOpening::Closed),
            };
        }
    }
}

fn legacy(ping: LegacyPing, input: BytesMut) -> Asked {
    let target = match &ping {
        LegacyPing::V1_6 { host, .. } => proto::target_of(host),
        LegacyPing::Beta | LegacyPing::V1_4 => proto::Target::Default,
    };
    Asked {
        wish: Wish::Legacy(ping),
        target,
        forward: input.to_vec(),
        rest: BytesMut::new(),
    }
}

/// The opening as the local server gets it: a player's address without claims of identity, a trusted proxy's as it is.
fn forwarded(handshake: &proto::Handshake, raw: &[u8], rest: &[u8], trusted: bool) -> Vec<u8> {
    let mut bytes = if trusted {
        raw.to_vec()
    } else {
        handshake.encode_with(&proto::rebuild_address(&handshake.address))
    };
    bytes.extend_from_slice(rest);
    bytes
}

/// Answers in the place of a server, then closes in good order.
async fn answer(mut stream: TcpStream, asked: Asked, page: Page, text: &str) {
    let page = StatusPage {
        version: page.state().to_owned(),
        ..StatusPage::closed(text)
    };
    let said = async {
        match asked.wish {
            Wish::Status => talk(&mut stream, asked.rest, page).await?,
            Wish::Login { .. } => stream.write_all(&proto::encode_login_disconnect(text)).await?,
            Wish::Legacy(ping) => {
                let reply = proto::encode_legacy_reply(&ping, &page.version, text, page.online, page.max);
                stream.write_all(&reply).await?;
            }
        }
        stream.shutdown().await?;
        let mut left = LINGER_BYTES;
        let mut scratch = [0; 512];
        while left > 0 {
            match stream.read(&mut scratch).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        Ok::<_, std::io::Error>(())
    };
    // A client that leaves or dawdles has lost nothing but its own answer.
    let _ = tokio::time::timeout(PAGE_TIME, said).await;
}

async fn talk(stream: &mut TcpStream, mut input: BytesMut, page: StatusPage) -> std::io::Result<()> {
    let mut talk = StatusTalk::new(page);
    loop {
        talk.handle_input(&mut input);
        while let Some(event) = talk.poll_event() {
            match event {
                TalkEvent::Reply(bytes) => stream.write_all(&bytes).await?,
                TalkEvent::Close => return Ok(()),
            }
        }
        if stream.read_buf(&mut (&mut input).limit(64)).await? == 0 {
            return Ok(());
        }
    }
}
