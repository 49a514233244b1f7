//! The files of the embedded database.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::TempDir;

use super::support::{mail, write};

/// The modes of all files below `dir`.
fn modes(dir: &Path) -> BTreeMap<String, u32> {
    let mut modes = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            modes.extend(self::modes(&entry.path()));
        } else {
            let name = entry.file_name().into_string().unwrap();
            modes.insert(name, entry.metadata().unwrap().permissions().mode() & 0o777);
        }
    }
    modes
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_can_read_the_database_whatever_the_umask() {
    let dir = TempDir::new().unwrap();
    let fill = async || {
        let store = tasuki_store::open(tasuki_store::DEFAULT_URL, dir.path())
            .await
            .unwrap();
        let (node, epoch) = store.join("gw").await.unwrap();
        let body = write(&*store, &[7; 100_000]).await;
        let new = vec![mail(&["a.example"], body)];
        store.enqueue(node, epoch, new).await.unwrap();
        store
    };
    // The widest umask of this process is the test's own; nothing else in it depends on it.
    let before = rustix::process::umask(rustix::fs::Mode::empty());
    let store = fill().await;
    rustix::process::umask(before);
    let made = modes(dir.path());
    for name in ["tasuki.db", "tasuki.db-wal", "tasuki.db-shm"] {
        assert!(made.contains_key(name), "{made:?}");
    }
    assert!(made.len() > 3, "no segment: {made:?}");
    assert!(made.values().all(|mode| *mode == 0o600), "{made:?}");

    // What was readable before is not from the next start on, nor what a life that was killed left beside it.
    store.close().await;
    let database = dir.path().join("tasuki.db");
    std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(dir.path().join("tasuki.db-wal"), []).unwrap();
    let again = fill().await;
    let kept = modes(dir.path());
    assert!(kept.contains_key("tasuki.db-wal"), "{kept:?}");
    assert!(kept.values().all(|mode| *mode == 0o600), "{kept:?}");
    again.close().await;
}
