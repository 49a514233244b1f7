//! `tasuki-agent doctor`: looks for what keeps visitors away, and says in one line what helps.

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use tasuki_tunnel::agent::{
    AgentConfig, AgentKey, GatewayProbe, LocalDoor, LocalProbe, Status, probe_front_door, probe_gateway,
    probe_local,
};
use tasuki_tunnel::{JAVA, Leads, Published, Transport};

use crate::commands::Place;
use crate::config::Settings;
use crate::findings::{self, Finding, bad, note, well};
use crate::home::Home;
use crate::words::Words;
use crate::{Fail, IO, NOTHING, Run};

#[derive(Args, Debug)]
pub(crate) struct Doctor {
    #[command(flatten)]
    run: Run,
    /// Ask this name server for visitors' names [default: the system's]
    #[arg(long, value_name = "ADDRESS:PORT")]
    nameserver: Option<SocketAddr>,
}

pub(crate) fn doctor(doctor: Doctor, words: Words) -> Result<(), Fail> {
    tasuki_core::tls::install_provider();
    let dir = doctor.run.dir.clone();
    let mut settings = Settings::gather(doctor.run)?;
    let useless_proxy = settings.useless_proxy.take();
    let home = Home::at(dir.clone(), settings.dir.clone())?;
    let key = home.key()?;
    let config = settings.agent_config(home.remembered()?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fail::new(IO, format!("the runtime cannot start: {error}")))?;
    let status = Place::status_of(dir);
    let mut found = match &status {
        Ok(status) => running(status, words),
        Err(fail) => vec![bad(fail.text.clone())],
    };
    found.extend(useless_proxy.map(|problem| note(words.useless_proxy(&problem))));
    runtime.block_on(async {
        let (gateway, names) = tokio::join!(
            gateway(&config, &key, words),
            names(&config, status.as_ref().ok(), doctor.nameserver, words),
        );
        found.extend(gateway);
        found.extend(names);
        for endpoint in &config.endpoints {
            let (target, probe) = (&endpoint.target, probe_local(endpoint).await);
            found.push(local(&endpoint.label, target, probe, words));
        }
    });
    for finding in &found {
        println!("{finding}");
    }
    match found.iter().filter(|finding| finding.is_bad()).count() {
        0 => Ok(()),
        bad => Err(Fail::new(
            NOTHING,
            words.pick(
                format!("{bad} things need a hand"),
                format!("対応が必要な項目: {bad}"),
            ),
        )),
    }
}

fn running(status: &Status, words: Words) -> Vec<Finding> {
    let mut found = vec![match (&status.problem, status.connected) {
        (_, true) => well(words.pick(
            "the agent runs and is connected".into(),
            "エージェントは動作し、接続しています".into(),
        )),
        (Some(problem), false) => bad(words.pick(
            format!("the agent runs, but is not connected: {problem}"),
            format!("エージェントは動作していますが、接続していません: {problem}"),
        )),
        (None, false) => bad(words.pick(
            "the agent runs and is still connecting".into(),
            "エージェントは接続の途中です".into(),
        )),
    }];
    for endpoint in &status.endpoints {
        if let Some(problem) = &endpoint.problem {
            found.push(bad(format!("{}: {problem}", endpoint.label)));
        }
    }
    found
}

