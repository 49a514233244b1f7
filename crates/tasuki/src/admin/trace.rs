//! A mail's whole story, from the queue while it waits and from the trail when it is gone.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{MailId, PrincipalId};
use tasuki_core::store::mail::{QueueFilter, QueueRow, QueueState};
use tasuki_core::store::trail::{
    End, Fate, NoticeKind, Received, Server, ToldStory, Traced, bare_message_id,
};
use tasuki_proto::names::{Mailbox, ReversePath};

use super::Admin;
use super::accounts::quoted;
use super::mail::shown_row;
use super::problem::{Answer, Params, Problem};

/// Mails whose story is told at once.
const STORIES: usize = 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    what: String,
}

/// The stories of the mails that an id, a recipient or a Message-ID names.
pub(super) async fn trace(
    State(admin): State<Arc<Admin>>,
    Params(asked): Params<Asked>,
) -> Answer<Json<Value>> {
    let meanings = meanings(&asked.what);
    let names = admin.names().await?;
    // The queue before the trail: a settlement moves a mail from the one to the other, and must not be missed in between.
    let mut waiting: BTreeMap<MailId, Vec<QueueRow>> = BTreeMap::new();
    for (_, filter) in &meanings {
        for row in admin.store.queue(filter, STORIES).await? {
            waiting.entry(row.mail).or_default();
        }
    }
    for (mail, rows) in &mut waiting {
        *rows = admin.rows_of(*mail).await?;
    }
    let mut gone: BTreeMap<MailId, Vec<ToldStory>> = BTreeMap::new();
    for (traced, _) in &meanings {
        for told in admin.store.trail(traced, STORIES).await? {
            let of_mail = gone.entry(told.story.mail).or_default();
            if !of_mail.contains(&told) {
                of_mail.push(told);
            }
        }
    }
    for mail in waiting.keys() {
        // Some of its recipients may be done with, and not be those that were asked for.
        if let Entry::Vacant(new) = gone.entry(*mail) {
            new.insert(admin.store.trail(&Traced::Mail(*mail), 1).await?);
        }
    }
    let mut stories = Vec::new();
    let newest = gone.len().saturating_sub(STORIES);
    for (mail, told) in gone.into_iter().skip(newest) {
        let mut rows = match waiting.remove(&mail) {
            Some(rows) => rows,
            None => admin.rows_of(mail).await?,
        };
        rows.retain(|row| !is_over(row, &told));
        stories.extend(story(mail, &told, &rows, &names));
    }
    let suppressed = admin.suppressed_of(&asked.what).await?;
    if stories.is_empty() && suppressed.is_empty() {
        return Err(Problem::missing(format!(
            "no mail {} waits or is remembered: it was never taken, or it is gone for longer than mail.trace.keep",
            quoted(&asked.what)
        )));
    }
    Ok(Json(json!({"stories": stories, "suppressed": suppressed})))
}

impl Admin {
    async fn rows_of(&self, mail: MailId) -> Answer<Vec<QueueRow>> {
        let filter = QueueFilter {
            mail: Some(mail),
            ..QueueFilter::default()
        };
        Ok(self.store.queue(&filter, 1_000).await?)
    }
}

/// Whether all of a delivery has ended since it was read.
fn is_over(row: &QueueRow, told: &[ToldStory]) -> bool {
    let of_row = told.iter().filter(|told| told.story.delivery == row.delivery);
    let ended: Vec<&Mailbox> = of_row
        .flat_map(|told| &told.story.fates)
        .flat_map(|fate| &fate.recipients)
        .collect();
    row.recipients.iter().all(|recipient| ended.contains(&recipient))
}

/// What the text may mean: an id; else a Message-ID, and also a recipient if it could be one.
fn meanings(what: &str) -> Vec<(Traced, QueueFilter)> {
    if let Some(mail) = what.parse().ok().filter(|_| !what.contains('@')) {
        let filter = QueueFilter {
            mail: Some(mail),
            ..QueueFilter::default()
        };
        return vec![(Traced::Mail(mail), filter)];
    }
    let id = bare_message_id(what).to_owned();
    let by_id = QueueFilter {
        message_id: Some(id.clone()),
        ..QueueFilter::default()
    };
    let mut meanings = vec![(Traced::MessageId(id), by_id)];
    if let Ok(mailbox) = Mailbox::parse_legacy(what) {
        let filter = QueueFilter {
            recipient: Some(what.to_owned()),
            ..QueueFilter::default()
        };
        meanings.push((Traced::Recipient(mailbox), filter));
    }
    meanings
}

/// What is known of a mail from its beginning, wherever it is now.
struct Beginning<'a> {
    accepted_at: Timestamp,
    reverse_path: &'a ReversePath,
    principal: Option<PrincipalId>,
    size_bytes: u64,
    received: Option<&'a Received>,
}

