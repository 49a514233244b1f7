//! The mail chapter: a newcomer's way from the first mail to a provider, a copier and DKIM, and the tables for those who
//! come from another mail server.

use super::{Place, first_mail};
use crate::support::certificate::Certificate;
use crate::support::mail::{Message, read_messages};
use crate::support::own_network::OwnNetwork;
use crate::support::process::{self, Running};
use crate::support::{client, eventually, readme, root};

/// The blocks that [`the_mail_chapter_of_the_readme_works_as_written`] runs.
pub(super) const BLOCKS: &[&str] = &[
    "run: sink",
    "run: smarthost",
    "run: oauth",
    "run: copier",
    "run: dkim",
];

/// The names of the chapter's provider, and of Microsoft's logins, are this machine here.
const NAMES: [&str; 3] = [
    "smtp.provider.example",
    "smtp.office365.com",
    "login.microsoftonline.com",
];

#[test]
fn the_mail_chapter_of_the_readme_works_as_written() {
    // The gateway's address in the office, and the copier's.
    let names = NAMES.map(|name| (name, "127.0.0.1"));
    let network = OwnNetwork::start_with(&["192.168.10.1", "192.168.10.20"], &names);
    let place = Place::within(network);
    let mut chapter = Chapter::begin(&place);
    chapter.first_mail_to_the_sink();
    let mut provider = chapter.through_a_smarthost();
    chapter.signed();
    chapter.scan_by_the_copier();
    chapter.login_with_a_token();
    assert!(provider.terminate().success());
    assert!(chapter.gateway.terminate().success());
}

struct Chapter<'a> {
    place: &'a Place,
    gateway: Running,
    _sink: Running,
    /// Hands in one more mail as the first was.
    again: String,
    configuration: String,
}

