//! Who may hold a session, and what it may expose.

use tasuki_proto::tunnel::{CloseCode, EndpointState, RefusedEndpoint};
use tasuki_tunnel::agent::{AgentKey, Final, LocalDoor, Notice};

use crate::world::{ANY_PORT, Running, World, echo, exchange, minecraft_to, new_key, soon, tcp_to};

async fn refusal(agent: Running) -> CloseCode {
    match agent.ended().await {
        Err(Final::Refused { code, .. }) => code,
        other => panic!("not refused: {other:?}"),
    }
}

fn connected(notice: Notice) -> Option<bool> {
    match notice {
        Notice::Connected { enrolled, .. } => Some(enrolled),
        _ => None,
    }
}

#[tokio::test]
async fn a_code_enrols_one_key_once_and_the_key_needs_none_after() {
    let world = World::start().await;
    let code = world.code("home", &[ANY_PORT]).await;
    let der = AgentKey::generate();
    let key = || AgentKey::from_pkcs8(&der).unwrap();
    let mut first = Running::start(world.config(vec![]), key(), Some(code.clone()));
    assert!(first.notice("the enrolment", connected).await);
    first.stop().await;
    let mut again = Running::start(world.config(vec![]), key(), None);
    assert!(!again.notice("the second session", connected).await);
    let thief = Running::start(world.config(vec![]), new_key(), Some(code));
    assert_eq!(refusal(thief).await, CloseCode::BadCode);
}

#[tokio::test]
async fn a_wrong_code_an_unknown_key_and_a_wrong_pin_are_refused_for_good() {
    let world = World::start().await;
    let guess = Running::start(world.config(vec![]), new_key(), Some("not-a-code".into()));
    assert_eq!(refusal(guess).await, CloseCode::BadCode);
    let stranger = Running::start(world.config(vec![]), new_key(), None);
    assert_eq!(refusal(stranger).await, CloseCode::UnknownKey);
    let mut config = world.config(vec![]);
    config.pin = new_key().fingerprint();
    assert_eq!(
        Running::start(config, new_key(), None).ended().await,
        Err(Final::WrongKey)
    );
}

#[tokio::test]
async fn a_wrong_key_after_a_good_session_is_tried_again_until_the_gateway_is_back() {
    let world = World::start().await;
    let (quic, code) = (world.quic, world.code("home", &[ANY_PORT]).await);
    let mut agent = Running::start(world.config(vec![]), new_key(), Some(code));
    agent.notice("the session", connected).await;
    let asleep = world.pause().await;
    // Somebody else has the gateway's address for a while.
    let stranger = World::on(quic).await;
    agent
        .notice("the wrong key", |notice| match notice {
            Notice::Lost { reason, .. } => reason.contains("another key than the pinned one").then_some(()),
            _ => None,
        })
        .await;
    stranger.stop().await;
    let _world = asleep.wake().await;
    assert!(!agent.notice("the session after", connected).await);
    agent.stop().await;
}

#[tokio::test]
async fn a_gateway_met_in_an_earlier_run_may_show_a_wrong_key_for_a_while() {
    let world = World::start().await;
    let mut config = world.config(vec![]);
    config.pin = new_key().fingerprint();
    let mut agent = Running::start_met(config, new_key());
    agent
        .notice("the wrong key", |notice| {
            matches!(notice, Notice::Lost { .. }).then_some(())
        })
        .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_port_stays_its_owners_over_a_restart_of_the_gateway() {
    let world = World::start().await;
    let mut owner = world.agent(&[ANY_PORT], vec![tcp_to(echo().await)]).await;
    let port = owner.open_port().await;
    owner.stop().await;
    let world = world.pause().await.wake().await;
    // Another agent that asks for any port comes first, while the owner is away.
    let code = world.code("other", &[ANY_PORT]).await;
    let mut other = Running::start(
        world.config(vec![tcp_to(echo().await)]),
        new_key(),
        Some(code.clone()),
    );
    assert_ne!(other.open_port().await, port);
    other.stop().await;
    // And one that asks for this very port.
    let mut endpoint = tcp_to(echo().await);
    (endpoint.label, endpoint.door) = ("mine".into(), LocalDoor::Tcp(port.port()));
    let code = world.code("thief", &[ANY_PORT]).await;
    let mut thief = Running::start(world.config(vec![endpoint]), new_key(), Some(code));
    match thief.endpoint().await {
        EndpointState::Refused { reason, .. } => assert_eq!(reason, RefusedEndpoint::Taken),
        state => panic!("{state:?}"),
    }
}

#[tokio::test]
async fn exposing_without_a_grant_is_refused() {
    let world = World::start().await;
    let mut agent = world
        .agent(
            &["tunnel:name:example.org"],
            vec![tcp_to(echo().await), minecraft_to(None, echo().await)],
        )
        .await;
    for _ in 0..2 {
        match agent.endpoint().await {
            EndpointState::Refused { reason, .. } => assert_eq!(reason, RefusedEndpoint::NotGranted),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_name_that_another_agent_owns_is_taken() {
    let world = World::start().await;
    let grant = ["tunnel:name:mc.example.org"];
    let endpoint = || async { vec![minecraft_to(Some("mc.example.org"), echo().await)] };
    let mut owner = world.agent(&grant, endpoint().await).await;
    assert!(matches!(owner.endpoint().await, EndpointState::Open { .. }));
    let code = world.code("other", &grant).await;
    let mut other = Running::start(world.config(endpoint().await), new_key(), Some(code));
    match other.endpoint().await {
        EndpointState::Refused { reason, .. } => assert_eq!(reason, RefusedEndpoint::Taken),
        state => panic!("{state:?}"),
    }
}

#[tokio::test]
async fn an_agent_comes_back_by_itself_with_the_same_port() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(echo().await)]).await;
    let port = agent.open_port().await;
    assert_eq!(exchange(port, b"before").await, b"before");
    let line = world.handle.agents().remove(0);
    assert_eq!((line.name.as_str(), line.endpoints.len()), ("home", 1));
    assert!(world.handle.disconnect(line.agent));
    agent
        .notice("the loss", |notice| {
            matches!(notice, Notice::Lost { .. }).then_some(())
        })
        .await;
    assert_eq!(agent.open_port().await, port);
    assert_eq!(exchange(port, b"after").await, b"after");
}

#[tokio::test]
async fn a_newer_session_of_the_same_key_takes_over() {
    let world = World::start().await;
    let code = world.code("home", &[ANY_PORT]).await;
    let der = AgentKey::generate();
    let config = world.config(vec![tcp_to(echo().await)]);
    let mut old = Running::start(config.clone(), AgentKey::from_pkcs8(&der).unwrap(), Some(code));
    let port = old.open_port().await;
    let mut new = Running::start(config, AgentKey::from_pkcs8(&der).unwrap(), None);
    assert_eq!(refusal(old).await, CloseCode::Replaced);
    assert_eq!(new.open_port().await, port);
    assert_eq!(exchange(port, b"new").await, b"new");
}

#[tokio::test]
async fn a_revoked_agent_is_cut_at_once() {
    let world = World::start().await;
    let mut agent = world.agent(&[ANY_PORT], vec![tcp_to(echo().await)]).await;
    agent.open_port().await;
    assert!(world.handle.revoke(world.handle.agents()[0].agent));
    assert_eq!(refusal(agent).await, CloseCode::Revoked);
    soon("the table", async {
        while !world.handle.agents().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
