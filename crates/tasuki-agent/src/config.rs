//! `agent.toml` and the arguments, put together: arguments win.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tasuki_core::config::{duration, error_at, parse, size};
use tasuki_proto::names::Domain;
use tasuki_proto::tunnel::HttpProxy;
use tasuki_tunnel::agent::{AgentConfig, LocalDoor, LocalEndpoint, Start};
use tasuki_tunnel::{Fingerprint, Transport};

use crate::home::Remembered;
use crate::{CONFIG, Fail, Run, USAGE};

/// Where the file is looked for, in this order, if no argument names it.
const PLACES: [&str; 2] = ["agent.toml", "/etc/tasuki/agent.toml"];

/// `agent.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct File {
    gateway: String,
    tls: String,
    transport: Choice,
    proxy: String,
    pin: String,
    dir: String,
    gso: bool,
    #[serde(with = "size")]
    socket_buffer: u64,
    max_connections: u32,
    #[serde(with = "duration")]
    connect_timeout: Duration,
    #[serde(with = "duration")]
    stall_timeout: Duration,
    #[serde(with = "duration")]
    drain: Duration,
    endpoint: Vec<Endpoint>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            gateway: String::new(),
            tls: String::new(),
            transport: Choice::Auto,
            proxy: String::new(),
            pin: String::new(),
            dir: String::new(),
            gso: true,
            socket_buffer: 4 << 20,
            max_connections: 8192,
            connect_timeout: Duration::from_secs(3),
            stall_timeout: Duration::from_secs(30),
            drain: Duration::ZERO,
            endpoint: Vec::new(),
        }
    }
}

/// `transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Choice {
    Auto,
    Quic,
    Tls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Tcp,
    Udp,
    Minecraft,
    Https,
    Http,
}

/// `[[endpoint]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Endpoint {
    kind: Kind,
    local: String,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    name: Option<Domain>,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    proxy_protocol: bool,
    #[serde(default)]
    proxy_each_datagram: bool,
    #[serde(default)]
    lan_listen: Option<SocketAddr>,
    #[serde(default)]
    start: Vec<String>,
    #[serde(default)]
    wake_for: Vec<String>,
}

/// Everything that was said, checked.
pub(crate) struct Settings {
    gateway: Option<String>,
    tls: Option<String>,
    proxy: Option<HttpProxy>,
    /// Why the environment's proxy is not used.
    pub(crate) useless_proxy: Option<String>,
    pin: Option<Fingerprint>,
    pub(crate) dir: Option<PathBuf>,
    file: File,
    endpoints: Vec<LocalEndpoint>,
}

impl Settings {
    /// Reads the file, if there is one, and lays the arguments over it. Endpoints in arguments replace the file's.
    pub(crate) fn gather(arguments: Run) -> Result<Self, Fail> {
        let (file, from_file) = match file_path(&arguments)? {
            Some(path) => read(&path)?,
            None => (File::default(), Vec::new()),
        };
        let from_arguments = endpoints_of(&arguments)?;
        let endpoints = if from_arguments.is_empty() {
            from_file
        } else {
            from_arguments
        };
        let pin = match arguments.pin.or_else(|| filled(&file.pin)) {
            Some(text) => Some(
                text.parse()
                    .map_err(|error| Fail::new(USAGE, format!("--pin: {error}")))?,
            ),
            None => None,
        };
        let gateway = arguments.gateway.or_else(|| filled(&file.gateway));
        if let Some(gateway) = &gateway {
            check_target("--gateway", gateway)?;
        }
        let tls = arguments.tls.or_else(|| filled(&file.tls));
        if let Some(tls) = &tls {
            check_target("--tls", tls)?;
        }
        let (proxy, useless_proxy) = proxy(&file.proxy, |name| std::env::var(name).ok())?;
        Ok(Self {
            gateway,
            tls,
            proxy,
            useless_proxy,
            pin,
            dir: filled(&file.dir).map(PathBuf::from),
            file,
            endpoints,
        })
    }