fn story(
    mail: MailId,
    told: &[ToldStory],
    rows: &[QueueRow],
    names: &BTreeMap<i64, String>,
) -> Option<Value> {
    let from_trail = told.first().map(|told| Beginning {
        accepted_at: told.story.accepted_at,
        reverse_path: &told.story.reverse_path,
        principal: told.story.principal,
        size_bytes: told.story.size_bytes,
        received: told.story.received.as_deref(),
    });
    let from_queue = || {
        rows.first().map(|row| Beginning {
            accepted_at: row.accepted_at,
            reverse_path: &row.reverse_path,
            principal: row.principal,
            size_bytes: row.size_bytes,
            received: row.received.as_deref(),
        })
    };
    let beginning = from_trail.or_else(from_queue)?;
    let mut events: Vec<(Timestamp, String)> = Vec::new();
    for one in told {
        events.extend(of_settlement(one));
    }
    for row in rows {
        let to = list(&row.recipients);
        events.extend(row.history.iter().map(|attempt| {
            let (n, lane, words) = (attempt.attempt, &attempt.lane.0, &attempt.words);
            let words = format!("attempt {n} for {to} through {lane} failed for now: {words}");
            (attempt.at, words)
        }));
    }
    events.sort_by_key(|(at, _)| *at);
    let mut text = vec![in_words(mail, &beginning, names)];
    let aliases: BTreeSet<String> = told
        .iter()
        .flat_map(|told| &told.story.aliases)
        .map(|(written, to)| format!("the alias {written} became {to}"))
        .collect();
    text.extend(aliases);
    text.extend(events.into_iter().map(|(at, words)| format!("{at}: {words}")));
    text.extend(rows.iter().map(|row| now_words(row, &list(&row.recipients))));
    let received = beginning.received;
    Some(json!({
        "mail": mail,
        "text": text,
        "accepted_at": beginning.accepted_at.to_string(),
        "sender": path(beginning.reverse_path),
        "written_sender": received.and_then(|r| r.sender.as_ref()).map(ToString::to_string),
        "principal": principal(&beginning, names),
        "login": received.is_some_and(|r| r.login),
        "client": received.and_then(|r| r.client).map(|client| client.to_string()),
        "helo": received.map(|r| r.helo.as_str()).filter(|helo| !helo.is_empty()),
        "tls": received.and_then(|r| r.tls.as_deref()),
        "message_id": received.and_then(|r| r.message_id.as_deref()),
        "notice_about": received.and_then(|r| r.notice_about),
        "size_bytes": beginning.size_bytes,
        "ended": told.iter().map(shown_settlement).collect::<Vec<_>>(),
        "deliveries": rows.iter().map(|row| shown_row(row, names)).collect::<Vec<_>>(),
    }))
}

fn path(path: &ReversePath) -> String {
    // The null reverse-path of reports is written as on the wire (RFC 5321 4.5.5).
    match path.to_string() {
        path if path.is_empty() => "<>".to_owned(),
        path => path,
    }
}

