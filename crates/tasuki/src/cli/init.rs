//! `tasuki init`: a gateway for the public, prepared once.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tasuki_core::EngineKind;
use tasuki_proto::names::Domain;

use super::{Context, output};
use crate::config::Loaded;
use crate::exit::{self, Fail, Outcome};
use crate::{app, first_start};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tasuki init --host relay.example.org
  tasuki init --host mail.example.org --engines mail --data /var/lib/tasuki/data

Writes the configuration file (--config, or ./tasuki.toml) unless it is there, with the public ports of the chosen
engines; makes the data directory, keys, a private CA and the user `admin`. What is there already stays.")]
pub(super) struct Args {
    /// The public name of this gateway
    #[arg(long, value_name = "NAME")]
    host: String,
    /// What it shall do, separated by commas
    #[arg(long, value_delimiter = ',', default_values = ["mail", "fediverse", "tunnel"], value_name = "ENGINES")]
    engines: Vec<EngineKind>,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let host: Domain = args
        .host
        .parse()
        .map_err(|e| Fail::new(exit::USAGE, format!("--host {:?}: {e}", args.host)))?;
    let file = context
        .place
        .config_file()
        .unwrap_or_else(|| PathBuf::from("tasuki.toml"));
    if file.exists() {
        output::line(format!("{} is there and stays as it is", file.display()));
    } else {
        write_file(&file, &text(&host, &args.engines, context.place.data.as_deref())?)?;
        output::line(format!("{} written", file.display()));
    }
    let loaded = Loaded::read(Some(&file), context.place.data.as_deref())?;
    match &loaded.config.server.host {
        Some(there) if *there == host => {}
        Some(there) => {
            return Err(Fail::new(
                exit::CONFIG,
                format!(
                    "{} says host = \"{there}\", not {host}: change one of them",
                    file.display()
                ),
            ));
        }
        None => output::line(format!(
            "note: {} does not name the host; add under [server]: host = \"{host}\"",
            file.display()
        )),
    }
    let first = app::init(&loaded)?;
    output::line(format!(
        "data directory {} is ready",
        loaded.data_dir().path().display()
    ));
    first_start::password_lines(&first).iter().for_each(output::line);
    output::line("Start it: tasuki serve");
    Ok(())
}

fn write_file(file: &Path, text: &str) -> Outcome {
    std::fs::write(file, text).map_err(|e| {
        Fail::new(
            exit::CANT_CREATE,
            format!("{} cannot be written: {e}", file.display()),
        )
    })
}

/// A file for production: the public ports of the chosen engines, everything else at its default.
fn text(host: &Domain, engines: &[EngineKind], data: Option<&Path>) -> Outcome<String> {
    let data = data.unwrap_or(Path::new("./data"));
    let data = std::path::absolute(data).map_err(|e| Fail::io(data.display(), &e))?;
    let engines_line: Vec<String> = engines.iter().map(|e| format!("\"{e}\"")).collect();
    let mut text = format!(
        "# Every key with its default and meaning: config/tasuki.toml in the source.\n\
         # After a change: `tasuki check`, then `tasuki reload` or a restart.\n\
         engines = [{}]\n\n[server]\nhost = \"{host}\"\ndata = {}\n",
        engines_line.join(", "),
        toml::Value::from(data.display().to_string())
    );
    let mut add = |part: &str| text.write_str(part);
    let written = engines.iter().try_for_each(|engine| match engine {
        EngineKind::Mail => add(
            "\n# Other mail servers (25), programs with a login (587, and 465 with TLS from the first byte).\n\
             [mail.relay]\nlisten = [\"[::]:25\"]\n[mail.submission]\nlisten = [\"[::]:587\"]\n\
             [mail.submissions]\nlisten = [\"[::]:465\"]\n",
        ),
        EngineKind::Fediverse => add(
            "\n# The web. Behind nginx or Caddy leave this out and pass requests to 127.0.0.1:8080.\n\
             [front]\nlisten = [\"[::]:80\"]\ntls_listen = [\"[::]:443\"]\nredirect_to_https = true\n\n\
             # Certificates by ACME (it means agreement to the CA's terms); or give cert and key files.\n\
             [tls.acme]\nenabled = true\n",
        ),
        EngineKind::Tunnel => add(
            "\n# Agents (UDP) and players.\n[tunnel.quic]\nlisten = \"[::]:7443\"\n\
             [tunnel.minecraft]\nlisten = \"[::]:25565\"\n[tunnel.tcp]\nbind = \"::\"\n",
        ),
    });
    written.map_err(|_| Fail::new(exit::SOFTWARE, "the configuration could not be put together"))?;
    Ok(text)
}
