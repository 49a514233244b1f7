//! Logins by access tokens, in front of a mail server and a token server that speak as Microsoft's and Google's do.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::{
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use tasuki_core::{seal::Secret, store::audit::Actor};
use tasuki_smtp::{LoginAnswer, LoginError, OAuthConfig, OAuthFlow, SmarthostConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    release::{Provider, send},
    sink::Sink,
    support::House,
};

type Form = BTreeMap<String, String>;
type Answer = Arc<dyn Fn(&str, &Form) -> (u16, Value) + Send + Sync>;

/// A token server: HTTPS, one request a connection.
#[derive(Clone)]
struct TokenServer {
    url: String,
    asked: Arc<Mutex<Vec<(String, Form)>>>,
    answer: Arc<Mutex<Answer>>,
}

impl TokenServer {
    async fn start(
        provider: &Provider,
        answer: impl Fn(&str, &Form) -> (u16, Value) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            url: format!("https://localhost:{}", listener.local_addr().unwrap().port()),
            asked: Arc::default(),
            answer: Arc::new(Mutex::new(Arc::new(answer))),
        };
        let acceptor = tokio_rustls::TlsAcceptor::from(provider.tls.server(&[]));
        let all = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(all.clone().serve(stream, acceptor.clone()));
            }
        });
        server
    }

    async fn serve(self, stream: TcpStream, acceptor: tokio_rustls::TlsAcceptor) {
        let Ok(mut stream) = acceptor.accept(stream).await else {
            return;
        };
        let mut text = String::new();
        let (path, form) = loop {
            let mut piece = [0; 4096];
            let n = stream.read(&mut piece).await.unwrap();
            assert!(n > 0, "{text}");
            text.push_str(std::str::from_utf8(&piece[..n]).unwrap());
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let mut lines = head.lines();
            let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
            let head = head.to_ascii_lowercase();
            assert!(
                head.contains("content-type: application/x-www-form-urlencoded"),
                "{head}"
            );
            let length = head.split("content-length: ").nth(1).unwrap();
            if body.len() == length.lines().next().unwrap().parse::<usize>().unwrap() {
                break (path, decoded(body));
            }
        };
        let answer = Arc::clone(&self.answer.lock().unwrap());
        let (status, body) = answer(&path, &form);
        self.asked.lock().unwrap().push((path, form));
        let body = body.to_string();
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        let _ = stream.shutdown().await;
    }

    fn answer(&self, answer: impl Fn(&str, &Form) -> (u16, Value) + Send + Sync + 'static) {
        *self.answer.lock().unwrap() = Arc::new(answer);
    }

    fn asked(&self) -> Vec<(String, Form)> {
        self.asked.lock().unwrap().clone()
    }
}

fn decoded(body: &str) -> Form {
    let plain = |text: &str| {
        let (mut octets, mut rest) = (Vec::new(), text.bytes());
        while let Some(b) = rest.next() {
            octets.push(match b {
                b'+' => b' ',
                b'%' => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                b => b,
            });
        }
        String::from_utf8(octets).unwrap()
    };
    body.split('&')
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(key, value)| (plain(key), plain(value)))
        .collect()
}

/// A mail server that takes this token, and says no as the provider does.
fn takes(token: &str, google: bool) -> impl Fn(&str) -> Option<String> + Send + Sync + 'static {
    let text = format!("user=relay@example.org\x01auth=Bearer {token}\x01\x01");
    let good = format!("AUTH XOAUTH2 {}", STANDARD.encode(text));
    move |line| {
        if line.is_empty() {
            return Some("535 5.7.8 Username and Password not accepted - gsmtp".into());
        }
        if !line.starts_with("AUTH") || line == good {
            return None;
        }
        Some(if google {
            let why = r#"{"status":"400","schemes":"Bearer","scope":"https://mail.google.com/"}"#;
            format!("334 {}", STANDARD.encode(why))
        } else {
            "535 5.7.3 Authentication unsuccessful".into()
        })
    }
}

const OFFERS: &[&str] = &["AUTH LOGIN XOAUTH2"];

fn smarthost(provider: &Provider, server: &TokenServer, flow: OAuthFlow) -> SmarthostConfig {
    let secret = (flow == OAuthFlow::ClientCredentials).then(|| Secret::new("application-secret".into()));
    SmarthostConfig {
        username: Some("relay@example.org".into()),
        password: secret,
        oauth: Some(OAuthConfig {
            flow,
            tenant: None,
            client_id: Some("application".into()),
            token_url: Some(format!("{}/token", server.url)),
            device_url: Some(format!("{}/devicecode", server.url)),
            scope: Some("https://mail.example/.default".into()),
            key_file: None,
        }),
        ..provider.smarthost()
    }
}

async fn house(provider: &Provider, hop: SmarthostConfig) -> House {
    let house = House::trusting(provider.trust.clone(), |c| {
        c.smarthosts = vec![hop];
        c.default_route = "hop".into();
        c.delivery.idle = Duration::from_millis(1);
    })
    .await;
    house.allow_loopback();
    house
}

