//! The live screen of `tasuki-agent run` in a terminal: how it stands, who is here, what moves, and the last messages.
//!
//! Frames are written by a thread of its own: a terminal that is held (Ctrl-S, a slow line) must not hold the players.
//! What others chose (names, the gateway's words) is cleaned before it is shown, since a terminal obeys control characters.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tasuki_proto::minecraft::Edition;
use tasuki_tunnel::agent::{Control, Status, VisitorLine};
use tokio::time::{Instant, MissedTickBehavior};

use crate::commands::span;
use crate::os;
use crate::words::Words;

/// How often it is drawn.
const EVERY: Duration = Duration::from_secs(1);
/// Messages that are kept.
const MESSAGES: usize = 50;
/// How long a held terminal may delay the end, and how often it is looked at meanwhile.
const FAREWELL: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);
/// Another screen, so that the shell's text is there again afterwards, without a cursor and without line wrap.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
const BOLD: &str = "\x1b[1m";
const USUAL: &str = "\x1b[0m";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
const HOME: &str = "\x1b[H";

/// What was said lately; shared with whoever says it.
#[derive(Clone, Default)]
pub(crate) struct Messages(Arc<Mutex<VecDeque<(Instant, String)>>>);

impl Messages {
    pub(crate) fn push(&self, text: String) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == MESSAGES {
            all.pop_front();
        }
        all.push_back((Instant::now(), text));
    }

    /// The last ones with their age in seconds, the newest last.
    fn last(&self, count: usize) -> Vec<(u64, String)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = all.len().saturating_sub(count);
        all.iter()
            .skip(skip)
            .map(|(at, text)| (at.elapsed().as_secs(), text.clone()))
            .collect()
    }
}

/// The terminal while it shows the screen; as before when this is dropped.
pub(crate) struct Screen {
    orders: Option<SyncSender<Order>>,
    ended: Receiver<()>,
    messages: Messages,
}

/// What the writing thread is told.
enum Order {
    Draw(String),
    /// The shell's text is there again, until the next frame; answered when it is.
    Leave(SyncSender<()>),
}

/// Obeys until nobody gives orders any more.
fn write_by_order(orders: &Receiver<Order>) {
    let write = |text: &str| {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    };
    let mut is_shown = true;
    let mut outcome = write(ENTER);
    while let (Ok(()), Ok(order)) = (&outcome, orders.recv()) {
        outcome = match order {
            Order::Draw(frame) => match std::mem::replace(&mut is_shown, true) {
                true => write(&frame),
                false => write(&[ENTER, &frame].concat()),
            },
            Order::Leave(done) => {
                let left = match std::mem::replace(&mut is_shown, false) {
                    true => write(LEAVE),
                    false => Ok(()),
                };
                let _ = done.send(());
                left
            }
        };
    }
    if is_shown {
        let _ = write(LEAVE);
    }
}

impl Screen {
    /// Takes the terminal, if standard output is one that can show it and is not the shell's at the moment.
    pub(crate) fn take() -> Option<Self> {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let is_ours = std::io::stdout().is_terminal() && os::is_in_foreground();
        if is_dumb || !is_ours || os::terminal_size().is_none() {
            return None;
        }
        let (orders, to_obey) = sync_channel(1);
        let (end, ended) = sync_channel(1);
        std::thread::spawn(move || {
            write_by_order(&to_obey);
            let _ = end.send(());
        });
        Some(Self {
            orders: Some(orders),
            ended,
            messages: Messages::default(),
        })
    }

    pub(crate) fn messages(&self) -> Messages {
        self.messages.clone()
    }

    /// Gives the terminal back until the next frame.
    fn step_aside(&self) {
        let Some(orders) = &self.orders else { return };
        let (done, seen) = sync_channel(1);
        let (mut order, end) = (Order::Leave(done), Instant::now() + FAREWELL);
        // The program is about to stop altogether, so it may be held here.
        while let Err(TrySendError::Full(back)) = orders.try_send(order) {
            if Instant::now() >= end {
                return;
            }
            order = back;
            std::thread::sleep(PAUSE);
        }
        let _ = seen.recv_timeout(FAREWELL);
    }

