//! The page on which instances set their own filters, and how they prove themselves on it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::json;
use tasuki_core::store::fedi::{FilterBy, HostFilter};
use tokio::net::UdpSocket;

use crate::filters::{OPERATOR, host_of, relay_with};
use crate::world::{Ground, Instance, PATIENCE, RelayUnderTest, client};

/// A page with its hidden fields.
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Page {
    fn field(&self, name: &str) -> String {
        let mark = format!("name=\"{name}\" value=\"");
        let (_, rest) = self
            .text
            .split_once(&mark)
            .unwrap_or_else(|| panic!("no {name}: {}", self.text));
        rest.split('"').next().unwrap().to_owned()
    }

    fn token(&self) -> String {
        let at = self.text.find("tasuki-").unwrap();
        self.text[at..at + 39].to_owned()
    }
}

/// A browser with its cookie.
#[derive(Default)]
pub(crate) struct Browser {
    cookie: std::sync::Mutex<Option<String>>,
}

/// An address of this machine that nobody asked from before, so that one test is not held up by all it asks.
fn fresh_address() -> IpAddr {
    static LAST: AtomicU16 = AtomicU16::new(0);
    let [high, low] = LAST.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    IpAddr::from([127, 1 + high, low, 1])
}

impl Browser {
    pub(crate) async fn submit(&self, relay: &RelayUnderTest, path: &str, fields: &[(&str, &str)]) -> Page {
        self.submit_from(fresh_address(), relay, path, fields).await
    }

    async fn submit_from(
        &self,
        from: IpAddr,
        relay: &RelayUnderTest,
        path: &str,
        fields: &[(&str, &str)],
    ) -> Page {
        let body: String = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let client = reqwest::Client::builder().no_proxy().local_address(from);
        let client = client.timeout(PATIENCE).build().unwrap();
        let mut request = client
            .post(relay.url(path))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        if let Some(cookie) = self.cookie.lock().unwrap().as_deref() {
            request = request.header("cookie", cookie);
        }
        let response = request.send().await.unwrap();
        let header = |name: &str| {
            let value = response.headers().get(name);
            value.map(|value| value.to_str().unwrap().to_owned())
        };
        if let Some(set) = header("set-cookie") {
            assert!(
                set.contains("HttpOnly") && set.contains("SameSite=Strict"),
                "{set}"
            );
            *self.cookie.lock().unwrap() = set.split(';').next().map(str::to_owned);
        }
        let policy = header("content-security-policy");
        let status = response.status().as_u16();
        if status != 404 {
            assert!(policy.unwrap().starts_with("default-src 'none'"));
        }
        Page {
            status,
            text: response.text().await.unwrap(),
        }
    }
}

fn post_of(instance: &Instance, name: &str, user: &str, text: &str) -> serde_json::Value {
    json!({"id": format!("{}/{name}", instance.base), "type": "Note", "attributedTo": instance.user(user),
        "content": format!("<p>{text}</p>"), "to": ["https://www.w3.org/ns/activitystreams#Public"]})
}

