//! The list of suppressed addresses from the command line, in front of a next hop that does not have every mailbox.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::Value;

use crate::gateway::Gateway;

/// A mail server without the mailbox `gone`.
fn hop() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(&stream));
        }
    });
    address
}

fn serve(stream: &TcpStream) {
    let mut out = stream;
    let mut in_data = false;
    let _ = out.write_all(b"220 hop.test ESMTP\r\n");
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let reply = match line.as_str() {
            "." => "250 2.0.0 taken",
            _ if in_data => continue,
            "DATA" => "354 go on",
            "QUIT" => "221 2.0.0 bye",
            line if line.starts_with("RCPT TO:<gone@") => "550 5.1.1 no such user, \"gone\"",
            _ => "250 2.0.0 ok",
        };
        in_data = line == "DATA";
        if out.write_all(format!("{reply}\r\n").as_bytes()).is_err() {
            return;
        }
    }
}

fn gateway(hop: SocketAddr) -> Gateway {
    let gateway = Gateway::start(&format!(
        "[mail]\ndefault_route = \"hop\"\n[[mail.mynetworks]]\nnet = \"127.0.0.0/8\"\nservice = \"shop\"\n\
         [[mail.smarthosts]]\nname = \"hop\"\nhost = \"{}\"\nport = {}\ntls = \"none\"\n",
        hop.ip(),
        hop.port()
    ));
    gateway.ok(&[
        "service",
        "add",
        "shop",
        "--send-as",
        "shop.test",
        "--class",
        "bulk",
    ]);
    gateway
}

/// Hands a mail in, as far as it is taken; the reply to RCPT.
fn send(gateway: &Gateway, to: &str) -> String {
    let stream = TcpStream::connect(gateway.address("mail.relay")).unwrap();
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    let mut said = || lines.find(|line| line.as_bytes()[3] == b' ').unwrap();
    assert!(said().starts_with("220"));
    let mut ask = |command: &str| {
        (&stream).write_all(format!("{command}\r\n").as_bytes()).unwrap();
        said()
    };
    assert!(ask("EHLO client.test").starts_with("250"));
    assert!(ask("MAIL FROM:<news@shop.test>").starts_with("250"));
    let answer = ask(&format!("RCPT TO:<{to}>"));
    if answer.starts_with("250") {
        assert!(ask("DATA").starts_with("354"));
        assert!(ask("Subject: news\r\n\r\nhello\r\n.").starts_with("250"));
    }
    answer
}

fn listed(gateway: &Gateway, filters: &[&str]) -> Vec<Value> {
    let arguments = [&["mail", "suppress", "list", "--json"], filters].concat();
    gateway.ok(&arguments).json()["suppressed"]
        .as_array()
        .unwrap()
        .clone()
}

#[test]
fn a_bounced_address_is_listed_refused_told_of_and_taken_off() {
    let mut gateway = gateway(hop());
    assert!(send(&gateway, "gone@y.test").starts_with("250"));
    let entries = gateway.wait(|g| Some(listed(g, &[])).filter(|rows| !rows.is_empty()));
    let [entry] = entries.as_slice() else {
        panic!("{entries:?}")
    };
    assert_eq!(entry["address"], "gone@y.test");
    assert_eq!(entry["principal"], "shop");
    assert_eq!(entry["origin"], "automatic");
    assert_eq!(entry["reason"], "550 5.1.1 no such user, \"gone\"");
    assert!(entry["until"].as_str().unwrap().starts_with("20"), "{entry}");
    let reply = send(&gateway, "Gone+news@y.test");
    assert!(reply.starts_with("550 5.1.1 suppressed since 20"), "{reply}");
    let told = gateway.ok(&["mail", "trace", "gone@y.test"]).out;
    assert!(
        told.contains("mail of shop for gone@y.test is refused since 20"),
        "{told}"
    );
    let explained = [
        "--from",
        "news@shop.test",
        "--to",
        "gone@y.test",
        "--client",
        "shop",
    ];
    let explained = gateway
        .ok(&[&["mail", "explain"], explained.as_slice()].concat())
        .out;
    assert!(explained.contains("550 5.1.1 suppressed since"), "{explained}");
    let said = gateway.ok(&["mail", "suppress", "remove", "GONE@y.test"]).out;
    assert!(said.contains("0 added, 1 removed"), "{said}");
    assert!(send(&gateway, "gone@y.test").starts_with("250"));
}

