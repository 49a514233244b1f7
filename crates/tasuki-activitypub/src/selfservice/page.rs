//! What the page at `/filter` shows, in English and Japanese.

use tasuki_core::store::fedi::HostFilter;
use tasuki_proto::activitypub::ids::Authority;

use super::token::{Challenge, Grant};
use super::words::Words;
use crate::page::escape;

/// Where in the steps somebody is.
pub(super) enum Step<'a> {
    /// Which instance?
    Begin,
    /// Prove it.
    Prove(&'a Challenge),
    /// Proven: the filter, and whether it is relayed.
    Set(&'a Grant, Own),
}

/// What a host that has proven itself sees and sets.
pub(super) struct Own {
    /// `None` where it is no subscriber.
    pub(super) filter: Option<HostFilter>,
    /// The domain that does not want to be relayed: its own, or one above it.
    pub(super) opted_out: Option<String>,
}

/// The name of the TXT record of a host.
pub(super) fn dns_name(host: &Authority) -> String {
    format!("_tasuki.{}", host.host())
}

/// The whole page.
pub(super) fn page(relay: &str, note: Option<&Words>, step: Step<'_>) -> String {
    let note = note.map_or_else(String::new, |words| {
        format!(
            "<p role=\"status\"><strong>{}</strong><br><strong lang=\"ja\">{}</strong></p>\n",
            escape(&words.en),
            escape(&words.ja)
        )
    });
    let body = match step {
        Step::Begin => begin(),
        Step::Prove(challenge) => prove(challenge),
        Step::Set(grant, own) => {
            let filter = own.filter.as_ref().map(|filter| set(grant, filter));
            filter.unwrap_or_default() + &opt_out(grant, own.opted_out.as_deref())
        }
    };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{name}: filter</title>\n\
         <style>body{{max-width:42rem;margin:2rem auto;padding:0 1rem;font-family:sans-serif;line-height:1.6}}\
         code{{background:#eee;color:#111;padding:.2rem .4rem;overflow-wrap:anywhere}}\
         label{{display:block;margin:.6rem 0}}input[type=text]{{width:100%;box-sizing:border-box}}</style>\n</head>\n<body>\n\
         <h1>{name}</h1>\n<h2>What your instance receives, and whether it is relayed / <span lang=\"ja\">受け取る投稿と、中継の可否</span></h2>\n{note}{body}\
         </body>\n</html>\n",
        name = escape(relay)
    )
}

fn both(en: &str, ja: &str) -> String {
    format!("{en} / <span lang=\"ja\">{ja}</span>")
}

fn begin() -> String {
    format!(
        "<form method=\"post\" action=\"/filter\">\n\
         <label>{}<input type=\"text\" name=\"host\" required maxlength=\"300\" placeholder=\"example.org\"></label>\n\
         <button>{}</button>\n</form>\n",
        both("Your instance's host", "サーバーのホスト名"),
        both("Next", "次へ")
    )
}

fn prove(challenge: &Challenge) -> String {
    let hidden = format!(
        "<input type=\"hidden\" name=\"host\" value=\"{}\">\n<input type=\"hidden\" name=\"expires\" value=\"{}\">\n\
         <input type=\"hidden\" name=\"nonce\" value=\"{}\">\n",
        escape(challenge.host.as_str()),
        challenge.expires.0,
        escape(&challenge.nonce)
    );
    format!(
        "<p>{}: <code>{}</code></p>\n\
         <h3>{}</h3>\n<p>{}</p>\n<form method=\"post\" action=\"/filter/prove\">\n{hidden}\
         <label>{}<input type=\"text\" name=\"post\" required maxlength=\"2048\" placeholder=\"https://{}/…\"></label>\n\
         <button>{}</button>\n</form>\n\
         <h3>{}</h3>\n<p>{}: <code>{} TXT \"{}\"</code></p>\n<form method=\"post\" action=\"/filter/prove\">\n{hidden}\
         <button>{}</button>\n</form>\n",
        both(
            "Show that you run this instance. The token is good for an hour",
            "このサーバーの管理者であることを示してください。トークンは一時間有効です"
        ),
        escape(&challenge.token),
        both("By a post", "投稿で"),
        both(
            "Post the token publicly with the account that your instance names as its contact, and give the post's address here. Delete it afterwards. Misskey does not say who its contact is: use DNS there.",
            "サーバーの連絡先として公開されているアカウントでトークンを公開投稿し、その URL を入れてください。確認後は削除してかまいません。Misskey は連絡先のアカウントを公開しないため、DNS を使ってください。"
        ),
        both("The post's address", "投稿の URL"),
        escape(challenge.host.as_str()),
        both("Check the post", "投稿を確認"),
        both("By DNS", "DNS で"),
        both("Make this record", "次のレコードを作成してください"),
        escape(&dns_name(&challenge.host)),
        escape(&challenge.token),
        both("Check DNS", "DNS を確認")
    )
}

fn set(grant: &Grant, filter: &HostFilter) -> String {
    let text = |name: &str, en: &str, ja: &str, value: &str| {
        format!(
            "<label>{}<input type=\"text\" name=\"{name}\" maxlength=\"4000\" value=\"{}\"></label>\n",
            both(en, ja),
            escape(value)
        )
    };
    let tick = |name: &str, en: &str, ja: &str, is_set: bool| {
        let checked = if is_set { " checked" } else { "" };
        format!(
            "<label><input type=\"checkbox\" name=\"{name}\"{checked}> {}</label>\n",
            both(en, ja)
        )
    };
    let per_minute = match filter.per_minute {
        0 => String::new(),
        n => n.to_string(),
    };
    let fields = [
        text(
            "languages",
            "Only these languages (ja en …; und: posts that do not say)",
            "この言語だけ (ja en など。und は言語の指定がない投稿)",
            &filter.languages.join(" "),
        ),
        text(
            "tags_in",
            "Only with one of these hashtags",
            "このハッシュタグがあるものだけ",
            &filter.tags_in.join(" "),
        ),
        text(
            "tags_out",
            "Not with these hashtags",
            "このハッシュタグがあるものを除く",
            &filter.tags_out.join(" "),
        ),
        tick("no_bots", "No bots", "ボットを除く", filter.no_bots),
        tick("no_replies", "No replies", "返信を除く", filter.no_replies),
        tick(
            "media_only",
            "Only with pictures, sound or film",
            "画像・音声・動画があるものだけ",
            filter.media_only,
        ),
        tick(
            "no_sensitive",
            "Nothing marked as sensitive",
            "閲覧注意のものを除く",
            filter.no_sensitive,
        ),
        text(
            "per_minute",
            "At most so many posts a minute, shared fairly between authors (empty: all)",
            "一分間の最大数。投稿者の間で公平に分けます (空欄はすべて)",
            &per_minute,
        ),
    ];
    format!(
        "<p><strong>{}</strong></p>\n<form method=\"post\" action=\"/filter/set\">\n{}{}\
         <button>{}</button>\n<button name=\"clear\" value=\"1\">{}</button>\n</form>\n<p>{}</p>\n",
        escape(grant.host.as_str()),
        granted(grant),
        fields.concat(),
        both("Keep", "保存"),
        both("Receive everything", "すべて受け取る"),
        both("Deletes always arrive.", "削除は常に届きます。")
    )
}

fn granted(grant: &Grant) -> String {
    format!(
        "<input type=\"hidden\" name=\"host\" value=\"{}\">\n<input type=\"hidden\" name=\"expires\" value=\"{}\">\n\
         <input type=\"hidden\" name=\"grant\" value=\"{}\">\n",
        escape(grant.host.as_str()),
        grant.expires.0,
        escape(&grant.seal)
    )
}

fn opt_out(grant: &Grant, opted_out: Option<&str>) -> String {
    let host = escape(grant.host.as_str());
    let (state, wish, button) = match opted_out {
        None => (
            both(
                &format!(
                    "Posts of {host} are relayed if somebody brings them. Opting out stops that, for all names below it too; \
                          what waits is taken out. Deletes always go on."
                ),
                &format!(
                    "{host} の投稿は、届けられれば中継されます。除外すると、下位のドメインも含めて中継されなくなり、待っている投稿も取り除かれます。削除は常に届きます。"
                ),
            ),
            "out",
            both("Do not relay us", "中継しない"),
        ),
        Some(domain) if domain == grant.host.as_str() => (
            both(
                &format!("Nothing of {host} is relayed, by its own wish."),
                &format!("{host} の投稿は、希望により中継されません。"),
            ),
            "in",
            both("Relay us again", "再び中継する"),
        ),
        Some(domain) => {
            let domain = escape(domain);
            return format!(
                "<h3>{}</h3>\n<p>{}</p>\n",
                both("Relaying", "中継"),
                both(
                    &format!(
                        "Nothing of {host} is relayed, by the wish of {domain}: prove that one to change it."
                    ),
                    &format!(
                        "{domain} の希望により、{host} の投稿は中継されません。変更するには {domain} を証明してください。"
                    ),
                )
            );
        }
    };
    format!(
        "<h3>{}</h3>\n<p>{state}</p>\n<form method=\"post\" action=\"/filter/opt-out\">\n{}\
         <button name=\"wish\" value=\"{wish}\">{button}</button>\n</form>\n",
        both("Relaying", "中継"),
        granted(grant)
    )
}
