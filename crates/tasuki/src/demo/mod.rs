//! `tasuki demo`: the three main jobs, proved with the real programs over real sockets on this machine.

mod instances;
mod keys;
mod minecraft;
mod programs;
mod report;
mod show;
mod smtp;
mod web;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use tasuki_core::clock::Clock;
use tokio::time::timeout;
use url::Url;

use self::instances::{Instance, Relay, Style};
use self::programs::{Gateway, Programs, Running};
use self::report::{Engines, Parcel, Proof, Report, Watch, rounded};
use self::show::{Part, Show};
use crate::cli::output;
use crate::exit;

/// The name the demo's gateway is known by; nobody looks it up.
const HOST: &str = "relay.demo.test";
/// What arrives later than this does not count.
const ARRIVES_WITHIN: Duration = Duration::from_secs(15);

/// Options of `tasuki demo`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tasuki demo                   watch it, then play with the addresses it prints; Ctrl-C ends it
  tasuki demo --once            watch it, see the table, and done
  tasuki demo --once --json     for programs: one JSON object; exit code 70 if anything failed")]
pub(crate) struct Args {
    /// End when everything is proved
    #[arg(long)]
    once: bool,
    /// Print one JSON object in place of the table
    #[arg(long)]
    json: bool,
    /// Use this store in place of an embedded one, for example postgres://user:password@host/database (an empty one)
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

/// Runs the demo.
pub(crate) fn run(args: Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => return exit::Fail::io("cannot start the runtime", &e).report(),
    };
    tasuki_core::tls::install_provider();
    let ok = runtime.block_on(demo(&args));
    runtime.shutdown_background();
    ExitCode::from(if ok { 0 } else { exit::SOFTWARE })
}

async fn demo(args: &Args) -> bool {
    let clock = Clock::system();
    let began = clock.now();
    let show = Show::choose(args.json);
    let mut report = Report {
        ok: false,
        seconds: 0.0,
        store: if args.store.is_some() {
            "postgresql"
        } else {
            "sqlite"
        },
        programs: Vec::new(),
        gateway_ready_seconds: None,
        error: None,
        engines: Engines::default(),
    };
    let stage = Stage {
        clock: clock.clone(),
        show,
    };
    let (mut stop, programs, place) = match prepared() {
        Ok(all) => all,
        Err(error) => {
            eprintln!("tasuki: the demo cannot begin: {error:#}");
            return false;
        }
    };
    report.programs = programs.names();
    let mut standing = None;
    let played = tokio::select! {
        played = stage.play(args, &programs, place.path(), &mut report) => played.map(|s| standing = Some(s)),
        () = stop.asked() => Err(anyhow::anyhow!("stopped before everything was shown")),
    };
    if let Err(error) = played {
        report.error = Some(format!("{error:#}"));
    }
    let engines = [
        &report.engines.mail,
        &report.engines.fediverse,
        &report.engines.tunnel,
    ];
    report.ok = report.error.is_none() && engines.into_iter().all(|e| e.as_ref().is_some_and(|p| p.ok));
    report.seconds = rounded(clock.now().duration_since(began));
    if args.json {
        output::line(json!(report).to_string());
    } else {
        report.print_table();
    }
    if let Some(standing) = standing.filter(|_| !args.once) {
        standing.print_addresses();
        stop.asked().await;
    }
    programs.end().await;
    clear(place).await;
    report.ok
}

/// What must be there before anything runs, and is cleared away at the end however that comes.
fn prepared() -> Result<(Stop, Programs, tempfile::TempDir)> {
    let stop = Stop::listen()?;
    let programs = Programs::find()?;
    let place = tempfile::Builder::new()
        .prefix("tasuki-demo-")
        .tempdir()
        .context("no temporary directory can be made")?;
    Ok((stop, programs, place))
}

