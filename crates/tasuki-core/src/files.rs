//! Files that hold keys: whole or not at all, for our eyes only.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use crate::os;

/// Makes `dir` and its parents with mode 0700 (where there are modes); one that is there is left as it is.
///
/// # Errors
/// The operating system's.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    os::private_dirs().create(dir)
}

/// Writes `bytes` to `path` with mode 0600: through a temporary file beside it, synced, renamed, directory synced. After
/// a crash there is the old content or the new one.
///
/// # Errors
/// The operating system's.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = dir.join(format!(
        ".{}.{:016x}.new",
        name.to_string_lossy(),
        rand::random::<u64>()
    ));
    let written = write_new(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    os::sync_dir(dir)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = os::private_file().create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