impl<'a> Chapter<'a> {
    fn begin(place: &'a Place) -> Self {
        // The first steps come before the chapter: `data/` is there.
        assert!(place.serve().terminate().success());
        let mails = place.file("mails");
        std::fs::create_dir(&mails).unwrap();
        std::fs::set_permissions(&mails, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let written = readme::block("run: sink");
        // It counts as the README says, and keeps what it gets for us. Nobody lets it run as root.
        let user = if process::is_root() { " -u nobody" } else { "" };
        let keeping = format!("smtp-sink{user} -d {}/%H%M%S.", mails.display());
        let mut command = place.shell(&format!("exec {}", written.trim().replace("smtp-sink", &keeping)));
        command.env("PATH", format!("{}:/usr/sbin", place.path));
        let sink = Running::start("smtp-sink", &mut command, &place.file("sink.log"));
        let microsoft = place.file("microsoft");
        std::fs::create_dir(&microsoft).unwrap();
        let microsoft = Certificate::issue(&microsoft, &["login.microsoftonline.com"]);
        let ours = readme::block("config: sink");
        // Whom the outside world's CAs would vouch for.
        let configuration = format!("\n[tls]\nextra_ca = [{:?}, \"provider-ca.pem\"]\n", microsoft.ca);
        let provider = place.file("provider");
        std::fs::create_dir(&provider).unwrap();
        std::fs::write(provider.join("tasuki.toml"), provider_configuration(&ours)).unwrap();
        process::succeed(&mut place.shell_in(
            &provider,
            "tasuki init --host smtp.provider.example --config tasuki.toml",
        ));
        std::fs::copy(provider.join("data/keys/ca.pem"), place.file("provider-ca.pem")).unwrap();
        std::fs::write(place.file("tasuki.toml"), ours + &configuration).unwrap();
        Self {
            place,
            gateway: place.serve(),
            _sink: sink,
            again: String::new(),
            configuration,
        }
    }

    fn arrived(&self) -> Vec<Message> {
        read_messages(&self.place.file("mails"))
    }

    /// Waits until the sink has a mail like this one.
    #[track_caller]
    fn arrives(&self, what: &str, is_it: impl Fn(&Message) -> bool) -> Message {
        eventually(what, || self.arrived().into_iter().find(&is_it))
    }

    fn first_mail_to_the_sink(&mut self) {
        let said = readme::block("run: first-mail").replace("tasuki mail queue", "echo you@example.net");
        self.again = first_mail(self.place, &said);
        self.arrives("the sink counts the mail", |_| true);
        eventually("the queue is empty", || {
            let said = self.place.run("tasuki mail queue");
            said.starts_with("the queue is empty").then_some(())
        });
    }

    /// The configuration is changed while the gateway runs.
    fn configure(&self, mark: &str) {
        let text = readme::block(mark) + &self.configuration;
        std::fs::write(self.place.file("tasuki.toml"), text).unwrap();
    }

    fn through_a_smarthost(&mut self) -> Running {
        let provider = self.place.file("provider");
        let running = self
            .place
            .serve_in(&provider, "tasuki serve --config tasuki.toml");
        let add = "tasuki service add user --send-as '*' --json --config tasuki.toml";
        let made = process::succeed(&mut self.place.shell_in(&provider, add));
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        let password = made["password"].as_str().unwrap();
        std::fs::write(self.place.file("provider-password"), format!("{password}\n")).unwrap();
        self.configure("config: smarthost");
        let said = self.place.run(&readme::block("run: smarthost"));
        assert!(said.contains("via:provider"), "{said}");
        assert!(!said.contains(password), "{said}");
        self.place.run(&self.again);
        let mail = self.arrives("the mail comes through the provider", |message| {
            message.text.contains("by smtp.provider.example")
        });
        assert!(
            mail.text.contains("ESMTPSA"),
            "over TLS, logged in: {}",
            mail.text
        );
        running
    }

    fn signed(&self) {
        let said = self.place.run(&readme::block("run: dkim"));
        assert!(said.contains("_domainkey.shop.example"), "{said}");
        self.place.run(&self.again);
        let mail = self.arrives("a signed mail", |message| {
            message.text.contains("DKIM-Signature:")
        });
        assert!(mail.text.contains("d=shop.example"), "{}", mail.text);
    }

    fn scan_by_the_copier(&mut self) {
        let copier = readme::block("config: copier");
        let smarthost = readme::block("config: smarthost");
        let text = format!("{smarthost}\n{copier}{}", self.configuration);
        std::fs::write(self.place.file("tasuki.toml"), text).unwrap();
        assert!(self.gateway.terminate().success());
        self.gateway = self.place.serve();
        let said = self.place.run(&readme::block("run: copier"));
        assert!(said.contains("Copier 2F") && said.contains("taken"), "{said}");
        self.place.run(
            "swaks --server 192.168.10.1:2526 --local-interface 192.168.10.20 --ehlo copier \
             --from copier@vendor.example --to hanako@example.org --h-Subject 'a scan'",
        );
        let mail = self.arrives("the scan", |message| message.text.contains("a scan"));
        assert_eq!(
            mail.header("From"),
            Some("\"Copier 2F\" <scan@example.org>"),
            "{}",
            mail.text
        );
        assert_eq!(
            mail.header("Reply-To"),
            Some("copier@vendor.example"),
            "{}",
            mail.text
        );
    }

    fn login_with_a_token(&self) {
        let directory = self.place.network.directory();
        let mut command = self.place.network.command(&process::find("python3"));
        command.arg("-u").arg(client("token_server.py")).args([
            "--certificate",
            "microsoft/web.pem",
            "--key",
            "microsoft/web.key",
        ]);
        let log = directory.join("token-server.log");
        let (_tokens, lines) = Running::start_and_read("the token server", &mut command, &log);
        lines.next_json();
        self.configure("config: oauth");
        self.place.run("tasuki reload");
        let said = self.place.run(&readme::block("run: oauth"));
        assert!(
            said.contains("https://microsoft.com/devicelogin") && said.contains("ABCD-EFGH"),
            "{said}"
        );
        assert!(said.contains("logged in to microsoft"), "{said}");
    }
}

/// A gateway as the provider: it wants a login on port 587, and hands mail to the sink.
fn provider_configuration(sink: &str) -> String {
    format!(
        "engines = [\"mail\"]\n\
         [server]\nhost = \"smtp.provider.example\"\n\
         [front]\nlisten = []\ntls_listen = []\n\
         [admin]\nlisten = \"127.0.0.1:8601\"\n\
         {sink}\n\
         [mail.relay]\nlisten = []\n\
         [mail.submission]\nlisten = [\"127.0.0.1:587\"]\n\
         [mail.submissions]\nlisten = []\n"
    )
}

/// What stands beside another mail server's parameter in the tables is a key of `config/tasuki.toml`, in both languages.
#[test]
fn every_key_in_the_tables_for_users_of_other_mail_servers_exists() {
    let text = std::fs::read_to_string(root().join("config/tasuki.toml")).unwrap();
    let keys: toml::Table = text.parse().unwrap();
    let mut all = Vec::new();
    for file in ["README.md", "README.ja.md"] {
        let mut seen = Vec::new();
        for (at, row) in readme::rows_of_tables_with(file, "tasuki.toml") {
            for key in readme::quoted(&row[at]) {
                let (sections, last) = key.rsplit_once('.').unwrap();
                let table = sections
                    .split('.')
                    .try_fold(&keys, |table, name| table.get(name)?.as_table());
                let table = table.unwrap_or_else(|| panic!("{file}: no section {sections}"));
                // Keys without a default are there as comments.
                let there = table.contains_key(last) || text.contains(&format!("\n# {last} = "));
                assert!(there, "{file}: no key {key}");
                seen.push(key.to_owned());
            }
        }
        assert!(seen.len() > 60, "{file} has no tables for them: {seen:?}");
        all.push(seen);
    }
    assert_eq!(all[0], all[1], "both languages name the same keys");
}

/// Postfix itself knows the parameters of the first column.
#[test]
fn every_parameter_in_the_table_for_postfix_users_is_one_of_postfix() {
    let known = process::succeed(process::tool("postconf").args(["-d", "-c", "/usr/share/postfix"]));
    let known: Vec<&str> = known
        .lines()
        .filter_map(|line| Some(line.split_once(" =")?.0))
        .collect();
    let rows = readme::rows_of_tables_with("README.md", "main.cf");
    assert!(rows.len() > 30, "{rows:?}");
    // Not parameters: services of master.cf, an alias, a restriction, and values.
    let others = [
        "smtp",
        "submission",
        "smtps",
        "master.cf",
        "postmaster",
        "reject_unverified_recipient",
        "dane",
        "verify",
    ];
    // Of a Postfix newer than Debian's.
    let newer = ["smtpd_hide_client_session"];
    // Made from another's name: DESTINATION is `slow` here.
    let made = [
        "slow_destination_concurrency_limit",
        "slow_destination_rate_delay",
    ];
    for (at, row) in rows {
        for word in readme::quoted(&row[at]) {
            let name = word.split(' ').next().unwrap();
            let is_known = known.contains(&name)
                || others.contains(&name)
                || newer.contains(&name)
                || made.contains(&name);
            assert!(is_known, "{name} is no parameter of Postfix");
        }
    }
}

/// Each command beside those of other mail servers runs as it is written; ID is a mail that waits.
#[test]
fn every_command_in_the_table_for_users_of_other_mail_servers_runs() {
    let place = Place::new();
    let mut gateway = place.serve();
    let again = first_mail(&place, &readme::block("run: first-mail"));
    let rows = readme::rows_of_tables_with("README.md", "Tasuki");
    assert!(rows.len() > 12, "{rows:?}");
    for (at, row) in rows {
        for command in readme::quoted(&row[at]) {
            let id = place.waiting_mail().unwrap_or_else(|| {
                place.run(&again);
                place.waiting_mail().expect("it waits: there is no network")
            });
            let said = place.run(&command.replace(" ID", &format!(" {id}")));
            assert!(!said.contains("nothing in the queue"), "{command}: {said}");
        }
    }
    assert!(gateway.terminate().success());
    let japanese = readme::rows_of_tables_with("README.ja.md", "Tasuki");
    let commands = |rows: Vec<(usize, Vec<String>)>| -> Vec<String> {
        rows.into_iter().map(|(at, row)| row[at].clone()).collect()
    };
    assert_eq!(
        commands(readme::rows_of_tables_with("README.md", "Tasuki")),
        commands(japanese)
    );
}