/// Removes the directory. A command that was cut off may need a moment to be gone, and makes files until then.
async fn clear(place: tempfile::TempDir) {
    let path = place.keep();
    for _ in 0..20 {
        match std::fs::remove_dir_all(&path) {
            Ok(()) => return,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    eprintln!(
        "tasuki: {} could not be removed; remove it by hand",
        path.display()
    );
}

/// The signals that end the demo: Ctrl-C, `kill`, a terminal that is closed.
struct Stop([tokio::signal::unix::Signal; 3]);

impl Stop {
    fn listen() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn asked(&mut self) {
        let [int, term, hup] = &mut self.0;
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
        }
    }
}

/// What everything on the stage shares.
struct Stage {
    clock: Clock,
    show: Show,
}

/// Everything that runs, after the proofs.
struct Standing {
    place: PathBuf,
    gateway: Gateway,
    login: (String, String),
    instances: Vec<Arc<Instance>>,
}

impl Stage {
    async fn play(
        &self,
        args: &Args,
        programs: &Programs,
        place: &Path,
        report: &mut Report,
    ) -> Result<Standing> {
        let part = self.show.part("gateway");
        part.step("starting in a temporary directory, on free loopback ports");
        let mut watch = Watch::start(&self.clock);
        let (sink, mails) = smtp::sink().await?;
        let config = config(place, sink.port(), args.store.as_deref());
        let started = Gateway::start(programs, place, &config, HOST).await;
        let gateway = match started {
            Ok(gateway) => gateway,
            Err(error) => {
                part.end(false, "did not start");
                return Err(error);
            }
        };
        let ready = watch.lap();
        report.gateway_ready_seconds = Some(ready);
        part.end(
            true,
            &format!(
                "ready after {ready:.2} s with {} listeners",
                gateway.addresses.len()
            ),
        );

        let (mail, fediverse, tunnel) = tokio::join!(
            self.mail(&gateway, mails),
            self.fediverse(&gateway),
            self.tunnel(&gateway)
        );
        let (mail, login) = mail;
        let (fediverse, instances) = fediverse;
        report.engines = Engines {
            mail: Some(mail),
            fediverse: Some(fediverse),
            tunnel: Some(tunnel),
        };
        let engines = [
            &report.engines.mail,
            &report.engines.fediverse,
            &report.engines.tunnel,
        ];
        if !engines.into_iter().flatten().all(|p| p.ok) && !args.json {
            eprintln!("the gateway{}", gateway.last_words());
        }
        Ok(Standing {
            place: place.to_owned(),
            gateway,
            login,
            instances,
        })
    }

    async fn mail(
        &self,
        gateway: &Gateway,
        mails: tokio::sync::mpsc::Receiver<smtp::Caught>,
    ) -> (Proof, (String, String)) {
        let part = self.show.part("mail");
        let mut proof = Proof::default();
        let mut login = (String::new(), String::new());
        let done = self
            .prove_mail(gateway, mails, &part, &mut proof, &mut login)
            .await;
        (
            self.ended(&part, proof, done, "the mail arrived, unchanged"),
            login,
        )
    }

    async fn prove_mail(
        &self,
        gateway: &Gateway,
        mut mails: tokio::sync::mpsc::Receiver<smtp::Caught>,
        part: &Part,
        proof: &mut Proof,
        login: &mut (String, String),
    ) -> Result<()> {
        let mut watch = Watch::start(&self.clock);
        part.step("making the service `shop`, which may send as shop.demo.test");
        let made = gateway
            .command(&["service", "add", "shop", "--send-as", "shop.demo.test", "--json"])
            .await?;
        let password = made["password"].as_str().context("no password was printed")?;
        *login = ("shop".to_owned(), password.to_owned());
        watch.step(proof, "account");
        let sender = smtp::Sender {
            submission: gateway.address("mail.submission")?,
            trust: trust(&gateway.ca_file())?,
            server_name: HOST.to_owned(),
            login: "shop",
            password,
        };
        let message = message(&self.clock);
        proof.sent = Some(Parcel::new("client", "mail", &message));
        part.step("handing in a mail by STARTTLS and AUTH");
        smtp::send(&sender, "orders@shop.demo.test", "hanako@example.test", &message).await?;
        watch.step(proof, "accepted (committed)");
        part.step("waiting for it at the far end");
        let caught = timeout(ARRIVES_WITHIN, mails.recv())
            .await
            .context("the mail did not arrive within 15 s")?
            .context("the sink has stopped")?;
        watch.step(proof, "delivered");
        ensure!(
            caught
                .envelope
                .iter()
                .any(|line| line.contains("<hanako@example.test>")),
            "the envelope at the far end is another one: {:?}",
            caught.envelope
        );
        // The relay puts its trace before the message and changes nothing behind it (RFC 5321 4.4).
        let at = caught.message.len().saturating_sub(message.len());
        let (trace, arrived) = caught.message.split_at(at);
        proof.received.push(Parcel::new("sink", "mail", arrived));
        ensure!(arrived == message, "the mail was changed on its way");
        ensure!(
            trace.starts_with(b"Received:"),
            "the relay's Received line is missing"
        );
        Ok(())
    }

    async fn fediverse(&self, gateway: &Gateway) -> (Proof, Vec<Arc<Instance>>) {
        let part = self.show.part("fediverse");
        let mut proof = Proof::default();
        let mut instances = Vec::new();
        let done = self
            .prove_fediverse(gateway, &part, &mut proof, &mut instances)
            .await;
        let proof = self.ended(&part, proof, done, "the note reached three instances");
        (proof, instances)
    }

    async fn prove_fediverse(
        &self,
        gateway: &Gateway,
        part: &Part,
        proof: &mut Proof,
        running: &mut Vec<Arc<Instance>>,
    ) -> Result<()> {
        let mut watch = Watch::start(&self.clock);
        let base = format!("http://{}", gateway.address("front.http")?);
        let relay = Relay {
            inbox: Url::parse(&format!("{base}/inbox"))?,
            actor: Url::parse(&format!("{base}/actor"))?,
        };
        part.step("starting four instances: two like Mastodon, one like Misskey, one like LitePub");
        let mut inboxes = Vec::new();
        for (name, style) in [
            ("mastodon-1", Style::Mastodon),
            ("mastodon-2", Style::Mastodon),
            ("misskey", Style::Misskey),
            ("litepub", Style::LitePub),
        ] {
            let (instance, inbox) = Instance::start(name, style, &relay, &self.clock).await?;
            running.push(instance);
            inboxes.push(inbox);
        }
        watch.step(proof, "instances started");
        part.step("subscribing all four");
        let subscribing = running.iter().zip(&mut inboxes).map(|(instance, inbox)| async {
            timeout(ARRIVES_WITHIN, instance.subscribe(&relay, inbox))
                .await
                .context("no Accept within 15 s")?
                .with_context(|| format!("{} could not subscribe", instance.name))
        });
        futures_util::future::try_join_all(subscribing).await?;
        watch.step(proof, "four subscribed");
        part.step("publishing a note at mastodon-1");
        let publisher = running.first().context("no instance")?;
        let content = "<p>Hello from behind the relay. 襷をつなぐ。</p>";
        let (sent, note) = publisher.publish(&relay, content).await?;
        proof.sent = Some(Parcel::new(publisher.name, "activity", &sent));
        watch.step(proof, "accepted (committed)");
        part.step("waiting for it at the other three");
        let receiving = running.iter().zip(&mut inboxes).skip(1).map(|(instance, inbox)| {
            let (sent, note) = (&sent, note.as_str());
            async move {
                let arrival = timeout(ARRIVES_WITHIN, inbox.recv())
                    .await
                    .with_context(|| format!("nothing reached {} within 15 s", instance.name))?
                    .with_context(|| format!("{} has stopped", instance.name))?;
                received(instance, arrival, sent, note).await
            }
        });
        proof.received = futures_util::future::try_join_all(receiving).await?;
        watch.step(proof, "delivered to three");
        Ok(())
    }

    async fn tunnel(&self, gateway: &Gateway) -> Proof {
        let part = self.show.part("tunnel");
        let mut proof = Proof::default();
        let mut agent = None;
        let done = self.prove_tunnel(gateway, &part, &mut proof, &mut agent).await;
        let words = match (&done, &agent) {
            (Err(_), Some(agent)) => agent.last_words(),
            _ => String::new(),
        };
        let done = done.map_err(|e| {
            if words.is_empty() {
                e
            } else {
                anyhow::anyhow!("{e:#}{words}")
            }
        });
        self.ended(&part, proof, done, "the server at home answers at the front door")
    }

    async fn prove_tunnel(
        &self,
        gateway: &Gateway,
        part: &Part,
        proof: &mut Proof,
        agent: &mut Option<Running>,
    ) -> Result<()> {
        let mut watch = Watch::start(&self.clock);
        let status = json!({
            "version": {"name": "Tasuki demo", "protocol": 767},
            "players": {"max": 20, "online": 3},
            "description": {"text": format!("Home server {}", self.clock.wall())},
        })
        .to_string();
        let home = minecraft::server(status.clone()).await?;
        proof.sent = Some(Parcel::new("server at home", "status", status.as_bytes()));
        part.step("enrolling the agent `home`");
        let enrolled = gateway
            .command(&["tunnel", "enroll", "home", "--default", "--json"])
            .await?;
        watch.step(proof, "code made");
        let arguments = agent_arguments(gateway, &enrolled, home)?;
        *agent = Some(gateway.agent(&arguments)?);
        part.step("waiting until the agent has dialled out");
        let door = gateway.address("tunnel.minecraft")?;
        let ping = timeout(ARRIVES_WITHIN, async {
            loop {
                // Until the agent is there, the gateway answers with a page of its own.
                match minecraft::ping(&self.clock, door, "mc.demo.test").await {
                    Ok(ping) if ping.status == status.as_bytes() => return ping,
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })
        .await
        .context("the server behind the agent did not answer at the front door within 15 s")?;
        watch.step(proof, "agent up, status through the tunnel");
        proof.received.push(Parcel::new("player", "status", &ping.status));
        proof.steps.push(report::Step {
            name: "ping and pong",
            seconds: rounded(ping.round_trip),
        });
        Ok(())
    }

    fn ended(&self, part: &Part, mut proof: Proof, done: Result<()>, success: &str) -> Proof {
        match done {
            Ok(()) => {
                proof.ok = true;
                part.end(true, &format!("{success} ({:.2} s)", proof.seconds()));
                proof
            }
            Err(error) => {
                part.end(false, &format!("{error:#}"));
                proof.failed(&error)
            }
        }
    }
}

/// Compares what an instance received with what was published. A forward is the same bytes; an Announce names the
/// object, which the instance then fetches from its origin.
async fn received(
    instance: &Instance,
    arrival: instances::Arrival,
    sent: &[u8],
    note: &str,
) -> Result<Parcel> {
    if arrival.activity["type"] == "Announce" {
        ensure!(
            arrival.activity["object"] == note,
            "{} was told of another object: {}",
            instance.name,
            arrival.activity["object"]
        );
        let fetched = web::get(&Url::parse(note)?).await?;
        let object: serde_json::Value = serde_json::from_slice(&fetched.body)?;
        ensure!(object["id"] == note, "the announced note has another id");
        return Ok(Parcel::new(
            instance.name,
            "announced, note fetched",
            &fetched.body,
        ));
    }
    ensure!(
        instance.style != Style::LitePub,
        "a LitePub instance takes only an Announce, and got {}",
        arrival.activity["type"]
    );
    ensure!(
        arrival.body == sent,
        "{} received other bytes than were published",
        instance.name
    );
    Ok(Parcel::new(instance.name, "forwarded activity", &arrival.body))
}

/// What `tasuki-agent` is started with for this server at home.
fn agent_arguments(
    gateway: &Gateway,
    enrolled: &serde_json::Value,
    home: std::net::SocketAddr,
) -> Result<Vec<String>> {
    let text = |key: &str| {
        enrolled[key]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("`tunnel enroll` printed no {key}"))
    };
    let mut arguments = vec!["run".to_owned()];
    for (option, value) in [
        ("--gateway", gateway.address("tunnel.quic")?.to_string()),
        ("--pin", text("pin")?),
        ("--code", text("code")?),
        ("--minecraft", home.to_string()),
        ("--dir", "agent".to_owned()),
    ] {
        arguments.push(option.to_owned());
        arguments.push(value);
    }
    Ok(arguments)
}

/// Trust in the gateway's private CA alone.
fn trust(ca_file: &Path) -> Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file).context("the private CA's certificate")?)?;
    Ok(Arc::new(
        rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth(),
    ))
}

