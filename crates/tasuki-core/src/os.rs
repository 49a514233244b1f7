//! What differs between operating systems, of what the agent links as well: files for one user's eyes only.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::path::Path;

/// Makes directories, and those above them, with mode 0700. Elsewhere than on Unix they get the rights of their parent.
pub(crate) fn private_dirs() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
}

/// Writes files that have mode 0600 when they are made; the same goes for them.
pub(crate) fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Makes the names in `dir` last. Only Unix opens directories for this.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        std::fs::File::open(dir)?.sync_all()?;
    }
    Ok(())
}
