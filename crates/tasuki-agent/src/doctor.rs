//! `tasuki-agent doctor`: looks for what keeps visitors away, and says in one line what helps.

use std::net::SocketAddr;

use tasuki_tunnel::agent::{
    AgentConfig, GatewayProbe, LocalDoor, LocalProbe, Status, probe_gateway, probe_local,
};

use crate::commands::Place;
use crate::config::Settings;
use crate::home::Home;
use crate::words::Words;
use crate::{Fail, IO, NOTHING, Run};

/// One finding: whether it is well, and what to read.
type Finding = (bool, String);

pub(crate) fn doctor(arguments: Run, words: Words) -> Result<(), Fail> {
    tasuki_core::tls::install_provider();
    let dir = arguments.dir.clone();
    let settings = Settings::gather(arguments)?;
    let home = Home::at(dir.clone(), settings.dir.clone())?;
    let key = home.key()?;
    let config = settings.agent_config(home.remembered()?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fail::new(IO, format!("the runtime cannot start: {error}")))?;
    let mut findings = match Place::status_of(dir) {
        Ok(status) => running(&status, words),
        Err(fail) => vec![(false, fail.text)],
    };
    runtime.block_on(async {
        findings.push(gateway(&config, probe_gateway(&config, &key).await, words));
        findings.extend(names(&config, words).await);
        for endpoint in &config.endpoints {
            let (target, found) = (&endpoint.target, probe_local(endpoint).await);
            findings.push(local(&endpoint.label, target, found, words));
        }
    });
    for (is_well, text) in &findings {
        println!("{} {text}", if *is_well { "ok  " } else { "BAD " });
    }
    match findings.iter().filter(|(is_well, _)| !is_well).count() {
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
    let mut findings = vec![match (&status.problem, status.connected) {
        (_, true) => (
            true,
            words.pick(
                "the agent runs and is connected".into(),
                "エージェントは動作し、接続しています".into(),
            ),
        ),
        (Some(problem), false) => (
            false,
            words.pick(
                format!("the agent runs, but is not connected: {problem}"),
                format!("エージェントは動作していますが、接続していません: {problem}"),
            ),
        ),
        (None, false) => (
            false,
            words.pick(
                "the agent runs and is still connecting".into(),
                "エージェントは接続の途中です".into(),
            ),
        ),
    }];
    for endpoint in &status.endpoints {
        if let Some(problem) = &endpoint.problem {
            findings.push((false, format!("{}: {problem}", endpoint.label)));
        }
    }
    findings
}

fn gateway(config: &AgentConfig, found: GatewayProbe, words: Words) -> Finding {
    let gateway = &config.gateway;
    match found {
        GatewayProbe::Answers { address, rtt } => {
            let ms = rtt.as_secs_f64() * 1000.0;
            let english =
                format!("{gateway} ({address}) answers over UDP with the pinned key, {ms:.1} ms away");
            let japanese =
                format!("{gateway} ({address}) は UDP で、登録時の鍵で応答します (往復 {ms:.1} ms)");
            (true, words.pick(english, japanese))
        }
        GatewayProbe::NoAddress(problem) => (
            false,
            words.pick(
                format!("{gateway}: {problem}; is the name right, and does this machine reach a DNS server?"),
                format!("{gateway}: {problem}。名前と DNS の設定を確認してください"),
            ),
        ),
        GatewayProbe::WrongKey => (
            false,
            words.pick(
                format!(
                    "{gateway} shows another key than the pinned one; ask its operator for a new command"
                ),
                format!(
                    "{gateway} の鍵が登録時の指紋と一致しません。新しいコマンドを管理者に依頼してください"
                ),
            ),
        ),
        GatewayProbe::Silent(addresses) => {
            let at = list(&addresses);
            (
                false,
                words.pick(
                    format!(
                        "no packet comes back from {gateway} ({at}): is the gateway on, is its UDP port open in its firewall, \
                         and does this network let UDP out?"
                    ),
                    format!(
                        "{gateway} ({at}) から応答がありません。ゲートウェイの動作、そのファイアウォールの UDP ポート、この\
                         ネットワークから外への UDP を確認してください"
                    ),
                ),
            )
        }
        GatewayProbe::Refuses(problem) => (false, format!("{gateway}: {problem}")),
    }
}

/// A name that players type must lead to the gateway.
async fn names(config: &AgentConfig, words: Words) -> Vec<Finding> {
    let mut findings = Vec::new();
    let of_gateway = look_up(&config.gateway).await;
    for endpoint in &config.endpoints {
        let LocalDoor::Minecraft(Some(name)) = &endpoint.door else {
            continue;
        };
        let of_name = look_up(&format!("{name}:25565")).await;
        let leads_there = of_name
            .iter()
            .any(|a| of_gateway.iter().any(|b| a.ip() == b.ip()));
        findings.push(if leads_there {
            (true, words.pick(format!("{name} leads to the gateway"), format!("{name} はゲートウェイを指しています")))
        } else {
            let (here, there) = (list(&of_name), list(&of_gateway));
            (
                false,
                words.pick(
                    format!("{name} leads to {here}, the gateway is at {there}: make a DNS record for it there"),
                    format!("{name} は {here} を指していますが、ゲートウェイは {there} です。DNS を設定してください"),
                ),
            )
        });
    }
    findings
}

async fn look_up(host: &str) -> Vec<SocketAddr> {
    tokio::net::lookup_host(host)
        .await
        .map(Iterator::collect)
        .unwrap_or_default()
}

fn list(addresses: &[SocketAddr]) -> String {
    let ips: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    if ips.is_empty() {
        "-".to_owned()
    } else {
        ips.join(", ")
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
    (
        is_well,
        words.pick(
            format!("{label}: {target} {english}"),
            format!("{label}: {target} {japanese}"),
        ),
    )
}
