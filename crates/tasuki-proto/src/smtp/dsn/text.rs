//! The part of a notice that people read.

use std::fmt::Write as _;

use super::{Action, MAX_RECIPIENTS, Notice};
use crate::smtp::rfc5322_date;

pub(super) fn subject(action: Action) -> &'static str {
    match action {
        Action::Failed => "Undelivered mail returned to sender",
        Action::Delayed => "Your mail is delayed (still being tried)",
        Action::Relayed | Action::Delivered => "Your mail was delivered",
    }
}

pub(super) fn body(notice: &Notice<'_>) -> String {
    let (english, japanese) = opening(notice);
    let mut out = format!(
        "This is the mail relay at {}.\r\n\r\n{english}\r\n\r\n",
        notice.reporting_mta
    );
    push_recipients(&mut out, notice);
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "\r\n----\r\n\r\nこちらはメール中継サーバー {} です。\r\n\r\n{japanese}\r\n\r\n",
        notice.reporting_mta
    );
    push_recipients(&mut out, notice);
    let _ = write!(
        out,
        "\r\nMail ID: {}\r\nArrival / 受付日時: {}\r\n",
        notice.mail_id,
        rfc5322_date(notice.arrival)
    );
    out
}

fn opening(notice: &Notice<'_>) -> (String, String) {
    match notice.action {
        Action::Failed => (
            "Your mail could not be delivered to the recipients below, and will not be tried again.\r\n\
             The reason stands beside each; correct it (often the address) and send the mail again."
                .to_owned(),
            "下記の宛先にメールを届けられませんでした。再送は行いません。\r\n\
             それぞれに記した理由(多くは宛先の誤り)を確認し、改めて送信してください。"
                .to_owned(),
        ),
        Action::Delayed => {
            let until = notice.will_retry_until.map(rfc5322_date).unwrap_or_default();
            (
                format!(
                    "Your mail could not be delivered to the recipients below yet.\r\n\
                     You need not send it again: it is being tried until {until}."
                ),
                format!(
                    "下記の宛先にまだメールを届けられていません。\r\n\
                     再送信の必要はありません。{until} まで自動的に再試行します。"
                ),
            )
        }
        Action::Relayed => (
            "Your mail was handed to the mail server of the recipients below.\r\n\
             That server sends no notices of its own, so this is the last one."
                .to_owned(),
            "下記の宛先のメールサーバーへメールを引き渡しました。\r\n\
             相手サーバーは通知を行わないため、これが最後の通知です。"
                .to_owned(),
        ),
        Action::Delivered => (
            "Your mail was delivered to the recipients below.".to_owned(),
            "下記の宛先へメールを配送しました。".to_owned(),
        ),
    }
}

fn push_recipients(out: &mut String, notice: &Notice<'_>) {
    for recipient in notice.recipients.iter().take(MAX_RECIPIENTS) {
        let _ = write!(out, "  <{}>\r\n", recipient.mailbox);
        let reason = recipient.diagnostic.as_deref().map(super::one_line);
        match (&recipient.remote_mta, reason) {
            (Some(remote), Some(reason)) => {
                let _ = write!(out, "    {}: {reason}\r\n", super::one_line(remote));
            }
            (None, Some(reason)) => {
                let _ = write!(out, "    {reason}\r\n");
            }
            _ => {}
        }
    }
}
