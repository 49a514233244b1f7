#![allow(clippy::unwrap_used)]

use super::*;

/// RFC 7677 3, with its nonces.
fn example() -> Exchange {
    let first = ClientFirst::parse("n,,n=user,r=rOprNGfwEbeRWgbNEkqO", false, false).unwrap();
    let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    Exchange {
        server_first: format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"),
        nonce: nonce.to_owned(),
        verifiers: vec![
            Verifier::of("other", &salt, 4096),
            Verifier::of("pencil", &salt, 4096),
        ],
        first,
    }
}

const FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                     p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

#[test]
fn the_example_of_rfc_7677_goes_as_written() {
    let proved = example().verify(FINAL, &[]).unwrap();
    assert_eq!(proved.which, 1);
    assert_eq!(
        proved.server_final,
        "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    );
}

#[test]
fn a_proof_that_does_not_fit_is_refused() {
    for (from, to, error) in [
        ("p=dH", "p=eH", ScramError::Proof),
        ("c=biws", "c=eSws", ScramError::Binding),
        ("F$k0", "F$k1", ScramError::Malformed),
        ("c=biws,", "", ScramError::Malformed),
        ("VQ=", "VQ", ScramError::Malformed),
    ] {
        assert_eq!(
            example().verify(&FINAL.replace(from, to), &[]),
            Err(error),
            "{to}"
        );
    }
    assert_eq!(example().verify("", &[]), Err(ScramError::Malformed));
}

#[test]
fn a_client_that_was_lied_to_about_channel_binding_is_refused() {
    let parse = |text: &str, plus, offered| ClientFirst::parse(text, plus, offered).map(|f| f.login);
    let bare = "n=a,r=b";
    for (flag, plus, offered, fine) in [
        ("n", false, true, true),
        ("n", false, false, true),
        ("y", false, false, true),
        ("y", false, true, false),
        ("p=tls-exporter", true, true, true),
        ("p=tls-exporter", false, true, false),
        ("n", true, true, false),
    ] {
        let answer = parse(&format!("{flag},,{bare}"), plus, offered);
        assert_eq!(answer.is_ok(), fine, "{flag} {plus} {offered}: {answer:?}");
    }
    assert_eq!(
        parse("n,a=boss,n=a,r=b", false, false),
        Err(ScramError::Unsupported)
    );
    assert_eq!(
        parse("n,,m=x,n=a,r=b", false, false),
        Err(ScramError::Unsupported)
    );
    assert_eq!(parse("n,,n=a=2Cb=3Dc,r=b", false, false).unwrap(), "a,b=c");
    for text in [
        "",
        "n",
        "n,,",
        "n,,n=,r=b",
        "n,,n=a",
        "n,,n=a,r=",
        "n,,n=a=b,r=b",
        "n,,a=a,r=b",
    ] {
        assert!(parse(text, false, false).is_err(), "{text}");
    }
}

#[test]
fn a_login_is_bound_to_its_tls_session() {
    let login = |bindings: &[Binding], sent: &[u8]| {
        let first = ClientFirst::parse("p=tls-exporter,,n=user,r=abc", true, true).unwrap();
        let verifier = Verifier::of("secret", b"salt", ITERATIONS);
        let (exchange, server_first) = first.challenge(&[7; 18], b"salt", vec![verifier]);
        let nonce = server_first.split(',').next().unwrap();
        let header = [b"p=tls-exporter,,", sent].concat();
        let without_proof = format!("c={},{nonce}", STANDARD.encode(header));
        let salted = salted_password(b"secret", b"salt", ITERATIONS);
        let client_key = hmac(&salted, &[b"Client Key"]);
        let message = format!("n=user,r=abc,{server_first},{without_proof}");
        let signature = hmac(&verifier.stored_key, &[message.as_bytes()]);
        let proof: Vec<u8> = client_key.iter().zip(signature).map(|(a, b)| a ^ b).collect();
        exchange.verify(&format!("{without_proof},p={}", STANDARD.encode(proof)), bindings)
    };
    let ours = [Binding {
        name: "tls-exporter",
        data: vec![1; 32],
    }];
    assert!(login(&ours, &[1; 32]).is_ok());
    assert_eq!(login(&ours, &[2; 32]), Err(ScramError::Binding));
    assert_eq!(login(&[], &[1; 32]), Err(ScramError::Binding));
}
