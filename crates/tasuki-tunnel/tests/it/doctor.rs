//! What the doctors learn: of the way between home and gateway, and of names in the DNS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, CNAME, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tasuki_tunnel::agent::{GatewayProbe, PathReport, probe_front_door, probe_gateway};
use tasuki_tunnel::{JAVA, Leads, Published};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use crate::path::{Faults, Router};
use crate::world::{World, new_key};

async fn report_of(world: &World, gateway: SocketAddr) -> PathReport {
    let mut config = world.config(Vec::new());
    config.gateway = gateway.to_string();
    config.gso = false;
    match probe_gateway(&config, &new_key()).await {
        GatewayProbe::Answers { path, .. } => path,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_good_way_is_seen_as_it_is() {
    let world = World::start().await;
    let path = report_of(&world, world.quic).await;
    assert_eq!(path.lost, 0, "{path:?}");
    assert!(path.sent >= 200 && path.payload_bytes >= 1400, "{path:?}");
    let seen = path.seen.unwrap();
    assert_eq!(seen.address, path.own);
    assert!(seen.ahead_ms.abs() < 5_000, "{seen:?}");
    assert!(seen.after_silence.is_none(), "there is no router to look at");
}

#[tokio::test]
async fn loss_small_packets_and_a_wrong_clock_are_measured() {
    let world = World::start().await;
    let router = Router::before(world.quic).await;
    router.has(Faults {
        loses_every: Some(8),
        largest: Some(1300),
        forgets_after: None,
    });
    world.clock.advance(Duration::from_secs(90));
    let path = report_of(&world, router.addr).await;
    assert!(path.lost * 100 >= path.sent * 5, "{path:?}");
    assert!((1200..=1300).contains(&path.payload_bytes), "{path:?}");
    let ahead = path.seen.unwrap().ahead_ms;
    assert!((85_000..95_000).contains(&ahead), "{ahead}");
}

#[tokio::test]
async fn a_router_that_forgets_is_told_from_one_that_does_not() {
    let world = World::start().await;
    let (good, forgetful) = (Router::before(world.quic).await, Router::before(world.quic).await);
    forgetful.has(Faults {
        forgets_after: Some(Duration::from_secs(3)),
        ..Faults::default()
    });
    let (good, forgetful) = tokio::join!(report_of(&world, good.addr), report_of(&world, forgetful.addr));
    for (path, is_kept) in [(good, true), (forgetful, false)] {
        let seen = path.seen.unwrap();
        assert_ne!(seen.address, path.own, "translated");
        assert_eq!(seen.after_silence.unwrap() == seen.address, is_kept, "{seen:?}");
    }
}

#[tokio::test]
async fn without_udp_the_front_door_is_found_and_a_closed_one_is_named() {
    let world = World::start().await;
    let mut config = world.config(Vec::new());
    let (target, _) = probe_front_door(&config, &new_key()).await.unwrap();
    assert_eq!(target, world.front.to_string());
    config.tls = Some("127.0.0.1:1".to_owned());
    let (target, problem) = probe_front_door(&config, &new_key()).await.unwrap_err();
    assert_eq!(target, "127.0.0.1:1");
    assert!(problem.contains("TCP"), "{problem}");
}

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

async fn name_server() -> SocketAddr {
    let (socket, listener) = loop {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        // Somebody else may have the same port in TCP.
        if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()).await {
            break (socket, listener);
        }
    };
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut question = vec![0; usize::from(socket.read_u16().await.unwrap())];
            socket.read_exact(&mut question).await.unwrap();
            let mut answer = answer(&Message::from_vec(&question).unwrap());
            answer.metadata.truncation = false;
            let bytes = answer.to_vec().unwrap();
            socket.write_u16(bytes.len() as u16).await.unwrap();
            socket.write_all(&bytes).await.unwrap();
        }
    });
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let mut answer = answer(&Message::from_vec(&buffer[..length]).unwrap());
            if answer.metadata.truncation {
                answer.answers.clear();
            }
            let _ = socket.send_to(&answer.to_vec().unwrap(), from).await;
        }
    });
    addr
}

fn answer(query: &Message) -> Message {
    let question = query.queries[0].clone();
    let name = question.name().to_ascii().to_lowercase();
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.add_query(question.clone());
    let mut add = |name: &str, data| {
        reply.add_answer(Record::from_rdata(Name::from_ascii(name).unwrap(), 300, data));
    };
    let a = |ip: Ipv4Addr| RData::A(A(ip));
    let srv = |port, target: &str| RData::SRV(SRV::new(0, 5, port, Name::from_ascii(target).unwrap()));
    match (name.as_str(), question.query_type()) {
        ("relay.example." | "good.example.", RecordType::A) => add(&name, a(GATEWAY)),
        ("moved.example.", RecordType::A) => add(&name, a(OTHER)),
        ("crowded.example.", RecordType::A) => {
            for last in 1..=100 {
                add(&name, a(Ipv4Addr::new(192, 0, 2, last)));
            }
            reply.metadata.truncation = true;
        }
        ("alias.example.", RecordType::A) => {
            add(
                &name,
                RData::CNAME(CNAME(Name::from_ascii("relay.example.").unwrap())),
            );
            add("relay.example.", a(GATEWAY));
        }
        ("_minecraft._tcp.service.example.", RecordType::SRV) => add(&name, srv(4711, "relay.example.")),
        ("_minecraft._tcp.stale.example.", RecordType::SRV) => add(&name, srv(25565, "relay.example.")),
        ("broken.example." | "_minecraft._tcp.broken.example.", _) => {
            reply.metadata.response_code = ResponseCode::ServFail;
        }
        _ => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    reply
}

#[tokio::test]
async fn names_and_services_are_compared_with_what_the_dns_says() {
    let published = Published::new(Some(name_server().await));
    let here = published.addresses("relay.example").await.unwrap();
    assert_eq!(here, [IpAddr::V4(GATEWAY)]);
    assert_eq!(published.addresses("192.0.2.1").await.unwrap(), here);
    let game = |name: &'static str, port| published.game(name, &here, port);
    assert_eq!(game("good.example", JAVA).await, Leads::There);
    assert_eq!(game("alias.example", JAVA).await, Leads::There);
    assert_eq!(game("good.example", 4711).await, Leads::WithPort);
    assert_eq!(game("service.example", 4711).await, Leads::There);
    let stale = Leads::BySrv {
        target: "relay.example".to_owned(),
        port: 25565,
    };
    assert_eq!(game("stale.example", 4711).await, stale);
    let elsewhere = Leads::Elsewhere(vec![IpAddr::V4(OTHER)]);
    assert_eq!(game("moved.example", JAVA).await, elsewhere);
    assert_eq!(published.web("moved.example", &here).await, elsewhere);
    assert_eq!(game("nowhere.example", JAVA).await, Leads::Nowhere);
    let crowded = published.addresses("crowded.example").await.unwrap();
    assert_eq!(crowded.len(), 100, "what does not fit in UDP comes over TCP");
    assert!(matches!(game("broken.example", JAVA).await, Leads::Unknown(_)));
}
