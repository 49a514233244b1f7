//! What has gone wrong in other relays and servers, and which test here goes red if it goes wrong again.
//!
//! | pitfall | tests |
//! |---|---|
//! | the signer is not the actor | `the_signer_is_the_actor` `what_somebody_else_brings_is_believed_by_the_authors_own_signature` `an_actors_key_and_inbox_belong_to_its_own_host` |
//! | hosts that only look equal: case, punycode, ports, dots | `authorities_compare_by_canonical_host_and_port` `names_that_a_url_parser_would_repair_are_refused` `hosts_that_look_alike_are_not_the_same` |
//! | ids on another host than the actor's | `nobody_speaks_about_things_on_another_host` `activities_that_cannot_be_judged_are_refused_with_a_text_of_their_own` |
//! | a digest that is wrong, missing, double or not signed | `exactly_one_sha_256_digest_counts` `what_must_be_signed_must_be_signed` `a_content_digest_is_right_in_every_part_that_is_known` `requests_that_break_a_rule_are_refused_and_relayed_to_nobody` |
//! | old and future times | `the_signed_time_is_within_an_hour_back_and_five_minutes_ahead` `its_time_is_within_the_window` `spoiled_requests_are_refused_with_a_clear_reason` |
//! | replays | `the_same_request_or_the_same_news_counts_once` |
//! | several signatures, tags, algorithms | `of_several_signatures_the_first_that_satisfies_counts` `algorithms_keys_and_tags_are_judged` `a_signature_that_covers_too_little_is_refused` |
//! | query strings that signers leave out | `a_query_string_is_tried_with_and_without` |
//! | keys fetched without end | `a_changed_key_is_fetched_again_once` `unknown_keys_cause_a_bounded_number_of_fetches` `a_key_that_is_not_there_is_asked_for_once` |
//! | fetches of private addresses, redirects there, names that change their answer | `private_addresses_are_never_fetched` `special_addresses_are_known_in_every_disguise` `a_redirect_leads_to_no_other_host_and_not_on_for_ever` `a_name_that_changes_its_answer_is_checked_by_the_answer_that_is_used` `private_addresses_among_public_ones_are_left_out` |
//! | documents that are too large, packed small, or of another kind | `documents_that_are_bombs_or_uploads_are_not_read` `only_activitystreams_content_types_are_documents` |
//! | a Delete of somebody who is gone | `a_delete_of_somebody_who_is_gone_is_taken_and_forgotten` |
//! | relays that feed each other | `what_another_relay_announces_goes_no_further` |
//! | posts that are not public | `unlisted_and_private_posts_are_not_public` `private_and_unlisted_posts_go_nowhere` `all_three_spellings_of_public_are_one` |
//! | forged and stale Accept, Reject and Undo | `an_undo_names_the_stored_follow_by_object_or_by_id` `an_instance_subscribes_again_and_leaves_by_its_last_follow` `nobody_answers_or_takes_back_what_another_did` |
//! | signed documents that read differently as JSON and as linked data | `what_the_json_says_and_the_graph_does_not_is_refused` `documents_that_cannot_be_judged_are_refused_with_the_reason` `documents_that_read_differently_are_refused` `documents_made_to_burn_cpu_are_refused` |
//! | proofs for another purpose or by a key of another host | `a_proof_counts_only_for_its_purpose_by_a_key_of_the_actors_host_and_in_its_time` |
//! | forwards written anew | `a_signed_activity_is_forwarded_byte_for_byte_and_announced_to_the_others` |
//! | blocks that match half a name | `a_blocked_host_is_removed_told_so_and_neither_heard_nor_served` `authorities_compare_by_canonical_host_and_port` |
//! | status codes that make senders try for days | `status_codes_are_those_that_senders_understand` `publishing_without_subscription_is_refused` `a_full_budget_puts_senders_off` |
//! | a store that is away or full | `nothing_is_accepted_while_the_store_is_away` `a_full_disk_puts_mail_and_activities_off_until_space_returns_and_loses_nothing` `a_stopped_database_puts_mail_and_activities_off_until_it_is_back_and_loses_nothing` |
//! | inboxes that moved | `an_inbox_that_moved_is_found_and_nothing_is_lost` |
//! | follow ids told to others | `the_id_of_a_follow_is_told_to_nobody` |
//! | duplicate keys, deep nesting, odd bytes, huge numbers | `documents_that_two_readers_could_understand_differently_are_refused` `bombs_are_refused_before_anything_is_built` |
//! | bodies that are too large or too slow | `spoiled_requests_are_refused_with_a_clear_reason` `a_body_that_does_not_come_is_not_waited_for` `unfinished_activities_fill_the_byte_budget_and_get_429` |

