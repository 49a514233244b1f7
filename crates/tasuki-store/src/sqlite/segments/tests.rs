//! What a backup's hold keeps on the disk.

use bytes::Bytes;
use tasuki_core::store::NodeStore as _;
use tasuki_core::store::mail::{BodyPlace, MailStore as _};

use super::super::Db;
use super::*;
use crate::migrate::Newer;

#[tokio::test]
async fn a_held_body_stays_on_the_disk_until_the_hold_ends() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tasuki.db");
    let db = Db::open(&file, dir.path(), Newer::Refused).await.unwrap();
    let mut sink = db.open_body(None).await.unwrap();
    sink.write(Bytes::from(vec![7; 50_000])).await.unwrap();
    let body = sink.finish().await.unwrap();
    let BodyPlace::Segment { segment, offset, .. } = body.place else {
        panic!("{body:?}");
    };
    let place = Place {
        segment,
        offset,
        len: body.len,
    };
    let path = db.segments.path(segment);

    let hold = db.segments.hold();
    db.segments.free(&[place]);
    round(&db.segments, &db.writer).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; 50_000]);
    drop(hold);
    // The janitor may be faster: either way it is gone now.
    round(&db.segments, &db.writer).await.unwrap();
    let left = std::fs::read(&path).unwrap_or_default();
    assert!(left.iter().all(|b| *b == 0), "the space was not given back");
    db.close().await;
}