/// Puts a post where `name` says.
fn put_post(instance: &Instance, name: &str, user: &str, text: &str) -> String {
    instance.put(name, post_of(instance, name, user, text));
    format!("{}/{name}", instance.base)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_proves_itself_by_a_post_of_its_contact_and_sets_its_filter() {
    let relay = relay_with(&Ground::sqlite().await, |_| {}).await;
    let (instance, other) = (Instance::start().await, Instance::start().await);
    instance.subscribe(&relay).await;
    other.subscribe(&relay).await;
    let host = host_of(&instance);
    let browser = Browser::default();
    let page = client()
        .get(relay.url("/filter"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(
        page.contains("lang=\"ja\"") && page.contains("<form") && !page.contains("<script"),
        "{page}"
    );
    let nonsense = browser.submit(&relay, "/filter", &[("host", "no host/")]).await;
    assert!(nonsense.status == 400 && nonsense.text.contains("not a host name"));
    let asked = browser.submit(&relay, "/filter", &[("host", host)]).await;
    assert!(asked.text.contains("lang=\"ja\"") && !asked.text.contains("<script"));
    let (expires, nonce, token) = (asked.field("expires"), asked.field("nonce"), asked.token());
    let prove_in = async |browser: &Browser, post: &str, nonce: &str, host: &str| {
        let fields = [
            ("host", host),
            ("expires", expires.as_str()),
            ("nonce", nonce),
            ("post", post),
        ];
        browser.submit(&relay, "/filter/prove", &fields).await
    };
    let prove = async |post: &str, nonce: &str, host: &str| prove_in(&browser, post, nonce, host).await;
    instance.put("api/v1/instance", json!({"contact_account": {"acct": "admin"}}));
    let by_anybody = put_post(&instance, "notes/anybody", "mallory", &token);
    let without = put_post(&instance, "notes/without", "admin", "hello");
    let elsewhere = put_post(&other, "notes/elsewhere", "admin", &token);
    let said = format!("this is {token}, hello");
    let by_admin = put_post(&instance, "notes/admin", "admin", &said);
    for (post, why) in [
        (&by_anybody, "does not name this account"),
        (&without, "does not contain the token"),
        (&elsewhere, "must be on the instance itself"),
        (
            &format!("{}/gone", "http://127.0.0.1:1"),
            "must be on the instance itself",
        ),
    ] {
        let page = prove(post, &nonce, host).await;
        assert_eq!(page.status, 403, "{post}");
        assert!(page.text.contains(why), "{}", page.text);
    }
    // Who saw the token in public does not know the nonce, and a proof of one is none of another.
    let stolen = prove(&by_admin, &"0".repeat(32), host).await;
    assert!(
        stolen.status == 403 && stolen.text.contains("does not contain the token"),
        "{}",
        stolen.text
    );
    assert_eq!(prove(&by_admin, &nonce, host_of(&other)).await.status, 403);
    // Nor does it count in another browser, with a session of its own or with none.
    let foreign = Browser::default();
    assert_eq!(prove_in(&foreign, &by_admin, &nonce, host).await.status, 403);
    foreign.submit(&relay, "/filter", &[("host", host)]).await;
    assert_eq!(prove_in(&foreign, &by_admin, &nonce, host).await.status, 403);
    // People paste what their browser shows: the post has an id of its own.
    let shown = format!("{}/@admin/1", instance.base);
    instance.put("@admin/1", post_of(&instance, "notes/admin", "admin", &said));
    let page = prove(&shown, &nonce, host).await;
    assert_eq!(page.status, 200, "{}", page.text);
    // A token is used once.
    let again = prove(&by_admin, &nonce, host).await;
    assert!(
        again.status == 403 && again.text.contains("begin again"),
        "{}",
        again.text
    );
    let (expires, grant) = (page.field("expires"), page.field("grant"));
    let set_in = async |browser: &Browser, host: &str, expires: &str, grant: &str, more: &[(&str, &str)]| {
        let mut fields = vec![("host", host), ("expires", expires), ("grant", grant)];
        fields.extend(more);
        browser.submit(&relay, "/filter/set", &fields).await
    };
    let set = async |host: &str, expires: &str, grant: &str, more: &[(&str, &str)]| {
        set_in(&browser, host, expires, grant, more).await
    };
    assert_eq!(set_in(&foreign, host, &expires, &grant, &[]).await.status, 403);
    let later = (expires.parse::<i64>().unwrap() + 60_000).to_string();
    for (host, expires, grant) in [
        (host_of(&other), expires.as_str(), grant.as_str()),
        (host, later.as_str(), grant.as_str()),
        (host, expires.as_str(), "00"),
    ] {
        assert_eq!(set(host, expires, grant, &[("no_bots", "on")]).await.status, 403);
    }
    assert!(relay.handle.filters(None).await.unwrap().is_empty());
    let bad = set(host, &expires, &grant, &[("languages", "<b>english</b>")]).await;
    assert!(
        bad.status == 400 && bad.text.contains("&lt;b&gt;english") && !bad.text.contains("<b>"),
        "{}",
        bad.text
    );
    let kept = set(
        host,
        &expires,
        &grant,
        &[
            ("tags_out", "#Ads, spam"),
            ("no_bots", "on"),
            ("per_minute", "60"),
        ],
    )
    .await;
    assert_eq!(kept.status, 200, "{}", kept.text);
    let listed = relay.handle.filters(Some(host)).await.unwrap();
    assert_eq!(
        (listed[0].by, listed[0].in_words.as_str()),
        (
            FilterBy::Instance,
            "no hashtags ads spam, no bots, at most 60 a minute"
        )
    );
    assert!(kept.text.contains("value=\"ads spam\""), "{}", kept.text);
    // What the operator set is not changed here.
    let filter = HostFilter {
        media_only: true,
        ..HostFilter::default()
    };
    relay
        .handle
        .set_filter(host, Some(filter.clone()), OPERATOR)
        .await
        .unwrap();
    assert_eq!(set(host, &expires, &grant, &[("clear", "1")]).await.status, 409);
    assert_eq!(relay.handle.filters(Some(host)).await.unwrap()[0].filter, filter);
    relay.handle.set_filter(host, None, OPERATOR).await.unwrap();
    assert_eq!(
        set(host, &expires, &grant, &[("no_replies", "on")]).await.status,
        200
    );
    // Another site makes the browser send what it wants to be sent.
    let forged = client().post(relay.url("/filter"));
    let forged = forged.header("content-type", "application/x-www-form-urlencoded");
    let forged = forged
        .header("sec-fetch-site", "cross-site")
        .body("host=a.example");
    let forged = forged.send().await.unwrap();
    assert_eq!(
        (forged.status().as_u16(), forged.headers().get("set-cookie")),
        (403, None)
    );
    // A large form, and too many of them.
    let large = set(host, &expires, &grant, &[("tags_in", &"x ".repeat(20_000))]).await;
    assert_eq!(large.status, 413, "{}", large.text);
    let (mut last, from) = (0, fresh_address());
    for _ in 0..30 {
        let asked = [("host", host)];
        let asked = browser.submit_from(from, &relay, "/filter", &asked).await;
        last = asked.status;
        if last == 429 {
            break;
        }
    }
    assert_eq!(last, 429);
    relay.stop().await;
}

/// Proves a host by a post of its contact; the page's hidden fields.
pub(crate) async fn proven(
    browser: &Browser,
    relay: &RelayUnderTest,
    instance: &Instance,
) -> (Page, String, String) {
    let host = host_of(instance);
    let asked = browser.submit(relay, "/filter", &[("host", host)]).await;
    instance.put("api/v1/instance", json!({"contact_account": {"acct": "admin"}}));
    let post = put_post(instance, "notes/proof", "admin", &asked.token());
    let (expires, nonce) = (asked.field("expires"), asked.field("nonce"));
    let fields = [
        ("host", host),
        ("expires", &expires),
        ("nonce", &nonce),
        ("post", &post),
    ];
    let page = browser.submit(relay, "/filter/prove", &fields).await;
    assert_eq!(page.status, 200, "{}", page.text);
    let (expires, grant) = (page.field("expires"), page.field("grant"));
    (page, expires, grant)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_tries_in_vain_keeps_nobody_else_from_proving_an_instance() {
    let relay = relay_with(&Ground::sqlite().await, |_| {}).await;
    let (instance, stranger) = (Instance::start().await, Browser::default());
    instance.subscribe(&relay).await;
    let host = host_of(&instance);
    let asked = stranger.submit(&relay, "/filter", &[("host", host)]).await;
    let (expires, nonce) = (asked.field("expires"), asked.field("nonce"));
    let post = format!("{}/notes/none", instance.base);
    let fields = [
        ("host", host),
        ("expires", &expires),
        ("nonce", &nonce),
        ("post", &post),
    ];
    let mut answers = Vec::new();
    for number in 1..=11 {
        let from = IpAddr::from([127, 200, 0, number]);
        let tried = stranger.submit_from(from, &relay, "/filter/prove", &fields).await;
        answers.push(tried.status);
    }
    assert_eq!((&answers[..10], answers[10]), (&[403; 10][..], 429));
    proven(&Browser::default(), &relay, &instance).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_network_does_not_use_up_the_proofs_of_all_who_are_no_subscribers() {
    let relay = relay_with(&Ground::sqlite().await, |_| {}).await;
    // Names that nobody has: nothing answers at port 1.
    let stranger = Browser::default();
    let mut last = 0;
    for number in 1..=25 {
        let (from, host) = (IpAddr::from([127, 201, 0, number]), format!("127.9.0.{number}:1"));
        let asked = stranger
            .submit_from(from, &relay, "/filter", &[("host", &host)])
            .await;
        let (expires, nonce) = (asked.field("expires"), asked.field("nonce"));
        let post = format!("http://{host}/none");
        let fields = [
            ("host", host.as_str()),
            ("expires", &expires),
            ("nonce", &nonce),
            ("post", &post),
        ];
        last = stranger
            .submit_from(from, &relay, "/filter/prove", &fields)
            .await
            .status;
        if last == 429 {
            break;
        }
    }
    assert_eq!(last, 429);
    proven(&Browser::default(), &relay, &Instance::start().await).await;
    relay.stop().await;
}

/// Answers every question for TXT records with this text.
async fn name_server(text: Arc<std::sync::Mutex<String>>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            let query = &buffer[..n];
            // The question ends with an empty label, type and class.
            let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
            let name = String::from_utf8_lossy(&query[12..end]).into_owned();
            let txt = text.lock().unwrap().clone();
            let known = name.starts_with("\u{7}_tasuki") && !txt.is_empty();
            let mut answer = query[..2].to_vec();
            answer.extend([0x84, 0x00, 0, 1, 0, u8::from(known), 0, 0, 0, 0]);
            answer.extend(&query[12..end]);
            if known {
                let length = u8::try_from(txt.len()).unwrap();
                answer.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 1, 0, length + 1, length]);
                answer.extend(txt.bytes());
            }
            let _ = socket.send_to(&answer, from).await;
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_proves_itself_in_dns() {
    let record = Arc::new(std::sync::Mutex::new(String::new()));
    let server = name_server(Arc::clone(&record)).await;
    let relay = relay_with(&Ground::sqlite().await, |config| config.dns_server = Some(server)).await;
    let instance = Instance::start().await;
    instance.subscribe(&relay).await;
    let host = host_of(&instance);
    let browser = Browser::default();
    let asked = browser.submit(&relay, "/filter", &[("host", host)]).await;
    let (expires, nonce) = (asked.field("expires"), asked.field("nonce"));
    let fields = [
        ("host", host),
        ("expires", expires.as_str()),
        ("nonce", nonce.as_str()),
    ];
    for text in ["", "tasuki-00000000000000000000000000000000"] {
        text.clone_into(&mut record.lock().unwrap());
        let page = browser.submit(&relay, "/filter/prove", &fields).await;
        assert!(
            page.status == 403 && page.text.contains("no TXT record"),
            "{}",
            page.text
        );
    }
    *record.lock().unwrap() = asked.token();
    let page = browser.submit(&relay, "/filter/prove", &fields).await;
    assert_eq!(page.status, 200, "{}", page.text);
    let (expires, grant) = (page.field("expires"), page.field("grant"));
    let fields = [
        ("host", host),
        ("expires", expires.as_str()),
        ("grant", grant.as_str()),
        ("languages", "ja und"),
    ];
    assert_eq!(browser.submit(&relay, "/filter/set", &fields).await.status, 200);
    assert_eq!(
        relay.handle.filters(Some(host)).await.unwrap()[0].in_words,
        "languages ja und"
    );
    relay.stop().await;

    let closed = relay_with(&Ground::memory().0, |config| config.self_service = false).await;
    assert_eq!(
        client()
            .get(closed.url("/filter"))
            .send()
            .await
            .unwrap()
            .status()
            .as_u16(),
        404
    );
    assert_eq!(
        browser.submit(&closed, "/filter", &[("host", host)]).await.status,
        404
    );
    closed.stop().await;
}
