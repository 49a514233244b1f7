//! What `doctor` found, and what it makes of the way to the gateway.

use std::fmt;

use tasuki_tunnel::agent::{PathReport, Seen};

use crate::words::Words;

/// UDP payloads below this are less than any usual home line passes (PPPoE and IPv4 over IPv6 leave 1400 and more).
const SMALL_BYTES: u16 = 1350;
/// Loss in percent that players feel.
const LOSS: f64 = 2.0;
/// Milliseconds that clocks may be apart.
const APART_MS: u64 = 30_000;

/// One finding, with what helps.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    level: Level,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Well,
    /// Works, but not as well as it could.
    Note,
    Bad,
}

pub(crate) const fn well(text: String) -> Finding {
    Finding {
        level: Level::Well,
        text,
    }
}

pub(crate) const fn note(text: String) -> Finding {
    Finding {
        level: Level::Note,
        text,
    }
}

pub(crate) const fn bad(text: String) -> Finding {
    Finding {
        level: Level::Bad,
        text,
    }
}

impl Finding {
    pub(crate) fn is_bad(&self) -> bool {
        self.level == Level::Bad
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.level {
            Level::Well => "ok  ",
            Level::Note => "note",
            Level::Bad => "BAD ",
        };
        write!(f, "{mark} {}", self.text)
    }
}

/// Size, loss, address translation and clock.
pub(crate) fn path(path: &PathReport, words: Words) -> Vec<Finding> {
    let mut found = vec![size(path.payload_bytes, words), loss(path, words)];
    if let Some(seen) = &path.seen {
        found.push(translation(path, seen, words));
        found.push(clock(seen.ahead_ms, words));
    }
    found
}

fn size(bytes: u16, words: Words) -> Finding {
    if bytes >= SMALL_BYTES {
        return well(words.pick(
            format!("packets of {bytes} bytes pass"),
            format!("{bytes} バイトのパケットが通ります"),
        ));
    }
    note(words.pick(
        format!(
            "packets above {bytes} bytes are lost on the way, and larger datagrams of UDP servers with them: is there a VPN, \
             or an MTU too high in the router? Set its MTU to {} or lower",
            u32::from(bytes) + 28
        ),
        format!(
            "{bytes} バイトを超えるパケットが途中で失われ、UDP サーバーの大きなデータグラムも届きません。VPN の有無を確認し、ル\
             ーターの MTU を {} 以下にしてください",
            u32::from(bytes) + 28
        ),
    ))
}

fn loss(path: &PathReport, words: Words) -> Finding {
    let (lost, sent) = (path.lost, path.sent.max(1));
    let percent = lost as f64 * 100.0 / sent as f64;
    if percent < LOSS {
        return well(words.pick(
            format!("{lost} of {sent} packets were lost"),
            format!("{sent} パケット中 {lost} パケットが失われました"),
        ));
    }
    bad(words.pick(
        format!(
            "{percent:.0}% of packets are lost ({lost} of {sent}): try a cable in place of Wi-Fi, stop uploads that fill the \
             line, then ask the provider"
        ),
        format!(
            "{percent:.0}% のパケットが失われています ({sent} 中 {lost})。Wi-Fi を有線に替える、回線を埋めるアップロードを止め\
             る、それでも続く場合はプロバイダーに相談してください"
        ),
    ))
}

fn translation(path: &PathReport, seen: &Seen, words: Words) -> Finding {
    let (own, there) = (path.own, seen.address);
    match seen.after_silence {
        _ if own == there => well(words.pick(
            format!("packets reach the gateway from this machine's own address {own}"),
            format!("ゲートウェイにはこの機械のアドレス {own} のまま届きます"),
        )),
        Some(after) if after != there => note(words.pick(
            format!(
                "the router forgets a UDP connection within 6 s ({there} became {after}); players stay, but raise its UDP \
                 timeout to 30 s or more"
            ),
            format!(
                "ルーターが UDP の通信を 6 秒以内に忘れます ({there} が {after} に)。接続は続きますが、ルーターの UDP タイ\
                 ムアウトを 30 秒以上にしてください"
            ),
        )),
        Some(_) => well(words.pick(
            format!("a router translates {own} to {there}, and remembers that for long enough"),
            format!("ルーターが {own} を {there} に変換し、十分な時間保持しています"),
        )),
        None => note(words.pick(
            format!(
                "a router translates {own} to {there}, but lets no second connection from the same port through; if the \
                 session is lost often, restart the router"
            ),
            format!(
                "ルーターが {own} を {there} に変換しますが、同じポートからの二つ目の接続が通りません。切断が多い場合はルータ\
                 ーを再起動してください"
            ),
        )),
    }
}

fn clock(ahead_ms: i64, words: Words) -> Finding {
    // What the gateway says may be any number.
    let apart_ms = ahead_ms.unsigned_abs();
    let seconds = apart_ms / 1000;
    if apart_ms < APART_MS {
        return well(words.pick(
            "the clock agrees with the gateway's".into(),
            "時計はゲートウェイと合っています".into(),
        ));
    }
    let (english, japanese) = if ahead_ms > 0 {
        ("behind", "遅れて")
    } else {
        ("ahead of", "進んで")
    };
    bad(words.pick(
        format!(
            "this clock is {seconds} s {english} the gateway's: switch time synchronisation on where it is wrong \
             (timedatectl set-ntp true)"
        ),
        format!(
            "この機械の時計はゲートウェイより {seconds} 秒{japanese}います。狂っている側で時刻同期を有効にしてください \
             (timedatectl set-ntp true)"
        ),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn report() -> PathReport {
        PathReport {
            rtt: Duration::from_millis(9),
            payload_bytes: 1452,
            sent: 210,
            lost: 0,
            own: "192.0.2.7:5000".parse().unwrap(),
            seen: Some(Seen {
                address: "192.0.2.7:5000".parse().unwrap(),
                ahead_ms: 20,
                after_silence: None,
            }),
        }
    }

    /// How many of the findings are notes and how many are bad.
    fn count(report: &PathReport) -> (usize, usize) {
        let found = path(report, Words::English);
        let of = |level| found.iter().filter(|finding| finding.level == level).count();
        (of(Level::Note), of(Level::Bad))
    }

    #[test]
    fn each_fault_of_the_way_is_told_apart() {
        assert_eq!(count(&report()), (0, 0));
        let (mut small, mut lossy, mut forgetful, mut late) = (report(), report(), report(), report());
        small.payload_bytes = 1280;
        lossy.lost = 10;
        forgetful.own = "10.0.0.2:5000".parse().unwrap();
        forgetful.seen.as_mut().unwrap().after_silence = "192.0.2.7:6000".parse().ok();
        late.seen.as_mut().unwrap().ahead_ms = 90_000;
        assert_eq!(count(&small), (1, 0));
        assert_eq!(count(&lossy), (0, 1));
        assert_eq!(count(&forgetful), (1, 0));
        assert_eq!(count(&late), (0, 1));
        for extreme in [i64::MIN, i64::MAX] {
            late.seen.as_mut().unwrap().ahead_ms = extreme;
            assert_eq!(count(&late), (0, 1));
        }
        forgetful.seen.as_mut().unwrap().after_silence = "192.0.2.7:5000".parse().ok();
        assert_eq!(count(&forgetful), (0, 0));
    }
}
