#![allow(clippy::unwrap_used)]

use super::*;

fn hop(name: &str) -> SmarthostConfig {
    SmarthostConfig {
        name: name.into(),
        host: Some("192.0.2.1".into()),
        ..SmarthostConfig::default()
    }
}

fn route(domain: &str, sender: &str, principal: &str, via: &str) -> RouteConfig {
    let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    RouteConfig {
        domain: given(domain).map(|d| Domain::parse(&d).unwrap()),
        sender: given(sender),
        principal: given(principal),
        via: via.into(),
        source: None,
    }
}

#[test]
fn the_most_specific_route_wins() {
    let hops: Vec<_> = ["a", "b", "c", "d", "e"].map(hop).to_vec();
    let routes = [
        route("y.org", "", "", "a"),
        route("deep.y.org", "", "", "direct"),
        route("", "x.org", "", "b"),
        route("", "boss@x.org", "", "c"),
        route("", "", "shop", "d"),
        route("y.org", "", "shop", "e"),
    ];
    let ways = Ways::new(&hops, &[], &routes, "direct").unwrap();
    let via = |principal: Option<&str>, sender: &str, to: &str| {
        let sender = Mailbox::parse(sender).ok();
        let origin = Origin {
            principal,
            sender: sender.as_ref(),
        };
        match ways.choose(origin, &Mailbox::parse(to).unwrap()) {
            Via::Direct => "direct".to_owned(),
            Via::Smarthost(name) => name.to_string(),
        }
    };
    assert_eq!(via(None, "", "u@z.org"), "direct");
    assert_eq!(via(None, "q@q.org", "u@sub.y.org"), "a");
    assert_eq!(via(None, "q@q.org", "u@sub.deep.y.org"), "direct");
    assert_eq!(via(None, "q@sub.x.org", "u@y.org"), "b");
    assert_eq!(via(None, "boss@x.org", "u@y.org"), "c");
    assert_eq!(via(Some("shop"), "boss@x.org", "u@z.org"), "d");
    assert_eq!(via(Some("shop"), "boss@x.org", "u@y.org"), "e");
    assert_eq!(via(Some("office"), "", "u@y.org"), "a");
}

#[test]
fn mistakes_name_their_key() {
    let key = |smarthosts: &[SmarthostConfig], groups: &[SmarthostGroupConfig], routes: &[RouteConfig]| {
        match Ways::new(smarthosts, groups, routes, "direct") {
            Err(BuildError::Config { key, .. }) => key,
            other => panic!("{other:?}"),
        }
    };
    let group = |name: &str, members: &[&str]| SmarthostGroupConfig {
        name: name.into(),
        members: members.iter().map(|m| (*m).to_owned()).collect(),
    };
    let with = |change: fn(&mut SmarthostConfig)| {
        let mut config = hop("a");
        change(&mut config);
        [config]
    };
    assert_eq!(key(&[hop("a"), hop("a")], &[], &[]), "mail.smarthosts.name");
    assert_eq!(key(&[hop("direct")], &[], &[]), "mail.smarthosts.name");
    assert_eq!(
        key(&[hop("a")], &[group("a", &["a"])], &[]),
        "mail.smarthost_groups.name"
    );
    for members in [&[][..], &["b"], &["a", "a"]] {
        assert_eq!(
            key(&[hop("a")], &[group("g", members)], &[]),
            "mail.smarthost_groups.members"
        );
    }
    assert_eq!(
        key(&[], &[], &[route("y.org", "", "", "gone")]),
        "mail.routes.via"
    );
    assert_eq!(key(&[], &[], &[route("", "", "", "direct")]), "mail.routes");
    assert_eq!(
        key(&[], &[], &[route("", "a@", "", "direct")]),
        "mail.routes.sender"
    );
    assert_eq!(key(&with(|c| c.host = None), &[], &[]), "mail.smarthosts.host");
    assert_eq!(
        key(&with(|c| c.host = Some("a b".into())), &[], &[]),
        "mail.smarthosts.host"
    );
    assert_eq!(
        key(&with(|c| c.preset = Some("aol".into())), &[], &[]),
        "mail.smarthosts.preset"
    );
    assert_eq!(
        key(&with(|c| c.username = Some("u".into())), &[], &[]),
        "mail.smarthosts.username"
    );
    assert_eq!(
        key(&with(|c| c.connections = Some(0)), &[], &[]),
        "mail.smarthosts.connections"
    );
    let open = with(|c| {
        c.username = Some("u".into());
        c.password = Some(Secret::new("p".to_owned()));
        c.tls = Some(SmarthostTls::Opportunistic);
    });
    assert_eq!(key(&open, &[], &[]), "mail.smarthosts.tls");
}

