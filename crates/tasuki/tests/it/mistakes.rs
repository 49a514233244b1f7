//! Mistakes in a configuration, and what is said of them.

use std::net::{TcpListener, UdpSocket};

use crate::gateway::{HOST, LISTENERS, Place};

const SMARTHOST: &str =
    "[[mail.smarthosts]]\nname = \"office\"\nhost = \"smtp.example.com\"\nport = 587\nusername = \"u\"\n";

#[test]
fn check_names_a_password_file_that_cannot_be_read() {
    let place = Place::new("");
    let file = place.path().join("secret");
    place.write(&format!("{SMARTHOST}password_file = {file:?}\n"));
    let said = place.run(&["check"]);
    assert_eq!(said.code, 0, "{}", said.err);
    for part in [
        "mail.smarthosts.password_file of \"office\"",
        file.to_str().unwrap(),
        "cannot be read now",
    ] {
        assert!(said.out.contains(part), "{part} in {}", said.out);
    }
    // A directory can be opened, but holds no password.
    std::fs::create_dir(&file).unwrap();
    assert!(place.run(&["check"]).out.contains("cannot be read now"));
    std::fs::remove_dir(&file).unwrap();
    std::fs::write(&file, "hush").unwrap();
    let said = place.run(&["check"]);
    assert!(!said.out.contains("password_file"), "{}", said.out);
}

#[test]
fn an_address_in_use_is_named_with_its_key_and_a_cure() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = datagrams.local_addr().unwrap();
    let place = Place::new("");
    place.init();
    for (section, key, addr) in [
        ("[mail.relay]\nlisten = [", "mail.relay.listen", addr),
        ("[front]\nlisten = [", "front.listen", addr),
        ("[admin]\nlisten = ", "admin.listen", addr),
        ("[tunnel.quic]\nlisten = ", "tunnel.quic.listen", udp),
    ] {
        let free = format!("{section}\"127.0.0.1:0\"");
        assert!(LISTENERS.contains(&free), "{free}");
        let listeners = LISTENERS.replace(&free, &format!("{section}\"{addr}\""));
        place.write(&format!("[server]\nhost = \"{HOST}\"\n{listeners}"));
        let said = place.run(&["serve"]);
        assert_eq!(said.code, 69, "{key}: {}", said.err);
        for part in [
            format!("{key}: cannot listen on {addr}: Address already in use"),
            format!("`ss -lntup 'sport = :{}'` names it", addr.port()),
            format!("choose another address or port in {key}"),
        ] {
            assert!(said.err.contains(&part), "{part} in {}", said.err);
        }
    }
}

#[test]
fn a_port_out_of_range_is_told_the_range() {
    for (layer, key) in [
        (
            "[mail.relay]\nlisten = [\"127.0.0.1:99999\"]\n",
            "mail.relay.listen",
        ),
        ("[mail.delivery]\nmx_port = 99999\n", "mail.delivery.mx_port"),
        ("[mail.delivery]\nmx_port = -1\n", "mail.delivery.mx_port"),
    ] {
        let place = Place::new("");
        place.write(layer);
        let said = place.run(&["check"]);
        assert_eq!(said.code, 64, "{layer}: {}", said.err);
        assert!(said.err.contains(key), "{key} in {}", said.err);
        assert!(said.err.contains("a number from 0 to 65535"), "{}", said.err);
    }
}
