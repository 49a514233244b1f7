//! The real resolver against a name server on a port of its own.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_resolver::proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, MX, TXT},
    },
};
use tasuki_smtp::{DnsConfig, Hickory, MxAnswer, Resolver as _};
use tokio::net::UdpSocket;

/// Answers from a table; `servfail.example` fails, what is not known does not exist. `asked.example` says how often it was
/// asked for.
async fn name_server() -> SocketAddr {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let addr = socket.local_addr().unwrap();
    let asked = AtomicUsize::new(0);
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..len]).unwrap();
            let _ = socket
                .send_to(&answer(&query, &asked).to_vec().unwrap(), from)
                .await;
        }
    });
    addr
}

fn answer(query: &Message, asked: &AtomicUsize) -> Message {
    let question = query.queries[0].clone();
    let name = question.name().to_ascii().to_lowercase();
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_desired = true;
    reply.metadata.recursion_available = true;
    reply.add_query(question.clone());
    let mut add = |data| {
        reply.add_answer(Record::from_rdata(question.name().clone(), 300, data));
    };
    let mx = |preference, host: &str| RData::MX(MX::new(preference, Name::from_ascii(host).unwrap()));
    match (name.as_str(), question.query_type()) {
        ("y.example.", RecordType::MX) => {
            add(mx(20, "backup.y.example."));
            add(mx(10, "MX.y.example."));
        }
        ("null.example.", RecordType::MX) => add(mx(0, ".")),
        ("mx.y.example.", RecordType::A) => add(RData::A(A::new(192, 0, 2, 7))),
        ("asked.example.", RecordType::TXT) => {
            let times = asked.fetch_add(1, Ordering::SeqCst) + 1;
            add(RData::TXT(TXT::new(vec![times.to_string()])));
        }
        ("servfail.example.", _) => reply.metadata.response_code = ResponseCode::ServFail,
        ("bare.example." | "mx.y.example.", _) => {}
        _ => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    reply
}

#[tokio::test]
async fn answers_of_every_kind_are_told_apart() {
    let resolver = Hickory::new(&DnsConfig {
        server: Some(name_server().await),
        ..DnsConfig::default()
    })
    .unwrap();
    let MxAnswer::Hosts(mut hosts) = resolver.mx("y.example").await.unwrap() else {
        panic!("hosts")
    };
    hosts.sort();
    assert_eq!(
        hosts,
        [
            (10, "mx.y.example".to_owned()),
            (20, "backup.y.example".to_owned())
        ]
    );
    assert_eq!(resolver.mx("null.example").await.unwrap(), MxAnswer::Null);
    assert_eq!(resolver.mx("bare.example").await.unwrap(), MxAnswer::Implicit);
    assert_eq!(resolver.mx("nowhere.example").await.unwrap(), MxAnswer::NoDomain);
    assert!(resolver.mx("servfail.example").await.is_err());
    assert_eq!(
        resolver.addresses("mx.y.example").await.unwrap(),
        ["192.0.2.7".parse::<std::net::IpAddr>().unwrap()]
    );
    assert!(resolver.addresses("nowhere.example").await.unwrap().is_empty());
    assert!(resolver.addresses("servfail.example").await.is_err());
}

#[tokio::test]
async fn who_asks_afresh_sees_what_is_new_and_takes_nothing_from_the_cache() {
    let resolver = Hickory::new(&DnsConfig {
        server: Some(name_server().await),
        ..DnsConfig::default()
    })
    .unwrap();
    let first = resolver.txt("asked.example").await.unwrap();
    assert_eq!(resolver.txt("asked.example").await.unwrap(), first);
    let fresh = resolver.afresh().unwrap().unwrap();
    assert_ne!(fresh.txt("asked.example").await.unwrap(), first);
    assert_eq!(resolver.txt("asked.example").await.unwrap(), first);
}
