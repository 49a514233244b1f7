//! What the operator is told of routes and keys that do not work, in `status` and as events.

use tasuki_core::health::{Code, Condition};

use crate::context::Context;

/// A smarthost that does not work is ours to mend, so `status` tells of it; a stranger's server is not.
pub(super) fn report_route(context: &Context, lane: &str, trouble: Option<&str>) {
    let Some(name) = lane.strip_prefix("via:") else {
        return;
    };
    let sentence =
        |why| format!("smarthost {name} does not work ({why}); mail for it waits and is tried again");
    let condition = trouble.map(|why| Condition::warning(Code::RouteDown, sentence(why)));
    context.deps.health.set(&format!("mail.route.{name}"), condition);
}

/// One of a group: mail does not wait for it.
pub(super) fn report_smarthost(context: &Context, name: &str, trouble: Option<&str>) {
    let sentence = |why| format!("smarthost {name} does not work ({why}); others of its group carry on");
    let condition = trouble.map(|why| Condition::warning(Code::RouteDown, sentence(why)));
    context
        .deps
        .health
        .set(&format!("mail.smarthost.{name}"), condition);
    let route = format!("smarthost {name}");
    context.deps.events.emit(match trouble {
        Some(why) => tasuki_core::events::What::RouteDown {
            route,
            reason: why.to_owned(),
        },
        None => tasuki_core::events::What::RouteUp { route },
    });
}

/// Keys that cannot be read are ours to mend.
pub(super) fn report_keys(context: &Context, trouble: Option<&String>) {
    let sentence = |why| format!("mail cannot be signed ({why}); it waits until it can be");
    let condition = trouble.map(|why| Condition::warning(Code::Signing, sentence(why)));
    context.deps.health.set("mail.dkim", condition);
}
