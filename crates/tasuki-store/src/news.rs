//! What a commit of this process tells those who follow the fediverse's subscriptions and its log.

use tokio::sync::watch;

/// Clones tell the same followers.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    pub(crate) subscriptions: watch::Sender<()>,
    pub(crate) log: watch::Sender<()>,
}

impl News {
    /// A commit may have changed subscriptions, and answered them with entries.
    pub(crate) fn tell_all(&self) {
        self.subscriptions.send_replace(());
        self.tell_log();
    }

    /// A commit may have appended to the log.
    pub(crate) fn tell_log(&self) {
        self.log.send_replace(());
    }
}
