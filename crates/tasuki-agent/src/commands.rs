//! The home host's commands about their own endpoints: who is here, who must go, who may come.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tasuki_proto::minecraft::Edition;
use tasuki_tunnel::agent::{Rules, Status, VisitorLine, Who};

use crate::control::{Answer, Question, ask};
use crate::home::Home;
use crate::words::Words;
use crate::{Fail, IO, NOTHING};

/// Which running agent is meant.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// The directory that the agent runs from [default: the usual ones]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Listing {
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Someone {
    /// A player's name, an address, or a network
    #[arg(value_name = "WHO", value_parser = who)]
    who: Who,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
pub(crate) struct SomeoneOrList {
    /// A player's name, an address, or a network; without it the list is shown
    #[arg(value_name = "WHO", value_parser = who)]
    who: Option<Who>,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Args, Debug)]
pub(crate) struct Allow {
    #[command(flatten)]
    someone: SomeoneOrList,
    /// Take somebody off the list
    #[arg(long, requires = "who")]
    remove: bool,
}

fn who(text: &str) -> Result<Who, String> {
    text.parse()
        .map_err(|error: tasuki_tunnel::agent::NotAnybody| error.to_string())
}

impl Place {
    fn ask(self, question: &Question) -> Result<Answer, Fail> {
        ask(&Home::candidates(self.dir), question)
    }

    /// How the agent of this place stands, if one runs.
    pub(crate) fn status_of(dir: Option<PathBuf>) -> Result<Status, Fail> {
        match (Self { dir }).ask(&Question::Status)? {
            Answer::Status(status) => Ok(status),
            other => Err(strange(&other)),
        }
    }
}

fn strange(answer: &Answer) -> Fail {
    Fail::new(IO, format!("the agent's answer is none we know: {answer:?}"))
}

fn line(text: impl AsRef<str>) {
    // A reader that went away (`| head`) is not an error.
    let _ = writeln!(std::io::stdout().lock(), "{}", text.as_ref());
}

fn json(value: &impl Serialize) -> Result<(), Fail> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Fail::new(IO, error.to_string()))?;
    line(text);
    Ok(())
}

pub(crate) fn status(listing: Listing, words: Words) -> Result<(), Fail> {
    let status = Place::status_of(listing.place.dir)?;
    if listing.json {
        return json(&status);
    }
    let gateway = &status.gateway;
    line(match (&status.agent, &status.problem) {
        (Some(agent), _) if status.connected => {
            let transport = status.transport.as_deref().unwrap_or("?");
            let rtt = status.rtt_ms.unwrap_or_default();
            let since = span(status.connected_s.unwrap_or_default());
            words.pick(
                format!("connected to {gateway} as {agent} for {since}: {transport}, {rtt:.1} ms away"),
                format!("{gateway} に {agent} として接続中 ({since}): {transport}、往復 {rtt:.1} ms"),
            )
        }
        (_, Some(problem)) => words.pick(
            format!("not connected to {gateway}: {problem}"),
            format!("{gateway} に接続していません: {problem}"),
        ),
        _ => words.pick(
            format!("connecting to {gateway}"),
            format!("{gateway} に接続しています"),
        ),
    });
    for endpoint in &status.endpoints {
        let state = match (&endpoint.problem, &endpoint.address) {
            (Some(problem), _) => problem.clone(),
            (None, Some(address)) => words.pick(format!("open at {address}"), format!("{address} で公開中")),
            (None, None) => words.pick("not open".into(), "公開していません".into()),
        };
        line(format!("  {} ({}): {state}", endpoint.label, endpoint.target));
    }
    let visitors = status.visitors;
    line(words.pick(
        format!("{visitors} connections now"),
        format!("現在の接続数: {visitors}"),
    ));
    Ok(())
}

#[derive(Serialize)]
struct Players {
    players: Vec<VisitorLine>,
}

pub(crate) fn players(listing: Listing, words: Words) -> Result<(), Fail> {
    let players = match listing.place.ask(&Question::Players)? {
        Answer::Players(players) => players,
        other => return Err(strange(&other)),
    };
    if listing.json {
        return json(&Players { players });
    }
    if players.is_empty() {
        line(words.pick("nobody is here".into(), "誰も接続していません".into()));
        return Ok(());
    }
    line(format!(
        "{:16}  {:40}  {:20}  {:7}  {:>10}  {:>10}  {:>10}  {:>8}  {:>12}  {:>12}",
        "PLAYER",
        "ADDRESS",
        "ENDPOINT",
        "EDITION",
        "TO GATEWAY",
        "FROM THERE",
        "TO SERVER",
        "TIME",
        "BYTES IN",
        "BYTES OUT"
    ));
    for player in &players {
        let name: String = player
            .player
            .as_deref()
            .unwrap_or("-")
            .chars()
            .filter(|c| !c.is_control())
            .collect();
        line(format!(
            "{name:16}  {:40}  {:20}  {:7}  {:>10}  {:>10}  {:>10}  {:>8}  {:>12}  {:>12}",
            player.address.to_string(),
            player.endpoint,
            player.edition.map_or("-", Edition::name),
            delay(player.visitor_rtt_us),
            delay(player.gateway_rtt_us),
            delay(player.local_rtt_us),
            span(player.seconds),
            player.bytes_in,
            player.bytes_out
        ));
    }
    Ok(())
}

