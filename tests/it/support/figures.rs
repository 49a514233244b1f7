//! The gateway's own figures, as Prometheus scrapes them, and the sums that must hold in them.

use std::collections::BTreeMap;

use super::gateway::Gateway;
use super::{eventually, http};

/// One scrape: every sample without labels, by name.
#[derive(Clone, Debug)]
pub(crate) struct Figures(BTreeMap<String, i64>);

impl Figures {
    #[track_caller]
    pub(crate) fn of(gateway: &Gateway) -> Self {
        let answer = http::get(gateway.address("admin"), "localhost", "/metrics", "");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = answer.text();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let plain = samples.filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(plain.collect())
    }

    #[track_caller]
    pub(crate) fn value(&self, name: &str) -> usize {
        let found = self
            .0
            .get(name)
            .unwrap_or_else(|| panic!("no figure {name} in {self:?}"));
        usize::try_from(*found).unwrap_or_else(|_| panic!("{name} is {found}"))
    }

    /// Accepted + inherited = delivered + bounced + dropped + waiting.
    #[track_caller]
    pub(crate) fn mail_adds_up(&self) -> bool {
        self.sum(&TAKEN) == self.sum(&SETTLED) + self.value(WAITING)
    }

    #[track_caller]
    fn sum(&self, names: &[&str]) -> usize {
        names.iter().map(|name| self.value(name)).sum()
    }
}

const TAKEN: [&str; 2] = [
    "tasuki_mail_accepted_recipients_total",
    "tasuki_mail_inherited_recipients_total",
];
const SETTLED: [&str; 3] = [
    "tasuki_mail_delivered_recipients_total",
    "tasuki_mail_bounced_recipients_total",
    "tasuki_mail_dropped_recipients_total",
];
const WAITING: &str = "tasuki_mail_waiting_recipients";

/// Where the recipients of one life of the gateway are. Taken in this life, or found at its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MailFigures {
    pub(crate) accepted: usize,
    pub(crate) inherited: usize,
    pub(crate) delivered: usize,
    pub(crate) bounced: usize,
    pub(crate) dropped: usize,
}

/// Waits until no mail waits any more; then accepted = delivered + bounced + dropped, and the queue is empty.
#[track_caller]
pub(crate) fn all_mail_is_settled(gateway: &Gateway) -> MailFigures {
    let figures = eventually("every mail is settled", || {
        let queue = gateway.json(&["mail", "queue", "--json"]);
        let figures = Figures::of(gateway);
        (queue["queue"] == serde_json::json!([]) && figures.value(WAITING) == 0).then_some(figures)
    });
    assert!(figures.mail_adds_up(), "{figures:?}");
    MailFigures {
        accepted: figures.value("tasuki_mail_accepted_recipients_total"),
        inherited: figures.value("tasuki_mail_inherited_recipients_total"),
        delivered: figures.value("tasuki_mail_delivered_recipients_total"),
        bounced: figures.value("tasuki_mail_bounced_recipients_total"),
        dropped: figures.value("tasuki_mail_dropped_recipients_total"),
    }
}

/// Waits until every host has everything; then due = done + refused + parked + lost + blanked. Gives how many were done.
#[track_caller]
pub(crate) fn all_activities_are_delivered(gateway: &Gateway) -> usize {
    let figures = eventually("no host is behind", || {
        let figures = Figures::of(gateway);
        let due = figures.value("tasuki_fediverse_deliveries_due_total");
        let ended = figures.sum(&[
            "tasuki_fediverse_deliveries_done_total",
            "tasuki_fediverse_deliveries_refused_total",
            "tasuki_fediverse_deliveries_parked_total",
            "tasuki_fediverse_deliveries_lost_total",
            "tasuki_fediverse_deliveries_blanked_total",
        ]);
        let behind = figures.value("tasuki_fediverse_hosts_behind");
        (behind == 0 && due == ended).then_some(figures)
    });
    for way in ["refused", "parked", "lost"] {
        let name = format!("tasuki_fediverse_deliveries_{way}_total");
        assert_eq!(figures.value(&name), 0, "{figures:?}");
    }
    figures.value("tasuki_fediverse_deliveries_done_total")
}
