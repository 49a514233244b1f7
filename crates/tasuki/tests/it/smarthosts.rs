//! Smarthosts by command.

use std::io::Write as _;
use std::process::Stdio;

use crate::gateway::{Gateway, tasuki};

/// Runs a command with this text on its standard input; exit code and standard error.
fn with_input(gateway: &Gateway, arguments: &[&str], input: &str) -> (i32, String) {
    let mut child = tasuki(gateway.place.path())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_smarthosts_password_is_stored_sealed_by_command_and_never_shown() {
    let gateway = Gateway::start(
        "[[mail.smarthosts]]\nname = \"provider\"\nhost = \"smtp.provider.test\"\nusername = \"user\"\n\
         password_secret = \"provider\"\n\
         [[mail.smarthosts]]\nname = \"office\"\nhost = \"smtp.office.test\"\ntls = \"none\"\n",
    );
    let listed = |name: &str| {
        let all = gateway.ok(&["mail", "smarthost", "list", "--json"]).json();
        let all = all["smarthosts"].as_array().unwrap().clone();
        all.into_iter().find(|s| s["name"] == name).unwrap()
    };
    let before = listed("provider");
    assert!(
        before["secret"]
            .as_str()
            .unwrap()
            .contains("tasuki mail smarthost password provider"),
        "{before}"
    );
    let set = |name: &str, text: &str| with_input(&gateway, &["mail", "smarthost", "password", name], text);
    assert_eq!(set("provider", "hunter2hunter2\n"), (0, String::new()));
    let after = listed("provider");
    assert_eq!(after["secret"], "stored");
    assert_eq!(after["works"], true);
    let audit = gateway.ok(&["audit", "--json"]).json().to_string();
    assert!(audit.contains("mail.smarthost.password"), "{audit}");
    for text in [audit, after.to_string(), gateway.log()] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert_eq!(set("provider", "\n").0, 64);
    assert_eq!(set("nobody", "x\n").0, 65);
    let login = gateway.run(&["mail", "smarthost", "login", "office"]);
    assert_eq!(login.code, 65, "{}", login.err);
    assert!(login.err.contains("has a password"), "{}", login.err);
    let (code, said) = set("office", "x\n");
    assert_eq!(code, 65);
    assert!(said.contains("password_secret = \"office\""), "{said}");
}