/// The way to the gateway: over UDP, and if that does not pass, over TLS.
async fn gateway(config: &AgentConfig, key: &AgentKey, words: Words) -> Vec<Finding> {
    let name = &config.gateway;
    if config.transport == Some(Transport::Tls) {
        return vec![over_tls(config, key, words).await];
    }
    match probe_gateway(config, key).await {
        GatewayProbe::Answers { address, path } => {
            let ms = path.rtt.as_secs_f64() * 1000.0;
            let english = format!("{name} ({address}) answers over UDP with the pinned key, {ms:.1} ms away");
            let japanese = format!("{name} ({address}) は UDP で、登録時の鍵で応答します (往復 {ms:.1} ms)");
            let mut found = vec![well(words.pick(english, japanese))];
            found.extend(findings::path(&path, words));
            found
        }
        GatewayProbe::NoAddress(problem) => vec![bad(words.pick(
            format!("{name}: {problem}; is the name right, and does this machine reach a DNS server?"),
            format!("{name}: {problem}。名前と DNS の設定を確認してください"),
        ))],
        GatewayProbe::WrongKey => vec![bad(words.pick(
            format!("{name} shows another key than the pinned one; ask its operator for a new command"),
            format!("{name} の鍵が登録時の指紋と一致しません。新しいコマンドを管理者に依頼してください"),
        ))],
        GatewayProbe::Silent(addresses) => {
            let at = list(addresses.iter().map(SocketAddr::ip));
            let english = format!(
                "no packet comes back from {name} ({at}): is the gateway on, is its UDP port open in its firewall, and does \
                 this network let UDP out?"
            );
            let japanese = format!(
                "{name} ({at}) から応答がありません。ゲートウェイの動作、そのファイアウォールの UDP ポート、このネットワー\
                 クから外への UDP を確認してください"
            );
            let silent = words.pick(english, japanese);
            if config.transport.is_some() {
                return vec![bad(silent)];
            }
            let tls = over_tls(config, key, words).await;
            vec![if tls.is_bad() { bad(silent) } else { note(silent) }, tls]
        }
        GatewayProbe::Refuses(problem) => vec![bad(format!("{name}: {problem}"))],
    }
}

async fn over_tls(config: &AgentConfig, key: &AgentKey, words: Words) -> Finding {
    match probe_front_door(config, key).await {
        Ok((target, rtt)) => {
            let ms = rtt.as_secs_f64() * 1000.0;
            well(words.pick(
                format!(
                    "{target} answers over TLS, {ms:.1} ms away: visitors come, with more delay than over UDP"
                ),
                format!(
                    "{target} は TLS で応答します (往復 {ms:.1} ms)。利用できますが、UDP より遅延が増えます"
                ),
            ))
        }
        Err((target, problem)) => bad(words.pick(
            format!("no way over TLS to {target} either ({problem}): is that port of the gateway open?"),
            format!("TLS でも {target} につながりません ({problem})。ゲートウェイのポートを確認してください"),
        )),
    }
}

/// A name that visitors type must lead to the gateway, and a game's to the right port.
async fn names(
    config: &AgentConfig,
    status: Option<&Status>,
    server: Option<SocketAddr>,
    words: Words,
) -> Vec<Finding> {
    let games = config
        .endpoints
        .iter()
        .filter_map(|endpoint| match &endpoint.door {
            LocalDoor::Minecraft(Some(name)) => Some((name.as_str(), Some(door_of(status, &endpoint.label)))),
            LocalDoor::Https(name) | LocalDoor::Http(name) => Some((name.as_str(), None)),
            _ => None,
        });
    let names: Vec<(&str, Option<u16>)> = games.collect();
    if names.is_empty() {
        return Vec::new();
    }
    let unusable = |problem: String| {
        words.pick(
            format!("no DNS server can be asked: {problem}"),
            format!("DNS に問い合わせできません: {problem}"),
        )
    };
    let published = Published::new(server);
    let host = config.gateway.rsplit_once(':').map_or("", |(host, _)| host);
    let gateway = match published.addresses(host).await {
        Ok(gateway) => gateway,
        Err(problem) => return vec![bad(unusable(problem))],
    };
    let mut found = Vec::new();
    for (name, port) in names {
        let leads = match port {
            Some(port) => published.game(name, &gateway, port).await,
            None => published.web(name, &gateway).await,
        };
        found.push(name_finding(name, port, host, &gateway, leads, words));
    }
    found
}

/// The port on which the gateway takes players of this endpoint.
fn door_of(status: Option<&Status>, label: &str) -> u16 {
    let line = status.and_then(|status| status.endpoints.iter().find(|line| line.label == label));
    let address = line.and_then(|line| line.address.as_deref());
    address
        .and_then(|address| address.rsplit_once(':'))
        .and_then(|(_, port)| port.parse().ok())
        .unwrap_or(JAVA)
}

