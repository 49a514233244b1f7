#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tasuki_core::shutdown::Shutdown;
use tasuki_proto::tunnel::{
    Accepted, Datagram, EndpointId, FlowId, FromAgent, FromGateway, OpenReply, StreamHeader, StreamKind,
    encode_frame,
};

use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

use super::{Agent, AgentConfig, AgentKey, Final, LocalDoor, LocalEndpoint};
use crate::frames::read_frame;
use crate::quic;
use crate::tls::{self, Identity};
use crate::transport::Transport;

/// A gateway of the test's own, with an agent that declared a TCP endpoint (1) and a UDP endpoint (2).
struct Asking {
    connection: Connection,
    shutdown: Shutdown,
    agent: JoinHandle<Result<(), Final>>,
    /// The local UDP server.
    local: UdpSocket,
    _control: (SendStream, RecvStream),
    _home: TcpListener,
    _gateway: Endpoint,
}

impl Asking {
    async fn start() -> Self {
        let identity = Identity::from_pkcs8(&Identity::generate()).unwrap();
        let crypto = QuicServerConfig::try_from(tls::server_config(&identity).unwrap()).unwrap();
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(Arc::new(quic::gateway_transport(true)));
        let (socket, _) = quic::bind_udp("127.0.0.1:0".parse().unwrap(), 1 << 20).unwrap();
        let gateway = quic::endpoint(socket, Some(server)).unwrap();
        let home = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let endpoint = |door: LocalDoor, target: SocketAddr| {
            LocalEndpoint::new(format!("{door:?}"), door, target.to_string())
        };
        let config = AgentConfig {
            gateway: gateway.local_addr().unwrap().to_string(),
            tls: None,
            transport: Some(Transport::Quic),
            proxy: None,
            networks: Vec::new(),
            pin: identity.fingerprint(),
            gso: true,
            socket_buffer: 1 << 20,
            max_connections: 10,
            connect_timeout: Duration::from_secs(2),
            stall_timeout: Duration::from_secs(5),
            drain: Duration::ZERO,
            endpoints: vec![
                endpoint(LocalDoor::Tcp(20_000), home.local_addr().unwrap()),
                endpoint(LocalDoor::Udp(20_000), local.local_addr().unwrap()),
            ],
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
            resume: None,
            holds: true,
        };
        send.write_all(&encode_frame(&FromGateway::Accepted(accepted)).unwrap())
            .await
            .unwrap();
        assert!(matches!(
            read_frame(&mut receive, &mut input).await,
            Ok(Some(FromAgent::Declare { .. }))
        ));
        Self {
            connection,
            shutdown,
            agent,
            local,
            _control: (send, receive),
            _home: home,
            _gateway: gateway,
        }
    }

    /// What the agent answers to a visitor's stream for this endpoint.
    async fn stream_to(&self, endpoint: u32) -> OpenReply {
        let (mut send, mut receive) = self.connection.open_bi().await.unwrap();
        send.write_all(&header(StreamKind::Tcp, endpoint).encode())
            .await
            .unwrap();
        let mut byte = [0];
        receive.read_exact(&mut byte).await.unwrap();
        OpenReply::from_byte(byte[0])
    }

    fn datagram(&self, datagram: &Datagram) {
        self.connection.send_datagram(datagram.encode()).unwrap();
    }

    async fn end(self) {
        self.shutdown.begin();
        self.agent.await.unwrap().unwrap();
    }
}

fn header(kind: StreamKind, endpoint: u32) -> StreamHeader {
    StreamHeader {
        kind,
        endpoint: EndpointId(endpoint),
        visitor: "192.0.2.1:1".parse().unwrap(),
        door: "192.0.2.2:2".parse().unwrap(),
        player: None,
        flow: None,
    }
}

#[tokio::test]
async fn a_gateway_that_asks_for_what_was_not_declared_is_refused() {
    let asking = Asking::start().await;
    assert_eq!(asking.stream_to(1).await, OpenReply::Connected);
    // The UDP endpoint is none for streams.
    for endpoint in [0, 2, 3, u32::MAX] {
        assert_eq!(
            asking.stream_to(endpoint).await,
            OpenReply::NotDeclared,
            "{endpoint}"
        );
    }
    asking.end().await;
}

#[tokio::test]
async fn datagrams_reach_only_the_declared_udp_server_and_unknown_flows_are_told() {
    let asking = Asking::start().await;
    let open = |flow, endpoint, payload: &'static str| Datagram::Open {
        flow: FlowId(flow),
        header: header(StreamKind::Udp, endpoint),
        payload: payload.into(),
    };
    // To the TCP endpoint and to none; then a flow that was never opened, and nonsense.
    asking.datagram(&open(1, 1, "to the TCP endpoint"));
    asking.datagram(&open(2, 9, "to nobody"));
    let unopened = Datagram::Data {
        flow: FlowId(3),
        payload: "unopened".into(),
    };
    asking.datagram(&unopened);
    asking
        .connection
        .send_datagram(Bytes::from_static(b"\xff"))
        .unwrap();
    asking.datagram(&open(4, 2, "hello"));
    let mut buffer = [0; 100];
    let (length, from) = asking.local.recv_from(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..length], b"hello");
    asking.local.send_to(b"welcome", from).await.unwrap();
    let mut answers = Vec::new();
    while answers.len() < 2 {
        answers.push(Datagram::decode(asking.connection.read_datagram().await.unwrap()).unwrap());
    }
    assert_eq!(
        answers,
        [
            Datagram::Unknown { flow: FlowId(3) },
            Datagram::Data {
                flow: FlowId(4),
                payload: "welcome".into()
            }
        ]
    );
    asking.end().await;
}