/// Sends a mail over a connection of its own.
async fn deliver(house: &House, sink: &Sink) {
    let before = sink.received().len();
    send(house, &["b@y.org"]).await;
    sink.wait(before + 1).await;
    house
        .until("the idle end", |h| h.figure("connections_out_open") == 0)
        .await;
}

fn token(number: usize) -> Value {
    json!({"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": format!("token-{number}")})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_logs_in_with_a_token_that_is_kept_until_shortly_before_its_end() {
    let provider = Provider::start(OFFERS, takes("token-1", false)).await;
    let server = TokenServer::start(&provider, |_, _| (200, token(1))).await;
    let house = house(
        &provider,
        smarthost(&provider, &server, OAuthFlow::ClientCredentials),
    )
    .await;
    deliver(&house, &provider.sink).await;
    deliver(&house, &provider.sink).await;
    let asked = server.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    let (path, form) = &asked[0];
    assert_eq!(path, "/token");
    let expected = [
        ("client_id", "application"),
        ("client_secret", "application-secret"),
        ("grant_type", "client_credentials"),
        ("scope", "https://mail.example/.default"),
    ];
    assert!(
        form.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(expected),
        "{form:?}"
    );
    server.answer(|_, _| (200, token(2)));
    provider.sink.script(takes("token-2", false));
    house.clock.advance(Duration::from_secs(3400));
    deliver(&house, &provider.sink).await;
    assert_eq!(server.asked().len(), 2);
    assert_eq!(provider.sink.connections(), 3, "the old token was not even tried");
    house.nothing_is_lost(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_account_states_who_it_is_and_a_refused_token_is_replaced_once() {
    let provider = Provider::start(OFFERS, takes("token-1", true)).await;
    let server = TokenServer::start(&provider, |_, _| (200, token(1))).await;
    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der = aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&key).unwrap();
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(der.as_ref())
    );
    let file = provider.keys.path().join("account.json");
    let account = json!({"type": "service_account", "client_email": "relay@project.iam.example",
        "private_key_id": "k1", "private_key": pem, "token_uri": format!("{}/google", server.url)});
    std::fs::write(&file, account.to_string()).unwrap();
    let mut hop = smarthost(&provider, &server, OAuthFlow::ServiceAccount);
    if let Some(oauth) = &mut hop.oauth {
        oauth.token_url = None;
        oauth.key_file = Some(file);
    }
    let house = house(&provider, hop).await;
    deliver(&house, &provider.sink).await;
    let (path, form) = server.asked()[0].clone();
    assert_eq!(path, "/google");
    assert_eq!(form["grant_type"], "urn:ietf:params:oauth:grant-type:jwt-bearer");
    let (input, signature) = form["assertion"].rsplit_once('.').unwrap();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key().as_ref())
        .verify(input.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap())
        .unwrap();
    let claims = URL_SAFE_NO_PAD.decode(input.split_once('.').unwrap().1).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["iss"], "relay@project.iam.example");
    assert_eq!(claims["sub"], "relay@example.org");
    assert_eq!(claims["aud"], form_url(&server));
    assert_eq!(
        claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(),
        3600
    );
    // Taken back before its time: the error JSON is asked for the refusal, and a new token goes through.
    server.answer(|_, _| (200, token(2)));
    provider.sink.script(takes("token-2", true));
    deliver(&house, &provider.sink).await;
    assert_eq!(server.asked().len(), 2);
    assert!(provider.sink.commands().iter().any(String::is_empty));
    // One that is refused although it is new is the route's failure.
    server.answer(|_, _| (200, token(3)));
    provider.sink.script(takes("token-4", true));
    send(&house, &["b@y.org"]).await;
    house.until("the deferral", |h| h.errors().len() == 1).await;
    assert_eq!(server.asked().len(), 3);
    assert_eq!(house.figure("bounced_recipients_total"), 0);
    house.nothing_is_lost(1).await;
}

