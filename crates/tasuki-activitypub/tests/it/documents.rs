use http::StatusCode;
use serde_json::Value;

use crate::world::{Ground, Instance, RelayUnderTest, Setup, client};

async fn get(relay: &RelayUnderTest, path: &str) -> (u16, String, Value) {
    let response = client().get(relay.url(path)).send().await.unwrap();
    let status = response.status().as_u16();
    let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    let text = response.text().await.unwrap();
    (
        status,
        content_type,
        serde_json::from_str(&text).unwrap_or(Value::String(text)),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_serves_what_every_client_asks_for() {
    let (ground, _) = Ground::memory();
    let relay = RelayUnderTest::start(&ground, Setup::default()).await;
    let instance = Instance::start().await;
    instance.subscribe(&relay).await;

    let (status, content_type, actor) = get(&relay, "/actor").await;
    assert_eq!(
        (status, content_type.as_str()),
        (200, "application/activity+json")
    );
    assert_eq!(actor["inbox"], relay.url("/inbox"));
    let pem = actor["publicKey"]["publicKeyPem"].as_str().unwrap();
    assert!(pem.starts_with("-----BEGIN PUBLIC KEY-----\n"));
    assert_eq!(get(&relay, "/inbox").await.2, actor);

    for collection in ["outbox", "followers", "following"] {
        let (status, _, document) = get(&relay, &format!("/{collection}")).await;
        assert_eq!(
            (status, &document["totalItems"]),
            (200, &Value::from(0)),
            "{collection}"
        );
    }
    let account = format!("acct:relay@{}", relay.addr);
    let (status, content_type, jrd) =
        get(&relay, &format!("/.well-known/webfinger?resource={account}")).await;
    assert_eq!((status, content_type.as_str()), (200, "application/jrd+json"));
    assert_eq!(jrd["links"][0]["href"], actor["id"]);
    assert_eq!(
        get(&relay, "/.well-known/webfinger?resource=acct:nobody@x")
            .await
            .0,
        404
    );
    let (status, content_type, problem) = get(&relay, "/.well-known/webfinger").await;
    assert_eq!((status, content_type.as_str()), (400, "application/problem+json"));
    assert_eq!(problem["status"], 400);
    let (status, content_type, problem) = get(&relay, "/.well-known/webfinger?resource=a&resource=b").await;
    assert_eq!((status, content_type.as_str()), (400, "application/problem+json"));
    assert!(
        problem["detail"].as_str().unwrap().contains("resource"),
        "{problem}"
    );
    let wrong = client().delete(relay.url("/actor")).send().await.unwrap();
    assert_eq!(wrong.status().as_u16(), 405);
    assert_eq!(wrong.headers()["content-type"], "application/problem+json");

    let links = get(&relay, "/.well-known/nodeinfo").await.2;
    assert_eq!(links["links"][1]["href"], relay.url("/nodeinfo/2.1"));
    let peer = instance.base.trim_start_matches("http://");
    for path in ["/nodeinfo/2.0", "/nodeinfo/2.1"] {
        assert_eq!(get(&relay, path).await.2["metadata"]["peers"][0], peer);
    }
    assert_eq!(
        get(&relay, "/api/v1/instance").await.2["uri"],
        relay.addr.to_string()
    );
    let page = get(&relay, "/").await.2;
    let text = page.as_str().unwrap();
    for wanted in [
        &format!("<code>{}</code>", relay.url("/inbox")),
        "リレーを追加",
        "mix pleroma.relay follow",
        "Friendica",
        "<h2>Instances / <span lang=\"ja\">参加サーバー</span>: 1</h2>",
        "/stats.json",
    ] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    let stats = get(&relay, "/stats.json").await.2;
    assert_eq!(
        (&stats["instances"], &stats["activities_relayed"]),
        (&1.into(), &0.into())
    );
    assert!(stats["since"].as_str().unwrap().ends_with('Z'), "{stats}");
    assert!(!stats.to_string().contains(peer), "no host is named: {stats}");
    assert_eq!(get(&relay, "/nothing").await.0, 404);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relays_key_survives_a_restart() {
    let (ground, _) = Ground::memory();
    let first = RelayUnderTest::start(&ground, Setup::default()).await;
    let key = get(&first, "/actor").await.2["publicKey"]["publicKeyPem"].clone();
    first.stop().await;
    let second = RelayUnderTest::start(&ground, Setup::default()).await;
    assert_eq!(get(&second, "/actor").await.2["publicKey"]["publicKeyPem"], key);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_public_name_a_follow_is_put_off_with_a_reason() {
    let (ground, _) = Ground::memory();
    let setup = Setup {
        public_url: Some(None),
        ..Setup::default()
    };
    let relay = RelayUnderTest::start(&ground, setup).await;
    let instance = Instance::start().await;
    let letter = crate::world::Letter::new(
        &relay,
        &format!("{}#main-key", instance.actor()),
        instance.follow("f1").to_string().as_bytes(),
    );
    let (status, problem) = instance.send(&relay, letter).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(problem["detail"].as_str().unwrap().contains("server.host"));
    assert_eq!(get(&relay, "/actor").await.0, 503);
    assert_eq!(get(&relay, "/").await.0, 200);
    relay.stop().await;
}
