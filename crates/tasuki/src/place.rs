//! Where things are: the configuration file, the data directory, the control socket.

use std::path::{Path, PathBuf};

/// What the command line says about places; the same options for every command.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct PlaceArgs {
    /// Configuration file. Without it: $TASUKI_CONFIG, ./tasuki.toml, /etc/tasuki/tasuki.toml, or none (all defaults)
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data directory, in place of `server.data` in the configuration (default ./data)
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

impl PlaceArgs {
    /// The configuration file that holds, if there is one. A file that was named must exist; reading it says so.
    pub(crate) fn config_file(&self) -> Option<PathBuf> {
        self.config
            .clone()
            .or_else(|| {
                std::env::var_os("TASUKI_CONFIG")
                    .filter(|v| !v.is_empty())
                    .map(PathBuf::from)
            })
            .or_else(|| {
                ["tasuki.toml", "/etc/tasuki/tasuki.toml"]
                    .into_iter()
                    .map(PathBuf::from)
                    .find(|p| p.exists())
            })
    }
}

/// The data directory and what is in it.
#[derive(Clone, Debug)]
pub(crate) struct DataDir(PathBuf);

impl DataDir {
    /// The directory at `path`.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Where the command line reaches the running gateway.
    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// Locked while a gateway runs; holds its process id.
    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Keys that open everything else.
    pub(crate) fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    /// This gateway's name among the gateways of its store; made once.
    pub(crate) fn node_name(&self) -> PathBuf {
        self.0.join("node-name")
    }

    /// The first password of `admin`, until it is used or changed.
    pub(crate) fn initial_password(&self) -> PathBuf {
        self.0.join("initial-admin-password")
    }

    /// In a directory that was restored, until its first start: when the backup was taken.
    pub(crate) fn restored(&self) -> PathBuf {
        self.0.join("restored")
    }

    /// Every bound listener by name, while a gateway runs.
    pub(crate) fn addresses(&self) -> PathBuf {
        self.0.join("addresses.json")
    }
}
