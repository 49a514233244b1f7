#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use super::{KeyFile, KeyFileError, SealError, Secret, open, seal};

const KEY: [u8; 32] = [7; 32];

#[test]
fn what_is_sealed_opens_again_and_never_looks_the_same() {
    let (one, two) = (seal(&KEY, "dkim", b"hunter2"), seal(&KEY, "dkim", b"hunter2"));
    assert_ne!(one, two);
    for sealed in [&one, &two] {
        assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
        assert_eq!(open(&KEY, "dkim", sealed).unwrap().as_slice(), b"hunter2");
    }
    let empty = seal(&KEY, "dkim", b"");
    assert_eq!(open(&KEY, "dkim", &empty).unwrap().as_slice(), b"");
}

#[test]
fn another_key_another_name_and_any_damage_are_told_by_the_secrets_name() {
    let sealed = seal(&KEY, "dkim", b"hunter2");
    let refused = |key: &[u8; 32], name: &str, sealed: &[u8]| {
        let error = open(key, name, sealed).unwrap_err();
        assert!(matches!(&error, SealError::WrongKey(n) if n == name), "{error}");
        assert!(error.to_string().contains(name));
    };
    refused(&[8; 32], "dkim", &sealed);
    refused(&KEY, "relay", &sealed);
    for place in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[place] ^= 1;
        refused(&KEY, "dkim", &damaged);
        refused(&KEY, "dkim", &sealed[..place]);
    }
}

#[test]
fn secrets_are_never_shown() {
    let secret = Secret::new("hunter2".to_owned());
    assert_eq!(format!("{secret:?}"), "***");
    assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
    assert_eq!(secret.expose(), "hunter2");
}

#[test]
fn a_key_file_is_made_once_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys/seal.key");
    assert!(KeyFile::load(&path).unwrap().is_none());
    let key = KeyFile::load_or_create(&path).unwrap();
    assert_ne!(key, [0; 32]);
    assert_eq!(KeyFile::load_or_create(&path).unwrap(), key);
    let mode = |p: &std::path::Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_damaged_key_file_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seal.key");
    for text in ["", "AAAA", "not base64", &"A".repeat(4096)] {
        std::fs::write(&path, text).unwrap();
        let error = KeyFile::load_or_create(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::Damaged { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("keys"), "a file").unwrap();
    let path = dir.path().join("keys/seal.key");
    let error = KeyFile::load_or_create(&path).unwrap_err();
    assert!(error.to_string().contains("keys/seal.key"), "{error}");
}
