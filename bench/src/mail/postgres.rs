//! A PostgreSQL of a round's own, at its defaults: it syncs each commit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{Running, wait_until};

pub(super) struct Postgres {
    pub(super) url: String,
    pub(super) running: Running,
}

impl Postgres {
    /// In `directory`, on the same file system as the others' queues.
    pub(super) fn start(directory: &Path, log: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let programs = newest_version()?;
        // It refuses to run as root, as whom the run must be.
        let home = directory.join("postgres");
        fs::create_dir_all(&home)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        let owned = Command::new("chown").arg("postgres").arg(&home).status()?;
        if !owned.success() {
            bail!("chown postgres: {owned}");
        }
        let as_postgres = |program: &str| {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"])
                .arg(programs.join(program))
                .current_dir(&home);
            command
        };
        let data = home.join("data");
        let made = as_postgres("initdb")
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "-A", "trust"])
            .output()?;
        if !made.status.success() {
            bail!("initdb: {}", String::from_utf8_lossy(&made.stderr));
        }
        let mut server = as_postgres("postgres");
        server.arg("-D").arg(&data).arg("-k").arg(&home);
        server.args(["-c", "listen_addresses="]);
        let mut running = Running::start(&mut server, log)?;
        running.drain();
        let psql = |statement: &str| {
            let mut command = Command::new("psql");
            command
                .arg("-h")
                .arg(&home)
                .args(["-U", "postgres", "-c", statement, "postgres"]);
            command.output().context("psql (Debian package postgresql)")
        };
        wait_until("PostgreSQL", Duration::from_secs(30), || {
            Ok(psql("select 1")?.status.success())
        })?;
        if !psql("create database tasuki")?.status.success() {
            bail!("create database failed");
        }
        Ok(Self {
            url: format!("postgres://postgres@localhost/tasuki?host={}", home.display()),
            running,
        })
    }
}

/// Where the programs of the newest installed version are.
fn newest_version() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL (Debian package postgresql)")?;
    let mut versions: Vec<(u32, PathBuf)> = versions
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin"),
            ))
        })
        .filter(|(_, path)| path.join("initdb").exists())
        .collect();
    versions.sort();
    Ok(versions
        .pop()
        .context("no version of PostgreSQL with a server")?
        .1)
}
