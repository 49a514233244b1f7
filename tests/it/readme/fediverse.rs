//! The fediverse chapter: an operator's way from nothing to a relay that Mastodon, Misskey and Akkoma have joined, the daily
//! work, and the way from another relay and back.

use std::path::Path;

use serde_json::{Value, json};

use super::Place;
use crate::support::activityrelay::ActivityRelay;
use crate::support::certificate::Certificate;
use crate::support::fediverse::Instance;
use crate::support::nginx::{self, Site};
use crate::support::own_network::OwnNetwork;
use crate::support::pebble::Pebble;
use crate::support::process::{self, Running};
use crate::support::{eventually, loopback, readme, root};

/// The blocks that the tests here run.
pub(super) const BLOCKS: &[&str] = &[
    "run: relay-init",
    "run: relay-check",
    "run: relay-look",
    "run: relay-approve",
    "run: relay-joins",
    "run: relay-moderate",
    "run: relay-brake",
    "run: relay-why",
    "run: relay-care",
    "run: takeover-prepare",
    "run: takeover-dry-run",
    "run: takeover",
];

const RELAY: &str = "relay.example.org";
const MASTODON: (&str, &str) = ("mastodon.example", "127.0.0.2");
const MISSKEY: (&str, &str) = ("misskey.example", "127.0.0.3");
const AKKOMA: (&str, &str) = ("akkoma.example", "127.0.0.4");
const NEW: (&str, &str) = ("new.example", "127.0.0.5");
const ODD: (&str, &str) = ("odd.example", "127.0.0.6");
const SPAM: (&str, &str) = ("spam.example", "127.0.0.7");
const LOUD: (&str, &str) = ("loud.example", "127.0.0.8");

/// The test's own network is a private one.
const PRIVATE: &str = "danger_allow_private_addresses = true\nretry = [\"1s\"]\n";

/// A network where the relay is 127.0.0.1 and each instance has an address and a certificate of its own.
struct World {
    place: Place,
    certificate: Certificate,
}

impl World {
    fn new() -> Self {
        let instances = [MASTODON, MISSKEY, AKKOMA, NEW, ODD, SPAM, LOUD];
        let names: Vec<(&str, &str)> = instances.into_iter().chain([(RELAY, "127.0.0.1")]).collect();
        let place = Place::within(OwnNetwork::start_with(&[], &names));
        let names: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        let certificate = Certificate::issue(place.network.directory(), &names);
        Self { place, certificate }
    }

    fn instance(&self, style: &str, name: (&str, &str), trust: &Path) -> Instance {
        Instance::start_in(&self.place.network, style, name, &self.certificate, trust)
    }

    /// The web server in front of what listens on this port.
    fn nginx_before(&self, port: u16) -> Running {
        let network = &self.place.network;
        let site = Site {
            name: RELAY,
            listen: loopback(443),
            upstream: loopback(port),
        };
        let nginx = nginx::start(
            network.tool("nginx"),
            network.directory(),
            &self.certificate,
            &[site],
        );
        network.wait_for_listener("nginx", 443);
        nginx
    }

    #[track_caller]
    fn run(&self, mark: &str) -> String {
        self.place.run(&readme::block(mark))
    }
}

/// What the README tells the admin of a software to paste.
#[track_caller]
fn pasted(software: &str) -> String {
    let rows = readme::rows_of_tables_with("README.md", "paste");
    let row = rows.iter().find(|(_, row)| row[0].contains(software));
    let (at, row) = row.unwrap_or_else(|| panic!("no row for {software}"));
    readme::quoted(&row[*at]).next().unwrap().to_owned()
}

#[test]
fn both_readmes_tell_admins_to_paste_the_same() {
    let urls = |file: &str| -> Vec<String> {
        let rows = readme::rows_of_tables_with(file, "paste");
        let cell = |(at, row): (usize, Vec<String>)| row[at].clone();
        rows.into_iter().map(cell).collect()
    };
    assert_eq!(urls("README.md").len(), 5);
    assert_eq!(urls("README.md"), urls("README.ja.md"));
    let imports = |file: &str| -> Vec<String> {
        let rows = readme::rows_of_tables_with(file, "import");
        rows.into_iter().map(|(at, row)| row[at].clone()).collect()
    };
    assert_eq!(imports("README.md"), imports("README.ja.md"));
}