use std::collections::HashSet;
use std::io::Write as _;
use std::path::Path;

use http::StatusCode;
use serde_json::{Value, json};
use tasuki_proto::activitypub::PUBLIC;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::deliveries::until;
use crate::world::{Answer, Ground, Instance, Letter, PATIENCE, RelayUnderTest, Setup};

/// A row of the table names tests that exist.
#[test]
fn each_test_that_the_table_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut functions = HashSet::new();
    let mut folders = vec![root.join("crates"), root.join("tests/it")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(path).unwrap();
                functions.extend(text.lines().filter_map(|line| {
                    let (_, name) = line.split_once("fn ")?;
                    Some(name.split('(').next()?.to_owned())
                }));
            }
        }
    }
    let rows: Vec<&str> = include_str!("pitfalls.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! |"))
        .skip(2)
        .collect();
    assert!(rows.len() > 20, "{} rows", rows.len());
    for row in rows {
        let named: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "{row}");
        for name in named {
            assert!(functions.contains(name), "there is no test {name}");
        }
    }
}

async fn relay_with(n: usize) -> (RelayUnderTest, Vec<Instance>) {
    let (ground, _) = Ground::memory();
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let mut instances = Vec::new();
    for _ in 0..n {
        let instance = Instance::start().await;
        instance.subscribe(&relay).await;
        instances.push(instance);
    }
    (relay, instances)
}

fn follow_of(instance: &Instance, name: &str) -> (String, Value) {
    let actor = format!("{}/{name}", instance.base);
    let follow = json!({"id": format!("{actor}/follow"), "type": "Follow", "actor": actor, "object": PUBLIC});
    (format!("{actor}#main-key"), follow)
}

