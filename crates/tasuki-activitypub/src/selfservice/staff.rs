//! Whom an instance names as its own people: the contact account of `/api/v1/instance` (Mastodon, and those that speak its
//! API), and the staff accounts of NodeInfo (Pleroma, Akkoma). Misskey itself names no account: its people use DNS.

use serde_json::Value;
use tasuki_proto::activitypub::actor::Actor;
use tasuki_proto::activitypub::ids::ActorId;
use tasuki_proto::activitypub::json::{self, Limits};

use crate::engine::Inner;
use crate::scout::nodeinfo_limits;

/// Largest document about the instance that is read, and staff accounts looked at.
const MAX_BYTES: usize = 256 * 1024;
const MAX_STAFF: usize = 100;

/// The accounts, by id or by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Staff {
    ids: Vec<String>,
    names: Vec<String>,
}

impl Staff {
    /// Whether an account of the instance itself is one of them.
    pub(super) fn names(&self, actor: &Actor) -> bool {
        let name = actor.preferred_username.as_deref().unwrap_or_default();
        self.ids.iter().any(|id| id == actor.id.as_str())
            || self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    fn read_instance(&mut self, document: &Value) {
        let account = &document["contact_account"];
        let text = |key: &str| account[key].as_str().map(str::to_owned);
        self.ids.extend(text("uri"));
        self.ids.extend(text("url"));
        // `acct` of a local account has no host.
        self.names
            .extend(text("acct").filter(|name| !name.is_empty() && !name.contains('@')));
    }

    fn read_nodeinfo(&mut self, document: &Value) {
        let accounts = document["metadata"]["staffAccounts"].as_array();
        let ids = accounts
            .into_iter()
            .flatten()
            .take(MAX_STAFF)
            .filter_map(Value::as_str);
        self.ids.extend(ids.map(str::to_owned));
    }
}

impl Inner {
    /// What the host of `account` says; nothing where it does not answer.
    pub(super) async fn staff_of(&self, account: &ActorId) -> Staff {
        let mut staff = Staff::default();
        let base = account.url();
        let instance = match base.join("/api/v1/instance") {
            Ok(url) => self.keys.plain_document(url).await.ok(),
            Err(_) => None,
        };
        let limits = Limits {
            bytes: MAX_BYTES,
            ..Limits::default()
        };
        if let Some(document) = instance.and_then(|bytes| json::read(&bytes, &limits).ok()) {
            staff.read_instance(&document);
        }
        let nodeinfo = self.nodeinfo_of(&base).await.ok();
        if let Some(document) = nodeinfo.and_then(|bytes| json::read(&bytes, &nodeinfo_limits()).ok()) {
            staff.read_nodeinfo(&document);
        }
        staff
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;
    use tasuki_proto::activitypub::actor::Actor;
    use tasuki_proto::activitypub::json::Limits;

    use super::Staff;

    #[test]
    fn only_whom_the_instance_names_is_staff() {
        let actor = |name: &str| {
            let document = json!({"id": format!("https://a.example/users/{name}"), "type": "Person", "preferredUsername": name});
            Actor::read(document.to_string().as_bytes(), &Limits::default()).unwrap()
        };
        let mut staff = Staff::default();
        assert!(!staff.names(&actor("admin")));
        staff
            .read_instance(&json!({"contact_account": {"acct": "Admin", "url": "https://a.example/@Admin"}}));
        staff.read_nodeinfo(&json!({"metadata": {"staffAccounts": ["https://a.example/users/mod"]}}));
        assert!(staff.names(&actor("admin")) && staff.names(&actor("mod")));
        assert!(!staff.names(&actor("mallory")));
        let mut remote = Staff::default();
        remote.read_instance(&json!({"contact_account": {"acct": "admin@b.example"}}));
        remote.read_instance(&json!({"contact_account": null}));
        assert!(!remote.names(&actor("admin")));
    }
}
