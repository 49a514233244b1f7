//! The list of suppressed addresses.

use std::sync::Arc;

use tasuki_core::clock::Timestamp;
use tasuki_core::ids::PrincipalId;
use tasuki_core::store::suppress::{Entered, MAX_REASON, Subject, Suppressed, SuppressedFilter};
use tasuki_core::store::{Store, StoreError};

use super::support::{benches, entry};

const SHOP: PrincipalId = PrincipalId(7);
const NEWS: PrincipalId = PrincipalId(8);

fn subject(text: &str) -> Subject {
    Subject::parse(text).unwrap()
}

fn automatic(text: &str, principal: PrincipalId, (since, until): (i64, i64)) -> Suppressed {
    Suppressed {
        subject: subject(text),
        principal: Some(principal),
        reason: "550 5.1.1 no such user".into(),
        by: None,
        since: Timestamp(since),
        until: Some(Timestamp(until)),
    }
}

fn manual(text: &str, principal: Option<PrincipalId>) -> Suppressed {
    Suppressed {
        principal,
        by: Some("alice".into()),
        until: None,
        ..automatic(text, SHOP, (1, 1))
    }
}

/// Who may not write there at a time.
async fn is_on(store: &Arc<dyn Store>, text: &str, principal: PrincipalId, now: i64) -> bool {
    let found = store.suppression(&subject(text), principal, Timestamp(now)).await;
    found.unwrap().is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_holds_for_its_principal_and_the_base_address_until_it_ends() {
    for bench in benches().await {
        let store = bench.open().await;
        let bob = automatic("Bob+news@x.org", SHOP, (100, 200));
        assert_eq!(
            store.suppress(vec![bob.clone()], 10).await.unwrap(),
            [Entered::New]
        );
        for (address, who, now, on) in [
            ("bob@x.org", SHOP, 150, true),
            ("BOB+other@X.org", SHOP, 199, true),
            ("bob@x.org", SHOP, 200, false),
            ("bob@x.org", NEWS, 150, false),
            ("bobby@x.org", SHOP, 150, false),
            ("bob@sub.x.org", SHOP, 150, false),
        ] {
            assert_eq!(
                is_on(&store, address, who, now).await,
                on,
                "{address} {who:?} {now}"
            );
        }
        // Another word of the same makes it last longer, and tells since when all the same.
        let again = automatic("bob@x.org", SHOP, (150, 400));
        assert_eq!(store.suppress(vec![again], 10).await.unwrap(), [Entered::Known]);
        let found = store
            .suppression(&subject("bob@x.org"), SHOP, Timestamp(300))
            .await;
        let found = found.unwrap().unwrap();
        assert_eq!((found.since, found.until), (Timestamp(100), Some(Timestamp(400))));
        // After its end it begins anew.
        let later = automatic("bob@x.org", SHOP, (500, 600));
        store.suppress(vec![later.clone()], 10).await.unwrap();
        let found = store
            .suppression(&subject("bob@x.org"), SHOP, Timestamp(550))
            .await;
        assert_eq!(found.unwrap().unwrap(), later);
        assert_eq!(store.prune_suppressed(Timestamp(599)).await.unwrap(), 0);
        assert_eq!(store.prune_suppressed(Timestamp(600)).await.unwrap(), 1);
        assert!(
            store
                .suppressed(&SuppressedFilter::default(), 10)
                .await
                .unwrap()
                .is_empty()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_entry_stands_above_what_comes_by_itself() {
    for bench in benches().await {
        let store = bench.open().await;
        let all = manual("bob@x.org", None);
        let whole = manual("*@gone.example", Some(SHOP));
        let made = store
            .change_suppressed(vec![all.clone(), whole], vec![], 10, entry("mail.suppress"))
            .await;
        assert_eq!(made.unwrap(), (2, 0));
        assert!(is_on(&store, "bob@x.org", SHOP, 1 << 50).await);
        assert!(is_on(&store, "bob@x.org", NEWS, 5).await);
        assert!(is_on(&store, "anybody@gone.example", SHOP, 5).await);
        assert!(!is_on(&store, "anybody@gone.example", NEWS, 5).await);
        assert!(!is_on(&store, "anybody@sub.gone.example", SHOP, 5).await);
        // Acceptance takes out what came by itself only, for all principals.
        let mine = automatic("eve@x.org", SHOP, (1, 100));
        let theirs = automatic("eve@x.org", NEWS, (1, 100));
        let owned = manual("eve@x.org", None);
        store.suppress(vec![mine, theirs], 10).await.unwrap();
        store
            .change_suppressed(vec![owned.clone()], vec![], 10, entry("mail.suppress"))
            .await
            .unwrap();
        let found = store
            .unsuppress(vec![subject("eve@x.org"), subject("bob@x.org")])
            .await;
        assert_eq!(found.unwrap(), 2);
        assert!(is_on(&store, "eve@x.org", SHOP, 5).await);
        // An operator's entry for a principal is not overwritten.
        let for_shop = Suppressed {
            reason: "she asked for it".into(),
            ..manual("zoe@x.org", Some(SHOP))
        };
        store
            .change_suppressed(vec![for_shop.clone()], vec![], 10, entry("mail.suppress"))
            .await
            .unwrap();
        let word = automatic("zoe@x.org", SHOP, (1, 100));
        assert_eq!(store.suppress(vec![word], 10).await.unwrap(), [Entered::Known]);
        let found = store.suppression(&subject("zoe@x.org"), SHOP, Timestamp(5)).await;
        assert_eq!(found.unwrap(), Some(for_shop));
        // One scope, or all.
        let of_shop = vec![(subject("zoe@x.org"), Some(NEWS))];
        let done = store.change_suppressed(vec![], of_shop, 10, entry("none")).await;
        assert_eq!(done.unwrap(), (0, 0));
        let of_all = vec![(subject("zoe@x.org"), None), (subject("bob@x.org"), None)];
        let done = store
            .change_suppressed(vec![], of_all, 10, entry("mail.suppress"))
            .await;
        assert_eq!(done.unwrap(), (0, 2));
        assert!(!is_on(&store, "zoe@x.org", SHOP, 5).await);
        // A line for each change, none for nothing.
        let audit = store.audit(None, 10).await.unwrap();
        let lines: Vec<&str> = audit.iter().map(|line| line.action.as_str()).collect();
        assert_eq!(lines, ["mail.suppress"; 4]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_bounded_and_its_news_are_read_in_order() {
    for bench in benches().await {
        let store = bench.open().await;
        let words = ["a@x.org", "b@x.org", "a@x.org", "c@y.org"].map(|a| automatic(a, SHOP, (1, 100)));
        let entered = store.suppress(words.to_vec(), 2).await.unwrap();
        assert_eq!(
            entered,
            [Entered::New, Entered::New, Entered::Known, Entered::NoRoom]
        );
        let over = store
            .change_suppressed(vec![manual("d@x.org", None)], vec![], 2, entry("no"))
            .await;
        assert!(matches!(over, Err(StoreError::Conflict(_))), "{over:?}");
        assert!(!is_on(&store, "d@x.org", SHOP, 5).await, "nothing was changed");
        // Replacing one takes no room.
        let same = manual("b@x.org", Some(SHOP));
        store
            .change_suppressed(vec![same], vec![], 2, entry("yes"))
            .await
            .unwrap();
        let listed = async |filter: SuppressedFilter, limit| {
            let rows = store.suppressed(&filter, limit).await.unwrap();
            let shown = rows.iter().map(|(n, row)| (*n, row.subject.to_string()));
            shown.collect::<Vec<(i64, String)>>()
        };
        let all = listed(SuppressedFilter::default(), 10).await;
        let names: Vec<&str> = all.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["a@x.org", "b@x.org"]);
        let after = SuppressedFilter {
            after: all[0].0,
            ..SuppressedFilter::default()
        };
        assert_eq!(listed(after, 10).await, all[1..]);
        assert_eq!(listed(SuppressedFilter::default(), 1).await, all[..1]);
        // What is renewed is news.
        store
            .suppress(vec![automatic("a@x.org", SHOP, (2, 300))], 2)
            .await
            .unwrap();
        let news = SuppressedFilter {
            after: all[1].0,
            ..SuppressedFilter::default()
        };
        assert_eq!(listed(news, 10).await[0].1, "a@x.org");
        for (domain, principal, n) in [("x.org", SHOP, 2), ("y.org", SHOP, 0), ("x.org", NEWS, 0)] {
            let filter = SuppressedFilter {
                domain: Some(domain.parse().unwrap()),
                principal: Some(principal),
                ..SuppressedFilter::default()
            };
            assert_eq!(listed(filter, 10).await.len(), n, "{domain} {principal:?}");
        }
        let long = Suppressed {
            reason: "é\0".repeat(MAX_REASON),
            ..manual("a@x.org", Some(SHOP))
        };
        store
            .change_suppressed(vec![long], vec![], 2, entry("yes"))
            .await
            .unwrap();
        let kept = store
            .suppression(&subject("a@x.org"), SHOP, Timestamp(5))
            .await
            .unwrap();
        let reason = kept.unwrap().reason;
        assert!(reason.len() <= MAX_REASON && reason.starts_with('é') && !reason.contains('\0'));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_about_a_mailbox_is_found_among_all_of_its_domain() {
    for bench in benches().await {
        let store = bench.open().await;
        let others = (0..50).map(|n| manual(&format!("other{n}@x.org"), None));
        let about = [
            manual("bob@x.org", None),
            automatic("bob@x.org", SHOP, (1, 100)),
            manual("*@x.org", Some(NEWS)),
        ];
        let elsewhere = [manual("bob@y.org", None), manual("*@y.org", None)];
        let all: Vec<Suppressed> = others.chain(about.clone()).chain(elsewhere).collect();
        store
            .change_suppressed(all, vec![], 100, entry("mail.suppress"))
            .await
            .unwrap();
        let listed = async |domain: Option<&str>, local: &str, after, limit| {
            let filter = SuppressedFilter {
                domain: domain.map(|domain| domain.parse().unwrap()),
                local: Some(local.to_owned()),
                after,
                ..SuppressedFilter::default()
            };
            let rows = store.suppressed(&filter, limit).await.unwrap();
            let (numbers, rows): (Vec<i64>, Vec<Suppressed>) = rows.into_iter().unzip();
            assert!(numbers.is_sorted(), "{numbers:?}");
            (numbers, rows)
        };
        let (numbers, found) = listed(Some("x.org"), "bob", 0, 10).await;
        assert_eq!(found, about);
        assert_eq!(listed(Some("x.org"), "bob", numbers[0], 10).await.1, about[1..]);
        assert_eq!(listed(Some("x.org"), "bob", 0, 1).await.1, about[..1]);
        assert_eq!(listed(Some("x.org"), "eve", 0, 10).await.1, about[2..]);
        assert_eq!(listed(Some("z.org"), "bob", 0, 10).await.1, []);
        assert_eq!(listed(None, "bob", 0, 10).await.1.len(), 5);
    }
}

#[test]
fn what_can_be_on_no_list() {
    for text in [
        "postmaster@x.org",
        "PostMaster+a@x.org",
        "\"*\"@x.org",
        "bob@[192.0.2.1]",
        "nonsense",
        "*@",
    ] {
        assert_eq!(Subject::parse(text), None, "{text}");
    }
    for (text, shown) in [
        ("Bob+news@X.org", "bob@x.org"),
        ("+plus@x.org", "+plus@x.org"),
        ("*@X.org", "*@x.org"),
        ("foo..bar@docomo.ne.jp", "\"foo..bar\"@docomo.ne.jp"),
    ] {
        assert_eq!(subject(text).to_string(), shown);
        assert_eq!(subject(shown), subject(text));
    }
}