    /// What the agent runs with; what was not said now is what was said before.
    pub(crate) fn agent_config(self, remembered: Option<Remembered>) -> Result<AgentConfig, Fail> {
        let missing = |what: &str| {
            Fail::new(
                CONFIG,
                format!(
                    "{what} is not known yet: run the command that `tasuki tunnel enroll` printed at the gateway, \
                     with --gateway, --pin and --code"
                ),
            )
        };
        let (gateway_before, tls_before, pin_before) =
            remembered.map_or((None, None, None), |r| (Some(r.gateway), r.tls, Some(r.pin)));
        // Another gateway has another front door.
        let is_same = self.gateway.is_none() || self.gateway == gateway_before;
        let tls = self.tls.or(tls_before.filter(|_| is_same));
        let gateway = self
            .gateway
            .or(gateway_before)
            .ok_or_else(|| missing("the gateway"))?;
        let pin = self
            .pin
            .or(pin_before)
            .ok_or_else(|| missing("the gateway's key"))?;
        if self.endpoints.is_empty() {
            return Err(Fail::new(
                CONFIG,
                "nothing to serve: say --minecraft HOST:PORT, --tcp or --udp PORT=HOST:PORT, or write [[endpoint]] in agent.toml",
            ));
        }
        Ok(AgentConfig {
            gateway,
            tls,
            transport: match self.file.transport {
                Choice::Auto => None,
                Choice::Quic => Some(Transport::Quic),
                Choice::Tls => Some(Transport::Tls),
            },
            proxy: self.proxy,
            networks: Vec::new(),
            pin,
            gso: self.file.gso,
            socket_buffer: usize::try_from(self.file.socket_buffer).unwrap_or(usize::MAX),
            max_connections: self.file.max_connections,
            connect_timeout: self.file.connect_timeout,
            stall_timeout: self.file.stall_timeout,
            drain: self.file.drain,
            endpoints: self.endpoints,
        })
    }
}