/// Microseconds as people read them.
fn delay(us: Option<u64>) -> String {
    us.map_or_else(|| "-".into(), |us| format!("{:.1} ms", us as f64 / 1000.0))
}

/// A time in words, to the minute.
pub(crate) fn span(seconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{:?}", Duration::from_secs(seconds)),
        (0, minutes) => format!("{minutes} min"),
        (hours, minutes) => format!("{hours} h {minutes:02}"),
    }
}

fn done(place: Place, question: &Question) -> Result<(bool, usize), Fail> {
    match place.ask(question)? {
        Answer::Done { changed, cut } => Ok((changed, cut)),
        other => Err(strange(&other)),
    }
}

pub(crate) fn kick(someone: Someone, words: Words) -> Result<(), Fail> {
    let who = someone.who;
    let (_, cut) = done(someone.place, &Question::Kick(who.clone()))?;
    if cut == 0 {
        return Err(Fail::new(
            NOTHING,
            words.pick(
                format!("{who} is not here; `tasuki-agent players` lists who is"),
                format!("{who} は接続していません。`tasuki-agent players` で一覧を確認できます"),
            ),
        ));
    }
    line(words.pick(
        format!("{who}: {cut} connections cut; `tasuki-agent ban {who}` keeps them out"),
        format!("{who}: {cut} 件の接続を切りました。締め出すには `tasuki-agent ban {who}`"),
    ));
    Ok(())
}

fn rules(
    listing: Listing,
    choose: impl Fn(Rules) -> Vec<Who>,
    name: &str,
    empty: String,
) -> Result<(), Fail> {
    let list = match listing.place.ask(&Question::Rules)? {
        Answer::Rules(rules) => choose(rules),
        other => return Err(strange(&other)),
    };
    if listing.json {
        return json(&std::collections::BTreeMap::from([(name, list)]));
    }
    if list.is_empty() {
        line(empty);
    }
    for who in list {
        line(who.to_string());
    }
    Ok(())
}

pub(crate) fn ban(someone: SomeoneOrList, words: Words) -> Result<(), Fail> {
    let Some(who) = someone.who else {
        let empty = words.pick("nobody is banned here".into(), "締め出しはありません".into());
        return rules(someone.listing, |rules| rules.banned, "banned", empty);
    };
    let (changed, cut) = done(someone.listing.place, &Question::Ban(who.clone()))?;
    line(match changed {
        true => words.pick(
            format!("{who} is banned; {cut} connections cut"),
            format!("{who} を締め出しました。{cut} 件の接続を切りました"),
        ),
        false => words.pick(
            format!("{who} was banned already"),
            format!("{who} は既に締め出されています"),
        ),
    });
    Ok(())
}

pub(crate) fn unban(someone: Someone, words: Words) -> Result<(), Fail> {
    let who = someone.who;
    match done(someone.place, &Question::Unban(who.clone()))? {
        (true, _) => line(words.pick(
            format!("{who} may come again"),
            format!("{who} の締め出しを解除しました"),
        )),
        (false, _) => {
            return Err(Fail::new(
                NOTHING,
                words.pick(
                    format!("{who} is not banned; `tasuki-agent ban` lists who is"),
                    format!("{who} は締め出されていません。`tasuki-agent ban` で一覧を確認できます"),
                ),
            ));
        }
    }
    Ok(())
}

pub(crate) fn allow(allow: Allow, words: Words) -> Result<(), Fail> {
    let Some(who) = allow.someone.who else {
        let empty = words.pick(
            "no list: everybody may come who is not banned".into(),
            "一覧はありません。締め出されていない人は誰でも参加できます".into(),
        );
        return rules(allow.someone.listing, |rules| rules.allowed, "allowed", empty);
    };
    let place = allow.someone.listing.place;
    let (changed, cut) = if allow.remove {
        done(place, &Question::Disallow(who.clone()))?
    } else {
        done(place, &Question::Allow(who.clone()))?
    };
    line(match (allow.remove, changed) {
        (false, true) => words.pick(
            format!("{who} is on the list of those who may come; {cut} connections of others cut"),
            format!("{who} を許可一覧に加えました。一覧にない {cut} 件の接続を切りました"),
        ),
        (true, true) => words.pick(
            format!("{who} is off the list; {cut} connections cut"),
            format!("{who} を許可一覧から外しました。{cut} 件の接続を切りました"),
        ),
        (false, false) => words.pick(
            format!("{who} was on the list already"),
            format!("{who} は既に許可一覧にあります"),
        ),
        (true, false) => {
            return Err(Fail::new(
                NOTHING,
                words.pick(
                    format!("{who} is not on the list; `tasuki-agent allow` shows it"),
                    format!("{who} は許可一覧にありません。`tasuki-agent allow` で確認できます"),
                ),
            ));
        }
    });
    Ok(())
}
