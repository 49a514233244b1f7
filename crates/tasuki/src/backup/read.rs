//! Reading an archive that anybody may have written: every byte is checked before a file of it is used.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{
    DATABASE, FAILED, FORMAT, FileSum, MANIFEST, MANIFEST_SUM, Manifest, NODE_NAME, SEAL_KEY, hex, is_known,
    tar,
};
use crate::exit::{self, Fail, Outcome};

/// Bytes read at once.
const PIECE: usize = 256 << 10;
/// A manifest, or any other file that is read as a whole.
const MAX_SMALL: u64 = 64 << 20;
/// More files than any gateway has: 100,000 segments hold 6 TB.
const MAX_FILES: usize = 200_000;

/// An archive whose files are what its manifest says.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    file: File,
    /// What it says of itself.
    pub(crate) manifest: Manifest,
    members: HashMap<String, Member>,
    segments: HashMap<u64, (u64, u64)>,
}

#[derive(Debug)]
struct Member {
    offset: u64,
    size: u64,
    sha256: String,
}

impl Archive {
    /// Reads the whole file once.
    pub(crate) fn open(path: &Path) -> Outcome<Self> {
        let unreadable = |e: io::Error| Fail::io(path.display(), &e);
        let file = File::open(path).map_err(unreadable)?;
        if !file.metadata().map_err(unreadable)?.is_file() {
            return Err(refused(path, "it is not a file"));
        }
        let members = members(&file, path)?;
        let manifest = manifest(&file, path, &members)?;
        let segments = members
            .iter()
            .filter_map(|(name, member)| {
                let number = tasuki_store::segment_of_file(name.strip_prefix("segments/")?)?;
                Some((number, (member.offset, member.size)))
            })
            .collect();
        Ok(Self {
            path: path.to_owned(),
            file,
            manifest,
            members,
            segments,
        })
    }

    /// Whether it holds a database.
    pub(crate) fn has_database(&self) -> bool {
        self.members.contains_key(DATABASE)
    }

    /// Every file but the manifest, and its size.
    pub(crate) fn files(&self) -> &[FileSum] {
        &self.manifest.files
    }

    /// A small file.
    pub(crate) fn bytes(&self, name: &str) -> Outcome<Vec<u8>> {
        let member = self
            .members
            .get(name)
            .ok_or_else(|| refused(&self.path, format!("{name} is missing")))?;
        read_small(&self.file, member).map_err(|e| Fail::io(self.path.display(), &e))
    }

    /// Writes a file of the archive to a new file `to`, synced, and checks it again on the way.
    pub(crate) fn extract(&self, name: &str, to: &Path) -> Outcome {
        let member = self
            .members
            .get(name)
            .ok_or_else(|| refused(&self.path, format!("{name} is missing")))?;
        let failed = |e: io::Error| Fail::io(to.display(), &e);
        let mut out = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)
            .map_err(failed)?;
        let mut sum = Sha256::new();
        let mut buffer = vec![0; PIECE];
        let mut done = 0;
        while done < member.size {
            let piece = usize::try_from((member.size - done).min(PIECE as u64)).unwrap_or(PIECE);
            self.file
                .read_exact_at(&mut buffer[..piece], member.offset + done)
                .map_err(|e| Fail::io(self.path.display(), &e))?;
            sum.update(&buffer[..piece]);
            out.write_all(&buffer[..piece]).map_err(failed)?;
            done += piece as u64;
        }
        if hex(&sum.finalize()) != member.sha256 {
            return Err(refused(&self.path, format!("{name} changed while it was read")));
        }
        out.sync_all().map_err(failed)
    }
}

impl tasuki_store::Bodies for Archive {
    fn read_at(&self, segment: u64, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (start, size) = self.segments.get(&segment).ok_or(io::ErrorKind::NotFound)?;
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > *size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(buffer, start + offset)
    }
}

fn refused(path: &Path, why: impl std::fmt::Display) -> Fail {
    Fail::new(
        exit::DATA,
        format!("{} is not a whole backup: {why}", path.display()),
    )
}

