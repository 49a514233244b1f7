//! The page at `/`: what this is and how to join, in English and Japanese.

use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::topic::Topic;

use crate::config::{FediConfig, Mode, TopicMode};
use crate::statistics::Statistics;

/// How each software joins: its names, and the step, where `{}` is the URL.
type Steps = [(&'static str, &'static str, Paste); 5];

/// Which URL an admin pastes.
#[derive(Clone, Copy)]
enum Paste {
    Inbox,
    Actor,
}

const STEPS_EN: Steps = [
    (
        "Mastodon, Hometown, glitch-soc",
        "Preferences → Administration → Relays → Add new relay: {}. Not in limited federation mode.",
        Paste::Inbox,
    ),
    (
        "Misskey, Sharkey, Cherrypick and other forks",
        "Control panel → Relays → Add relay: {}",
        Paste::Inbox,
    ),
    ("Iceshrimp.NET", "Administration → Relays: {}", Paste::Inbox),
    (
        "Pleroma, Akkoma",
        "In the shell: <code>mix pleroma.relay follow URL</code> (with an OTP release \
         <code>bin/pleroma_ctl relay follow URL</code>), where URL is {}",
        Paste::Actor,
    ),
    (
        "Friendica, NodeBB, WordPress and others",
        "Where the software asks for a relay: {}, or the inbox above if it wants that.",
        Paste::Actor,
    ),
];

const STEPS_JA: Steps = [
    (
        "Mastodon・Hometown・glitch-soc",
        "「ユーザー設定」→「管理」→「リレー」→「リレーを追加」: {}。連合制限モードでは参加できません。",
        Paste::Inbox,
    ),
    (
        "Misskey・Sharkey・Cherrypick などの派生",
        "「コントロールパネル」→「リレー」→「リレーの追加」: {}",
        Paste::Inbox,
    ),
    ("Iceshrimp.NET", "管理画面の「リレー」: {}", Paste::Inbox),
    (
        "Pleroma・Akkoma",
        "シェルで <code>mix pleroma.relay follow URL</code>（OTP リリースでは \
         <code>bin/pleroma_ctl relay follow URL</code>）。URL は {}",
        Paste::Actor,
    ),
    (
        "Friendica・NodeBB・WordPress など",
        "リレーの入力欄に {}。受信箱を求められた場合は上の URL。",
        Paste::Actor,
    ),
];

fn steps(steps: &Steps, inbox: &str, actor: &str) -> String {
    let one = |(software, step, paste): &(&str, &str, Paste)| {
        let url = match paste {
            Paste::Inbox => inbox,
            Paste::Actor => actor,
        };
        let step = step.replace("{}", &format!("<code>{url}</code>"));
        format!("<dt>{software}</dt>\n<dd>{step}</dd>\n")
    };
    steps.iter().map(one).collect()
}