#[test]
fn an_operators_list_goes_out_and_comes_in_again() {
    let gateway = gateway(hop());
    let suppress = |words: &[&str]| gateway.ok(&[&["mail", "suppress"], words].concat()).out;
    suppress(&["add", "Anna@y.test", "--reason", "she said \"stop\", twice"]);
    suppress(&["add", "*@closed.test", "--principal", "shop", "--until", "30d"]);
    suppress(&["add", "bob@y.test", "--until", "2999-01-31"]);
    for to in ["anna@y.test", "any@closed.test", "bob+x@y.test"] {
        assert!(send(&gateway, to).starts_with("550 5.1.1 suppressed"), "{to}");
    }
    assert_eq!(listed(&gateway, &["--domain", "y.test"]).len(), 2);
    assert_eq!(listed(&gateway, &["--principal", "shop"]).len(), 1);
    assert_eq!(listed(&gateway, &["--limit", "1"]).len(), 1);
    let before = listed(&gateway, &[]);
    let (csv, json) = (suppress(&["export"]), suppress(&["export", "--json"]));
    assert!(
        csv.contains("anna@y.test,,,\"she said \"\"stop\"\", twice\","),
        "{csv}"
    );
    for text in [csv, json] {
        suppress(&["remove", "anna@y.test", "bob@y.test", "*@closed.test"]);
        assert!(listed(&gateway, &[]).is_empty());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let said = suppress(&["import", file.path().to_str().unwrap()]);
        assert!(said.contains("3 added"), "{said}");
        let pick = |rows: Vec<Value>| -> Vec<[Value; 4]> {
            let of = |row: &Value| ["address", "principal", "reason", "until"].map(|key| row[key].clone());
            rows.iter().map(of).collect()
        };
        assert_eq!(pick(listed(&gateway, &[])), pick(before.clone()));
    }
    let audit = gateway.ok(&["audit"]).out;
    assert!(
        audit.contains("mail.suppress") && audit.contains("anna@y.test"),
        "{audit}"
    );
    for (words, part) in [
        (["add", "postmaster@y.test", "--reason", "x"], "not postmaster"),
        (["add", "nonsense", "--reason", "x"], "cannot be suppressed"),
        (["add", "a@y.test", "--until", "2020-01-31"], "is over"),
        (["add", "a@y.test", "--until", "soon"], "neither a time"),
        (["add", "a@y.test", "--principal", "nobody"], "nobody called"),
    ] {
        let said = gateway.run(&[&["mail", "suppress"], words.as_slice()].concat());
        assert!(
            said.code != 0 && said.err.contains(part),
            "{words:?}: {}",
            said.err
        );
    }
    assert_eq!(listed(&gateway, &[]).len(), 3);
}

#[test]
fn an_import_leaves_out_what_has_ended_and_names_the_line_of_a_mistake() {
    let gateway = gateway(hop());
    let file = tempfile::NamedTempFile::new().unwrap();
    let import = |text: &str| {
        std::fs::write(file.path(), text).unwrap();
        gateway.run(&["mail", "suppress", "import", file.path().to_str().unwrap()])
    };
    let said = import(
        "address,until\na@y.test,2020-01-31\nb@y.test,2999-01-31\nc@y.test,2021-02-03T04:05:06Z\nd@y.test,\n",
    );
    assert_eq!(
        (said.code, said.out.trim()),
        (0, "2 added, 0 removed, 2 left out, since their time is over"),
        "{}",
        said.err
    );
    let addresses = |gateway: &Gateway| -> Vec<String> {
        let address = |row: &Value| row["address"].as_str().unwrap().to_owned();
        listed(gateway, &[]).iter().map(address).collect()
    };
    assert_eq!(addresses(&gateway), ["b@y.test", "d@y.test"]);
    for (text, part) in [
        ("x@y.test\n\npostmaster@y.test\n", "line 3: "),
        (
            "address,principal\nx@y.test,nobody\n",
            "line 2: there is nobody called",
        ),
        (
            "address,until\nx@y.test,\nz@y.test,soon\n",
            "line 3: until: \"soon\" is neither",
        ),
    ] {
        let said = import(text);
        assert!(said.code != 0 && said.err.contains(part), "{text}: {}", said.err);
    }
    assert_eq!(addresses(&gateway).len(), 2, "a part with a mistake adds nothing");
    // More than one part, and a mistake in the last one.
    let many: String = (0..600).map(|n| format!("many{n}@y.test\n")).collect();
    let said = import(&format!("{many}nonsense\n"));
    assert!(
        said.code != 0 && said.err.contains("line 601: ") && said.err.contains("500 added"),
        "{}",
        said.err
    );
    let said = import(&many);
    assert!(said.out.contains("600 added"), "{} {}", said.out, said.err);
    assert_eq!(addresses(&gateway).len(), 602);
}

#[test]
fn a_file_that_is_too_long_is_refused_and_not_cut() {
    let gateway = gateway(hop());
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut text = vec![b'\n'; (64 << 20) - 5];
    text.extend_from_slice(b"anna@y.test.example\n");
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_str().unwrap();
    let said = gateway.run(&["mail", "suppress", "import", path]);
    assert!(
        said.code == 65 && said.err.contains("longer than 64 MiB"),
        "{} {}",
        said.out,
        said.err
    );
    assert!(listed(&gateway, &[]).is_empty());
}
