//! Archives that nobody honest wrote, and headers that other programs read.

use std::io::Write as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::read::Archive;
use super::restore::restored_of;
use super::{MANIFEST, MANIFEST_SUM, hex, is_known, tar};
use crate::place::DataDir;

fn member(archive: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    archive.extend(tar::head(name, bytes.len() as u64, 0).unwrap());
    archive.extend(bytes);
    archive.extend(vec![0; tar::padding(bytes.len() as u64)]);
}

/// An archive whose manifest is right about these files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut sums = Vec::new();
    for (name, bytes) in files {
        member(&mut archive, name, bytes);
        sums.push(
            serde_json::json!({"name": name, "size": bytes.len(), "sha256": hex(&Sha256::digest(bytes))}),
        );
    }
    let manifest = serde_json::json!({
        "format": 1, "version": "0", "taken_at": "", "store": "postgresql", "migration": null, "host": null,
        "mails": 0, "snapshot_ms": 0, "not_included": [], "files": sums,
    })
    .to_string();
    member(&mut archive, MANIFEST, manifest.as_bytes());
    let sum = format!("{}  {MANIFEST}\n", hex(&Sha256::digest(manifest.as_bytes())));
    member(&mut archive, MANIFEST_SUM, sum.as_bytes());
    archive.extend([0; 2 * tar::BLOCK]);
    archive
}

const GOOD: [(&str, &[u8]); 3] = [
    ("keys/seal.key", &[7; 32]),
    ("keys/acme/account.json", b"{}"),
    ("node-name", b"gw-1\n"),
];

fn open(bytes: &[u8]) -> Result<Archive, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    Archive::open(file.path()).map_err(|fail| {
        assert_eq!(fail.code, crate::exit::DATA, "{fail}");
        fail.message
    })
}

#[track_caller]
fn refused(bytes: &[u8], name: &str) {
    let why = open(bytes).map(|_| ()).unwrap_err();
    assert!(why.contains(name), "{name} in {why}");
}

#[test]
fn a_whole_archive_opens_and_gives_its_files() {
    let archive = open(&archive(&GOOD)).unwrap();
    assert_eq!(archive.bytes("keys/seal.key").unwrap(), [7; 32]);
    assert!(!archive.has_database());
}

#[test]
fn one_damaged_byte_is_found_wherever_it_counts() {
    let whole = archive(&GOOD);
    for (at, byte) in whole.iter().enumerate() {
        let mut damaged = whole.clone();
        damaged[at] = byte ^ 0x10;
        // What fills the last block of a file, and what follows the empty block at the end, holds nothing.
        let is_filling = *byte == 0 && open(&damaged).is_ok();
        let is_refused = open(&damaged).is_err();
        assert!(is_filling || is_refused, "byte {at} ({byte})");
    }
    let mut damaged = whole.clone();
    damaged[tar::BLOCK] ^= 1;
    refused(&damaged, "keys/seal.key is damaged");
}

#[test]
fn an_archive_that_is_cut_short_is_refused_at_any_length() {
    let whole = archive(&GOOD);
    let needed = whole.len() - tar::BLOCK;
    for length in (0..needed).step_by(97).chain([needed - 1]) {
        assert!(open(&whole[..length]).is_err(), "{length}");
    }
    refused(&whole[..tar::BLOCK + 10], "ends within keys/seal.key");
}

#[test]
fn names_that_lead_elsewhere_are_refused_by_name() {
    for name in [
        "../evil",
        "/etc/passwd",
        "keys/../../evil",
        "keys/",
        "keys//x",
        "keys/.hidden",
        "segments/../x",
        "segments/1.seg",
        "keys/a/b/c/d/e",
        "extra",
        "./tasuki.db",
    ] {
        assert!(!is_known(name), "{name}");
        let mut files = GOOD.to_vec();
        files.push((name, b"x"));
        refused(&archive(&files), name);
    }
    assert!(is_known("segments/00000000000000ff.seg"));
}

#[test]
fn links_and_directories_are_refused_by_name() {
    for (kind, word) in [
        (b'1', "link"),
        (b'2', "link"),
        (b'5', "directory"),
        (b'x', "plain"),
    ] {
        let mut head = tar::head("keys/link", 0, 0).unwrap();
        head[156] = kind;
        // The sum is right: it is the kind that is refused.
        head[148..156].fill(b' ');
        let sum: u64 = head.iter().map(|b| u64::from(*b)).sum();
        head[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut bytes = head.to_vec();
        bytes.extend(archive(&GOOD));
        refused(&bytes, "keys/link");
        refused(&bytes, word);
    }
}

#[test]
fn a_file_twice_or_beside_the_manifest_or_missing_is_refused() {
    let mut twice = Vec::new();
    member(&mut twice, "node-name", b"gw-2\n");
    twice.extend(archive(&GOOD));
    refused(&twice, "node-name is there twice");
    let mut beside = Vec::new();
    member(&mut beside, "tasuki.toml", b"");
    beside.extend(archive(&GOOD));
    refused(&beside, "tasuki.toml is not in its manifest");
    refused(&archive(&GOOD[1..]), "keys/seal.key is missing");
}

#[test]
fn a_backup_that_the_gateway_gave_up_says_why() {
    let mut bytes = Vec::new();
    member(&mut bytes, "failed", b"the disk is full");
    bytes.extend([0; 2 * tar::BLOCK]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let fail = Archive::open(file.path()).unwrap_err();
    assert!(fail.message.contains("the disk is full"), "{fail}");
}

#[test]
fn sizes_beyond_eight_gibibytes_survive_the_header() {
    for size in [0, 1, (1 << 33) - 1, 1 << 33, u64::MAX / 2] {
        let head = tar::head("tasuki.db", size, 1_700_000_000).unwrap();
        let read = tar::parse(&head).unwrap().unwrap();
        assert_eq!((read.name.as_str(), read.size), ("tasuki.db", size));
    }
    assert!(tar::head(&"x".repeat(101), 0, 0).is_none());
    assert!(Archive::open(Path::new("/")).is_err());
}

#[test]
fn a_restore_that_was_cut_short_leaves_nothing_that_starts() {
    let directory = tempfile::tempdir().unwrap();
    let data = DataDir::new(directory.path().to_owned());
    for left in ["segments", "node-name", "restored"] {
        let left = directory.path().join(left);
        std::fs::create_dir(&left).unwrap();
        let refused = crate::data::furnish(&data).unwrap_err();
        assert_eq!(refused.code, crate::exit::CONFIG, "{refused}");
        assert!(!crate::data::is_furnished(&data), "no new key is made");
        std::fs::remove_dir(left).unwrap();
    }
    crate::data::furnish(&data).unwrap();
    // Again, now that all is there.
    crate::data::furnish(&data).unwrap();
}

#[test]
fn a_marker_that_cannot_be_read_is_not_taken_for_none() {
    let directory = tempfile::tempdir().unwrap();
    let data = DataDir::new(directory.path().to_owned());
    assert!(restored_of(&data).unwrap().is_none());
    std::fs::write(data.restored(), "2026-01-01").unwrap();
    assert_eq!(restored_of(&data).unwrap().as_deref(), Some("2026-01-01"));
    std::fs::remove_file(data.restored()).unwrap();
    std::fs::create_dir(data.restored()).unwrap();
    assert!(restored_of(&data).is_err());
}
