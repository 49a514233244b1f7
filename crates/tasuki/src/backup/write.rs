//! Writing an archive, from beginning to end, in pieces.

use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::store::backup::Snapshot;

use super::{
    CONFIG, DATABASE, FAILED, FORMAT, FileSum, MANIFEST, MANIFEST_SUM, Manifest, NODE_NAME, hex, tar,
};
use crate::config::Loaded;
use crate::exit::{self, Fail, Outcome, chain};
use crate::place::DataDir;

/// Bytes copied at once.
const PIECE: usize = 256 << 10;
/// No key and no configuration is larger.
const MAX_SMALL: u64 = 16 << 20;
/// Folders below `keys/`.
const MAX_DEPTH: usize = 3;

/// What is copied, beside the store.
pub(crate) struct Origin {
    data: DataDir,
    config: Option<PathBuf>,
    host: Option<String>,
    store: &'static str,
    not_included: Vec<String>,
    taken_at: Timestamp,
}

impl Origin {
    /// The gateway of this configuration.
    pub(crate) fn of(loaded: &Loaded) -> Self {
        let is_embedded = loaded.config.store_url().starts_with("sqlite");
        Self {
            data: loaded.data_dir(),
            config: loaded.file.clone(),
            host: loaded.config.server.host.as_ref().map(ToString::to_string),
            store: if is_embedded { "sqlite" } else { "postgresql" },
            not_included: loaded
                .named_files()
                .into_iter()
                .map(|(_, path)| path.display().to_string())
                .collect(),
            taken_at: Clock::system().wall(),
        }
    }

    /// A directory for the copy of the database, in the data directory, gone when it is dropped.
    pub(crate) fn scratch(&self) -> Outcome<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix(SCRATCH)
            .tempdir_in(self.data.path())
            .map_err(|e| Fail::io(self.data.path().display(), &e))
    }
}

const SCRATCH: &str = ".backup-";

/// Removes what a backup left behind that a crash cut short.
pub(crate) fn clear_scratch(data: &DataDir) {
    let entries = std::fs::read_dir(data.path()).into_iter().flatten().flatten();
    for entry in entries {
        if entry.file_name().to_string_lossy().starts_with(SCRATCH) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Takes a snapshot with `take` and writes the archive; after a failure its last file says why.
pub(crate) async fn archive(
    origin: &Origin,
    take: impl AsyncFnOnce(&Path) -> Outcome<Option<Box<dyn Snapshot>>>,
    out: &mut (dyn Write + Send),
) -> Outcome {
    let mut archive = Archive {
        out,
        modified_s: u64::try_from(origin.taken_at.0 / 1000).unwrap_or(0),
        files: Vec::new(),
        owed: 0,
    };
    let done = fill(origin, take, &mut archive).await;
    if let Err(fail) = &done {
        // If nobody reads any more, nobody needs to know either.
        let _ = archive
            .give_up()
            .and_then(|()| archive.small(FAILED, fail.message.as_bytes()))
            .and_then(|()| archive.end());
    }
    done
}

async fn fill(
    origin: &Origin,
    take: impl AsyncFnOnce(&Path) -> Outcome<Option<Box<dyn Snapshot>>>,
    archive: &mut Archive<'_>,
) -> Outcome {
    let failed = |e: io::Error| Fail::io("the archive cannot be written", &e);
    for (name, path) in keys(&origin.data)? {
        archive.small(&name, &small(&path)?).map_err(failed)?;
    }
    archive
        .small(NODE_NAME, &small(&origin.data.node_name())?)
        .map_err(failed)?;
    if let Some(config) = &origin.config {
        archive.small(CONFIG, &small(config)?).map_err(failed)?;
    }
    let scratch = origin.scratch()?;
    let copy = scratch.path().join(DATABASE);
    let clock = Clock::system();
    let begun = clock.now();
    let mut manifest = Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        taken_at: origin.taken_at.to_string(),
        store: origin.store.to_owned(),
        migration: None,
        host: origin.host.clone(),
        mails: 0,
        snapshot_ms: 0,
        not_included: origin.not_included.clone(),
        files: Vec::new(),
    };
    if let Some(mut snapshot) = take(&copy).await? {
        let took = clock.now().saturating_duration_since(begun);
        manifest.snapshot_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        manifest.mails = snapshot.mails();
        manifest.migration = Some(snapshot.migration());
        for file in snapshot.body_files().to_vec() {
            let name = format!("segments/{}", tasuki_store::segment_file(file.segment));
            let mut member = archive.begin(&name, file.bytes).map_err(failed)?;
            snapshot
                .write_bodies(file.segment, &mut member)
                .await
                .map_err(|e| Fail::new(exit::IO, chain(&e)))?;
            member.end().map_err(failed)?;
        }
        snapshot
            .finish()
            .await
            .map_err(|e| Fail::new(exit::IO, chain(&e)))?;
        archive.file(DATABASE, &copy)?;
    }
    manifest.files = std::mem::take(&mut archive.files);
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|e| Fail::new(exit::SOFTWARE, format!("the manifest cannot be written: {e}")))?;
    let sum = format!("{}  {MANIFEST}\n", hex(&Sha256::digest(&text)));
    archive
        .small(MANIFEST, &text)
        .and_then(|()| archive.small(MANIFEST_SUM, sum.as_bytes()))
        .and_then(|()| archive.end())
        .map_err(failed)
}