/// All of them get what the first one writes, in the form that each takes.
#[track_caller]
fn reaches(author: &Instance, readers: &[&Instance], text: &str) -> Value {
    let created = author.publish(&json!({"text": text})).remove(0);
    for reader in readers {
        reader.wait_for("the post", |got| {
            got["id"] == created["id"] || (got["type"] == "Announce" && got["object"] == created["object"])
        });
    }
    created
}

/// How many Accepts it got: who did not follow again got no further one.
fn accepts(instance: &Instance) -> usize {
    let all = instance.received();
    all.iter().filter(|got| got["type"] == "Accept").count()
}

#[test]
fn a_relay_is_made_from_nothing_as_the_readme_says() {
    let world = World::new();
    let place = &world.place;
    let pebble = Pebble::start_in(&place.network);
    place.run(&readme::block("run: relay-init"));
    configure(&world, &pebble);
    world.run("run: relay-check");
    let mut gateway = place.serve();
    let trust = place.file("trust.pem");
    pebble.root_in(&place.network, &trust);
    let root = std::fs::read_to_string(&trust).unwrap();
    eventually("the certificate by ACME is there", || {
        let status: Value = serde_json::from_str(&place.run("tasuki status --json")).unwrap();
        (status["tls"]["source"] == "acme").then_some(())
    });
    // An instance trusts the CAs of the world: the relay's, and those of other instances.
    std::fs::write(
        &trust,
        root + &std::fs::read_to_string(&world.certificate.ca).unwrap(),
    )
    .unwrap();
    let look = format!(
        "export CURL_CA_BUNDLE={}\n{}",
        trust.display(),
        readme::block("run: relay-look")
    );
    let said = place.run(&look);
    assert!(said.contains("\"acct:relay@relay.example.org\""), "{said}");
    assert!(
        said.contains("https://relay.example.org/actor#main-key"),
        "{said}"
    );
    let page = place.run(&format!(
        "curl --silent --cacert {} https://{RELAY}/",
        trust.display()
    ));
    for software in ["Mastodon", "Misskey", "Akkoma"] {
        assert!(page.contains(&pasted(software)), "the page says it too: {page}");
    }

    let mastodon = world.instance("mastodon", MASTODON, &trust);
    let misskey = world.instance("misskey", MISSKEY, &trust);
    let akkoma = world.instance("litepub", AKKOMA, &trust);
    for (instance, software) in [
        (&mastodon, "Mastodon"),
        (&misskey, "Misskey"),
        (&akkoma, "Akkoma"),
    ] {
        instance.ask(&pasted(software));
        assert_eq!(instance.read("state")["subscription"], "pending");
    }
    let said = world.run("run: relay-approve");
    assert!(
        said.contains("mastodon 4.5.4") && said.contains("closed"),
        "{said}"
    );
    for instance in [&mastodon, &misskey, &akkoma] {
        assert!(said.contains(instance.host()), "{said}");
        instance.is_accepted();
    }
    let created = reaches(&mastodon, &[&misskey, &akkoma], "hello from Mastodon");
    reaches(&misskey, &[&mastodon, &akkoma], "hello from Misskey");
    reaches(&akkoma, &[&mastodon, &misskey], "hello from Akkoma");

    let why = readme::block("run: relay-why");
    let known = "https://mastodon.example/users/alice/statuses/1";
    assert!(why.contains(known), "{why}");
    let said = place.run(&why.replace(known, created["object"].as_str().unwrap()));
    assert!(
        said.contains("relayed") && said.contains("is sent: forward"),
        "{said}"
    );
    daily_work(&world, &trust, (&mastodon, &misskey));
    assert!(gateway.terminate().success());
}

