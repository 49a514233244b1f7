//! What the trail says in the end of mail that a test sent.

use tasuki_core::store::trail::{End, Fate, Traced};

use crate::support::House;

impl House {
    /// What became of the mail to this recipient, in the order in which it was settled.
    pub(crate) async fn fates(&self, to: &str) -> Vec<Fate> {
        use tasuki_core::store::TrailStore as _;
        let mailbox = to.parse().unwrap();
        let told = self.store.trail(&Traced::Recipient(mailbox), 10).await.unwrap();
        told.into_iter()
            .flat_map(|told| told.story.fates)
            .filter(|fate| {
                fate.recipients
                    .iter()
                    .any(|recipient| recipient.to_string() == to)
            })
            .collect()
    }

    /// The one way in which it ended for this recipient, and its TLS.
    pub(crate) async fn fate(&self, to: &str) -> (End, String, Option<String>) {
        let fates = self.fates(to).await;
        let [fate] = fates.as_slice() else {
            panic!("{to} has not one fate: {fates:?}");
        };
        let tls = fate.server.as_ref().and_then(|server| server.tls.clone());
        (fate.end, fate.words.clone(), tls)
    }
}
