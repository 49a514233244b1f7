//! The data directory: made once, owned by one gateway at a time, never mistaken for an empty mount point.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};

use rustix::fs::FlockOperation;
use tasuki_core::files;

use crate::exit::{self, Fail, Outcome};
use crate::place::DataDir;

/// The key under which secrets in the store are sealed. It also marks the directory as a gateway's.
fn seal_key_file(data: &DataDir) -> std::path::PathBuf {
    data.keys().join("seal.key")
}

/// Whether a gateway has lived here.
pub(crate) fn is_furnished(data: &DataDir) -> bool {
    seal_key_file(data).exists()
}

/// Makes the directory with its first key, for its owner alone. What is there already stays. A gateway's files without the
/// key are not given a new one: the key comes first here, and last in a restore, so that one was cut short.
pub(crate) fn furnish(data: &DataDir) -> Outcome {
    let others = [data.node_name(), data.restored(), data.path().join("segments")];
    if !is_furnished(data)
        && let Some(found) = others.iter().find(|path| path.exists())
    {
        return Err(Fail::new(
            exit::CONFIG,
            format!(
                "{} is there and {} is not: a restore that was cut short, or a lost key. Delete {} and restore again from the \
                 backup",
                found.display(),
                seal_key_file(data).display(),
                data.path().display()
            ),
        ));
    }
    let cannot = |what: &std::path::Path, e: &std::io::Error| {
        Fail::new(
            exit::CANT_CREATE,
            format!("{} cannot be made: {e}", what.display()),
        )
    };
    files::make_private_dir(data.path()).map_err(|e| cannot(data.path(), &e))?;
    // A directory that was there before, as a mount point, is closed to others too.
    std::fs::set_permissions(data.path(), std::fs::Permissions::from_mode(0o700))
        .map_err(|e| cannot(data.path(), &e))?;
    files::make_private_dir(&data.keys()).map_err(|e| cannot(&data.keys(), &e))?;
    let path = seal_key_file(data);
    if !path.exists() {
        files::write_private(&path, &rand::random::<[u8; 32]>()).map_err(|e| cannot(&path, &e))?;
    }
    let path = data.node_name();
    if !path.exists() {
        let name = format!("gw-{:016x}\n", rand::random::<u64>());
        files::write_private(&path, name.as_bytes()).map_err(|e| cannot(&path, &e))?;
    }
    Ok(())
}

/// Refuses a directory in which no gateway has lived: most often it is a disk that is not mounted, and a gateway that
/// starts there with fresh keys and an empty queue does harm.
pub(crate) fn require_furnished(data: &DataDir) -> Outcome {
    let path = data.path().display();
    let state = match std::fs::read_dir(data.path()) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => "does not exist",
        Err(e) => return Err(Fail::io(format!("the data directory {path} cannot be read"), &e)),
        Ok(_) if is_furnished(data) => return Ok(()),
        Ok(entries) => match entries.take(1).count() {
            0 => "is empty",
            _ => "has no keys/seal.key",
        },
    };
    Err(Fail::new(
        exit::CONFIG,
        format!(
            "the data directory {path} {state}. Is its disk not mounted? Mount it, or restore it from a backup; \
             for a new gateway run `tasuki init --host NAME` once"
        ),
    ))
}

/// The seal key of a furnished directory.
pub(crate) fn seal_key(data: &DataDir) -> Outcome<[u8; 32]> {
    let path = seal_key_file(data);
    let bytes = std::fs::read(&path).map_err(|e| Fail::io(path.display(), &e))?;
    <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| {
        Fail::new(
            exit::CONFIG,
            format!(
                "{} has {} bytes in place of 32: restore it from a backup, as it opens every sealed secret",
                path.display(),
                bytes.len()
            ),
        )
    })
}

/// This gateway's name in its store.
pub(crate) fn node_name(data: &DataDir) -> Outcome<String> {
    let path = data.node_name();
    let text = std::fs::read_to_string(&path).map_err(|e| Fail::io(path.display(), &e))?;
    Ok(text.trim().to_owned())
}

/// The directory is ours as long as this lives; the operating system releases it with the process, however that ends.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// The same lock for another process: it holds as long as one of the two does (flock(2)).
    pub(crate) fn share(&self) -> std::io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }
}

/// The lock that another process shared.
pub(crate) fn inherit_lock(data: &DataDir, fd: OwnedFd) -> Outcome<Lock> {
    let path = data.lock();
    let io = |e: &std::io::Error| Fail::io(path.display(), e);
    let file = File::from(fd);
    let (given, there) = (file.metadata(), std::fs::metadata(&path));
    let (given, there) = (given.map_err(|e| io(&e))?, there.map_err(|e| io(&e))?);
    if (given.dev(), given.ino()) != (there.dev(), there.ino()) {
        return Err(Fail::new(
            exit::CONFIG,
            format!(
                "the running gateway lives in another data directory than {}: an upgrade cannot change it",
                data.path().display()
            ),
        ));
    }
    written_by_us(file).map_err(|e| io(&e))
}

fn written_by_us(mut file: File) -> std::io::Result<Lock> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Lock { file })
}

/// Takes the directory for this process.
pub(crate) fn lock(data: &DataDir) -> Outcome<Lock> {
    let path = data.lock();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| Fail::io(path.display(), &e))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(Fail::new(
                exit::TEMPORARY,
                format!(
                    "a gateway runs already on {} (process {}). Stop it first, or give this one another directory with --data",
                    data.path().display(),
                    pid.trim()
                ),
            ));
        }
        Err(e) => return Err(Fail::io(path.display(), &e.into())),
    }
    written_by_us(file).map_err(|e| Fail::io(path.display(), &e))
}

/// `addresses.json`, removed when the gateway stops.
#[derive(Debug)]
pub(crate) struct AddressFile(std::path::PathBuf);

impl AddressFile {
    /// Says where every listener is bound. Written last: whoever sees it finds everything listening.
    pub(crate) fn write(data: &DataDir, listeners: &BTreeMap<String, SocketAddr>) -> Outcome<Self> {
        let path = data.addresses();
        let text = serde_json::to_string_pretty(listeners).map_err(|e| {
            Fail::new(
                exit::SOFTWARE,
                format!("addresses cannot be written as JSON: {e}"),
            )
        })?;
        files::write_private(&path, text.as_bytes()).map_err(|e| Fail::io(path.display(), &e))?;
        Ok(Self(path))
    }
}

impl AddressFile {
    /// Leaves the file to another process, which writes its own.
    pub(crate) fn leave(mut self) {
        self.0 = std::path::PathBuf::new();
    }
}

impl Drop for AddressFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
