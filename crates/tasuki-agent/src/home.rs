//! The agent's own directory: its key, and the gateway it belongs to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tasuki_tunnel::agent::{AgentKey, Rules};
use tasuki_tunnel::{Fingerprint, Transport};

use crate::os::{make_private, private_file};
use crate::{CONFIG, Fail, IO};

/// The directory.
#[derive(Clone)]
pub(crate) struct Home(PathBuf);

/// Where the system service keeps its own (`StateDirectory=tasuki-agent`).
const OF_THE_SERVICE: &str = "/var/lib/tasuki-agent";

/// The gateway as remembered.
pub(crate) struct Remembered {
    pub(crate) gateway: String,
    pub(crate) tls: Option<String>,
    pub(crate) pin: Fingerprint,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GatewayFile {
    gateway: String,
    tls: Option<String>,
    pin: String,
}

impl Home {
    /// The directory that was named by argument or file, or the usual one; made if it is not there.
    pub(crate) fn at(argument: Option<PathBuf>, file: Option<PathBuf>) -> Result<Self, Fail> {
        let path = argument
            .or(file)
            .or_else(usual)
            .ok_or_else(|| Fail::new(CONFIG, "no place to keep the agent's key: say --dir DIR"))?;
        make_private(&path).map_err(|error| at(&path, &error))?;
        Ok(Self(path))
    }

    /// Where a running agent is looked for: the directory that was named, or the usual one and the system service's.
    pub(crate) fn candidates(named: Option<PathBuf>) -> Vec<Self> {
        match named {
            Some(path) => vec![Self(path)],
            None => usual()
                .into_iter()
                .chain([OF_THE_SERVICE.into()])
                .map(Self)
                .collect(),
        }
    }

    /// The control socket of the agent that runs from here.
    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("agent.sock")
    }

    /// The home host's rules about visitors, as commands left them.
    pub(crate) fn rules(&self) -> Result<Rules, Fail> {
        let path = self.0.join("rules.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let text = format!(
                    "{}: {error}; mend it, or delete it to begin with no rules",
                    path.display()
                );
                Fail::new(CONFIG, text)
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Rules::default()),
            Err(error) => Err(at(&path, &error)),
        }
    }

    /// Keeps the rules for later runs.
    pub(crate) fn keep_rules(&self, rules: &Rules) -> Result<(), Fail> {
        let path = self.0.join("rules.json");
        let mut bytes = serde_json::to_vec_pretty(rules).map_err(|error| Fail::new(IO, error.to_string()))?;
        bytes.push(b'\n');
        write_private(&path, &bytes).map_err(|error| at(&path, &error))
    }

    /// The agent's key, made at the first start.
    pub(crate) fn key(&self) -> Result<AgentKey, Fail> {
        let path = self.0.join("agent.key");
        let der = match fs::read(&path) {
            Ok(der) => der,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let der = AgentKey::generate();
                write_private(&path, &der).map_err(|error| at(&path, &error))?;
                der
            }
            Err(error) => return Err(at(&path, &error)),
        };
        AgentKey::from_pkcs8(&der).map_err(|error| {
            let text = format!(
                "{}: {error}; move it away to enrol anew with a code",
                path.display()
            );
            Fail::new(IO, text)
        })
    }

    /// The last gateway that let us in.
    pub(crate) fn remembered(&self) -> Result<Option<Remembered>, Fail> {
        let path = self.0.join("gateway.toml");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(&path, &error)),
        };
        let damaged = |problem: String| Fail::new(CONFIG, format!("{}: {problem}", path.display()));
        let file: GatewayFile = tasuki_core::config::parse(&path.display().to_string(), &text)
            .map_err(|error| Fail::new(CONFIG, error.to_string()))?;
        let pin = file
            .pin
            .parse()
            .map_err(|error| damaged(format!("pin: {error}")))?;
        Ok(Some(Remembered {
            gateway: file.gateway,
            tls: file.tls,
            pin,
        }))
    }

    /// Keeps the gateway that let us in for the next run.
    pub(crate) fn remember(&self, known: &Remembered) -> Result<(), Fail> {
        let path = self.0.join("gateway.toml");
        // Addresses were checked to be HOST:PORT; a quote cannot be in one without an error at its next reading.
        let mut text = format!("gateway = {:?}\npin = \"{}\"\n", known.gateway, known.pin);
        if let Some(tls) = &known.tls {
            text.push_str(&format!("tls = {tls:?}\n"));
        }
        if fs::read_to_string(&path).is_ok_and(|known| known == text) {
            return Ok(());
        }
        write_private(&path, text.as_bytes()).map_err(|error| at(&path, &error))
    }

    /// Networks in which something else than UDP worked last. Only a hint: a damaged file is none.
    pub(crate) fn networks(&self) -> Vec<(String, Transport)> {
        let bytes = fs::read(self.0.join("networks.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Keeps them for the next run.
    pub(crate) fn keep_networks(&self, networks: &[(String, Transport)]) -> Result<(), Fail> {
        if networks == self.networks() {
            return Ok(());
        }
        let path = self.0.join("networks.json");
        let bytes = serde_json::to_vec(networks).map_err(|error| Fail::new(IO, error.to_string()))?;
        write_private(&path, &bytes).map_err(|error| at(&path, &error))
    }
}

fn at(path: &Path, error: &io::Error) -> Fail {
    Fail::new(IO, format!("{}: {error}", path.display()))
}

fn usual() -> Option<PathBuf> {
    let from = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    from("STATE_DIRECTORY")
        .or_else(|| from("XDG_STATE_HOME").map(|dir| dir.join("tasuki-agent")))
        .or_else(|| from("HOME").map(|home| home.join(".local/state/tasuki-agent")))
        .or_else(|| from("LOCALAPPDATA").map(|dir| dir.join("tasuki-agent")))
}

/// Writes a whole file that only its owner can read, or none.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let temporary = path.with_extension("new");
    let mut file = private_file().open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_key_is_made_once_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(Some(dir.path().join("a/b")), None).ok().unwrap();
        let first = home.key().ok().unwrap().fingerprint();
        assert_eq!(home.key().ok().unwrap().fingerprint(), first);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode("a/b"), mode("a/b/agent.key")), (0o700, 0o600));
        }
    }

    #[test]
    fn a_gateway_is_remembered_by_address_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(Some(dir.path().into()), None).ok().unwrap();
        assert!(home.remembered().ok().unwrap().is_none());
        let pin = home.key().ok().unwrap().fingerprint();
        for tls in [None, Some("[2001:db8::1]:8443".to_owned())] {
            let known = Remembered {
                gateway: "[2001:db8::1]:7443".to_owned(),
                tls,
                pin,
            };
            home.remember(&known).ok().unwrap();
            let remembered = home.remembered().ok().unwrap().unwrap();
            assert_eq!(
                (remembered.gateway, remembered.tls, remembered.pin),
                (known.gateway, known.tls, pin)
            );
        }
    }

    #[test]
    fn a_damaged_key_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("agent.key"), b"no key").unwrap();
        let fail = Home::at(Some(dir.path().into()), None)
            .ok()
            .unwrap()
            .key()
            .err()
            .unwrap();
        assert!(fail.text.contains("enrol anew"), "{}", fail.text);
    }
}
