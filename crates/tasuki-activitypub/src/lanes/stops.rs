//! What no longer goes out although it was accepted: a rule or a wish that came after it.

use tasuki_core::store::fedi::{Entry, EntryKind, ModerationEffect};
use tasuki_proto::activitypub::ids::{ActorId, Authority, ObjectId};

use super::lane::Common;
use crate::purge::takes_back;

/// Whether an entry is not sent to `receiver` any more: the host is blocked, or who wrote it is, or does not want to be
/// relayed. What takes something back still goes out, and the relay's own letters.
pub(super) fn is_stopped(common: &Common, receiver: Option<&Authority>, entry: &Entry) -> bool {
    if entry.kind == EntryKind::Control {
        return false;
    }
    let moderation = common.subscribers.moderation();
    let is_blocked = |host: &Authority| {
        let rule = moderation.host(host);
        rule.is_some_and(|rule| rule.effect == ModerationEffect::Block)
    };
    if receiver.is_some_and(is_blocked) {
        return true;
    }
    let is_out = |host: &Authority| is_blocked(host) || moderation.opt_out(host).is_some();
    let is_unwilling = |author: &ActorId| {
        let rule = moderation.actor(author);
        rule.is_some_and(|rule| rule.effect == ModerationEffect::Block)
            || common
                .keys
                .wants_no_relay(author, common.config.load().honor_indexable)
    };
    let object = ObjectId::parse(&entry.object).ok();
    let author = ActorId::parse(&entry.actor).ok();
    let stopped = object.is_some_and(|object| is_out(object.authority()))
        || author.is_some_and(|author| is_out(author.authority()) || is_unwilling(&author));
    stopped && !takes_back(entry)
}
