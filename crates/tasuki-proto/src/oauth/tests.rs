#![allow(clippy::unwrap_used)]

use super::*;

fn hidden(text: &str) -> Hidden {
    Hidden::new(text.to_owned())
}

#[test]
fn forms_are_those_of_the_rfcs() {
    let secret = hidden("a b&c");
    let asker = Asker {
        client_id: Some("id"),
        client_secret: Some(&secret),
        scope: "https://mail.example/.default",
    };
    // RFC 6749 4.4.2
    assert_eq!(
        token_form(asker, Grant::ClientCredentials),
        "grant_type=client_credentials&scope=https%3A%2F%2Fmail.example%2F.default&client_id=id&client_secret=a+b%26c"
    );
    // RFC 6749 6, without a secret
    let public = Asker {
        client_secret: None,
        ..asker
    };
    assert_eq!(
        token_form(public, Grant::Refresh(&hidden("old"))),
        "grant_type=refresh_token&refresh_token=old&scope=https%3A%2F%2Fmail.example%2F.default&client_id=id"
    );
    // RFC 8628 3.4
    assert_eq!(
        token_form(public, Grant::Device(&hidden("code"))),
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code&device_code=code&client_id=id"
    );
    // RFC 7523 2.1
    let nobody = Asker {
        client_id: None,
        ..public
    };
    assert_eq!(
        token_form(nobody, Grant::Assertion(&hidden("x.y.z"))),
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=x.y.z"
    );
    assert_eq!(device_form("id", "a b"), "client_id=id&scope=a+b");
}

#[test]
fn answers_are_told_apart() {
    let token = token_answer(
        200,
        br#"{"token_type":"Bearer","expires_in":3599,"access_token":"at","refresh_token":"rt"}"#,
    );
    let token = token.unwrap();
    assert_eq!(token.access.reveal(), "at");
    assert_eq!(token.refresh.as_ref().map(Hidden::reveal), Some("rt"));
    assert_eq!(token.expires_in, Duration::from_secs(3599));
    assert!(!format!("{token:?}").contains("at\""), "{token:?}");
    let error = |status, body: &str| token_answer(status, body.as_bytes()).unwrap_err();
    assert_eq!(
        error(400, r#"{"error":"authorization_pending"}"#),
        TokenError::Pending
    );
    // Google's status of the same is 428.
    assert_eq!(
        error(428, r#"{"error":"authorization_pending"}"#),
        TokenError::Pending
    );
    assert_eq!(error(403, r#"{"error":"slow_down"}"#), TokenError::SlowDown);
    assert_eq!(
        error(
            401,
            r#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided.\r\nTrace ID: 1"}"#
        ),
        TokenError::Refused("invalid_client: AADSTS7000215: Invalid client secret provided.".into())
    );
    for body in [
        "",
        "<html>",
        "{}",
        r#"{"access_token":"a\u0001b"}"#,
        r#"{"access_token":""}"#,
    ] {
        assert_eq!(error(502, body), TokenError::Garbage(502), "{body}");
    }
    let long = format!(r#"{{"error":"{}"}}"#, "x".repeat(10_000));
    assert!(error(400, &long).to_string().len() <= MAX_WORDS);
    // Times as text, absent, and beyond reason.
    for (time, seconds) in [("\"60\"", 60), ("null", 3600), ("99999999999", 86_400)] {
        let body = format!(r#"{{"access_token":"a","expires_in":{time}}}"#);
        let token = token_answer(200, body.as_bytes()).unwrap();
        assert_eq!(token.expires_in, Duration::from_secs(seconds), "{time}");
    }
}

#[test]
fn a_device_grant_begins_with_a_code_for_the_person() {
    for key in ["verification_uri", "verification_url"] {
        let body = format!(
            r#"{{"user_code":"ABCD\u001b-EFGH","device_code":"dc","{key}":"https://login.example/device","expires_in":900,"interval":7}}"#
        );
        let start = device_answer(200, body.as_bytes()).unwrap();
        assert_eq!(start.user_code, "ABCD-EFGH");
        assert_eq!(start.verification_uri, "https://login.example/device");
        assert_eq!(
            (start.expires_in, start.interval),
            (Duration::from_secs(900), Duration::from_secs(7))
        );
    }
    assert_eq!(
        device_answer(400, br#"{"error":"invalid_scope"}"#),
        Err(TokenError::Refused("invalid_scope".into()))
    );
    assert_eq!(
        device_answer(200, br#"{"user_code":"x"}"#),
        Err(TokenError::Garbage(200))
    );
}

#[test]
fn a_statement_is_a_jwt() {
    let statement = Statement {
        issuer: "relay@project.iam.example",
        subject: "sender@example.org",
        scope: "https://mail.google.com/",
        audience: "https://oauth2.example/token",
        key_id: Some("k1"),
        now: 1_700_000_000,
    };
    let input = statement.signing_input();
    let parts: Vec<serde_json::Value> = input
        .split('.')
        .map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap())
        .collect();
    assert_eq!(parts[0], json!({"alg": "RS256", "typ": "JWT", "kid": "k1"}));
    assert_eq!(
        parts[1],
        json!({"iss": "relay@project.iam.example", "sub": "sender@example.org", "scope": "https://mail.google.com/",
            "aud": "https://oauth2.example/token", "iat": 1_700_000_000, "exp": 1_700_003_600})
    );
    assert_eq!(
        Statement::signed(&input, &[0xff, 0xfe]).reveal(),
        format!("{input}.__4")
    );
}

#[test]
fn a_key_file_is_read_and_its_key_not_shown() {
    let pem = "-----BEGIN PRIVATE KEY-----\\nAQID\\nBA==\\n-----END PRIVATE KEY-----\\n";
    let text = format!(
        r#"{{"type":"service_account","client_email":"a@b","private_key_id":"k","private_key":"{pem}"}}"#
    );
    let account = ServiceAccount::parse(&text).unwrap();
    assert_eq!(account.key_der().unwrap(), [1, 2, 3, 4]);
    assert_eq!(
        (account.client_email.as_str(), account.key_id.as_deref()),
        ("a@b", Some("k"))
    );
    assert!(!format!("{account:?}").contains("AQID"));
    assert_eq!(ServiceAccount::parse("{}"), Err(KeyFileError::Form));
    let no_key = r#"{"client_email":"a@b","private_key":"-----BEGIN RSA PRIVATE KEY-----"}"#;
    assert_eq!(ServiceAccount::parse(no_key), Err(KeyFileError::Key));
}