    /// Draws until it is dropped, whenever the terminal is this program's.
    pub(crate) async fn draw(&self, control: &Control, words: Words) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut traffic = Traffic::default();
        let mut suspensions = os::Suspensions::new();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = suspensions.next() => {
                    self.step_aside();
                    os::suspend();
                }
            }
            if !os::is_in_foreground() {
                continue;
            }
            let Some((columns, rows)) = os::terminal_size() else {
                continue;
            };
            let (columns, rows) = (usize::from(columns), usize::from(rows));
            let status = control.status();
            let rates = traffic.observe(&status, Instant::now());
            let view = View {
                status: &status,
                visitors: &control.visitors(),
                messages: &self.messages.last(rows),
                rates,
                words,
            };
            let frame = frame(&view.lines(rows), columns, rows);
            // A terminal that is held gets a later one.
            if let Some(orders) = &self.orders {
                let _ = orders.try_send(Order::Draw(frame));
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.ended.recv_timeout(FAREWELL);
    }
}

/// Bytes a second, from one look to the next.
#[derive(Default)]
struct Traffic(Option<(Instant, u64, u64)>);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    /// To the gateway.
    up: u64,
    /// From the gateway.
    down: u64,
}

impl Traffic {
    fn observe(&mut self, status: &Status, now: Instant) -> Rates {
        let (sent, received) = (status.sent_bytes, status.received_bytes);
        let before = self.0.replace((now, sent, received));
        let Some((at, sent_before, received_before)) = before else {
            return Rates::default();
        };
        let seconds = now.duration_since(at).as_secs_f64().max(0.1);
        // A new session counts from nothing.
        let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds) as u64;
        Rates {
            up: rate(sent, sent_before),
            down: rate(received, received_before),
        }
    }
}

/// What a frame shows.
struct View<'a> {
    status: &'a Status,
    visitors: &'a [VisitorLine],
    messages: &'a [(u64, String)],
    rates: Rates,
    words: Words,
}

/// One line; headings are bold.
#[derive(Debug, PartialEq)]
struct Line(bool, String);

impl View<'_> {
    /// As many lines as there are rows, at most: endpoints and players leave room for the last messages.
    fn lines(&self, rows: usize) -> Vec<Line> {
        let pick = |english: &str, japanese: &str| self.words.pick(english.into(), japanese.into());
        let mut lines = self.head();
        lines.push(Line(false, String::new()));
        let room = rows.saturating_sub(lines.len() + 8).max(2);

        lines.push(Line(true, pick("Endpoints", "公開中のサーバー")));
        let endpoints = self.status.endpoints.iter().map(|endpoint| {
            let state = match (&endpoint.problem, &endpoint.address) {
                (Some(problem), _) => format!("!! {problem}"),
                (None, Some(address)) => pick(&format!("open at {address}"), &format!("{address} で公開中")),
                (None, None) => pick("not open", "公開していません"),
            };
            format!("{} ({}): {state}", endpoint.label, endpoint.target)
        });
        let shown = some_of(endpoints.collect(), (room / 2).max(1), self.words);
        let room = room.saturating_sub(shown.len()).max(1);
        lines.extend(shown);

        let players: Vec<&VisitorLine> = self.visitors.iter().filter(|v| v.player.is_some()).collect();
        let (count, others) = (players.len(), self.visitors.len() - players.len());
        let heading = self.words.pick(
            format!("Players: {count}, other connections: {others}"),
            format!("プレイヤー: {count}、その他の接続: {others}"),
        );
        lines.push(Line(true, heading));
        let players = players.into_iter().map(|player| {
            format!(
                "{:16} {:24} {:14} {:7} {:>9} {:>8} {:>10} {:>10}",
                player.player.as_deref().unwrap_or_default(),
                player.address.to_string(),
                player.endpoint,
                player.edition.map_or("-", Edition::name),
                delays(player.visitor_rtt_us, player.gateway_rtt_us),
                span(player.seconds),
                size(player.bytes_in),
                size(player.bytes_out)
            )
        });
        lines.extend(some_of(players.collect(), room, self.words));

        lines.push(Line(true, pick("Messages", "メッセージ")));
        let room = rows.saturating_sub(lines.len() + 1);
        let skip = self.messages.len().saturating_sub(room);
        lines.extend(self.messages.iter().skip(skip).map(|(age, text)| {
            let age = span(*age);
            Line(
                false,
                self.words
                    .pick(format!("  {age} ago: {text}"), format!("  {age}前: {text}")),
            )
        }));
        lines.truncate(rows.saturating_sub(1));
        lines.push(Line(
            false,
            pick(
                "Ctrl-C ends it. In another terminal: tasuki-agent kick, ban, doctor",
                "Ctrl-C で終了。別の端末から: tasuki-agent kick、ban、doctor",
            ),
        ));
        lines
    }

    /// Who we are, the way to the gateway, and what moves on it.
    fn head(&self) -> Vec<Line> {
        let status = self.status;
        let gateway = &status.gateway;
        let agent = status.agent.as_deref().unwrap_or("-");
        let way = match (&status.transport, &status.problem) {
            (Some(transport), _) if status.connected => {
                let (ms, since) = (
                    status.rtt_ms.unwrap_or_default(),
                    span(status.connected_s.unwrap_or_default()),
                );
                self.words.pick(
                    format!("connected for {since} over {transport}, {ms:.1} ms away"),
                    format!("接続中 ({since}): {transport}、往復 {ms:.1} ms"),
                )
            }
            (_, Some(problem)) => self.words.pick(
                format!("!! not connected: {problem}"),
                format!("!! 接続していません: {problem}"),
            ),
            _ => self.words.pick("connecting".into(), "接続しています".into()),
        };
        let (up, down) = (size(self.rates.up), size(self.rates.down));
        let (sent, received) = (size(status.sent_bytes), size(status.received_bytes));
        let traffic = self.words.pick(
            format!("traffic: {up}/s up, {down}/s down; {sent} sent and {received} received in this session"),
            format!("通信量: 上り {up}/s、下り {down}/s (このセッションで送信 {sent}、受信 {received})"),
        );
        vec![
            Line(true, format!("tasuki-agent {agent} → {gateway}")),
            Line(false, way),
            Line(false, traffic),
        ]
    }
}