/// The network's HTTP proxy: what the file says, or else the environment. The environment is set for other programs too:
/// a proxy there that cannot be used is no error; the second value says why.
fn proxy(
    in_file: &str,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<(Option<HttpProxy>, Option<String>), Fail> {
    // The text may hold a password: it is not repeated.
    let parse = |name: &str, text: &str| HttpProxy::parse(text).map_err(|error| format!("{name}: {error}"));
    if let Some(text) = filled(in_file) {
        let proxy = parse("proxy", &text).map_err(|problem| Fail::new(CONFIG, problem))?;
        return Ok((Some(proxy), None));
    }
    let named = ["HTTPS_PROXY", "https_proxy"]
        .into_iter()
        .find_map(|name| Some((name, environment(name).filter(|text| !text.is_empty())?)));
    Ok(match named.map(|(name, text)| parse(name, &text)) {
        None => (None, None),
        Some(Ok(proxy)) => (Some(proxy), None),
        Some(Err(problem)) => (None, Some(problem)),
    })
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn file_path(arguments: &Run) -> Result<Option<PathBuf>, Fail> {
    match &arguments.config {
        Some(path) if path.is_file() => Ok(Some(path.clone())),
        Some(path) => Err(Fail::new(
            CONFIG,
            format!("{}: there is no such file", path.display()),
        )),
        None => Ok(PLACES.iter().map(PathBuf::from).find(|path| path.is_file())),
    }
}

fn read(path: &Path) -> Result<(File, Vec<LocalEndpoint>), Fail> {
    let name = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|error| Fail::new(CONFIG, format!("{name}: {error}")))?;
    let file: File = parse(&name, &text).map_err(|error| Fail::new(CONFIG, error.to_string()))?;
    let wrong =
        |key: &str, problem: String| Fail::new(CONFIG, error_at(&name, &text, key, problem).to_string());
    if file.max_connections == 0 {
        return Err(wrong("max_connections", "must be above 0".into()));
    }
    let mut endpoints = Vec::new();
    for endpoint in &file.endpoint {
        let door = match (endpoint.kind, endpoint.port, &endpoint.name) {
            (Kind::Tcp, Some(port), None) => LocalDoor::Tcp(port),
            (Kind::Udp, Some(port), None) => LocalDoor::Udp(port),
            (Kind::Tcp | Kind::Udp, None, _) => {
                return Err(wrong(
                    "endpoint.port",
                    "a tcp or udp endpoint needs the gateway's port, or 0 for any".into(),
                ));
            }
            (Kind::Tcp | Kind::Udp, _, Some(_)) => {
                return Err(wrong(
                    "endpoint.name",
                    "a tcp or udp endpoint has no name, it has a port".into(),
                ));
            }
            (Kind::Minecraft, None, name) => LocalDoor::Minecraft(name.clone()),
            (Kind::Https, None, Some(name)) => LocalDoor::Https(name.clone()),
            (Kind::Http, None, Some(name)) => LocalDoor::Http(name.clone()),
            (Kind::Minecraft | Kind::Https | Kind::Http, Some(_), _) => {
                return Err(wrong(
                    "endpoint.port",
                    "only tcp and udp endpoints have a port; the others share the gateway's".into(),
                ));
            }
            (Kind::Https | Kind::Http, None, None) => {
                return Err(wrong(
                    "endpoint.name",
                    "a https or http endpoint needs the host name that visitors type".into(),
                ));
            }
        };
        target(&endpoint.local).map_err(|problem| wrong("endpoint.local", problem))?;
        if !endpoint.start.is_empty() && endpoint.kind != Kind::Minecraft {
            return Err(wrong(
                "endpoint.start",
                "only a Minecraft server is started by a player who joins".into(),
            ));
        }
        if endpoint.start.is_empty() && !endpoint.wake_for.is_empty() {
            return Err(wrong(
                "endpoint.wake_for",
                "nothing is started: `start` is empty".into(),
            ));
        }
        if endpoint.lan_listen.is_some() && (!endpoint.proxy_protocol || endpoint.kind == Kind::Udp) {
            return Err(wrong(
                "endpoint.lan_listen",
                "is for a TCP server with proxy_protocol = true; others take those at home directly".into(),
            ));
        }
        let start = (!endpoint.start.is_empty()).then(|| Start {
            command: endpoint.start.clone(),
            wake_for: endpoint.wake_for.clone(),
        });
        endpoints.push(LocalEndpoint {
            proxy_each_datagram: endpoint.proxy_each_datagram,
            lan_listen: endpoint.lan_listen,
            start,
            ..endpoint_of(
                door,
                endpoint.local.clone(),
                endpoint.proxy_protocol,
                endpoint.label.clone(),
            )
        });
    }
    unique(&endpoints).map_err(|problem| wrong("endpoint.label", problem))?;
    Ok((file, endpoints))
}

/// Two endpoints of one label would take the door from each other.
fn unique(endpoints: &[LocalEndpoint]) -> Result<(), String> {
    for (index, endpoint) in endpoints.iter().enumerate() {
        if endpoint.label.is_empty() || endpoint.label.chars().count() > 64 {
            return Err("a label has 1 to 64 characters".into());
        }
        if endpoints[..index]
            .iter()
            .any(|other| other.label == endpoint.label)
        {
            return Err(format!(
                "two endpoints are {:?}; give one of them another label",
                endpoint.label
            ));
        }
    }
    Ok(())
}

fn endpoint_of(
    door: LocalDoor,
    target: String,
    proxy_protocol: bool,
    label: Option<String>,
) -> LocalEndpoint {
    let label = label.unwrap_or_else(|| match &door {
        LocalDoor::Tcp(0) => format!("tcp-{target}").chars().take(64).collect(),
        LocalDoor::Tcp(port) => format!("tcp-{port}"),
        LocalDoor::Udp(0) => format!("udp-{target}").chars().take(64).collect(),
        LocalDoor::Udp(port) => format!("udp-{port}"),
        LocalDoor::Minecraft(Some(name)) => format!("minecraft-{name}").chars().take(64).collect(),
        LocalDoor::Minecraft(None) => "minecraft".into(),
        LocalDoor::Https(name) => format!("https-{name}").chars().take(64).collect(),
        LocalDoor::Http(name) => format!("http-{name}").chars().take(64).collect(),
    });
    LocalEndpoint {
        proxy_protocol,
        ..LocalEndpoint::new(label, door, target)
    }
}

fn target(text: &str) -> Result<(), String> {
    let expected = || format!("{text:?} is not HOST:PORT, for example 127.0.0.1:25565");
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let port: u16 = port.parse().map_err(|_| expected())?;
    let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || port == 0 || bare_v6 {
        return Err(expected());
    }
    Ok(())
}

fn check_target(option: &str, text: &str) -> Result<(), Fail> {
    target(text).map_err(|problem| Fail::new(USAGE, format!("{option}: {problem}")))
}

fn port_and_target(option: &str, text: &str) -> Result<(u16, String), Fail> {
    let wrong = || {
        Fail::new(
            USAGE,
            format!("{option}: {text:?} is not PORT=HOST:PORT, for example 25570=127.0.0.1:8123"),
        )
    };
    let (port, local) = text.split_once('=').ok_or_else(wrong)?;
    check_target(option, local)?;
    Ok((port.parse().map_err(|_| wrong())?, local.to_owned()))
}

fn endpoints_of(arguments: &Run) -> Result<Vec<LocalEndpoint>, Fail> {
    let mut endpoints = Vec::new();
    for text in &arguments.tcp {
        let (port, local) = port_and_target("--tcp", text)?;
        endpoints.push(endpoint_of(LocalDoor::Tcp(port), local, arguments.proxy_v2, None));
    }
    for text in &arguments.udp {
        let (port, local) = port_and_target("--udp", text)?;
        endpoints.push(endpoint_of(LocalDoor::Udp(port), local, false, None));
    }
    for text in &arguments.minecraft {
        let (name, local) = match text.split_once('=') {
            Some((name, local)) => (Some(name), local),
            None => (arguments.name.as_deref(), text.as_str()),
        };
        check_target("--minecraft", local)?;
        let name = match name {
            Some(name) => Some(
                Domain::parse(name)
                    .map_err(|error| Fail::new(USAGE, format!("--minecraft: {name:?}: {error}")))?,
            ),
            None => None,
        };
        endpoints.push(endpoint_of(
            LocalDoor::Minecraft(name),
            local.to_owned(),
            arguments.proxy_v2,
            None,
        ));
    }
    for (option, all, door) in [
        (
            "--https",
            &arguments.https,
            LocalDoor::Https as fn(Domain) -> LocalDoor,
        ),
        ("--http", &arguments.http, LocalDoor::Http as _),
    ] {
        for text in all {
            let (name, local) = text.split_once('=').ok_or_else(|| {
                let problem = "is not NAME=HOST:PORT, for example home.example.org=127.0.0.1:443";
                Fail::new(USAGE, format!("{option}: {text:?} {problem}"))
            })?;
            check_target(option, local)?;
            let name = Domain::parse(name)
                .map_err(|error| Fail::new(USAGE, format!("{option}: {name:?}: {error}")))?;
            endpoints.push(endpoint_of(
                door(name),
                local.to_owned(),
                arguments.proxy_v2,
                None,
            ));
        }
    }
    unique(&endpoints).map_err(|problem| Fail::new(USAGE, problem))?;
    Ok(endpoints)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample() -> String {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/agent.toml"))
            .unwrap()
    }

    #[test]
    fn the_sample_file_says_the_defaults() {
        let file: File = parse("agent.toml", &sample()).unwrap();
        assert_eq!(format!("{file:?}"), format!("{:?}", File::default()));
    }

    #[test]
    fn a_key_that_nobody_knows_is_refused_with_its_line() {
        let text = sample().replace("\ngso =", "\ngzo =");
        let error = parse::<File>("agent.toml", &text).unwrap_err();
        assert_eq!(error.key.as_deref(), Some("gzo"));
        assert!(error.line.is_some());
    }

    #[test]
    fn the_commented_endpoints_of_the_sample_can_be_used() {
        let text: String = sample()
            .lines()
            .map(|l| l.strip_prefix("#: ").unwrap_or(l).to_owned() + "\n")
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        let (_, endpoints) = read(&path).ok().unwrap();
        assert_eq!(endpoints.len(), 5);
        assert_eq!(endpoints[1].door, LocalDoor::Tcp(25570));
        assert_eq!(endpoints[2].door, LocalDoor::Udp(24454));
    }

    #[test]
    fn a_useless_proxy_is_an_error_only_in_the_file() {
        let with = |in_file: &str, environment: &'static [(&str, &str)]| {
            proxy(in_file, |asked| {
                let (_, value) = environment.iter().find(|(name, _)| *name == asked)?;
                Some((*value).to_owned())
            })
        };
        let (used, problem) = with("", &[("HTTPS_PROXY", ""), ("https_proxy", "http://a.test:3128")])
            .ok()
            .unwrap();
        assert_eq!(used.unwrap().address, "a.test:3128");
        assert!(problem.is_none());
        for useless in [
            &[("HTTPS_PROXY", "socks5://hana:sakura@a.test:1080")][..],
            &[("https_proxy", "https://hana:sakura@a.test:443")],
        ] {
            let (used, problem) = with("", useless).ok().unwrap();
            assert!(used.is_none());
            let problem = problem.unwrap();
            assert!(problem.starts_with(useless[0].0), "{problem}");
            assert!(!problem.contains("sakura"), "{problem}");
            let (used, problem) = with("http://b.test:3128", useless).ok().unwrap();
            assert_eq!(used.unwrap().address, "b.test:3128");
            assert!(problem.is_none(), "the file is what counts");
        }
        let fail = with("socks5://a.test:1080", &[]).err().unwrap();
        assert_eq!(fail.code, CONFIG);
    }

    #[test]
    fn arguments_become_endpoints() {
        let run = Run {
            tcp: vec!["0=localhost:80".into(), "25570=[::1]:8123".into()],
            udp: vec!["24454=127.0.0.1:24454".into()],
            minecraft: vec!["a.example=127.0.0.1:1".into(), "127.0.0.1:2".into()],
            ..Run::default()
        };
        let endpoints = endpoints_of(&run).ok().unwrap();
        let labels: Vec<&str> = endpoints.iter().map(|e| e.label.as_str()).collect();
        assert_eq!(
            labels,
            [
                "tcp-localhost:80",
                "tcp-25570",
                "udp-24454",
                "minecraft-a.example",
                "minecraft"
            ]
        );
    }

    #[test]
    fn malformed_arguments_say_what_is_expected() {
        for (tcp, minecraft) in [
            ("25570", ""),
            ("x=127.0.0.1:1", ""),
            ("1=127.0.0.1", ""),
            ("1=::1:2", ""),
            ("70000=a:1", ""),
            ("", "127.0.0.1"),
            ("", "bad name=127.0.0.1:1"),
            ("", "127.0.0.1:0"),
        ] {
            let list = |text: &str| {
                if text.is_empty() {
                    Vec::new()
                } else {
                    vec![text.to_owned()]
                }
            };
            let run = Run {
                tcp: list(tcp),
                minecraft: list(minecraft),
                ..Run::default()
            };
            assert_eq!(endpoints_of(&run).err().unwrap().code, USAGE, "{tcp} {minecraft}");
        }
        let twice = Run {
            minecraft: vec!["a:1".into(), "b:2".into()],
            ..Run::default()
        };
        assert_eq!(endpoints_of(&twice).err().unwrap().code, USAGE);
    }
}
