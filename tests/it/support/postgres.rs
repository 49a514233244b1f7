//! A throw-away PostgreSQL: a temporary directory, a Unix socket, no TCP.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::gateway::SmallDisk;
use super::process::{self, Running, is_root, tool};
use super::{eventually, open_directory};

pub(crate) struct Postgres {
    // Dropped first: the server ends before its directory does.
    server: Option<Running>,
    directory: TempDir,
}

impl Postgres {
    pub(crate) fn start() -> Self {
        let postgres = Self::without_database();
        process::succeed(&mut postgres.psql("create database tasuki"));
        postgres
    }

    /// With the tables of the database on a file system of this size.
    pub(crate) fn start_on_small_disk(mib: usize) -> (Self, SmallDisk) {
        let postgres = Self::without_database();
        let tables = postgres.tables();
        let disk = SmallDisk::mount_for(&tables, postgres.directory.path(), mib);
        let place = format!("create tablespace small location '{}'", tables.display());
        process::succeed(&mut postgres.psql(&place));
        process::succeed(&mut postgres.psql("create database tasuki tablespace small"));
        (postgres, disk)
    }

    /// Where the tables are that are on a small disk.
    pub(crate) fn tables(&self) -> PathBuf {
        self.directory.path().join("tables")
    }

    /// The server's processes, the first one before its children.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let first = self.server.as_ref().unwrap().id();
        let children = std::fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap();
        let children = children.split_whitespace().map(|id| id.parse().unwrap());
        [first].into_iter().chain(children).collect()
    }

    fn without_database() -> Self {
        let directory = open_directory();
        let data = directory.path().join("data");
        if is_root() {
            process::succeed(tool("chown").arg("postgres").arg(directory.path()));
        }
        process::succeed(
            as_postgres("initdb")
                .arg("-D")
                .arg(&data)
                .args(["-U", "postgres", "-A", "trust", "-N"]),
        );
        let mut postgres = Self {
            server: None,
            directory,
        };
        postgres.start_again();
        postgres
    }

    /// Ends it at once, as `pg_ctl stop -m immediate` does.
    pub(crate) fn stop(&mut self) {
        let mut server = self.server.take().unwrap();
        process::signal(rustix::process::Signal::QUIT, server.id());
        server.wait();
    }

    pub(crate) fn start_again(&mut self) {
        let base = self.directory.path();
        let mut command = as_postgres("postgres");
        command.arg("-D").arg(base.join("data")).arg("-k").arg(base);
        command.args(["-c", "listen_addresses="]);
        self.server = Some(Running::start("postgres", &mut command, &base.join("log")));
        eventually("PostgreSQL answers", || {
            let answer = process::output(&mut self.psql("select 1"));
            answer.status.success().then_some(())
        });
    }

    /// The answer to a question to the gateway's database.
    pub(crate) fn ask(&self, question: &str) -> String {
        let mut command = tool("psql");
        command
            .arg("-h")
            .arg(self.directory.path())
            .args(["-U", "postgres", "-Atc", question, "tasuki"]);
        process::succeed(&mut command).trim().to_owned()
    }

    fn psql(&self, statement: &str) -> Command {
        let mut command = tool("psql");
        command
            .arg("-h")
            .arg(self.directory.path())
            .args(["-U", "postgres", "-c", statement, "postgres"]);
        command
    }

    pub(crate) fn url(&self) -> String {
        format!(
            "postgres://postgres@localhost/tasuki?host={}",
            self.directory.path().display()
        )
    }
}

/// A server that is killed leaves its shared memory behind.
impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            process::signal(rustix::process::Signal::QUIT, server.id());
            server.ended_within(Duration::from_secs(5));
        }
    }
}

/// A server program of the newest installed version; it refuses to run as root.
fn as_postgres(program: &str) -> Command {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| {
            entries
                .flatten()
                .map(|entry| entry.path().join("bin").join(program))
                .collect()
        })
        .unwrap_or_default();
    versions.retain(|path| path.exists());
    versions.sort();
    let path = versions
        .pop()
        .unwrap_or_else(|| panic!("PostgreSQL's {program} is not installed: run `scripts/test --install`"));
    if !is_root() {
        return Command::new(path);
    }
    let mut command = tool("setpriv");
    command
        .args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"])
        .arg(path);
    command
}
