//! `keys/seal.key`: 32 random bytes as one line of base64, readable by the gateway's user alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// The key file of a data directory.
#[derive(Clone, Copy, Debug)]
pub struct KeyFile;

/// Why the key file gave no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The operating system's answer.
    #[error("cannot {act} {}", path.display())]
    Io {
        /// `read`, `create` or `sync`.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is there and is not a key.
    #[error("{} is not a seal key (one line: 44 characters of base64); restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

impl KeyFile {
    /// The key in `path`, if the file is there. Warns when others than its owner may read it.
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn load(path: &Path) -> Result<Option<[u8; 32]>, KeyFileError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("read", path)(e)),
        };
        let mode = file
            .metadata()
            .map_err(failed("read", path))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            tracing::warn!(
                path = %path.display(),
                "the seal key can be read by others than its owner; run chmod 600 on it"
            );
        }
        let mut text = Zeroizing::new(String::with_capacity(64));
        file.take(64)
            .read_to_string(&mut text)
            .map_err(failed("read", path))?;
        let damaged = || KeyFileError::Damaged {
            path: path.to_owned(),
        };
        let key = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| damaged())?);
        <[u8; 32]>::try_from(key.as_slice())
            .map(Some)
            .map_err(|_| damaged())
    }

    /// The key in `path`; a file that is not there is made, with mode 0600 and synced, its folder too (0700).
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn load_or_create(path: &Path) -> Result<[u8; 32], KeyFileError> {
        if let Some(key) = Self::load(path)? {
            return Ok(key);
        }
        create(path).map_err(failed("create", path))?;
        // Read back: when two processes start at once, both must go on with the one that is there.
        Self::load(path)?.ok_or_else(|| failed("read", path)(io::ErrorKind::NotFound.into()))
    }
}

/// Writes a fresh key beside `path` and links it there, so that the file is never seen half written and an existing
/// one is never replaced.
fn create(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !folder.exists() {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    }
    let mut key = Zeroizing::new([0_u8; 32]);
    aws_lc_rs::rand::fill(key.as_mut_slice())
        .map_err(|_| io::Error::other("the operating system gives no random bytes"))?;
    let draft = path.with_extension(format!("new{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    let text = Zeroizing::new(format!("{}\n", STANDARD.encode(key.as_slice())));
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    match linked {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    File::open(folder)?.sync_all()
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyFileError {
    move |source| KeyFileError::Io {
        act,
        path: path.to_owned(),
        source,
    }
}