/// The whole page; everything that an operator wrote is escaped.
pub(crate) fn page(
    relay: Option<&Relay>,
    config: &FediConfig,
    topics: &[(Topic, String)],
    peers: &[String],
    statistics: &Statistics,
) -> String {
    let name = escape(&config.name);
    let summary = escape(&config.summary);
    let join = match relay {
        Some(relay) => {
            let (inbox, actor) = (escape(&relay.inbox()), escape(&relay.actor_id()));
            let (mode_en, mode_ja) = mode_text(config.mode);
            format!(
                "<h2>Join</h2>\n<p>{mode_en}</p>\n<dl>\n{}</dl>\n\
                 <h2 lang=\"ja\">参加するには</h2>\n<p lang=\"ja\">{mode_ja}</p>\n<dl lang=\"ja\">\n{}</dl>\n",
                steps(&STEPS_EN, &inbox, &actor),
                steps(&STEPS_JA, &inbox, &actor),
            )
        }
        None => "<p>This relay has no public name yet: its operator has to set <code>server.host</code>.</p>\n\
                 <p lang=\"ja\">このリレーにはまだ公開名がありません。運営者は <code>server.host</code> を設定してください。</p>\n"
            .to_owned(),
    };
    let topics = relay.map_or_else(String::new, |relay| topic_part(relay, config, topics));
    let filter = match config.self_service && relay.is_some() {
        false => "",
        true => {
            "<p>Admins of joined instances choose what they receive, and any instance may opt out of being relayed: \
             <a href=\"/filter\">filter</a>. <span lang=\"ja\">参加サーバーの管理者は受け取る投稿を選べます。どのサーバーも中継の対象から外れることができます: \
             <a href=\"/filter\">フィルター</a>。</span></p>\n"
        }
    };
    let contact = match config.contact.is_empty() {
        true => String::new(),
        false => format!(
            "<p>Contact / <span lang=\"ja\">連絡先</span>: {}</p>\n",
            escape(&config.contact)
        ),
    };
    let rules: String = config
        .rules
        .iter()
        .map(|rule| format!("<li>{}</li>\n", escape(rule)))
        .collect();
    let rules = match rules.is_empty() {
        true => rules,
        false => format!("<h2>Rules / <span lang=\"ja\">ルール</span></h2>\n<ul>\n{rules}</ul>\n"),
    };
    let Statistics {
        since,
        instances,
        relayed,
        delivered,
        ..
    } = statistics;
    let list: String = peers
        .iter()
        .map(|peer| format!("<li>{}</li>\n", escape(peer)))
        .collect();
    let list = match list.is_empty() {
        true => String::new(),
        false => format!("<ul>\n{list}</ul>\n"),
    };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{name}</title>\n\
         <style>body{{max-width:42rem;margin:2rem auto;padding:0 1rem;font-family:sans-serif;line-height:1.6}}\
         code{{background:#eee;color:#111;padding:.2rem .4rem;overflow-wrap:anywhere}}</style>\n</head>\n<body>\n\
         <h1>{name}</h1>\n<p>{summary}</p>\n{join}{topics}{filter}{rules}{contact}\
         <h2>Instances / <span lang=\"ja\">参加サーバー</span>: {instances}</h2>\n{list}\
         <p>Since {since}: {relayed} posts and changes relayed, {delivered} deliveries (<a href=\"/stats.json\">stats.json</a>).</p>\n\
         <p lang=\"ja\">{since} から: 中継した投稿と変更 {relayed} 件、配送 {delivered} 件。</p>\n\
         <p><small>Tasuki {}</small></p>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Topics on the page at most: with more of them their list is in NodeInfo.
const MAX_TOPICS: usize = 200;

/// Actors of single hashtags, instances and languages.
fn topic_part(relay: &Relay, config: &FediConfig, topics: &[(Topic, String)]) -> String {
    let is_any = config.topics.mode == TopicMode::Any;
    if topics.is_empty() && !is_any {
        return String::new();
    }
    let item = |(topic, title): &(Topic, String)| {
        let title = match title.is_empty() {
            true => topic.to_string(),
            false => format!("{topic}: {title}"),
        };
        format!(
            "<li>{}: <code>{}</code></li>\n",
            escape(&title),
            escape(&relay.at(topic).inbox())
        )
    };
    let items: String = topics.iter().take(MAX_TOPICS).map(item).collect();
    let any = match is_any {
        false => String::new(),
        true => {
            let example = |name: &str| {
                let topic = Topic::parse(name).unwrap_or(Topic::All);
                escape(&relay.at(&topic).inbox())
            };
            format!(
                "<p>Any other hashtag, instance or language / <span lang=\"ja\">ほかのハッシュタグ・サーバー・言語</span>: \
                 <code>{}</code>, <code>{}</code>, <code>{}</code></p>\n",
                example("tag/cats"),
                example("instance/example.org"),
                example("lang/ja")
            )
        }
    };
    format!(
        "<h2>Topics</h2>\n<p>Only a part of it: add one of these in place of the URL above \
         (Pleroma, Akkoma: without <code>/inbox</code>).</p>\n\
         <p lang=\"ja\">一部の投稿だけを受け取るには、上の URL の代わりに次のいずれかを追加してください\
         （Pleroma、Akkoma では <code>/inbox</code> を除く）。</p>\n<ul>\n{items}</ul>\n{any}"
    )
}

fn mode_text(mode: Mode) -> (&'static str, &'static str) {
    match mode {
        Mode::Open => ("Every instance may join.", "どのサーバーでも参加できます。"),
        Mode::Approval => (
            "Each request is approved by hand: it stays pending until then.",
            "参加は手動で承認されます。承認されるまで「保留」と表示されます。",
        ),
        Mode::Allowlist => (
            "Only instances on the operator's list may join.",
            "運営者のリストにあるサーバーだけが参加できます。",
        ),
    }
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