/// From the player to the gateway, and from there to here.
fn delays(visitor_us: Option<u64>, gateway_us: Option<u64>) -> String {
    let ms = |us: Option<u64>| us.map_or_else(|| "?".into(), |us| format!("{:.0}", us as f64 / 1000.0));
    format!("{}+{} ms", ms(visitor_us), ms(gateway_us))
}

/// So many lines, the last of which says how many more there are.
fn some_of(all: Vec<String>, room: usize, words: Words) -> Vec<Line> {
    let total = all.len();
    let shown = if total > room {
        room.saturating_sub(1)
    } else {
        total
    };
    let mut lines: Vec<Line> = all
        .into_iter()
        .take(shown)
        .map(|text| Line(false, format!("  {text}")))
        .collect();
    if total > shown {
        let more = total - shown;
        lines.push(Line(
            false,
            words.pick(format!("  and {more} more"), format!("  ほか {more}")),
        ));
    }
    lines
}

/// All that is written for one look.
fn frame(lines: &[Line], columns: usize, rows: usize) -> String {
    let mut frame = HOME.to_owned();
    for (row, Line(is_heading, text)) in lines.iter().take(rows).enumerate() {
        if row > 0 {
            frame.push_str("\r\n");
        }
        let text = fitting(text, columns);
        match is_heading {
            true => frame.extend([BOLD, &text, USUAL]),
            false => frame.push_str(&text),
        }
        frame.push_str(CLEAR_LINE);
    }
    frame.push_str(CLEAR_BELOW);
    frame
}

/// Without what a terminal would obey, and no wider than the terminal.
fn fitting(text: &str, columns: usize) -> String {
    let mut width = 0;
    text.chars()
        .filter(|c| !c.is_control() && !turns_text_around(*c))
        .take_while(|c| {
            width += width_of(*c);
            width <= columns
        })
        .collect()
}

