//! `tasuki service`: programs and networks that send mail.

use http::Method;
use serde_json::json;

use super::{Context, Gateway, JsonFlag, confirmed, output, segment};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Add a program that sends mail; its password is printed once
    #[command(after_help = "Examples:
  tasuki service add shop --send-as shop.example
  tasuki service add news --send-as news.example --class bulk --daily 20000
  tasuki service add backup --send-as '*'")]
    Add {
        /// 1 to 64 of a-z 0-9 . _ - @; it is the login name
        name: String,
        /// Domain whose addresses it may send from, or '*' for any (may be repeated)
        #[arg(long = "send-as", value_name = "DOMAIN")]
        send_as: Vec<String>,
        /// What kind of mail it sends: transactional (the default), bulk or device
        #[arg(long, value_name = "CLASS")]
        class: Option<String>,
        /// To how many recipients it may send in a day (UTC)
        #[arg(long, value_name = "N")]
        daily: Option<u32>,
        /// To how many recipients it may send in an hour
        #[arg(long, value_name = "N")]
        hourly: Option<u32>,
        /// From how many addresses it may log in within an hour; it is locked when there are more
        #[arg(long, value_name = "N")]
        addresses: Option<u32>,
        /// Other grants, for example fedi:publish or mail:send:<> (may be repeated)
        #[arg(long = "grant", value_name = "GRANT")]
        grants: Vec<String>,
        /// How long its password holds, for example 90d; without it, until it is revoked
        #[arg(long, value_name = "TIME")]
        valid_for: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List programs
    List(JsonFlag),
    /// Make a further app password for a program or person; it is printed once, and the others stay valid
    #[command(after_help = "Examples:
  tasuki service password shop --label \"new server\" --valid-for 365d
  tasuki service password hanako --label phone --engine mail")]
    Password {
        /// Whose
        name: String,
        /// How long it holds, for example 90d; without it, until it is revoked
        #[arg(long, value_name = "TIME")]
        valid_for: Option<String>,
        /// It is good for this engine alone: mail, fediverse or tunnel
        #[arg(long)]
        engine: Option<String>,
        /// What it is for, shown in listings
        #[arg(long, default_value = "")]
        label: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List app passwords (never the passwords themselves)
    Passwords(JsonFlag),
    /// Revoke an app password by its number
    Revoke {
        /// The number in `tasuki service passwords`
        id: String,
    },
    /// Certificates by which programs and people log in
    #[command(subcommand)]
    Certificate(CertificateCommand),
    /// Remove a program with its passwords
    Remove {
        /// Which
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(clap::Subcommand, Debug)]
pub(super) enum CertificateCommand {
    /// Let whoever has the key of this certificate log in as a program or person (AUTH EXTERNAL, mail.client_certificates)
    #[command(after_help = "Examples:
  tasuki service certificate add shop shop.pem
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj /CN=shop -keyout shop.key -out shop.pem")]
    Add {
        /// Whose
        name: String,
        /// PEM file with the certificate (never the private key)
        file: std::path::PathBuf,
        /// How long it holds, for example 90d; without it, as long as the certificate is good
        #[arg(long, value_name = "TIME")]
        valid_for: Option<String>,
        /// What it is for, shown in listings; without it, the certificate's subject
        #[arg(long, default_value = "")]
        label: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List certificates
    List(JsonFlag),
    /// Revoke a certificate by its number; it is refused at once
    Revoke {
        /// The number in `tasuki service certificate list`
        id: String,
    },
}

pub(super) fn run(command: Command, context: &Context) -> Outcome {
    let gateway = context.gateway()?;
    match command {
        Command::Add {
            name,
            send_as,
            class,
            daily,
            hourly,
            addresses,
            mut grants,
            valid_for,
            json,
        } => {
            grants.extend(send_as.iter().map(|domain| format!("mail:send:{domain}")));
            if grants.is_empty() {
                return Err(Fail::new(
                    exit::USAGE,
                    "a service that may do nothing is of no use: say --send-as DOMAIN, whose addresses it may send from",
                ));
            }
            grants.extend(class.map(|class| format!("mail:class:{class}")));
            grants.extend(daily.map(|n| format!("mail:daily:{n}")));
            grants.extend(hourly.map(|n| format!("mail:hourly:{n}")));
            grants.extend(addresses.map(|n| format!("mail:addresses:{n}")));
            let body = json!({"name": name, "grants": grants, "valid_for": valid_for});
            let made = gateway.call(Method::POST, "/v1/services", Some(body))?;
            if json {
                return output::json(&made);
            }
            output::line(format!("service {name} added"));
            output::line(format!("login:    {name}"));
            output::line(format!("password: {}", output::cell(&made, "password")));
            output::line(shown_once(&made));
            if let Some(example) = made.get("example").and_then(serde_json::Value::as_str) {
                output::line("");
                output::line("Try it:");
                output::line(format!("  {example}"));
            }
            Ok(())
        }
        Command::List(flag) => {
            let answer = gateway.read("/v1/services")?;
            let columns = [
                ("NAME", "name"),
                ("GRANTS", "grants"),
                ("DISABLED", "disabled"),
                ("SINCE", "created_at"),
            ];
            output::listing(
                &answer,
                "services",
                &columns,
                flag.json,
                "no services yet: tasuki service add NAME --send-as DOMAIN",
            )
        }
        Command::Password {
            name,
            valid_for,
            engine,
            label,
            json,
        } => {
            let body = json!({"name": name, "valid_for": valid_for, "engine": engine, "label": label});
            let made = gateway.call(Method::POST, "/v1/app-passwords", Some(body))?;
            if json {
                return output::json(&made);
            }
            output::line(format!("login:    {name}"));
            output::line(format!("password: {}", output::cell(&made, "password")));
            output::line(shown_once(&made));
            Ok(())
        }
        Command::Passwords(flag) => {
            let answer = gateway.read("/v1/app-passwords")?;
            let columns = [
                ("ID", "id"),
                ("OF", "principal"),
                ("SCOPE", "scope"),
                ("LABEL", "label"),
                ("SINCE", "created_at"),
                ("EXPIRES", "expires_at"),
            ];
            output::listing(
                &answer,
                "app_passwords",
                &columns,
                flag.json,
                "no app passwords: tasuki service password NAME",
            )
        }
        Command::Revoke { id } => {
            gateway.call(
                Method::DELETE,
                &format!("/v1/app-passwords/{}", segment(&id)),
                None,
            )?;
            output::line(format!("app password {id} revoked"));
            Ok(())
        }
        Command::Certificate(command) => certificate(command, &gateway),
        Command::Remove { name, yes } => {
            if !yes && !confirmed(&format!("Remove the service {name} with its passwords?")) {
                return Err(Fail::new(
                    exit::USAGE,
                    "nothing removed: say --yes to remove without being asked",
                ));
            }
            gateway.call(Method::DELETE, &format!("/v1/services/{}", segment(&name)), None)?;
            output::line(format!("service {name} removed"));
            Ok(())
        }
    }
}

fn certificate(command: CertificateCommand, gateway: &Gateway) -> Outcome {
    match command {
        CertificateCommand::Add {
            name,
            file,
            valid_for,
            label,
            json,
        } => {
            let pem = std::fs::read_to_string(&file)
                .map_err(|e| Fail::io(format!("{} cannot be read", file.display()), &e))?;
            // Whatever else is in the file stays here, a private key above all.
            let pem = first_certificate(&pem).ok_or_else(|| {
                Fail::new(
                    exit::USAGE,
                    format!("{}: no certificate in PEM is in it", file.display()),
                )
            })?;
            let body = json!({"name": name, "certificate": pem, "valid_for": valid_for, "label": label});
            let made = gateway.call(Method::POST, "/v1/certificates", Some(body))?;
            if json {
                return output::json(&made);
            }
            output::line(format!(
                "certificate {} logs in as {name}; its key is {}",
                output::cell(&made, "id"),
                output::cell(&made, "fingerprint")
            ));
            if let Some(note) = made["note"].as_str() {
                output::line(format!("note: {note}"));
            }
            Ok(())
        }
        CertificateCommand::List(flag) => {
            let answer = gateway.read("/v1/certificates")?;
            let columns = [
                ("ID", "id"),
                ("OF", "principal"),
                ("LABEL", "label"),
                ("KEY", "fingerprint"),
                ("SINCE", "created_at"),
                ("EXPIRES", "expires_at"),
            ];
            output::listing(
                &answer,
                "certificates",
                &columns,
                flag.json,
                "no certificates: tasuki service certificate add NAME FILE",
            )
        }
        CertificateCommand::Revoke { id } => {
            let path = format!("/v1/certificates/{}", segment(&id));
            gateway.call(Method::DELETE, &path, None)?;
            output::line(format!("certificate {id} revoked"));
            Ok(())
        }
    }
}

fn first_certificate(pem: &str) -> Option<&str> {
    const END: &str = "-----END CERTIFICATE-----";
    let from = &pem[pem.find("-----BEGIN CERTIFICATE-----")?..];
    Some(&from[..from.find(END)? + END.len()])
}

fn shown_once(made: &serde_json::Value) -> String {
    match made["expires_at"].as_str() {
        Some(end) => format!("The password is shown only now, and holds until {end}."),
        None => "The password is shown only now.".to_owned(),
    }
}