fn list(mailboxes: &[Mailbox]) -> String {
    let all: Vec<String> = mailboxes.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// Its name as it was then; else as it is now.
fn principal(beginning: &Beginning<'_>, names: &BTreeMap<i64, String>) -> Option<String> {
    let then = beginning.received.and_then(|r| r.principal.clone());
    then.or_else(|| {
        let id = beginning.principal?;
        let name = names.get(&id.0).cloned();
        Some(name.unwrap_or_else(|| format!("somebody who is gone (number {id})")))
    })
}

fn in_words(mail: MailId, beginning: &Beginning<'_>, names: &BTreeMap<i64, String>) -> String {
    let received = beginning.received;
    let mut words = match received.and_then(|r| r.notice_about) {
        Some(about) => format!("a notice of ours about {about}"),
        None if beginning.reverse_path.is_null() => "a report without a sender".to_owned(),
        None => format!("a mail from {}", beginning.reverse_path),
    };
    if let Some(written) = received.and_then(|r| r.sender.as_ref()) {
        words += &format!(" (written as {written})");
    }
    if let Some(name) = principal(beginning, names) {
        words += &format!(", handed in by {name}");
        words += match received {
            Some(received) if received.login => " after login",
            Some(_) => " without login",
            None => "",
        };
    }
    if let Some((client, received)) = received.and_then(|r| Some((r.client?, r))) {
        words += &format!(" from {client}");
        if !received.helo.is_empty() {
            words += &format!(" ({})", received.helo);
        }
        words += &match &received.tls {
            Some(tls) => format!(" over {tls}"),
            None => " without TLS".to_owned(),
        };
    }
    words += &format!(", {} bytes", beginning.size_bytes);
    if let Some(id) = received.and_then(|r| r.message_id.as_deref()) {
        words += &format!(", Message-ID <{id}>");
    }
    format!("{}: {words}, was taken as {mail}", beginning.accepted_at)
}

/// What a settlement tells, with its times.
fn of_settlement(told: &ToldStory) -> Vec<(Timestamp, String)> {
    let story = &told.story;
    let recipients: Vec<Mailbox> = story.fates.iter().flat_map(|f| f.recipients.clone()).collect();
    let to = list(&recipients);
    let mut events: Vec<(Timestamp, String)> = told
        .history
        .iter()
        .filter(|attempt| attempt.attempt < story.attempt || attempt.at < story.at)
        .map(|attempt| {
            let (n, lane, words) = (attempt.attempt, &attempt.lane.0, &attempt.words);
            let words = format!("attempt {n} for {to} through {lane} failed for now: {words}");
            (attempt.at, words)
        })
        .collect();
    for fate in &story.fates {
        let words = of_fate(fate, told);
        events.push((story.at, format!("{}: {words}", list(&fate.recipients))));
    }
    for notice in &story.notices {
        let what = match notice.kind {
            NoticeKind::Failed => "the failure",
            NoticeKind::Delayed => "the delay",
            NoticeKind::Relayed => "the relaying",
            NoticeKind::Delivered => "the delivery",
        };
        let words = format!("a notice of {what} goes to {} as mail {}", notice.to, notice.mail);
        events.push((story.at, words));
    }
    if story.notices.is_empty()
        && story
            .fates
            .iter()
            .any(|f| matches!(f.end, End::Bounced | End::Expired))
    {
        events.push((story.at, "nobody is told of the failure".to_owned()));
    }
    events
}

fn of_fate(fate: &Fate, told: &ToldStory) -> String {
    let through = match told.story.lane.0.strip_prefix("via:") {
        Some(name) => format!(" through the smarthost {name}"),
        None => String::new(),
    };
    let said = |server: &Option<Server>| match server {
        Some(server) => format!("{} said: {}", server.host, fate.words),
        None => fate.words.clone(),
    };
    let by = told
        .ordered_by
        .as_ref()
        .map_or_else(String::new, |who| format!(" by order of {who}"));
    match fate.end {
        End::Delivered | End::Relayed => {
            let verb = match fate.end {
                End::Delivered => "delivered into the mail store of",
                _ => "relayed to",
            };
            let server = fate
                .server
                .as_ref()
                .map_or_else(|| "the next hop".to_owned(), in_full);
            format!("{verb} {server}{through}, which answered: {}", fate.words)
        }
        End::Bounced => format!("given up for good{by}{through}: {}", said(&fate.server)),
        End::Expired => format!(
            "given up because its time was over{through}; last {}",
            said(&fate.server)
        ),
        End::Deleted => format!("deleted{by}"),
    }
}

fn in_full(server: &Server) -> String {
    let addr = server.addr.map_or_else(String::new, |addr| format!(" at {addr}"));
    let tls = match &server.tls {
        Some(tls) => format!(" over {tls}"),
        None => " without TLS".to_owned(),
    };
    format!("{}{addr}{tls}", server.host)
}

fn shown_settlement(told: &ToldStory) -> Value {
    let story = &told.story;
    let shown_server = |server: &Server| json!({"host": server.host, "addr": server.addr.map(|a| a.to_string()), "tls": server.tls});
    json!({
        "delivery": story.delivery,
        "at": story.at.to_string(),
        "attempt": story.attempt,
        "lane": story.lane,
        "ordered_by": told.ordered_by,
        "fates": story.fates.iter().map(|fate| json!({
            "recipients": fate.recipients,
            "end": fate.end,
            "words": fate.words,
            "server": fate.server.as_ref().map(shown_server),
        })).collect::<Vec<_>>(),
        "aliases": story.aliases.iter().map(|(written, to)| json!({"written": written, "to": to})).collect::<Vec<_>>(),
        "notices": story.notices.iter().map(|notice| json!({
            "mail": notice.mail, "to": notice.to, "kind": notice.kind,
        })).collect::<Vec<_>>(),
        "history": told.history.iter().map(|a| json!({
            "at": a.at.to_string(), "attempt": a.attempt, "lane": a.lane, "words": a.words,
        })).collect::<Vec<_>>(),
    })
}

fn now_words(row: &QueueRow, to: &str) -> String {
    let next = row
        .next_try
        .map_or_else(|| "soon".to_owned(), |at| format!("at {at}"));
    match row.state {
        QueueState::Fresh => format!("now: for {to} it is being tried through {}", row.lane.0),
        QueueState::Deferred => {
            let chosen = if row.rerouted {
                ", which an operator chose"
            } else {
                ""
            };
            let why = row
                .last_error
                .as_deref()
                .map_or_else(String::new, |e| format!(" (last: {e})"));
            format!(
                "now: for {to} it waits for {}{chosen}, is tried again {next} and given up at {}{why}",
                row.lane.0, row.expires_at
            )
        }
        QueueState::Held => format!(
            "now: for {to} it is held by an operator, and given up at {}",
            row.expires_at
        ),
        QueueState::Ending => {
            format!("now: for {to} it is about to be returned or deleted by an operator's order")
        }
    }
}
