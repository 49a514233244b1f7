//! The devices' listener: no login, and yet no open relay.

use tasuki_smtp::{DeviceConfig, DevicesConfig, MailConfig};

use crate::{sink::Sink, support::House, talk::Talk};

fn copier(change: impl FnOnce(&mut DeviceConfig)) -> DeviceConfig {
    let mut device = DeviceConfig {
        name: "Copier 2F".into(),
        net: vec!["127.0.0.1/32".parse().unwrap()],
        service: "copier".into(),
        sender: "scan@x.org".parse().unwrap(),
        contact: "it@x.org".parse().unwrap(),
        recipients: vec!["partner.example".to_owned().try_into().unwrap()],
    };
    change(&mut device);
    device
}

fn listening(config: &mut MailConfig, device: DeviceConfig) {
    let free = "127.0.0.1:0".parse().unwrap();
    config.devices = DevicesConfig {
        listen: vec![free],
        listen_tls: vec![free],
        list: vec![device],
        ..DevicesConfig::default()
    };
    config.relay_domains = vec!["ours.example".parse().unwrap()];
}

async fn house(sink: &Sink) -> House {
    let house = House::with_sink(sink, |c| listening(c, copier(|_| {}))).await;
    house.next_morning();
    house
        .service(
            "copier",
            &["mail:send:x.org", "mail:class:device", "mail:daily:5"],
        )
        .await;
    house
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copier_without_a_login_sends_to_owned_and_listed_recipients_only() {
    let sink = Sink::start().await;
    let house = house(&sink).await;
    let mut client = Talk::connect(house.addrs.devices[0]).await;
    let offers = client.expect("EHLO copier", "250").await;
    assert!(
        !offers.contains("AUTH") && offers.contains("SIZE 52428800") && offers.contains("STARTTLS"),
        "{offers}"
    );
    client.expect("MAIL FROM:<copier@copier.local>", "250").await;
    for (to, expect) in [
        ("a@x.org", "250"),
        ("a@ours.example", "250"),
        ("a@partner.example", "250"),
        ("a@elsewhere.example", "550 5.7.1"),
        ("a%elsewhere.example@x.org", "550 5.7.1"),
        ("\"a@elsewhere.example\"@partner.example", "550 5.7.1"),
        ("a@[192.0.2.1]", "550 5.7.1"),
    ] {
        client.expect(&format!("RCPT TO:<{to}>"), expect).await;
    }
    client.expect("DATA", "354").await;
    // Old firmware ends its lines with LF; a dot between them ends nothing.
    client
        .send("From: Boss <boss@bank.org>\nSubject: scan\n\npage\n.\nMAIL FROM:<evil@x.org>\n\r\n.\r\n")
        .await;
    let reply = client.reply().await;
    assert!(reply.starts_with("250 2.0.0 queued"), "{reply}");
    let mail = sink.wait(1).await[0].clone();
    assert_eq!(mail.from, "it@x.org", "failures are told to the contact");
    assert_eq!(mail.to, ["a@x.org", "a@ours.example", "a@partner.example"]);
    for field in [
        "\r\nFrom: \"Copier 2F\" <scan@x.org>\r\n",
        "\r\nReply-To: boss@bank.org\r\n",
        "\r\nDate: ",
        "\r\nMessage-ID: <",
        "\r\nSubject: scan\r\n\r\npage\r\n.\r\nMAIL FROM:<evil@x.org>\r\n",
    ] {
        assert!(mail.text.contains(field), "{field:?} in {}", mail.text);
    }
    assert!(!mail.text.contains("\r\nFrom: Boss"), "{}", mail.text);
    // Its cap is five recipients a day.
    let reply = client
        .mail("", &["b@x.org", "c@x.org"], "From: b@x.org\r\n\r\nx")
        .await;
    assert!(reply.starts_with("250"), "{reply}");
    assert!(
        sink.wait(2).await[1].text.contains("\r\nFrom: b@x.org\r\n"),
        "an owned From is kept"
    );
    client.expect("MAIL FROM:<>", "250").await;
    client
        .expect("RCPT TO:<d@x.org>", "451 4.7.1 the daily cap of 5")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_speaks_tls_where_it_can() {
    let sink = Sink::start().await;
    let house = house(&sink).await;
    let stream = tokio::net::TcpStream::connect(house.addrs.devices_tls[0])
        .await
        .unwrap();
    let mut client = Talk::over_tls(stream, &house.tls).await;
    assert!(client.reply().await.starts_with("220"));
    let offers = client.expect("EHLO copier", "250").await;
    assert!(
        !offers.contains("AUTH") && !offers.contains("STARTTLS"),
        "{offers}"
    );
    client.expect("AUTH PLAIN AGFwcABzZWNyZXQ=", "502").await;
    let reply = client.mail("a@x.org", &["b@x.org"], "Subject: 1\r\n\r\nx").await;
    assert!(reply.starts_with("250"), "{reply}");
    let mut client = Talk::connect(house.addrs.devices[0]).await;
    client.expect("EHLO copier", "250").await;
    client.expect("STARTTLS", "220").await;
    let mut client = client.start_tls(&house.tls).await;
    client.expect("EHLO copier", "250").await;
    let reply = client.mail("a@x.org", &["b@x.org"], "Subject: 2\r\n\r\nx").await;
    assert!(reply.starts_with("250"), "{reply}");
    sink.wait(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_listed_devices_of_existing_services_are_let_in() {
    let sink = Sink::start().await;
    let elsewhere = |d: &mut DeviceConfig| d.net = vec!["10.9.8.7/32".parse().unwrap()];
    let house = House::with_sink(&sink, |c| listening(c, copier(elsewhere))).await;
    assert_eq!(
        house.banner(house.addrs.devices[0]).await,
        "554 5.7.1 no device is listed for your address"
    );
    // The service does not exist: nobody's rights are nobody's.
    let house = House::with_sink(&sink, |c| listening(c, copier(|_| {}))).await;
    assert!(
        house
            .banner(house.addrs.devices[0])
            .await
            .starts_with("421 4.3.5")
    );
    // A contact that the service may not send as would be a forged sender.
    let stranger = |d: &mut DeviceConfig| d.contact = "boss@bank.org".parse().unwrap();
    let house = House::with_sink(&sink, |c| listening(c, copier(stranger))).await;
    house.service("copier", &["mail:send:x.org"]).await;
    let mut client = Talk::connect(house.addrs.devices[0]).await;
    client.expect("EHLO copier", "250").await;
    client
        .expect("MAIL FROM:<a@x.org>", "550 5.7.1 the sender and contact")
        .await;
    // Without a device there is no listener.
    let house = House::with_sink(&sink, |_| {}).await;
    assert!(house.addrs.devices.is_empty() && house.addrs.devices_tls.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_of_a_scan_are_told_to_the_contact() {
    let sink = Sink::scripted(|line| {
        line.starts_with("RCPT TO:<a@x.org>")
            .then(|| "550 5.1.1 gone".into())
    })
    .await;
    let house = house(&sink).await;
    let mut client = Talk::connect(house.addrs.devices[0]).await;
    client.expect("EHLO copier", "250").await;
    let reply = client
        .mail("copier@copier.local", &["a@x.org"], "Subject: scan\r\n\r\nx")
        .await;
    assert!(reply.starts_with("250"), "{reply}");
    let notice = sink.wait(1).await[0].clone();
    assert_eq!(
        (notice.from.as_str(), notice.to.as_slice()),
        ("", ["it@x.org".to_owned()].as_slice())
    );
}