/// All files below `keys/`, sorted, with their names in the archive.
fn keys(data: &DataDir) -> Outcome<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut open = vec![("keys".to_owned(), data.keys(), 0)];
    while let Some((name, dir, depth)) = open.pop() {
        let failed = |e: io::Error| Fail::io(dir.display(), &e);
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file_name = entry.file_name().to_string_lossy().into_owned();
            let name = format!("{name}/{file_name}");
            // Hidden ones are files that are being written now.
            if file_name.starts_with('.') {
                continue;
            }
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() && depth < MAX_DEPTH {
                open.push((name, entry.path(), depth + 1));
            } else if super::is_known(&name) && tar::head(&name, 0, 0).is_some() {
                found.push((name, entry.path()));
            } else {
                // A certificate for a visitor's name of more than 79 letters: the CA gives it again.
                tracing::warn!(file = %entry.path().display(), "left out of the backup: its name is not one for an archive");
            }
        }
    }
    found.sort();
    Ok(found)
}

fn small(path: &Path) -> Outcome<Vec<u8>> {
    let failed = |e: io::Error| Fail::io(path.display(), &e);
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(failed)?
        .take(MAX_SMALL + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_SMALL {
        return Err(Fail::new(
            exit::DATA,
            format!("{} has more than {MAX_SMALL} bytes", path.display()),
        ));
    }
    Ok(bytes)
}

/// A tar file that grows.
struct Archive<'a> {
    out: &'a mut (dyn Write + Send),
    modified_s: u64,
    files: Vec<FileSum>,
    /// Bytes that the file that was begun still needs, its last block filled.
    owed: u64,
}

impl<'a> Archive<'a> {
    fn begin(&mut self, name: &str, size: u64) -> io::Result<Member<'_, 'a>> {
        let head = tar::head(name, size, self.modified_s)
            .ok_or_else(|| io::Error::other(format!("{name} is too long")))?;
        self.out.write_all(&head)?;
        self.owed = size + tar::padding(size) as u64;
        Ok(Member {
            archive: self,
            name: name.to_owned(),
            size,
            written: 0,
            sum: Sha256::new(),
        })
    }

    fn small(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut member = self.begin(name, bytes.len() as u64)?;
        member.write_all(bytes)?;
        member.end()
    }

    fn file(&mut self, name: &str, path: &Path) -> Outcome {
        let failed = |e: io::Error| Fail::io(path.display(), &e);
        let mut file = std::fs::File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let mut member = self.begin(name, size).map_err(failed)?;
        let mut buffer = vec![0; PIECE];
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => return member.end().map_err(failed),
                n => member.write_all(&buffer[..n]).map_err(failed)?,
            }
        }
    }

    /// Fills the file that was begun, so that what follows it can be read.
    fn give_up(&mut self) -> io::Result<()> {
        io::copy(&mut io::repeat(0).take(self.owed), &mut self.out)?;
        self.owed = 0;
        Ok(())
    }

    /// Two empty blocks.
    fn end(&mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * tar::BLOCK])?;
        self.out.flush()
    }
}

/// A file in the archive that grows to the size that was said.
struct Member<'m, 'a> {
    archive: &'m mut Archive<'a>,
    name: String,
    size: u64,
    written: u64,
    sum: Sha256,
}

impl Member<'_, '_> {
    fn end(self) -> io::Result<()> {
        if self.written != self.size {
            return Err(io::Error::other(format!(
                "{} has {} bytes in place of {}",
                self.name, self.written, self.size
            )));
        }
        self.archive
            .out
            .write_all(&[0; tar::BLOCK][..tar::padding(self.size)])?;
        self.archive.owed = 0;
        self.archive.files.push(FileSum {
            name: self.name,
            size: self.size,
            sha256: hex(&self.sum.finalize()),
        });
        Ok(())
    }
}

impl Write for Member<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.archive.out.write_all(bytes)?;
        self.archive.owed = self.archive.owed.saturating_sub(bytes.len() as u64);
        self.sum.update(bytes);
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.archive.out.flush()
    }
}
