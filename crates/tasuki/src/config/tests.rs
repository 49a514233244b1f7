#![allow(clippy::unwrap_used)]

use toml::{Table, Value};

use super::Config;

const SAMPLE: &str = include_str!("../../../../config/tasuki.toml");

fn parse(text: &str) -> Result<Config, String> {
    Config::parse("tasuki.toml", text).map_err(|e| e.to_string())
}

fn shown(config: &Config) -> Table {
    Table::try_from(config).unwrap()
}

#[test]
fn the_sample_file_says_every_default() {
    assert_eq!(shown(&parse(SAMPLE).unwrap()), shown(&Config::default()));
}

#[test]
fn the_sample_file_has_every_key() {
    let mut sample: Table = SAMPLE.parse().unwrap();
    // Rules have no default to show.
    sample.insert("acl".to_owned(), Value::Array(Vec::new()));
    missing(&shown(&Config::default()), &sample, "");
}

fn missing(wanted: &Table, there: &Table, path: &str) {
    for (key, value) in wanted {
        let found = there.get(key).unwrap_or_else(|| panic!("{path}{key} is missing"));
        if let (Value::Table(wanted), Value::Table(there)) = (value, found) {
            missing(wanted, there, &format!("{path}{key}."));
        }
    }
}

#[test]
fn keys_without_a_default_are_shown_as_comments_that_can_be_used() {
    for key in [
        "host",
        "danger_public_url",
        "cert",
        "key",
        "email",
        "postmaster",
        "server",
        "from",
    ] {
        assert!(
            SAMPLE
                .lines()
                .any(|line| line.starts_with(&format!("# {key} = "))),
            "{key} is not in the sample file"
        );
    }
    let used: String = SAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            // An example of a list stands above the empty list that is in force.
            Some(rest) if rest.starts_with("mynetworks") => line.to_owned(),
            Some(rest) if is_assignment(rest) => rest.to_owned(),
            Some(rest) if rest.starts_with("[[acl]]") => rest.to_owned(),
            Some(rest) if rest.starts_with("[[mail.smarthosts]]") => rest.to_owned(),
            Some(rest) if rest.starts_with("[[mail.devices.list]]") => rest.to_owned(),
            _ => line.to_owned(),
        })
        .map(|line| line + "\n")
        .collect();
    let used = used
        .replace("smarthosts = []\n", "")
        .replace("\nlist = []\n", "\n");
    parse(&used).unwrap();
}

fn is_assignment(text: &str) -> bool {
    text.split_once(" = ")
        .is_some_and(|(key, _)| !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
}

#[test]
fn a_key_that_nobody_knows_is_refused_in_every_section_by_file_line_and_key() {
    let headers: Vec<&str> = SAMPLE.lines().filter(|line| line.starts_with('[')).collect();
    assert!(headers.len() > 10);
    for header in headers {
        let broken = SAMPLE.replacen(&format!("{header}\n"), &format!("{header}\nbogus_key = 1\n"), 1);
        let line = broken.lines().position(|line| line == "bogus_key = 1").unwrap() + 1;
        let table = header.trim_matches(['[', ']']);
        let error = parse(&broken).unwrap_err();
        assert!(
            error.starts_with(&format!("tasuki.toml:{line}: {table}.bogus_key: ")),
            "{header}: {error}"
        );
    }
    let error = parse(&format!("bogus_key = 1\n{SAMPLE}")).unwrap_err();
    assert!(error.starts_with("tasuki.toml:1: bogus_key: "), "{error}");
}

#[test]
fn values_that_cannot_be_used_are_named_with_line_and_key() {
    for (text, start) in [
        ("engines = []\n", "tasuki.toml:1: engines: "),
        ("engines = [\"mail\", \"mail\"]\n", "tasuki.toml:1: engines: "),
        ("engines = [\"fax\"]\n", "tasuki.toml:1: engines: "),
        ("[server]\nhost = \"10.0.0.1\"\n", "tasuki.toml:2: server.host: "),
        ("[server]\n\ngrace = \"soon\"\n", "tasuki.toml:3: server.grace: "),
        (
            "[server]\ndanger_public_url = \"ftp://x\"\n",
            "tasuki.toml:2: server.danger_public_url: ",
        ),
        ("[memory]\nbudget = \"1KiB\"\n", "tasuki.toml:2: memory.budget: "),
        ("[store]\nurl = \"mysql://x\"\n", "tasuki.toml:2: store.url: "),
        ("[admin]\nlisten = \"nowhere\"\n", "tasuki.toml:2: admin.listen: "),
        ("[log]\nlevel = \"=;=\"\n", "tasuki.toml:2: log.level: "),
        ("[[acl]]\neffect = \"maybe\"\n", "tasuki.toml:2: acl.effect: "),
        (
            "[tunnel.quic]\nhandshake_timeout = \"0s\"\n",
            "tasuki.toml:2: tunnel.quic.handshake_timeout: ",
        ),
        ("[fediverse]\nname = \"\"\n", "tasuki.toml:2: fediverse.name: "),
        (
            "[tls]\ncert = \"/etc/a.pem\"\n",
            "tasuki.toml:1: tls.key: is missing",
        ),
        (
            "[tls.acme]\nenabled = true\n",
            "tasuki.toml:1: tls.acme.names: is empty and server.host is not set",
        ),
        (
            "[server]\ngrace = 30\n",
            "tasuki.toml:2: server.grace: invalid type: integer `30`, expected a duration such as \"30s\"",
        ),
        (
            "[memory]\nbudget = 30\n",
            "tasuki.toml:2: memory.budget: invalid type: integer `30`, expected a size such as \"25MiB\"",
        ),
        (
            "[[acl]]\neffect = \"deny\"\nfrom = [\"192.0.2.7\"]\n",
            "tasuki.toml:3: acl.from: invalid IP address syntax; a network is written as 192.0.2.0/24",
        ),
        (
            "server = 3\n",
            "tasuki.toml:1: server: invalid type: integer `3`, expected a table",
        ),
        ("[server\n", "tasuki.toml:1: "),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(start), "{text}: {error}");
    }
}

#[test]
fn without_a_file_every_listener_is_on_loopback() {
    let config = Config::default();
    let mut listeners = vec![
        config.admin.listen,
        config.tunnel.quic.listen,
        config.tunnel.minecraft.listen,
    ];
    listeners.extend(&config.front.listen);
    listeners.extend(&config.front.tls_listen);
    listeners.extend(&config.mail.relay.listen);
    listeners.extend(&config.mail.submission.listen);
    listeners.extend(&config.mail.submissions.listen);
    listeners.extend(&config.mail.devices.listen);
    listeners.extend(&config.mail.devices.listen_tls);
    assert!(config.tunnel.tcp.bind.is_loopback());
    for listener in listeners {
        assert!(listener.ip().is_loopback(), "{listener}");
    }
}