fn name_finding(
    name: &str,
    port: Option<u16>,
    host: &str,
    gateway: &[IpAddr],
    leads: Leads,
    words: Words,
) -> Finding {
    let there = list(gateway.iter().copied());
    let record = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => format!("{name}. IN A {ip}"),
        Ok(IpAddr::V6(ip)) => format!("{name}. IN AAAA {ip}"),
        Err(_) => format!("{name}. IN CNAME {host}."),
    };
    let srv = format!(
        "_minecraft._tcp.{name}. IN SRV 0 5 {} {name}.",
        port.unwrap_or(JAVA)
    );
    match leads {
        Leads::There => well(words.pick(
            format!("{name} leads to the gateway"),
            format!("{name} はゲートウェイを指しています"),
        )),
        Leads::WithPort => note(words.pick(
            format!("{name} leads to the gateway, but players have to type the port: publish `{srv}`"),
            format!("{name} はゲートウェイを指していますが、ポート番号の入力が必要です。`{srv}` を公開してください"),
        )),
        Leads::Nowhere => bad(words.pick(
            format!("{name} leads nowhere: publish `{record}`"),
            format!("{name} は DNS にありません。`{record}` を公開してください"),
        )),
        Leads::Elsewhere(found) => {
            let here = list(found.into_iter());
            bad(words.pick(
                format!("{name} leads to {here}, the gateway is at {there}: publish `{record}`"),
                format!("{name} は {here} を指していますが、ゲートウェイは {there} です。`{record}` を公開してください"),
            ))
        }
        Leads::BySrv { target, port } => bad(words.pick(
            format!("the SRV record of {name} sends players to {target}:{port}: publish `{srv}` in its place"),
            format!("{name} の SRV レコードは {target}:{port} を指しています。代わりに `{srv}` を公開してください"),
        )),
        Leads::Unknown(problem) => bad(words.pick(
            format!("{name} cannot be looked up: {problem}; does this machine reach a DNS server?"),
            format!("{name} を検索できません: {problem}。DNS の設定を確認してください"),
        )),
    }
}

fn list(addresses: impl Iterator<Item = IpAddr>) -> String {
    let all: Vec<String> = addresses.map(|address| address.to_string()).collect();
    if all.is_empty() {
        "-".to_owned()
    } else {
        all.join(", ")
    }
}

fn local(label: &str, target: &str, found: LocalProbe, words: Words) -> Finding {
    let (is_well, english, japanese) = match found {
        LocalProbe::Well => (true, "answers", "応答します"),
        LocalProbe::Unasked => (
            true,
            "is UDP: only a visitor can tell",
            "UDP のため、確認できるのは利用者だけです",
        ),
        LocalProbe::Closed => (
            false,
            "takes no connections: is the server on, and is the port right?",
            "に接続できません。サーバーの起動とポート番号を確認してください",
        ),
        LocalProbe::Mute => (
            false,
            "takes connections but does not answer a status request: is it a Minecraft server, and has it started?",
            "は接続できますが、応答しません。Minecraft サーバーか、起動済みかを確認してください",
        ),
        LocalProbe::TakesNoProxy => (
            false,
            "does not take the PROXY header: switch it on there (Paper: proxies.proxy-protocol), or proxy_protocol off here",
            "は PROXY ヘッダーを受け付けません。サーバー側で有効にするか (Paper: proxies.proxy-protocol)、こちらの proxy_protocol を無効にしてください",
        ),
        LocalProbe::WantsProxy => (
            false,
            "answers only with a PROXY header: set proxy_protocol = true here, or switch it off there",
            "は PROXY ヘッダーを要求します。こちらで proxy_protocol = true にするか、サーバー側で無効にしてください",
        ),
    };
    let text = words.pick(
        format!("{label}: {target} {english}"),
        format!("{label}: {target} {japanese}"),
    );
    if is_well { well(text) } else { bad(text) }
}