#[test]
fn a_preset_says_what_the_entry_does_not() {
    let config = SmarthostConfig {
        name: "out".into(),
        preset: Some("sendgrid".into()),
        password: Some(Secret::new("key".to_owned())),
        ..SmarthostConfig::default()
    };
    let ready = config.check().unwrap();
    assert_eq!((ready.host.as_str(), ready.port), ("smtp.sendgrid.net", 587));
    assert_eq!(
        (ready.username.as_deref(), ready.security),
        (Some("apikey"), Security::Required)
    );
    let other = SmarthostConfig {
        host: Some("127.0.0.1".into()),
        port: Some(2587),
        connections: Some(1),
        ..config
    };
    let ready = other.check().unwrap();
    assert_eq!(
        (ready.host.as_str(), ready.port, ready.connections),
        ("127.0.0.1", 2587, 1)
    );
    for name in ["ses", "sakura"] {
        let config = SmarthostConfig {
            name: "out".into(),
            preset: Some(name.into()),
            ..SmarthostConfig::default()
        };
        assert!(
            config.check().unwrap_err().to_string().contains("such as"),
            "{name}"
        );
    }
    let lmtp = SmarthostConfig {
        protocol: SmarthostProtocol::Lmtp,
        ..hop("store")
    };
    let ready = lmtp.check().unwrap();
    assert_eq!((ready.port, ready.security), (24, Security::Plain));
}

#[test]
fn a_login_by_tokens_needs_what_its_flow_needs() {
    let oauth = |flow| OAuthConfig {
        flow,
        tenant: Some("example.onmicrosoft.com".into()),
        client_id: Some("id".into()),
        token_url: None,
        device_url: None,
        scope: None,
        key_file: None,
    };
    let config = |preset: &str, oauth: OAuthConfig| SmarthostConfig {
        name: "out".into(),
        preset: Some(preset.into()),
        username: Some("relay@example.org".into()),
        oauth: Some(oauth),
        ..SmarthostConfig::default()
    };
    let device = config("microsoft365", oauth(OAuthFlow::DeviceCode))
        .check()
        .unwrap();
    let ready = device.oauth.unwrap();
    let Granting::Device {
        token_url,
        device_url,
        ..
    } = ready.grant
    else {
        panic!("{:?}", ready.grant)
    };
    let base = "https://login.microsoftonline.com/example.onmicrosoft.com/oauth2/v2.0";
    assert_eq!(token_url, format!("{base}/token"));
    assert_eq!(device_url, format!("{base}/devicecode"));
    assert_eq!(ready.scope, "https://outlook.office.com/SMTP.Send offline_access");
    let mut account = oauth(OAuthFlow::ServiceAccount);
    account.key_file = Some("/etc/tasuki/account.json".into());
    let ready = config("gmail", account.clone()).check().unwrap().oauth.unwrap();
    assert_eq!(ready.scope, "https://mail.google.com/");
    let key = |config: SmarthostConfig| match config.check() {
        Err(BuildError::Config { key, .. }) => key,
        other => panic!("{other:?}"),
    };
    let with = |preset: &str, flow, change: fn(&mut SmarthostConfig, &mut OAuthConfig)| {
        let mut parts = oauth(flow);
        let mut whole = config(preset, parts.clone());
        change(&mut whole, &mut parts);
        whole.oauth = Some(parts);
        key(whole)
    };
    let (client, device, account) = (
        OAuthFlow::ClientCredentials,
        OAuthFlow::DeviceCode,
        OAuthFlow::ServiceAccount,
    );
    for (found, named) in [
        // The application's secret is missing.
        (with("microsoft365", client, |_, _| {}), "password"),
        (
            with("microsoft365", device, |_, o| o.tenant = None),
            "oauth.tenant",
        ),
        (
            with("microsoft365", device, |_, o| o.tenant = Some("a/b".into())),
            "oauth.tenant",
        ),
        (
            with("microsoft365", device, |_, o| o.client_id = None),
            "oauth.client_id",
        ),
        (with("microsoft365", device, |c, _| c.username = None), "username"),
        (
            with("microsoft365", device, |_, o| {
                o.token_url = Some("http://x.example/token".into());
            }),
            "oauth.token_url",
        ),
        // Google gives no tokens for mail that way.
        (with("gmail", device, |_, _| {}), "oauth.flow"),
        (with("gmail", account, |_, _| {}), "oauth.key_file"),
        (
            with("gmail", account, |c, o| {
                o.key_file = Some("k".into());
                c.password = Some(Secret::new("p".to_owned()));
            }),
            "password",
        ),
        (
            with("mailgun", client, |c, _| {
                c.password = Some(Secret::new("p".to_owned()))
            }),
            "oauth.token_url",
        ),
        (
            with("microsoft365", device, |c, _| {
                c.tls = Some(SmarthostTls::Opportunistic);
            }),
            "tls",
        ),
    ] {
        assert_eq!(found, format!("mail.smarthosts.{named}"));
    }
}