fn message(clock: &Clock) -> Vec<u8> {
    let now = clock.wall();
    let mut text = format!(
        "From: Shop <orders@shop.demo.test>\r\nTo: Hanako <hanako@example.test>\r\nSubject: Your order\r\n\
         Date: {}\r\nMessage-ID: <{}.demo@shop.demo.test>\r\nMIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\
         Thank you for your order.\r\n.A line that begins with a dot.\r\nご注文ありがとうございます。\r\n",
        tasuki_proto::activitypub::date::http_date(now.to_utc().into()).replace("GMT", "+0000"),
        now.0
    );
    for line in 1..=100 {
        text.push_str(&format!(
            "{line:3}  A relay hands the sash on and lets nothing fall.\r\n"
        ));
    }
    text.into_bytes()
}

fn config(place: &Path, sink: u16, store: Option<&str>) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    format!(
        r#"# Made by `tasuki demo`.
[server]
data = {data}
host = "{HOST}"
danger_public_url = "http://127.0.0.1:0"

[store]
url = {store}

[front]
listen = ["127.0.0.1:0"]
tls_listen = ["127.0.0.1:0"]

[admin]
listen = "127.0.0.1:0"

[mail]
default_route = "sink"
[mail.relay]
listen = ["127.0.0.1:0"]
[mail.submission]
listen = ["127.0.0.1:0"]
[mail.submissions]
listen = ["127.0.0.1:0"]
[[mail.smarthosts]]
name = "sink"
host = "127.0.0.1"
port = {sink}
tls = "none"

[fediverse]
danger_allow_private_addresses = true

[tunnel.quic]
listen = "127.0.0.1:0"
[tunnel.minecraft]
listen = "127.0.0.1:0"
"#,
        data = quoted(&place.join("data").display().to_string()),
        store = quoted(store.unwrap_or_default()),
    )
}

impl Standing {
    fn print_addresses(&self) {
        let line = |what: &str, value: String| output::line(format!("  {what:<24}{value}"));
        output::line("");
        output::line("Everything is still running. Play with it:");
        for (name, addr) in &self.gateway.addresses {
            line(name, addr.to_string());
        }
        let (login, password) = &self.login;
        line("mail login", format!("{login} / {password}"));
        line("trust this CA", self.gateway.ca_file().display().to_string());
        for instance in &self.instances {
            line(instance.name, instance.base.clone());
        }
        let config = self.place.join("tasuki.toml");
        line(
            "ask the gateway",
            format!("tasuki --config {} status", config.display()),
        );
        output::line("Ctrl-C ends it.");
    }
}
