//! `tasuki tunnel`: agents at home.

use http::Method;
use serde_json::{Value, json};

use super::{Context, JsonFlag, confirmed, output, segment};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// List agents: who is connected, since when, with which names and ports
    Agents(JsonFlag),
    /// Make a one-time code for an agent and print the command to run at home
    #[command(after_help = "Examples:
  tasuki tunnel enroll home --default                   the one Minecraft server; friends type the gateway's address
  tasuki tunnel enroll home --name mc.example.org       one of several, by host name
  tasuki tunnel enroll home --port 30000-30010          any TCP service on these ports
  tasuki tunnel enroll home --default --udp 24454       Minecraft with Simple Voice Chat

For a name that exists the code replaces the agent's key at its next start.")]
    Enroll {
        /// The agent's name
        name: String,
        /// A host name it may expose, on the Minecraft port and the web ports (may be repeated)
        #[arg(long = "name", value_name = "HOST")]
        names: Vec<String>,
        /// A TCP port or range it may expose (may be repeated)
        #[arg(long = "port", value_name = "RANGE")]
        ports: Vec<String>,
        /// A UDP port or range it may expose (may be repeated)
        #[arg(long = "udp", value_name = "RANGE")]
        udp_ports: Vec<String>,
        /// It may be the default server of the Minecraft port
        #[arg(long)]
        default: bool,
        /// Agents of the same group share names, ports and their visitors
        #[arg(long, value_name = "GROUP")]
        share: Option<String>,
        /// Bytes a second that its visitors may move in each direction, for example 4MiB
        #[arg(long, value_name = "SIZE")]
        bandwidth: Option<String>,
        /// Visitors' connections that it may have at once
        #[arg(long, value_name = "N")]
        connections: Option<u32>,
        /// How long the code holds
        #[arg(long, value_name = "TIME", default_value = "10m")]
        valid_for: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what to tell friends and what to write where: addresses, DNS records, Bedrock, Geyser, voice chat
    Show {
        /// The agent's name
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List who plays now: name as claimed, address, edition, delay of both legs, bytes so far
    #[command(
        after_help = "TO GATEWAY is the round trip between player and gateway, TO AGENT the one between gateway and home.
In --json they are visitor_rtt_us and agent_rtt_us, in microseconds.
The home side sees its own: tasuki-agent players, there."
    )]
    Players {
        /// Only those of this agent
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look for what keeps agents and their visitors away, and say what helps
    #[command(after_help = "Exit code 69 if something needs a hand, but 0 with --json.
What only the home side can see: tasuki-agent doctor, there.")]
    Doctor {
        /// Ask this name server for visitors' names [default: the system's]
        #[arg(long, value_name = "ADDRESS:PORT")]
        nameserver: Option<std::net::SocketAddr>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give up a name or port that an agent serves no longer; a name is kept for it for 30 days more
    #[command(
        after_help = "What is served at this gateway is refused. What another gateway of the same database serves
cannot be known here: it ends there within 15 seconds, and the agent asks for it anew."
    )]
    Release {
        /// The agent's name
        name: String,
        /// The endpoint's label, as `tasuki tunnel show` has it
        label: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove an agent: its key and its names are given up
    Revoke {
        /// Which
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(command: Command, context: &Context) -> Outcome {
    let gateway = context.gateway()?;
    match command {
        Command::Agents(flag) => {
            let answer = gateway.read("/v1/tunnel/agents")?;
            let columns = [
                ("NAME", "name"),
                ("CONNECTED", "connected"),
                ("FROM", "from"),
                ("SINCE", "connected_at"),
                ("ENDPOINTS", "endpoints"),
                ("GRANTS", "grants"),
            ];
            output::listing(
                &answer,
                "agents",
                &columns,
                flag.json,
                "no agents yet: tasuki tunnel enroll NAME --default",
            )
        }
        Command::Doctor { nameserver, json } => {
            let query = nameserver.map_or_else(String::new, |server| format!("?nameserver={server}"));
            let answer = gateway.read(&format!("/v1/tunnel/doctor{query}"))?;
            if json {
                output::json(&answer)
            } else {
                findings(&answer)
            }
        }
        Command::Players { name, json } => {
            let query = name.map_or_else(String::new, |name| format!("?agent={}", segment(&name)));
            let answer = gateway.read(&format!("/v1/tunnel/players{query}"))?;
            if json {
                return output::json(&answer);
            }
            players(&answer);
            Ok(())
        }
        Command::Show { name, json } => {
            let shown = gateway.read(&format!("/v1/tunnel/agents/{}", segment(&name)))?;
            if json { output::json(&shown) } else { show(&shown) }
        }
        Command::Enroll {
            name,
            names,
            ports,
            udp_ports,
            default,
            share,
            bandwidth,
            connections,
            valid_for,
            json,
        } => {
            let mut grants: Vec<String> = names.iter().map(|n| format!("tunnel:name:{n}")).collect();
            grants.extend(ports.iter().map(|p| format!("tunnel:port:{p}")));
            grants.extend(udp_ports.iter().map(|p| format!("tunnel:udp:{p}")));
            // Somebody who asks for nothing in particular has one server at home and friends who type an address.
            if default || grants.is_empty() {
                grants.push("tunnel:default".to_owned());
            }
            grants.extend(share.map(|group| format!("tunnel:share:{group}")));
            grants.extend(bandwidth.map(|size| format!("tunnel:bandwidth:{size}")));
            grants.extend(connections.map(|n| format!("tunnel:connections:{n}")));
            let body = json!({"name": name, "grants": grants, "valid_for": valid_for});
            let made = gateway.call(Method::POST, "/v1/tunnel/agents", Some(body))?;
            if json {
                return output::json(&made);
            }
            output::line(format!(
                "agent {name} may enrol until {}. At home, run, with the addresses of your own servers there:",
                output::cell(&made, "expires_at")
            ));
            output::line("");
            output::line(format!("  {}", output::cell(&made, "command")));
            output::line("");
            output::line("The code works once.");
            Ok(())
        }
        Command::Release { name, label, json } => {
            let path = format!(
                "/v1/tunnel/agents/{}/endpoints/{}",
                segment(&name),
                segment(&label)
            );
            gateway.call(Method::DELETE, &path, None)?;
            if json {
                return output::json(&json!({"agent": name, "released": label}));
            }
            output::line(format!("{label} of {name} is given up"));
            Ok(())
        }
        Command::Revoke { name, yes } => {
            if !yes && !confirmed(&format!("Remove the agent {name} with its names and ports?")) {
                return Err(Fail::new(
                    exit::USAGE,
                    "nothing removed: say --yes to remove without being asked",
                ));
            }
            gateway.call(
                Method::DELETE,
                &format!("/v1/tunnel/agents/{}", segment(&name)),
                None,
            )?;
            output::line(format!("agent {name} removed"));
            Ok(())
        }
    }
}

/// One line for each finding; an error if one is bad.
fn findings(answer: &Value) -> Outcome {
    let found = answer["findings"].as_array().map_or(&[][..], Vec::as_slice);
    let mut bad = 0;
    for finding in found {
        let mark = match finding["level"].as_str() {
            Some("ok") => "ok  ",
            Some("note") => "note",
            _ => {
                bad += 1;
                "BAD "
            }
        };
        output::line(format!("{mark} {}", output::cell(finding, "text")));
    }
    match bad {
        0 => Ok(()),
        n => Err(Fail::new(exit::UNAVAILABLE, format!("{n} things need a hand"))),
    }
}

/// A line for each connection.
fn players(answer: &Value) {
    let players = answer["players"].as_array().map_or(&[][..], Vec::as_slice);
    if players.is_empty() {
        return output::line("nobody is here");
    }
    let head = [
        "PLAYER",
        "ADDRESS",
        "AGENT",
        "ENDPOINT",
        "EDITION",
        "TO GATEWAY",
        "TO AGENT",
        "SINCE",
        "BYTES IN",
        "BYTES OUT",
    ];
    let rows = players.iter().map(|player| {
        let cells =
            ["player", "address", "agent", "endpoint", "edition"].map(|key| output::cell(player, key));
        let delays = ["visitor_rtt_us", "agent_rtt_us"].map(|key| delay(&player[key]));
        let rest = ["since", "bytes_in", "bytes_out"].map(|key| output::cell(player, key));
        cells.into_iter().chain(delays).chain(rest).collect()
    });
    output::table(head.map(str::to_owned).to_vec(), rows.collect());
}

/// Microseconds as people read them.
fn delay(us: &Value) -> String {
    us.as_f64()
        .map_or_else(|| "-".to_owned(), |us| format!("{:.1} ms", us / 1000.0))
}

/// The agent's endpoints, each with the lines to copy.
fn show(shown: &Value) -> Outcome {
    let endpoints = shown["endpoints"].as_array().map_or(&[][..], Vec::as_slice);
    if endpoints.is_empty() {
        output::line("it has exposed nothing yet: run `tasuki-agent run` at home first");
    }
    for endpoint in endpoints {
        output::line(format!("{}:", output::cell(endpoint, "label")));
        let lines = [
            ("Java address", "java"),
            ("DNS record", "dns"),
            ("SRV record", "srv"),
            ("Address", "address"),
            ("Bedrock address", "bedrock/address"),
            ("Bedrock port", "bedrock/port"),
            (
                "Geyser, config.yml: advanced.bedrock.broadcast-port",
                "geyser/broadcast-port",
            ),
            ("Simple Voice Chat: voice_host", "voice_host"),
        ];
        for (what, path) in lines {
            let value = output::cell(endpoint, path);
            if value != "-" {
                output::line(format!("  {what}: {value}"));
            }
        }
    }
    Ok(())
}
