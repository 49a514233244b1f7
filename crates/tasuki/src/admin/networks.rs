//! Networks and devices that send without a login.

use std::collections::BTreeSet;

use tasuki_core::accounts::Grant;

use super::Admin;

/// For `status`: services whose networks may do less than the services themselves.
pub(super) async fn without_any_sender(admin: &Admin) -> Option<String> {
    admin.engines.mail.as_ref()?;
    let live = admin.live.load_full();
    let mail = &live.config.mail;
    let networks = mail.mynetworks.iter().map(|network| &network.service);
    let devices = mail.devices.list.iter().map(|device| &device.service);
    let mut named = Vec::new();
    for service in networks.chain(devices).collect::<BTreeSet<_>>() {
        let found = admin.accounts.by_name(service).await.ok().flatten();
        if found.is_some_and(|found| !found.disabled && found.grants.contains(&Grant::SendAsAny)) {
            named.push(service.as_str());
        }
    }
    (!named.is_empty()).then(|| {
        format!(
            "mail:send:* counts after a login only: the networks of mail.mynetworks and mail.devices that act as {} send as \
             the domains that it is granted by name",
            named.join(", ")
        )
    })
}
