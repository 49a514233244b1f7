#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use quinn::crypto::rustls::QuicServerConfig;
use tasuki_core::shutdown::Shutdown;
use tasuki_proto::tunnel::{
    Accepted, EndpointId, FromAgent, FromGateway, OpenReply, StreamHeader, StreamKind, encode_frame,
};

use super::{Agent, AgentConfig, AgentKey, LocalDoor, LocalEndpoint};
use crate::gateway::session::read_frame;
use crate::quic;
use crate::tls::{self, Identity};

/// What an agent with one TCP endpoint answers to a gateway that asks for `endpoint`.
async fn answer_to(endpoint: u32) -> OpenReply {
    let identity = Identity::from_pkcs8(&Identity::generate()).unwrap();
    let crypto = QuicServerConfig::try_from(tls::server_config(&identity).unwrap()).unwrap();
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(Arc::new(quic::gateway_transport(true)));
    let (socket, _) = quic::bind_udp("127.0.0.1:0".parse().unwrap(), 1 << 20).unwrap();
    let gateway = quic::endpoint(socket, Some(server)).unwrap();
    let home = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = AgentConfig {
        gateway: gateway.local_addr().unwrap().to_string(),
        pin: identity.fingerprint(),
        gso: true,
        socket_buffer: 1 << 20,
        max_connections: 10,
        connect_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_secs(5),
        endpoints: vec![LocalEndpoint {
            label: "tcp".into(),
            door: LocalDoor::Tcp(20_000),
            target: home.local_addr().unwrap().to_string(),
            proxy_protocol: false,
        }],
    };
    let key = AgentKey::from_pkcs8(&AgentKey::generate()).unwrap();
    let shutdown = Shutdown::new(Duration::from_secs(1));
    let agent = tokio::spawn(Agent::new(config, key, None).run(shutdown.clone(), |_| {}));

    let connection = gateway.accept().await.unwrap().await.unwrap();
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    let mut input = BytesMut::new();
    assert!(matches!(
        read_frame(&mut receive, &mut input).await,
        Ok(Some(FromAgent::Hello(_)))
    ));
    let accepted = Accepted {
        agent: "home".into(),
        software: "test".into(),
        max_endpoints: 4,
        enrolled: false,
    };
    send.write_all(&encode_frame(&FromGateway::Accepted(accepted)).unwrap())
        .await
        .unwrap();
    assert!(matches!(
        read_frame(&mut receive, &mut input).await,
        Ok(Some(FromAgent::Declare { .. }))
    ));
    let header = StreamHeader {
        kind: StreamKind::Tcp,
        endpoint: EndpointId(endpoint),
        visitor: "192.0.2.1:1".parse().unwrap(),
        door: "192.0.2.2:2".parse().unwrap(),
    };
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&header.encode()).await.unwrap();
    let mut byte = [0];
    receive.read_exact(&mut byte).await.unwrap();
    shutdown.begin();
    agent.await.unwrap().unwrap();
    OpenReply::from_byte(byte[0])
}

#[tokio::test]
async fn a_gateway_that_asks_for_what_was_not_declared_is_refused() {
    assert_eq!(answer_to(1).await, OpenReply::Connected);
    for endpoint in [0, 2, u32::MAX] {
        assert_eq!(answer_to(endpoint).await, OpenReply::NotDeclared, "{endpoint}");
    }
}
