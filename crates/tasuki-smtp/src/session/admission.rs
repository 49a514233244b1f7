//! Whether a client may speak at all, and who its network is, before it says a word.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tasuki_core::{
    EngineKind,
    accounts::Grant,
    acl::{Action, Question},
    bans::Standing,
    store::accounts::Principal,
};
use tasuki_proto::smtp::Reply;

use crate::{
    config::{Device, Role, Settings},
    context::Context,
};

/// The longest wait of an address that is slowed.
const SLOWEST: Duration = Duration::from_secs(10);

const NOT_A_DEVICE: Reply = Reply::new(554, (5, 7, 1), "no device is listed for your address");
const NO_ACCOUNTS: Reply = Reply::new(
    421,
    (4, 3, 0),
    "who may send cannot be looked up now, try again later",
);
const NO_SERVICE: Reply = Reply::new(
    421,
    (4, 3, 5),
    "the service of this device does not exist or is disabled",
);
const BANNED: Reply = Reply::new(554, (5, 7, 1), "your address is not welcome here for now");

/// A client that may speak.
#[derive(Default)]
pub(crate) struct Admitted {
    /// How long it waits first.
    pub(crate) slowed: Duration,
    /// The service that its network acts as.
    pub(crate) network: Option<Arc<Principal>>,
    /// The device that it is, at the devices' listener.
    pub(crate) device: Option<Arc<Device>>,
}

/// Ban, access rule, device, network.
pub(crate) async fn admit(
    context: &Context,
    settings: &Settings,
    role: Role,
    ip: IpAddr,
) -> Result<Admitted, Reply> {
    let mut admitted = Admitted::default();
    match context.deps.bans.standing(EngineKind::Mail, ip) {
        Standing::Clear => {}
        Standing::Slowed(by) => admitted.slowed = by.min(SLOWEST),
        Standing::Banned(_) => return Err(BANNED),
    }
    let question = Question {
        engine: EngineKind::Mail,
        action: Action::Connect,
        from: Some(ip),
        principal: None,
        domain: None,
    };
    if context.deps.acl.decide(&question).is_denied() {
        return Err(BANNED);
    }
    if role.is_for_devices() {
        let device = settings.device(ip).ok_or(NOT_A_DEVICE)?;
        let service = service_named(context, &device.service).await?;
        admitted.network = Some(service.ok_or(NO_SERVICE)?);
        admitted.device = Some(Arc::clone(device));
    } else if let Some(service) = settings.network_service(ip) {
        admitted.network = service_named(context, service).await?;
    }
    Ok(admitted)
}

/// The service that a network or device acts as. While the store is away nobody is a stranger for that: they come again.
async fn service_named(context: &Context, service: &str) -> Result<Option<Arc<Principal>>, Reply> {
    match context.deps.accounts.by_name(service).await {
        Ok(Some(principal)) if !principal.disabled => Ok(Some(by_network(principal))),
        Ok(_) => {
            tracing::warn!(
                service,
                "a network of mail.mynetworks or mail.devices names a service that does not exist or is disabled"
            );
            Ok(None)
        }
        Err(error) => {
            tracing::error!(%error, service, "the service of a network cannot be looked up");
            Err(NO_ACCOUNTS)
        }
    }
}

/// What a principal may do without a login: all but sending as any address. An address can be borrowed, by whoever joins the
/// network or stands behind its NAT, so it never speaks for the whole world.
pub(super) fn by_network(principal: Arc<Principal>) -> Arc<Principal> {
    if !principal.grants.contains(&Grant::SendAsAny) {
        return principal;
    }
    let mut principal = Arc::unwrap_or_clone(principal);
    principal.grants.retain(|grant| *grant != Grant::SendAsAny);
    Arc::new(principal)
}
