//! Looking into an archive, or into a data directory: is everything there, and does it open?

use std::path::Path;

use serde_json::{Value, json};
use tasuki_core::seal;
use tasuki_store::{Bodies, Checked, SegmentFiles};

use super::read::Archive;
use super::{DATABASE, Manifest, SEAL_KEY};
use crate::config::Loaded;
use crate::data;
use crate::exit::{self, Fail, Outcome, chain};
use crate::runtime;

/// What was looked at, all of it whole.
pub(crate) struct Verified {
    /// Of an archive.
    pub(crate) manifest: Option<Manifest>,
    mails: u64,
    body_bytes: u64,
    secrets: usize,
    migration: Option<i64>,
}

impl Verified {
    pub(crate) fn json(&self) -> Value {
        let manifest = self.manifest.as_ref();
        json!({
            "mails": self.mails,
            "body_bytes": self.body_bytes,
            "secrets": self.secrets,
            "migration": self.migration,
            "store": manifest.map(|m| &m.store),
            "taken_at": manifest.map(|m| &m.taken_at),
            "version": manifest.map(|m| &m.version),
            "host": manifest.map(|m| &m.host),
            "snapshot_ms": manifest.map(|m| m.snapshot_ms),
            "not_included": manifest.map(|m| &m.not_included),
            "files": manifest.map(|m| m.files.len()),
        })
    }

    /// For a person.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(manifest) = &self.manifest {
            lines.push(format!(
                "of {} at {}, written by version {}; {} files",
                manifest.host.as_deref().unwrap_or("a gateway without a name"),
                manifest.taken_at,
                manifest.version,
                manifest.files.len()
            ));
        }
        match self.migration {
            Some(migration) => lines.push(format!(
                "the database (migration {migration}) is whole: {} mails wait, {} bytes, each body is there; {} sealed secrets open with the key",
                self.mails, self.body_bytes, self.secrets
            )),
            None => lines.push(
                "the database is not in it: PostgreSQL copies its own, with the queue and the bodies of mail".to_owned(),
            ),
        }
        let outside = self.manifest.iter().flat_map(|m| &m.not_included);
        lines.extend(outside.map(|file| {
            format!("not in it, as it lies outside the data directory: {file} (the configuration names it)")
        }));
        lines
    }
}

/// Looks at an archive; needs room for its database beside it or in the directory for temporary files.
pub(crate) fn archive(path: &Path) -> Outcome<(Archive, Verified)> {
    let archive = Archive::open(path)?;
    let key = key_of(archive.bytes(SEAL_KEY)?, &path.display())?;
    let mut verified = Verified {
        manifest: Some(archive.manifest.clone()),
        mails: 0,
        body_bytes: 0,
        secrets: 0,
        migration: None,
    };
    if archive.has_database() {
        let beside = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let scratch = tempfile::tempdir_in(beside.unwrap_or(Path::new(".")))
            .or_else(|_| tempfile::tempdir())
            .map_err(|e| Fail::io("no room to look at the database", &e))?;
        let database = scratch.path().join(DATABASE);
        archive.extract(DATABASE, &database)?;
        fill(
            &mut verified,
            check(&database, false, &archive)?,
            &key,
            &path.display(),
        )?;
    }
    Ok((archive, verified))
}

/// Looks at a data directory, at which a gateway may be at work.
pub(crate) fn live(loaded: &Loaded) -> Outcome<Verified> {
    let place = loaded.data_dir();
    data::require_furnished(&place)?;
    let url = loaded.config.store_url();
    let database = tasuki_store::database_file(url, place.path())
        .map_err(|e| Fail::new(exit::USAGE, chain(&e)))?
        .ok_or_else(|| {
            Fail::new(
                exit::USAGE,
                "the store is PostgreSQL, which looks after its own pages: `pg_amcheck` checks them, and mail bodies are rows there",
            )
        })?;
    let key = data::seal_key(&place)?;
    let mut verified = Verified {
        manifest: None,
        mails: 0,
        body_bytes: 0,
        secrets: 0,
        migration: None,
    };
    let checked = check(&database, true, &SegmentFiles::of(place.path()))?;
    fill(&mut verified, checked, &key, &place.path().display())?;
    Ok(verified)
}

fn check(database: &Path, is_live: bool, bodies: &dyn Bodies) -> Outcome<Checked> {
    runtime::block_on(tasuki_store::check(database, is_live, bodies))?
        .map_err(|e| Fail::new(exit::DATA, chain(&e)))
}

fn key_of(bytes: Vec<u8>, place: &dyn std::fmt::Display) -> Outcome<[u8; 32]> {
    <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| {
        Fail::new(
            exit::DATA,
            format!("{place}: {SEAL_KEY} has {} bytes in place of 32", bytes.len()),
        )
    })
}

fn fill(verified: &mut Verified, found: Checked, key: &[u8; 32], place: &dyn std::fmt::Display) -> Outcome {
    let mut faults = found.faults;
    let mut count = found.fault_count;
    for (name, sealed) in &found.secrets {
        if !seal::opens(key, name, sealed) {
            faults.push(format!("the secret {name:?} does not open with {SEAL_KEY}"));
            count += 1;
        }
    }
    if count > 0 {
        return Err(Fail::new(
            exit::DATA,
            format!("{place} has {count} faults:\n  {}", faults.join("\n  ")),
        ));
    }
    verified.mails = found.mails;
    verified.body_bytes = found.body_bytes;
    verified.secrets = found.secrets.len();
    verified.migration = Some(found.migration);
    Ok(())
}