/// As the README says; the CA of the test, in place of the world's, and an address of its own for each name.
fn configure(world: &World, pebble: &Pebble) {
    let file = world.place.file("tasuki.toml");
    let written = std::fs::read_to_string(&file).unwrap();
    let acme = "[tls.acme]\nenabled = true\n";
    assert!(
        written.contains(acme) && written.contains("[::]:443"),
        "{written}"
    );
    let written = written
        .replace(acme, &format!("{acme}directory = \"{}\"\n", pebble.url()))
        .replace("[::]", "127.0.0.1");
    let text = format!(
        "{written}\n{}{PRIVATE}\n[tls]\nextra_ca = [{:?}, {:?}]\n",
        readme::block("config: relay"),
        pebble.certificate(),
        world.certificate.ca
    );
    std::fs::write(file, text).unwrap();
}

fn daily_work(world: &World, trust: &Path, (mastodon, misskey): (&Instance, &Instance)) {
    let place = &world.place;
    let [new, odd, spam, loud] = [NEW, ODD, SPAM, LOUD].map(|name| {
        let instance = world.instance("mastodon", name, trust);
        instance.ask(&pasted("Mastodon"));
        instance
    });
    let said = world.run("run: relay-joins");
    assert!(
        said.contains("new.example") && said.contains("odd.example"),
        "{said}"
    );
    new.is_accepted();
    eventually("who was turned away is told", || {
        (odd.read("state")["subscription"] == "rejected").then_some(())
    });
    for instance in [&spam, &loud] {
        place.run(&format!("tasuki fedi approve {}", instance.host()));
        instance.is_accepted();
    }

    std::fs::write(
        place.file("blocklist.csv"),
        "#domain,#severity\nworse.example,suspend\n",
    )
    .unwrap();
    let moderate = readme::block("run: relay-moderate");
    let (rules, lift) = moderate.trim_end().rsplit_once('\n').unwrap();
    let said = place.run(rules);
    assert!(
        said.contains("worse.example") && said.contains("cheap pills"),
        "{said}"
    );
    eventually("who is blocked is told", || {
        (spam.read("state")["subscription"] == "rejected").then_some(())
    });
    let refused = |instance: &Instance, text: &str| {
        let sent = instance.control("publish", &json!({"text": text}));
        assert_eq!(sent[0]["status"], 403, "{sent}");
    };
    refused(&spam, "buy");
    refused(&loud, "LOOK");
    reaches(mastodon, &[misskey, &new, &loud], "the limited one receives");
    let silenced = mastodon.publish(&json!({"text": "Cheap Pills here"})).remove(0);
    place.run(lift);
    reaches(&loud, &[mastodon, misskey, &new], "a word again");
    let got = |instance: &Instance, sent: &Value| {
        let all = instance.received();
        all.iter().any(|one| one["id"] == sent["id"])
    };
    assert!(!got(misskey, &silenced));

    let brake = readme::block("run: relay-brake");
    let (pull, rest) = brake.split_once('\n').unwrap();
    place.run(pull);
    let spam = mastodon.publish(&json!({"text": "cheap   watches"})).remove(0);
    let held = mastodon.publish(&json!({"text": "a good word"})).remove(0);
    let said = place.run(rest);
    let taken = ["1 activities would be taken out", "1 activities taken out"];
    assert!(taken.iter().all(|line| said.contains(line)), "{said}");
    misskey.wait_for("what was held", |got| got["id"] == held["id"]);
    new.wait_for("what was held", |got| got["id"] == held["id"]);
    assert!(!got(misskey, &spam) && !got(&new, &spam));

    world.run("run: relay-care");
    reaches(misskey, &[mastodon, &new], "under the new key");
}