async fn send(
    relay: &RelayUnderTest,
    instance: &Instance,
    key: &str,
    document: &Value,
) -> (StatusCode, Value) {
    let letter = Letter::new(relay, key, document.to_string().as_bytes());
    instance.send(relay, letter).await
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_cause_a_bounded_number_of_fetches() {
    let (relay, _) = relay_with(0).await;
    let victim = Instance::start().await;
    let mut put_off = 0;
    let begun = std::time::Instant::now();
    // Each names another key on a host that is not subscribed and whose documents do not hold it.
    for number in 0..420 {
        let (key, follow) = follow_of(&victim, &format!("actors/{number}"));
        let wrong = key.replace("#main-key", "#no-such-key");
        let (status, problem) = send(&relay, &victim, &wrong, &follow).await;
        match status {
            StatusCode::TOO_MANY_REQUESTS => put_off += 1,
            StatusCode::FORBIDDEN => {}
            other => panic!("{other}: {problem}"),
        }
    }
    // 300 at once and 20 a second for one address, however many keys it names.
    let allowed = 300 + 20 * usize::try_from(begun.elapsed().as_secs() + 1).unwrap();
    let fetched = victim.gets().len();
    assert!(fetched <= allowed, "{fetched} fetches, {allowed} allowed");
    assert!(fetched >= 300.min(420 - put_off), "{fetched} fetches");
    assert!(put_off > 0 || allowed >= 420, "nobody was put off");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_there_is_asked_for_once() {
    let (relay, _) = relay_with(0).await;
    let instance = Instance::start().await;
    let (key, follow) = follow_of(&instance, "actor");
    let wrong = key.replace("#main-key", "#no-such-key");
    for _ in 0..5 {
        let (status, problem) = send(&relay, &instance, &wrong, &follow).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{problem}");
    }
    assert_eq!(instance.gets().len(), 1);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_are_bombs_or_uploads_are_not_read() {
    let (relay, _) = relay_with(0).await;
    let instance = Instance::start().await;
    let activity = || ("content-type", "application/activity+json".to_owned());
    let actor = format!("{}/actor", instance.base);
    let honest = json!({"id": actor, "type": "Application", "inbox": format!("{}/inbox", instance.base),
        "publicKey": {"id": format!("{actor}#main-key"), "owner": actor, "publicKeyPem": "x"}});
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..64 {
        bomb.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 100 << 10, "64 MiB in {} bytes", bomb.len());
    let cases: Vec<(&str, Answer, &str)> = vec![
        (
            "a gzip bomb",
            (
                200,
                vec![activity(), ("content-encoding", "gzip".to_owned())],
                bomb,
            ),
            "more than",
        ),
        (
            "too large",
            (200, vec![activity()], vec![b' '; 600 << 10]),
            "more than",
        ),
        (
            "an upload",
            (
                200,
                vec![("content-type", "image/png".to_owned())],
                honest.to_string().into_bytes(),
            ),
            "content type",
        ),
        (
            "plain JSON",
            (
                200,
                vec![("content-type", "application/json".to_owned())],
                honest.to_string().into_bytes(),
            ),
            "content type",
        ),
        (
            "somebody else's",
            (
                200,
                vec![activity()],
                honest.to_string().replace("/actor", "/other").into_bytes(),
            ),
            "lists no such key",
        ),
        (
            "deep",
            (200, vec![activity()], [vec![b'['; 500], vec![b']'; 500]].concat()),
            "deeper than",
        ),
        (
            "twice",
            (
                200,
                vec![activity()],
                honest
                    .to_string()
                    .replacen('{', "{\"id\":\"https://a.example/\",", 1)
                    .into_bytes(),
            ),
            "twice in one object",
        ),
    ];
    for (number, (what, answer, reason)) in cases.into_iter().enumerate() {
        let name = format!("bad/{number}");
        instance.put_answer(&name, answer);
        let (key, follow) = follow_of(&instance, &name);
        let (status, problem) = send(&relay, &instance, &key, &follow).await;
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(
            status == StatusCode::FORBIDDEN && detail.contains(reason),
            "{what}: {status} {problem}"
        );
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_leads_to_no_other_host_and_not_on_for_ever() {
    let (relay, _) = relay_with(0).await;
    let (instance, bait) = (Instance::start().await, Instance::start().await);
    let targets = [
        format!("{}/actor", bait.base),
        "http://10.0.0.1/".to_owned(),
        "http://[::ffff:127.0.0.1]/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "//elsewhere.example/".to_owned(),
        instance.base.replace("http://", "http://user@"),
        String::new(),
    ];
    for (number, target) in targets.into_iter().enumerate() {
        let name = format!("away/{number}");
        instance.put_answer(&name, (302, vec![("location", target.clone())], Vec::new()));
        let (key, follow) = follow_of(&instance, &name);
        let (status, problem) = send(&relay, &instance, &key, &follow).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{target}: {problem}");
    }
    assert!(bait.gets().is_empty(), "nobody else was asked");
    // Within the host, three are followed and no more.
    for step in 0..10 {
        let next = format!("/round/{}", step + 1);
        instance.put_answer(
            &format!("round/{step}"),
            (307, vec![("location", next)], Vec::new()),
        );
    }
    let before = instance.gets().len();
    let (key, follow) = follow_of(&instance, "round/0");
    let (status, problem) = send(&relay, &instance, &key, &follow).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{problem}");
    assert_eq!(instance.gets().len() - before, 4);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_answers_or_takes_back_what_another_did() {
    let (relay, instances) = relay_with(2).await;
    let (victim, mallory) = (&instances[0], &instances[1]);
    let active = || relay.handle.status().active;
    assert_eq!(active(), 2);
    let follow = victim.follow("f1");
    let by_mallory = format!("{}#main-key", mallory.actor());
    let mut forged = Vec::new();
    for kind in ["Undo", "Accept", "Reject"] {
        // In the victim's name under another key, and in the own name about the victim's Follow.
        for actor in [victim.actor(), mallory.actor()] {
            let host = actor.trim_end_matches("/actor").to_owned();
            forged.push(
                json!({"id": format!("{host}/{kind}"), "type": kind, "actor": actor, "object": follow}),
            );
        }
    }
    for document in &forged {
        let (status, problem) = send(&relay, mallory, &by_mallory, document).await;
        assert!(
            matches!(status.as_u16(), 202 | 400 | 403),
            "{document}: {status} {problem}"
        );
        assert_eq!(active(), 2, "{document}");
    }
    let create = victim.publish(&relay, 1, true).await;
    mallory
        .wait_for("the post", |got| got["id"] == create["id"])
        .await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_look_alike_are_not_the_same() {
    let (relay, instances) = relay_with(1).await;
    let instance = &instances[0];
    let port = instance.base.rsplit(':').next().unwrap();
    // Without a signature of its own that somebody else could carry.
    let create = instance.create(1, false);
    // The same address under names that are not the host's: each is a stranger, whatever key it shows.
    for host in [
        format!("127.0.0.1.:{port}"),
        format!("127.1:{}", u32::from(port.parse::<u16>().unwrap()) % 60_000 + 1),
        format!("localhost:{port}"),
        "127.0.0.1".to_owned(),
        "xn--bcher-kva.example".to_owned(),
        // No punycode at all: there is no such host.
        "xn--127-0-0-1.example".to_owned(),
    ] {
        let text = create
            .to_string()
            .replace(&instance.base, &format!("http://{host}"));
        let document: Value = serde_json::from_str(&text).unwrap();
        let key = format!("{}#main-key", instance.user("alice"));
        let (status, problem) = send(&relay, instance, &key, &document).await;
        let expected = match host.as_str() {
            "xn--127-0-0-1.example" => StatusCode::BAD_REQUEST,
            _ => StatusCode::FORBIDDEN,
        };
        assert_eq!(status, expected, "{host}: {problem}");
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_codes_are_those_that_senders_understand() {
    let (relay, instances) = relay_with(1).await;
    let (member, stranger) = (&instances[0], Instance::start().await);
    let key = |instance: &Instance| format!("{}#main-key", instance.user("alice"));
    let status = async |instance: &Instance, document: &Value| {
        send(&relay, instance, &key(instance), document).await.0.as_u16()
    };
    // 401 buys two days of repetitions: not subscribed is 403.
    assert_eq!(status(&stranger, &stranger.create(1, true)).await, 403);
    assert_eq!(status(member, &member.create(1, true)).await, 202);
    assert_eq!(status(member, &member.create(1, true)).await, 202, "a duplicate");
    let mut like = member.create(2, true);
    like["type"] = json!("Like");
    assert_eq!(status(member, &like).await, 202, "what is not relayed");
    let mut private = member.create(3, true);
    private["to"] = json!([format!("{}/followers", member.user("alice"))]);
    assert_eq!(status(member, &private).await, 202, "what is not public");
    assert_eq!(status(member, &json!([1])).await, 400);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let (relay, _) = relay_with(0).await;
    let mut stream = tokio::net::TcpStream::connect(relay.addr).await.unwrap();
    let head = format!(
        "POST /inbox HTTP/1.1\r\nHost: {}\r\nContent-Type: application/activity+json\r\nContent-Length: 100000\r\n\r\n{{",
        relay.addr
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // Fifteen seconds are allowed; in the meantime others are served.
    let instance = Instance::start().await;
    instance.subscribe(&relay).await;
    let mut answer = vec![0; 12];
    tokio::time::timeout(2 * PATIENCE, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, b"HTTP/1.1 408");
    drop(stream);
    until("what was set aside is free again", || {
        relay.budget.used_bytes() == 0
    })
    .await;
    relay.stop().await;
}
