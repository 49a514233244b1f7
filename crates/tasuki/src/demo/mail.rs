//! The mail engine's proof: a mail by STARTTLS and AUTH, and what arrives of it at the far end.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tasuki_core::clock::Clock;
use tokio::time::timeout;

use super::programs::Gateway;
use super::report::{Parcel, Proof, Watch};
use super::show::Part;
use super::{ARRIVES_WITHIN, HOST, Stage, smtp};

impl Stage {
    pub(super) async fn mail(
        &self,
        gateway: &Gateway,
        mails: tokio::sync::mpsc::Receiver<smtp::Caught>,
    ) -> (Proof, (String, String)) {
        let part = self.show.part("mail");
        let mut proof = Proof::default();
        let mut login = (String::new(), String::new());
        let done = self
            .prove_mail(gateway, mails, &part, &mut proof, &mut login)
            .await;
        (
            self.ended(&part, proof, done, "the mail arrived, unchanged"),
            login,
        )
    }

    async fn prove_mail(
        &self,
        gateway: &Gateway,
        mut mails: tokio::sync::mpsc::Receiver<smtp::Caught>,
        part: &Part,
        proof: &mut Proof,
        login: &mut (String, String),
    ) -> Result<()> {
        let mut watch = Watch::start(&self.clock);
        part.step("making the service `shop`, which may send as shop.demo.test");
        let made = gateway
            .command(&["service", "add", "shop", "--send-as", "shop.demo.test", "--json"])
            .await?;
        let password = made["password"].as_str().context("no password was printed")?;
        *login = ("shop".to_owned(), password.to_owned());
        watch.step(proof, "account");
        let sender = smtp::Sender {
            submission: gateway.address("mail.submission")?,
            trust: trust(&gateway.ca_file())?,
            server_name: HOST.to_owned(),
            login: "shop",
            password,
        };
        let message = message(&self.clock);
        proof.sent = Some(Parcel::new("client", "mail", &message));
        part.step("handing in a mail by STARTTLS and AUTH");
        smtp::send(&sender, "orders@shop.demo.test", "hanako@example.test", &message).await?;
        watch.step(proof, "accepted (committed)");
        part.step("waiting for it at the far end");
        let caught = timeout(ARRIVES_WITHIN, mails.recv())
            .await
            .context("the mail did not arrive within 15 s")?
            .context("the sink has stopped")?;
        watch.step(proof, "delivered");
        ensure!(
            caught
                .envelope
                .iter()
                .any(|line| line.contains("<hanako@example.test>")),
            "the envelope at the far end is another one: {:?}",
            caught.envelope
        );
        // The relay puts its trace before the message and changes nothing behind it (RFC 5321 4.4).
        let at = caught.message.len().saturating_sub(message.len());
        let (trace, arrived) = caught.message.split_at(at);
        proof.received.push(Parcel::new("sink", "mail", arrived));
        ensure!(arrived == message, "the mail was changed on its way");
        ensure!(
            trace.starts_with(b"Received:"),
            "the relay's Received line is missing"
        );
        Ok(())
    }
}

/// Trust in the gateway's private CA alone.
fn trust(ca_file: &Path) -> Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file).context("the private CA's certificate")?)?;
    Ok(Arc::new(
        rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth(),
    ))
}

fn message(clock: &Clock) -> Vec<u8> {
    let now = clock.wall();
    let mut text = format!(
        "From: Shop <orders@shop.demo.test>\r\nTo: Hanako <hanako@example.test>\r\nSubject: Your order\r\n\
         Date: {}\r\nMessage-ID: <{}.demo@shop.demo.test>\r\nMIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\
         Thank you for your order.\r\n.A line that begins with a dot.\r\nご注文ありがとうございます。\r\n",
        tasuki_proto::activitypub::date::http_date(now.to_utc().into()).replace("GMT", "+0000"),
        now.0
    );
    for line in 1..=100 {
        text.push_str(&format!(
            "{line:3}  A relay hands the sash on and lets nothing fall.\r\n"
        ));
    }
    text.into_bytes()
}
