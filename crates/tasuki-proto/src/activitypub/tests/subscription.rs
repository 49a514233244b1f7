use super::activity;
use crate::activitypub::activity::Activity;
use crate::activitypub::actor::Actor;
use crate::activitypub::json::Limits;
use crate::activitypub::subscription::{
    Admission, Command, Ignored, State, Style, Subscription, handle_answer, handle_follow,
    handle_self_delete, handle_undo,
};

const RELAY: &str = "https://relay.example/actor";
const FRESH: &str = "https://relay.example/activities/fresh";

fn actor(id: &str, kind: &str) -> Actor {
    let body = format!(r#"{{"id":"{id}","type":"{kind}","inbox":"https://h.example/inbox"}}"#);
    Actor::read(body.as_bytes(), &Limits::default()).unwrap()
}

fn follow(id: &str, actor: &str, object: &str) -> Activity {
    activity(&format!(
        r#"{{"id":"https://h.example/{id}","type":"Follow","actor":"{actor}","object":"{object}"}}"#
    ))
}

const INSTANCE: &str = "https://h.example/actor";
const PLEROMA: &str = "https://h.example/relay";

fn public_follow(stored: Option<&Subscription>, id: &str, admission: Admission) -> Vec<Command> {
    let follow = follow(id, INSTANCE, "as:Public");
    handle_follow(
        stored,
        &follow,
        &actor(INSTANCE, "Application"),
        RELAY,
        admission,
        FRESH.into(),
    )
}

fn litepub_follow(stored: Option<&Subscription>, id: &str) -> Vec<Command> {
    let follow = follow(id, PLEROMA, RELAY);
    handle_follow(
        stored,
        &follow,
        &actor(PLEROMA, "Person"),
        RELAY,
        Admission::Open,
        FRESH.into(),
    )
}

fn stored(commands: &[Command]) -> Subscription {
    let Command::Store(subscription) = &commands[0] else {
        panic!("expected Store first: {commands:?}");
    };
    subscription.clone()
}

fn undo(actor: &str, object: &str) -> Activity {
    activity(&format!(
        r#"{{"id":"https://h.example/undo","type":"Undo","actor":"{actor}","object":{object}}}"#
    ))
}

#[test]
fn a_follow_of_public_is_stored_and_accepted_with_its_own_id() {
    let commands = public_follow(None, "f1", Admission::Open);
    let subscription = stored(&commands);
    assert_eq!(subscription.style, Style::Mastodon);
    assert_eq!(subscription.state, State::Active);
    assert_eq!(subscription.follow_id, "https://h.example/f1");
    assert_eq!(subscription.follow_object, "as:Public");
    assert_eq!(commands[1..], [Command::SendAccept(subscription.follow())]);
}

#[test]
fn a_repeated_follow_is_accepted_again_and_the_last_one_counts() {
    let first = stored(&public_follow(None, "f1", Admission::Open));
    let commands = public_follow(Some(&first), "f2", Admission::Open);
    let second = stored(&commands);
    assert_eq!(second.follow_id, "https://h.example/f2");
    assert_eq!(commands[1], Command::SendAccept(second.follow()));

    let stale = undo(
        INSTANCE,
        r#"{"id":"https://h.example/f1","type":"Follow","actor":"https://h.example/actor","object":"as:Public"}"#,
    );
    assert_eq!(
        handle_undo(Some(&second), &stale),
        [Command::Ignore(Ignored::StaleUndo)]
    );
    let by_id = undo(INSTANCE, r#""https://h.example/f2""#);
    assert_eq!(handle_undo(Some(&second), &by_id), [Command::Remove]);
}

#[test]
fn an_undo_names_the_stored_follow_by_object_or_by_id() {
    let subscription = stored(&public_follow(None, "f1", Admission::Open));
    for (object, leaves) in [
        (
            r#"{"id":"https://h.example/f1","type":"Follow","actor":"https://h.example/actor","object":"Public"}"#,
            true,
        ),
        (
            r#"{"type":"Follow","actor":"https://h.example/actor","object":"https://www.w3.org/ns/activitystreams#Public"}"#,
            true,
        ),
        (r#""https://h.example/f1""#, true),
        (
            r#"{"type":"Follow","actor":"https://h.example/actor","object":"https://relay.example/actor"}"#,
            false,
        ),
        (
            r#"{"id":"https://h.example/f1","type":"Announce","actor":"https://h.example/actor"}"#,
            false,
        ),
        (
            r#"{"id":"https://h.example/f1","type":"Follow","actor":"https://h.example/other"}"#,
            false,
        ),
        (r#""https://h.example/f0""#, false),
        (r#""as:Public""#, false),
    ] {
        let commands = handle_undo(Some(&subscription), &undo(INSTANCE, object));
        assert_eq!(commands == [Command::Remove], leaves, "{object}: {commands:?}");
    }
    let other = undo("https://h.example/users/mallory", r#""https://h.example/f1""#);
    assert_eq!(
        handle_undo(Some(&subscription), &other),
        [Command::Ignore(Ignored::NotTheSubscriber)]
    );
    assert_eq!(
        handle_undo(None, &other),
        [Command::Ignore(Ignored::NotSubscribed)]
    );
}

#[test]
fn a_litepub_follow_is_accepted_and_followed_back() {
    let commands = litepub_follow(None, "f1");
    let subscription = stored(&commands);
    assert_eq!(subscription.style, Style::LitePub);
    assert_eq!(commands[1], Command::SendAccept(subscription.follow()));
    let Command::SendFollowBack { id, actor, .. } = &commands[2] else {
        panic!("{commands:?}");
    };
    assert_eq!((id.as_str(), actor.as_str()), (FRESH, PLEROMA));

    let accept = |object: &str| {
        activity(&format!(
            r#"{{"id":"https://h.example/a","type":"Accept","actor":"{PLEROMA}","object":{object}}}"#
        ))
    };
    let by_id = handle_answer(Some(&subscription), &accept(&format!("\"{FRESH}\"")));
    assert!(stored(&by_id).follow_back.unwrap().accepted);
    let embedded = accept(&format!(
        r#"{{"id":"{FRESH}","type":"Follow","actor":"{RELAY}","object":"{PLEROMA}"}}"#
    ));
    let embedded = stored(&handle_answer(Some(&subscription), &embedded));
    assert!(embedded.follow_back.as_ref().unwrap().accepted);
    let foreign = handle_answer(
        Some(&subscription),
        &accept("\"https://relay.example/activities/other\""),
    );
    assert_eq!(foreign, [Command::Ignore(Ignored::UnknownFollow)]);

    // Accepted already: a repeated Follow is accepted, and not followed back again.
    assert_eq!(litepub_follow(Some(&embedded), "f2").len(), 2);
    // Not accepted yet: the same Follow goes out again.
    assert_eq!(litepub_follow(Some(&subscription), "f2").len(), 3);

    let leaves = handle_undo(Some(&subscription), &undo(PLEROMA, r#""https://h.example/f1""#));
    assert_eq!(leaves[0], Command::Remove);
    assert!(matches!(&leaves[1], Command::SendUndoFollowBack { id, .. } if id == FRESH));
}

#[test]
fn a_person_who_follows_the_relay_does_not_change_the_servers_subscription() {
    let instance = stored(&public_follow(None, "f1", Admission::Open));
    let person = "https://h.example/users/x";
    let commands = handle_follow(
        Some(&instance),
        &follow("p1", person, RELAY),
        &actor(person, "Person"),
        RELAY,
        Admission::Open,
        FRESH.into(),
    );
    assert!(
        matches!(commands.as_slice(), [Command::SendReject(follow)] if follow.id == "https://h.example/p1")
    );
}

#[test]
fn an_operator_decides_once() {
    let commands = public_follow(None, "f1", Admission::Approval);
    let pending = stored(&commands);
    assert_eq!((pending.state, commands.len()), (State::Pending, 1));
    let approved = pending.approve(FRESH.into());
    let active = stored(&approved);
    assert_eq!(active.state, State::Active);
    assert_eq!(approved[1], Command::SendAccept(active.follow()));
    let again = public_follow(Some(&active), "f2", Admission::Approval);
    assert_eq!(again.len(), 2);
    assert_eq!(
        active.reject(),
        [Command::Remove, Command::SendReject(active.follow())]
    );
}

#[test]
fn a_refused_host_is_told_so_and_forgotten() {
    let active = stored(&public_follow(None, "f1", Admission::Open));
    let commands = public_follow(Some(&active), "f2", Admission::Refused);
    assert_eq!(commands[0], Command::Remove);
    assert!(matches!(&commands[1], Command::SendReject(follow) if follow.id == "https://h.example/f2"));
    assert_eq!(public_follow(None, "f2", Admission::Refused).len(), 1);
}

#[test]
fn a_follow_of_somebody_else_is_not_for_the_relay() {
    let stray = follow("f1", INSTANCE, "https://other.example/actor");
    let commands = handle_follow(
        None,
        &stray,
        &actor(INSTANCE, "Application"),
        RELAY,
        Admission::Open,
        FRESH.into(),
    );
    assert_eq!(commands, [Command::Ignore(Ignored::NotForUs)]);
}

#[test]
fn a_deleted_instance_actor_ends_its_subscription() {
    let active = stored(&public_follow(None, "f1", Admission::Open));
    let delete = |actor: &str| {
        activity(&format!(
            r#"{{"id":"{actor}#delete","type":"Delete","actor":"{actor}","object":"{actor}"}}"#
        ))
    };
    assert_eq!(
        handle_self_delete(Some(&active), &delete(INSTANCE)),
        [Command::Remove]
    );
    assert_eq!(
        handle_self_delete(Some(&active), &delete("https://h.example/users/x")),
        [Command::Ignore(Ignored::NotTheSubscriber)]
    );
}