#[test]
fn a_running_activityrelay_is_taken_over_and_given_back_as_the_readme_says() {
    let world = World::new();
    let place = &world.place;
    let ca = &world.certificate.ca;
    let mut old = ActivityRelay::prepare(&place.network, RELAY, 8080);
    old.start(ca);
    let nginx = world.nginx_before(8080);
    let mastodon = world.instance("mastodon", MASTODON, ca);
    let misskey = world.instance("misskey", MISSKEY, ca);
    let akkoma = world.instance("litepub", AKKOMA, ca);
    let all = [&mastodon, &misskey, &akkoma];
    for (instance, software) in all.into_iter().zip(["Mastodon", "Misskey", "Akkoma"]) {
        instance.subscribe(&pasted(software));
    }
    reaches(&mastodon, &[&misskey], "through the old relay");
    let accepted = all.map(accepts);

    let config = readme::block("config: takeover");
    let own = format!("\n[fediverse]\n{PRIVATE}\n[tls]\nextra_ca = [{ca:?}]\n");
    std::fs::write(place.file("tasuki.toml"), config + &own).unwrap();
    world.run("run: takeover-prepare");
    let mut gateway = place.serve();
    let at = "/var/lib/activityrelay/relay.sqlite3";
    let database = old.database();
    let import = |mark: &str| {
        let script = readme::block(mark);
        assert!(script.contains(at), "{script}");
        place.run(&script.replace(at, database.to_str().unwrap()))
    };
    let said = import("run: takeover-dry-run");
    assert!(said.contains("3 subscribers would be new"), "{said}");
    old.stop();
    drop(nginx);
    let said = import("run: takeover");
    assert!(said.contains("3 subscribers are new"), "{said}");
    let nginx = world.nginx_before(8090);
    for author in all {
        let readers: Vec<&Instance> = all
            .into_iter()
            .filter(|one| !std::ptr::eq(*one, author))
            .collect();
        reaches(author, &readers, "through the new relay");
    }
    assert_eq!(all.map(accepts), accepted, "nobody followed again");

    // And back.
    assert!(gateway.terminate().success());
    drop(nginx);
    old.start(ca);
    let _nginx = world.nginx_before(8080);
    reaches(&mastodon, &[&misskey], "through the old relay again");
    assert_eq!(all.map(accepts), accepted, "nobody followed again");
}

