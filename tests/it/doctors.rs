//! What both doctors make of the names that are published in the DNS.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use crate::support::agent::Agent;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::{free_port, loopback};

/// A name server that knows the IPv4 addresses of these names and nothing else.
fn name_server(known: Vec<(&'static str, Ipv4Addr)>) -> SocketAddr {
    name_server_for(known, 0)
}

/// The same, which answers no question about other names until it was asked about so many of them.
fn name_server_for(known: Vec<(&'static str, Ipv4Addr)>, together: usize) -> SocketAddr {
    let socket = UdpSocket::bind(loopback(0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        let (mut unknown, mut held) = (HashSet::new(), Vec::new());
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let query = buffer[..length].to_vec();
            let name = name_in(&query).0;
            if known.iter().all(|(known, _)| *known != name) {
                unknown.insert(name);
                held.push((query, from));
            } else {
                let _ = socket.send_to(&answer(&query, &known), from);
            }
            if unknown.len() >= together {
                for (query, from) in held.drain(..) {
                    let _ = socket.send_to(&answer(&query, &known), from);
                }
            }
        }
    });
    address
}

/// The name that is asked about, and where it ends.
fn name_in(query: &[u8]) -> (String, usize) {
    let mut labels = Vec::new();
    let mut at = 12;
    while query[at] != 0 {
        let next = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..next]).to_lowercase());
        at = next;
    }
    (labels.join("."), at)
}

/// RFC 1035 4.1: header, the question as it came, and one record that points back to its name.
fn answer(query: &[u8], known: &[(&str, Ipv4Addr)]) -> Vec<u8> {
    let (name, at) = name_in(query);
    let question = &query[12..at + 5];
    let is_a = query[at + 1..at + 3] == [0, 1];
    let known = known.iter().find(|(known, _)| *known == name);
    let mut reply = query[..2].to_vec();
    // No error, or no such name.
    reply.extend([0x81, if known.is_some() { 0x80 } else { 0x83 }, 0, 1]);
    let found = known.filter(|_| is_a);
    reply.extend([0, u8::from(found.is_some()), 0, 0, 0, 0]);
    reply.extend(question);
    if let Some((_, ip)) = found {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4]);
        reply.extend(ip.octets());
    }
    reply
}

#[test]
fn both_doctors_say_what_to_publish() {
    let gateway = Gateway::start("");
    let local = loopback(free_port());
    let mut endpoints = Agent::minecraft_at("mc.test", local);
    endpoints.extend(["--http".to_owned(), format!("map.test={local}")]);
    let grants = ["--name", "mc.test", "--name", "map.test"];
    let mut agent = Agent::enrol(&gateway, "home", &grants, &endpoints);
    eventually("both names are open", || {
        let said = agent.said();
        (agent.connected(&gateway).is_some() && said.matches("open at").count() == 2).then_some(())
    });
    let ns = name_server(vec![
        ("relay.test", Ipv4Addr::LOCALHOST),
        ("mc.test", Ipv4Addr::LOCALHOST),
        ("map.test", Ipv4Addr::new(192, 0, 2, 9)),
    ]);
    let ns = ns.to_string();
    let door = gateway.address("tunnel.minecraft").port();
    let (code, said) = gateway.fails(&["tunnel", "doctor", "--nameserver", &ns]);
    assert_eq!(code, 69, "{said}");
    for line in [
        "ok   relay.test leads to 127.0.0.1".to_owned(),
        format!(
            "note mc.test leads here, but players have to type the port {door}: publish \
             `_minecraft._tcp.mc.test. IN SRV 0 5 {door} relay.test.`"
        ),
        "BAD  map.test leads to 192.0.2.9, the gateway is at 127.0.0.1: publish `map.test. IN CNAME relay.test.`"
            .to_owned(),
        "ok   home comes over UDP from 127.0.0.1".to_owned(),
    ] {
        assert!(said.contains(&line), "{line} in\n{said}");
    }
    let found = gateway.json(&["tunnel", "doctor", "--json", "--nameserver", &ns]);
    assert_eq!(
        found["findings"].as_array().unwrap().len(),
        said.trim_end().lines().count() - 1,
        "{found}\n{said}"
    );
    let mut arguments = vec!["doctor", "--nameserver", &ns];
    arguments.extend(endpoints.iter().map(String::as_str));
    let (_, said) = agent.fails(&arguments);
    for line in [
        format!("publish `_minecraft._tcp.mc.test. IN SRV 0 5 {door} mc.test.`"),
        "BAD  map.test leads to 192.0.2.9".to_owned(),
        format!("{local} takes no connections"),
    ] {
        assert!(said.contains(&line), "{line} in\n{said}");
    }
}

#[test]
fn a_slow_name_server_delays_the_doctor_once_and_not_for_each_name() {
    const NAMES: usize = 12;
    let gateway = Gateway::start("");
    let local = loopback(free_port());
    let names: Vec<String> = (0..NAMES).map(|n| format!("map{n}.test")).collect();
    let ways = |key: &str, value: &dyn Fn(&str) -> String| -> Vec<String> {
        let pairs = names.iter().map(|name| [key.to_owned(), value(name)]);
        pairs.flatten().collect()
    };
    let grants = ways("--name", &str::to_owned);
    let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
    let endpoints = ways("--http", &|name| format!("{name}={local}"));
    let agent = Agent::enrol(&gateway, "home", &grants, &endpoints);
    eventually("all names are open", || {
        let said = agent.said();
        let is_open = |name: &String| said.contains(&format!("http-{name}: open at"));
        names.iter().all(is_open).then_some(())
    });
    // Who asks one name after the other hears nothing of any but the last.
    let ns = name_server_for(vec![("relay.test", Ipv4Addr::LOCALHOST)], NAMES).to_string();
    let (_, said) = gateway.fails(&["tunnel", "doctor", "--nameserver", &ns]);
    for name in &names {
        assert!(
            said.contains(&format!("{name} leads nowhere")),
            "{name} in\n{said}"
        );
    }
}