fn read_small(file: &File, member: &Member) -> io::Result<Vec<u8>> {
    if member.size > MAX_SMALL {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = vec![0; usize::try_from(member.size).unwrap_or(0)];
    file.read_exact_at(&mut bytes, member.offset)?;
    Ok(bytes)
}

/// All files of the archive with their places and sums, in one pass.
fn members(file: &File, path: &Path) -> Outcome<HashMap<String, Member>> {
    let mut reader = BufReader::with_capacity(PIECE, file);
    let mut members = HashMap::new();
    let mut at: u64 = 0;
    loop {
        let mut block = [0; tar::BLOCK];
        read(&mut reader, &mut block, path, "a header")?;
        at += tar::BLOCK as u64;
        let Some(head) = tar::parse(&block).map_err(|why| refused(path, why))? else {
            break;
        };
        let name = head.name;
        if name != FAILED && !is_known(&name) {
            return Err(refused(path, format!("{name:?} does not belong into a backup")));
        }
        if members.len() >= MAX_FILES {
            return Err(refused(path, format!("it has more than {MAX_FILES} files")));
        }
        let sha256 = sum_of(&mut reader, head.size, path, &name)?;
        let member = Member {
            offset: at,
            size: head.size,
            sha256,
        };
        let padding = tar::padding(head.size);
        read(&mut reader, &mut block[..padding], path, &name)?;
        at = at
            .checked_add(head.size)
            .and_then(|at| at.checked_add(padding as u64))
            .ok_or_else(|| refused(path, format!("{name} is too large")))?;
        if members.insert(name.clone(), member).is_some() {
            return Err(refused(path, format!("{name} is there twice")));
        }
    }
    Ok(members)
}

fn sum_of(reader: &mut impl Read, size: u64, path: &Path, name: &str) -> Outcome<String> {
    let mut sum = Sha256::new();
    let mut buffer = vec![0; PIECE];
    let mut rest = size;
    while rest > 0 {
        let piece = usize::try_from(rest.min(PIECE as u64)).unwrap_or(PIECE);
        read(reader, &mut buffer[..piece], path, name)?;
        sum.update(&buffer[..piece]);
        rest -= piece as u64;
    }
    Ok(hex(&sum.finalize()))
}

fn read(reader: &mut impl Read, buffer: &mut [u8], path: &Path, what: &str) -> Outcome {
    reader.read_exact(buffer).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => refused(path, format!("it ends within {what}")),
        _ => Fail::io(path.display(), &e),
    })
}

/// The manifest, if all that is there is what it says.
fn manifest(file: &File, path: &Path, members: &HashMap<String, Member>) -> Outcome<Manifest> {
    let unreadable = |e: io::Error| Fail::io(path.display(), &e);
    if let Some(failed) = members.get(FAILED) {
        let why = read_small(file, failed).map_err(unreadable)?;
        return Err(Fail::new(
            exit::IO,
            format!(
                "the backup could not be completed: {}",
                String::from_utf8_lossy(&why)
            ),
        ));
    }
    let found = |name: &str| {
        members
            .get(name)
            .ok_or_else(|| refused(path, format!("{name} is missing")))
    };
    let text = found(MANIFEST)?;
    let sum = read_small(file, found(MANIFEST_SUM)?).map_err(unreadable)?;
    if sum != format!("{}  {MANIFEST}\n", text.sha256).as_bytes() {
        return Err(refused(path, format!("{MANIFEST} or {MANIFEST_SUM} is damaged")));
    }
    let text = read_small(file, text).map_err(unreadable)?;
    let format: Option<u64> = serde_json::from_slice::<serde_json::Value>(&text)
        .ok()
        .and_then(|value| value["format"].as_u64());
    if format != Some(u64::from(FORMAT)) {
        return Err(refused(
            path,
            format!("it has a format that this version does not know (it knows {FORMAT})"),
        ));
    }
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|e| refused(path, format!("{MANIFEST}: {e}")))?;
    for said in &manifest.files {
        let there = found(&said.name)?;
        if (there.size, &there.sha256) != (said.size, &said.sha256) {
            return Err(refused(
                path,
                format!("{} is damaged: its SHA-256 is another", said.name),
            ));
        }
    }
    // No name twice in the archive, so equal numbers mean equal names.
    if members.len() != manifest.files.len() + 2 {
        let said = |name: &&String| manifest.files.iter().all(|file| file.name != **name);
        let extra = members
            .keys()
            .filter(|name| ![MANIFEST, MANIFEST_SUM].contains(&name.as_str()))
            .find(said);
        return Err(refused(
            path,
            format!(
                "{} is not in its manifest",
                extra.map_or("a file", String::as_str)
            ),
        ));
    }
    let database = (manifest.store == "sqlite").then_some(DATABASE);
    for name in [SEAL_KEY, NODE_NAME].into_iter().chain(database) {
        found(name)?;
    }
    Ok(manifest)
}