/// Runs each command of the table, first with `--dry-run`, in a gateway of its own.
#[test]
fn every_import_of_the_readme_runs() {
    let world = World::new();
    let place = &world.place;
    let ca = &world.certificate.ca;
    let own = format!("\n[fediverse]\n{PRIVATE}\n[tls]\nextra_ca = [{ca:?}]\n");
    let config = readme::block("config: takeover") + &own;
    let start = |name: &str| {
        let directory = place.file(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("tasuki.toml"), &config).unwrap();
        process::succeed(&mut place.shell_in(&directory, &readme::block("run: takeover-prepare")));
        let running = place.serve_in(&directory, "tasuki serve");
        (directory, running)
    };
    // Where another relay ran: instances joined it, and know its key.
    let (directory, mut before) = start("before");
    let nginx = world.nginx_before(8090);
    let mastodon = world.instance("mastodon", MASTODON, ca);
    let misskey = world.instance("misskey", MISSKEY, ca);
    let akkoma = world.instance("litepub", AKKOMA, ca);
    let all = [&mastodon, &misskey, &akkoma];
    for (instance, software) in all.into_iter().zip(["Mastodon", "Misskey", "Akkoma"]) {
        instance.subscribe(&pasted(software));
    }
    reaches(&akkoma, &[&mastodon, &misskey], "the key is known");
    let key = process::succeed(&mut place.shell_in(&directory, "tasuki key export --yes"));
    std::fs::write(place.file("actor.pem"), key).unwrap();
    assert!(before.terminate().success());
    let accepted = all.map(accepts);
    let _redis = redis(&world, all);
    let mut list = "actor,inbox,style,follow_id\n".to_owned();
    for (instance, style) in all.into_iter().zip(["mastodon", "mastodon", "litepub"]) {
        let base = &instance.base;
        list += &format!("{},{base}/inbox,{style},{}\n", actor(instance), follow(instance));
    }

    let data = root().join("crates/tasuki-store/tests/data");
    let written_by_them = [
        (
            "/var/lib/activityrelay/relay.sqlite3",
            data.join("activityrelay-0.3.5.sqlite3"),
        ),
        ("/var/lib/relay/sled/db-0-34", data.join("aode-0.3.131")),
        ("/etc/activity-relay/actor.pem", place.file("actor.pem")),
        ("/etc/pub-relay/actor.pem", place.file("actor.pem")),
    ];
    let rows = readme::rows_of_tables_with("README.md", "import");
    assert_eq!(rows.len(), 5);
    for (number, (at, row)) in rows.iter().enumerate() {
        let written = readme::quoted(&row[*at]).next().unwrap();
        let command = written_by_them
            .iter()
            .fold(written.to_owned(), |text, (there, here)| {
                text.replace(there, here.to_str().unwrap())
            });
        let (directory, mut gateway) = start(&format!("import{number}"));
        std::fs::write(directory.join("subscribers.csv"), &list).unwrap();
        std::fs::copy(place.file("actor.pem"), directory.join("actor.pem")).unwrap();
        let run = |script: &str| process::succeed(&mut place.shell_in(&directory, script));
        let said = run(&format!("{command} --dry-run"));
        assert!(said.contains("would be taken over"), "{command}: {said}");
        let said = run(&command);
        assert!(said.contains("is taken over"), "{command}: {said}");
        // The data written by other programs is of hosts that are nowhere; pub-relay has no LitePub style.
        let is_theirs = written.contains("sqlite3") || written.contains("sled");
        let joined: &[&Instance] = match command.contains("pub-relay") {
            _ if is_theirs => &[],
            true => &all[..2],
            false => &all,
        };
        for author in joined {
            let others = joined.iter().copied();
            let readers: Vec<&Instance> = others.filter(|one| !std::ptr::eq(*one, *author)).collect();
            reaches(author, &readers, &command);
        }
        assert!(gateway.terminate().success());
    }
    drop(nginx);
    assert_eq!(all.map(accepts), accepted, "nobody followed again");
}

/// Who of an instance follows relays.
fn actor(instance: &Instance) -> String {
    let path = match instance.host() {
        "misskey.example" => "users/9relayactor",
        "akkoma.example" => "relay",
        _ => "actor",
    };
    format!("{}/{path}", instance.base)
}

/// The id of its Follow.
fn follow(instance: &Instance) -> String {
    instance.read("state")["follow_id"].as_str().unwrap().to_owned()
}

/// What Activity-Relay (`models/state.go`) and pub-relay keep of their subscribers, in their layouts.
fn redis(world: &World, [mastodon, misskey, akkoma]: [&Instance; 3]) -> Running {
    let network = &world.place.network;
    let mut command = network.tool("redis-server");
    command.args(["--port", "6379", "--save", ""]);
    let running = Running::start(
        "redis-server",
        &mut command,
        &network.directory().join("redis.log"),
    );
    network.wait_for_listener("redis-server", 6379);
    let hash = |kind: &str, instance: &Instance, more: &[(&str, String)]| {
        let mut command = network.tool("redis-cli");
        command.args(["HSET", &format!("relay:{kind}:{}", instance.host())]);
        command.args(["inbox_url", &format!("{}/inbox", instance.base)]);
        command.args(["actor_id", &actor(instance), "activity_id", &follow(instance)]);
        for (name, value) in more {
            command.args([name, value.as_str()]);
        }
        process::succeed(&mut command);
    };
    for instance in [mastodon, misskey] {
        // Both programs' fields: they name their hashes alike.
        let more = [
            ("follow_id", follow(instance)),
            ("follow_actor_id", actor(instance)),
            ("state", "Subscribed".to_owned()),
        ];
        hash("subscription", instance, &more);
    }
    hash("follower", akkoma, &[("mutually_follow", "1".to_owned())]);
    running
}