/// Controls of writing direction: with them a name could look like other words.
const fn turns_text_around(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Columns that a character takes: two for those of East Asia, as UAX #11 has it, and for pictures.
const fn width_of(c: char) -> usize {
    match c {
        '\u{300}'..='\u{36f}' | '\u{200b}'..='\u{200d}' | '\u{fe00}'..='\u{fe0f}' => 0,
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return match unit {
                "B" => format!("{bytes} B"),
                _ => format!("{value:.1} {unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tasuki_tunnel::agent::ServedLine;

    use super::*;

    fn status() -> Status {
        Status {
            gateway: "mc.example.org:7443".into(),
            connected: true,
            agent: Some("home".into()),
            software: None,
            address: None,
            transport: Some("QUIC".into()),
            rtt_ms: Some(12.34),
            connected_s: Some(190),
            sent_bytes: 3 << 20,
            received_bytes: 2048,
            problem: None,
            visitors: 0,
            endpoints: (0..30)
                .map(|n| ServedLine {
                    label: format!("tcp-{n}"),
                    address: Some(format!("mc.example.org:{n}")),
                    target: "127.0.0.1:25565".into(),
                    problem: None,
                })
                .collect(),
        }
    }

    fn visitor(name: &str) -> VisitorLine {
        VisitorLine {
            player: Some(name.to_owned()),
            address: "192.0.2.7:5000".parse().unwrap(),
            endpoint: "minecraft".into(),
            edition: Some(Edition::Java),
            visitor_rtt_us: Some(23_456),
            gateway_rtt_us: Some(12_340),
            local_rtt_us: None,
            seconds: 5,
            bytes_in: 10,
            bytes_out: 20,
        }
    }

    fn shown(status: &Status, visitors: &[VisitorLine], words: Words, rows: usize, columns: usize) -> String {
        let messages: Vec<(u64, String)> = (0..50).map(|n| (50 - n, format!("message {n}."))).collect();
        let rates = Rates { up: 1024, down: 5 };
        let view = View {
            status,
            visitors,
            messages: &messages,
            rates,
            words,
        };
        frame(&view.lines(rows), columns, rows)
    }

    #[test]
    fn every_frame_fits_the_terminal_and_shows_what_matters() {
        let visitors: Vec<VisitorLine> = (0..200).map(|n| visitor(&format!("Player{n}"))).collect();
        for rows in [1, 2, 5, 12, 24, 50, 200] {
            for columns in [1, 20, 80, 200] {
                let frame = shown(&status(), &visitors, Words::Japanese, rows, columns);
                assert!(frame.matches("\r\n").count() < rows, "{rows}");
                for line in frame.split("\r\n") {
                    let text = [HOME, BOLD, USUAL, CLEAR_LINE, CLEAR_BELOW]
                        .iter()
                        .fold(line.to_owned(), |text, code| text.replace(code, ""));
                    assert!(text.chars().map(width_of).sum::<usize>() <= columns, "{text}");
                }
            }
        }
        let frame = shown(&status(), &visitors, Words::English, 24, 120);
        for part in [
            "home → mc.example.org:7443",
            "connected for 3 min over QUIC, 12.3 ms away",
            "1.0 KiB/s up, 5 B/s down; 3.0 MiB sent and 2.0 KiB received",
            "open at mc.example.org:0",
            "Players: 200, other connections: 0",
            "Player0 ",
            "Java     23+12 ms",
            "more",
            "message 49.",
            "Ctrl-C",
        ] {
            assert!(frame.contains(part), "{part} in {frame}");
        }
    }

    #[test]
    fn names_and_words_of_others_cannot_command_the_terminal() {
        let evil = "a\x1b]0;owned\x07\u{9b}2J\r\n\u{202e}b";
        let mut status = status();
        status.problem = Some(evil.into());
        status.connected = false;
        status.endpoints[0].problem = Some(evil.into());
        let frame = shown(&status, &[visitor(evil)], Words::English, 40, 200);
        assert!(frame.contains("a]0;owned2Jb"), "{frame}");
        for control in ["\x1b]", "\x07", "\u{9b}", "\u{202e}"] {
            assert!(!frame.contains(control), "{control:?}");
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks_and_a_new_session_counts_anew() {
        let (mut traffic, mut status, now) = (Traffic::default(), status(), Instant::now());
        assert_eq!(traffic.observe(&status, now), Rates::default());
        status.sent_bytes += 4096;
        let rates = traffic.observe(&status, now + Duration::from_secs(2));
        assert_eq!(rates, Rates { up: 2048, down: 0 });
        (status.sent_bytes, status.received_bytes) = (10, 10);
        let rates = traffic.observe(&status, now + Duration::from_secs(3));
        assert_eq!(rates, Rates::default());
    }
}