fn form_url(server: &TokenServer) -> String {
    format!("{}/google", server.url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_server_that_says_no_is_a_failure_of_the_route() {
    let provider = Provider::start(OFFERS, takes("token-1", false)).await;
    let no = || {
        let why = "AADSTS7000215: Invalid client secret provided.\r\nTrace ID: 0";
        (401, json!({"error": "invalid_client", "error_description": why}))
    };
    let server = TokenServer::start(&provider, move |_, _| no()).await;
    let mut hop = smarthost(&provider, &server, OAuthFlow::ClientCredentials);
    hop.password = None;
    hop.password_secret = Some("application".into());
    let house = house(&provider, hop).await;
    let entry = || Actor::gateway("test").entry(house.clock.wall(), "secret", "application", "");
    house
        .secrets
        .replace("application", b"old-secret", entry())
        .await
        .unwrap();
    send(&house, &["b@y.org", "c@y.org"]).await;
    house.until("the deferral", |h| h.errors().len() == 2).await;
    let (_, said) = house.health.conditions().remove(0);
    assert!(
        said.sentence
            .contains("invalid_client: AADSTS7000215: Invalid client secret provided."),
        "{}",
        said.sentence
    );
    for text in house.look().await.errors() {
        assert!(!text.contains("old-secret") && !text.contains("Trace"), "{text}");
    }
    assert_eq!(provider.sink.connections(), 0);
    assert_eq!(house.figure("bounced_recipients_total"), 0);
    server.answer(move |_, form| {
        if form["client_secret"] == "new-secret" {
            (200, token(1))
        } else {
            no()
        }
    });
    house
        .secrets
        .replace("application", b"new-secret", entry())
        .await
        .unwrap();
    house.handle.secrets_changed();
    provider.sink.wait(2).await;
    house.nothing_is_lost(0).await;
    assert!(house.health.conditions().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_confirms_a_login_once_and_the_refresh_token_is_sealed() {
    let provider = Provider::start(OFFERS, takes("token-1", false)).await;
    let server = TokenServer::start(&provider, |path, _| match path {
        "/devicecode" => (
            200,
            json!({"user_code": "ABCD-EFGH", "device_code": "device-code", "expires_in": 900, "interval": 5,
                "verification_uri": "https://microsoft.example/devicelogin", "message": "To sign in..."}),
        ),
        _ => (400, json!({"error": "authorization_pending"})),
    })
    .await;
    let house = house(&provider, smarthost(&provider, &server, OAuthFlow::DeviceCode)).await;
    send(&house, &["b@y.org"]).await;
    house.until("the deferral", |h| h.errors().len() == 1).await;
    let (_, said) = house.health.conditions().remove(0);
    assert!(
        said.sentence.contains("tasuki mail smarthost login hop"),
        "{}",
        said.sentence
    );
    let actor = Actor::gateway("test");
    let begun = house.handle.begin_login("hop").await.unwrap();
    let LoginAnswer::Confirm {
        verification_uri,
        user_code,
        expires_s: 900,
        ask_again_s: 5,
    } = begun
    else {
        panic!("{begun:?}")
    };
    assert_eq!(verification_uri, "https://microsoft.example/devicelogin");
    assert_eq!(user_code, "ABCD-EFGH");
    let poll = async || house.handle.poll_login("hop", &actor).await;
    // Not asked before its time.
    poll().await.unwrap();
    assert_eq!(server.asked().len(), 1);
    house.clock.advance(Duration::from_secs(5));
    assert_eq!(poll().await.unwrap(), LoginAnswer::Pending { ask_again_s: 5 });
    let (_, form) = server.asked()[1].clone();
    assert_eq!(form["grant_type"], "urn:ietf:params:oauth:grant-type:device_code");
    assert_eq!(form["device_code"], "device-code");
    server.answer(|_, _| (400, json!({"error": "slow_down"})));
    house.clock.advance(Duration::from_secs(5));
    assert_eq!(poll().await.unwrap(), LoginAnswer::Pending { ask_again_s: 10 });
    server.answer(|_, _| {
        let mut answer = token(1);
        answer["refresh_token"] = json!("refresh-1");
        (200, answer)
    });
    house.clock.advance(Duration::from_secs(10));
    assert_eq!(poll().await.unwrap(), LoginAnswer::Done);
    // The mail that waited goes at once, with the token that came with the login.
    provider.sink.wait(1).await;
    house.nothing_is_lost(0).await;
    assert_eq!(server.asked().len(), 4);
    assert!(matches!(poll().await, Err(LoginError::NotBegun)));
    house
        .until("the idle end", |h| h.figure("connections_out_open") == 0)
        .await;
    // The next token is got with the refresh token, and the new refresh token takes its place.
    server.answer(|_, _| {
        let mut answer = token(2);
        answer["refresh_token"] = json!("refresh-2");
        (200, answer)
    });
    provider.sink.script(takes("token-2", false));
    house.clock.advance(Duration::from_secs(3600));
    deliver(&house, &provider.sink).await;
    let (_, form) = server.asked()[4].clone();
    assert_eq!(form["grant_type"], "refresh_token");
    assert_eq!(form["refresh_token"], "refresh-1");
    let sealed = house.secrets.load("mail.oauth.hop").await.unwrap().unwrap();
    assert_eq!(sealed.as_slice(), b"refresh-2");
    deliver(&house, &provider.sink).await;
    assert_eq!(server.asked().len(), 5, "it is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_somebody_declines_ends_with_the_providers_words() {
    let provider = Provider::start(OFFERS, |_| None).await;
    let server = TokenServer::start(&provider, |path, _| match path {
        "/devicecode" => (
            200,
            json!({"user_code": "A", "device_code": "d", "expires_in": 900, "interval": 1, "verification_uri": "https://x.example"}),
        ),
        _ => (400, json!({"error": "authorization_declined", "error_description": "The user said no."})),
    })
    .await;
    let house = house(&provider, smarthost(&provider, &server, OAuthFlow::DeviceCode)).await;
    house.handle.begin_login("hop").await.unwrap();
    house.clock.advance(Duration::from_secs(1));
    let actor = Actor::gateway("test");
    let error = house.handle.poll_login("hop", &actor).await.unwrap_err();
    assert_eq!(error.to_string(), "authorization_declined: The user said no.");
    assert!(matches!(
        house.handle.begin_login("nobody").await,
        Err(LoginError::Unknown(_))
    ));
}
