//! The loads of the fediverse cases: joining hosts and publishing, signatures alone, POSTs alone.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

#[derive(Args)]
pub(crate) struct Load {
    /// The relay's plain HTTP address.
    #[arg(long)]
    relay: SocketAddr,
    /// Where `key.der` is.
    #[arg(long)]
    directory: PathBuf,
    /// Hosts that join, host 0 among them, which also publishes.
    #[arg(long)]
    hosts: usize,
    /// Do not join, they did before.
    #[arg(long)]
    joined: bool,
    /// Notes to publish, numbered from `from`.
    #[arg(long, default_value_t = 0)]
    notes: u64,
    #[arg(long, default_value_t = 0)]
    from: u64,
}

struct Signer {
    key: RsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    fn read(directory: &Path) -> Result<Self> {
        let key = RsaKeyPair::from_pkcs8(&std::fs::read(directory.join("key.der"))?)?;
        Ok(Self {
            key,
            random: SystemRandom::new(),
        })
    }

    fn sign(&self, text: &[u8]) -> Result<String> {
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &self.random, text, &mut signature)?;
        Ok(STANDARD.encode(signature))
    }

    fn post(&self, host: &str, path: &str, key_id: &str, body: &Value) -> Result<Request<Full<Bytes>>> {
        let body = Bytes::from(body.to_string());
        let digest = format!(
            "SHA-256={}",
            STANDARD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &body))
        );
        let date = http_date();
        let text = format!(
            "(request-target): post {path}\nhost: {host}\ndate: {date}\ndigest: {digest}\ncontent-type: application/activity+json"
        );
        let signature = self.sign(text.as_bytes())?;
        Ok(Request::post(path)
            .header("host", host)
            .header("date", date)
            .header("digest", digest)
            .header("content-type", "application/activity+json")
            .header("signature", format!("keyId=\"{key_id}\",algorithm=\"rsa-sha256\",headers=\"(request-target) host date digest content-type\",signature=\"{signature}\""))
            .body(Full::new(body))?)
    }
}

fn http_date() -> String {
    use time::format_description::FormatItem;
    const FORMAT: &[FormatItem<'_>] = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    time::OffsetDateTime::now_utc().format(FORMAT).unwrap_or_default()
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

/// Joins and publishes; ends when every request has its 2xx.
pub(crate) fn run(load: &Load) -> Result<()> {
    runtime()?.block_on(async {
        let signer = Arc::new(Signer::read(&load.directory)?);
        if !load.joined {
            let follows = (0..load.hosts).map(|n| {
                let host = format!("h{n:05}.bench.test");
                let actor = format!("https://{host}/actor");
                (
                    format!("{actor}#main-key"),
                    json!({ "@context": "https://www.w3.org/ns/activitystreams",
                    "id": format!("https://{host}/follows/{n}"), "type": "Follow", "actor": actor,
                    "object": "https://www.w3.org/ns/activitystreams#Public" }),
                )
            });
            // One at a time: ActivityRelay answers 500 to several at once.
            send(load.relay, &signer, follows.collect(), 1).await?;
        }
        let notes = (load.from..load.from + load.notes).map(|n| {
            let author = "https://h00000.bench.test/users/alice";
            (format!("{author}#main-key"), note(author, n))
        });
        let begin = Instant::now();
        send(load.relay, &signer, notes.collect(), 8).await?;
        println!(
            "{}",
            json!({ "notes": load.notes, "seconds": begin.elapsed().as_secs_f64() })
        );
        Ok(())
    })
}

fn note(author: &str, number: u64) -> Value {
    let id = format!("https://h00000.bench.test/notes/{number}");
    let public = "https://www.w3.org/ns/activitystreams#Public";
    let published = time::OffsetDateTime::now_utc()
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default();
    json!({ "@context": ["https://www.w3.org/ns/activitystreams", "https://w3id.org/security/v1"],
        "id": format!("{id}/activity"), "type": "Create", "actor": author, "published": published, "to": [public],
        "cc": [format!("{author}/followers")],
        "object": { "id": id, "type": "Note", "attributedTo": author, "to": [public], "published": published,
            "content": "x".repeat(1500), "url": id, "sensitive": false, "tag": [] },
        // Mastodon signs its public activities; a relay hands this on and does not check it when the author posted.
        "signature": { "type": "RsaSignature2017", "creator": format!("{author}#main-key"), "created": published,
            "signatureValue": STANDARD.encode([7; 256]) } })
}

async fn send(
    relay: SocketAddr,
    signer: &Arc<Signer>,
    documents: Vec<(String, Value)>,
    connections: usize,
) -> Result<()> {
    let documents = Arc::new(std::sync::Mutex::new(
        documents.into_iter().collect::<std::collections::VecDeque<_>>(),
    ));
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let (documents, signer) = (Arc::clone(&documents), Arc::clone(signer));
            tokio::spawn(async move {
                let mut connection = plain(relay).await?;
                loop {
                    let next = documents
                        .lock()
                        .map_err(|_| anyhow::anyhow!("a sender panicked"))?
                        .pop_front();
                    let Some((key_id, document)) = next else {
                        return anyhow::Ok(());
                    };
                    for attempt in 0.. {
                        let request = signer.post("relay.bench.test", "/inbox", &key_id, &document)?;
                        if connection.ready().await.is_err() {
                            connection = plain(relay).await?;
                        }
                        let answer = connection.send_request(request).await?;
                        let status = answer.status();
                        let text = answer.into_body().collect().await?.to_bytes();
                        if status.is_success() {
                            break;
                        }
                        // As instances do: overload and a server's own faults are tried again.
                        if attempt > 100 || !(status == 429 || status.is_server_error()) {
                            bail!("the relay answered {status}: {}", String::from_utf8_lossy(&text));
                        }
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn plain(addr: SocketAddr) -> Result<http1::SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A document by plain HTTP from the address in `url`, asked for under `host`.
pub(crate) async fn get_plain(url: &Uri, host: &str) -> Result<Value> {
    let addr: SocketAddr = url.authority().context("an authority")?.as_str().parse()?;
    let mut connection = plain(addr).await?;
    let request = Request::get(url.path())
        .header("host", host)
        .header("accept", "application/activity+json")
        .body(Full::default())?;
    let body = connection
        .send_request(request)
        .await?
        .into_body()
        .collect()
        .await?
        .to_bytes();
    Ok(serde_json::from_slice(&body)?)
}

#[derive(Args)]
pub(crate) struct Sign {
    #[arg(long)]
    directory: PathBuf,
    #[arg(long, default_value_t = 5000)]
    signatures: u64,
}

/// Prints the CPU seconds per 1,000 signatures.
pub(crate) fn sign(sign: &Sign) -> Result<()> {
    let signer = Signer::read(&sign.directory)?;
    let (cpu, begin) = (own_cpu(), Instant::now());
    for n in 0..sign.signatures {
        signer.sign(
            format!("(request-target): post /inbox\nhost: h{n:05}.bench.test\ndate: now\ndigest: SHA-256=x")
                .as_bytes(),
        )?;
    }
    let count = sign.signatures as f64;
    println!(
        "{}",
        json!({ "units_per_s": count / begin.elapsed().as_secs_f64(), "cpu_s_per_1000": (own_cpu() - cpu) * 1000.0 / count })
    );
    Ok(())
}

fn own_cpu() -> f64 {
    crate::process::cpu_seconds(&[std::process::id()])
}

#[derive(Args)]
pub(crate) struct Post {
    /// The hosts' address.
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    hosts: usize,
    /// POSTs to each host.
    #[arg(long, default_value_t = 5)]
    rounds: u64,
}

/// One connection for each host, one POST after the other on it; prints the CPU seconds per 1,000.
pub(crate) fn post(post: &Post) -> Result<()> {
    use rustls_pki_types::pem::PemObject;
    runtime()?.block_on(async {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls_pki_types::CertificateDer::from_pem_file(post.directory.join("ca.pem"))?)?;
        let mut tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let body = Bytes::from(note("https://h00000.bench.test/users/alice", 1).to_string());
        let mut open = Vec::with_capacity(post.hosts);
        for n in 0..post.hosts {
            let host = format!("h{n:05}.bench.test");
            let stream = TcpStream::connect(post.to).await?;
            stream.set_nodelay(true)?;
            let stream = tls.connect(host.clone().try_into()?, stream).await?;
            let (sender, connection) = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            open.push((host, sender));
        }
        let (cpu, begin) = (own_cpu(), Instant::now());
        let done = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = open
            .into_iter()
            .map(|(host, mut sender)| {
                let (body, done, rounds) = (body.clone(), Arc::clone(&done), post.rounds);
                tokio::spawn(async move {
                    for _ in 0..rounds {
                        let request = Request::post("/inbox")
                            .header("host", &host)
                            .header("date", "Tue, 24 Nov 2026 00:00:00 GMT")
                            .header("digest", "SHA-256=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")
                            .header("content-type", "application/activity+json")
                            .header("signature", "keyId=\"https://relay.bench.test/actor#main-key\",signature=\"\"")
                            .body(Full::new(body.clone()))?;
                        sender.ready().await?;
                        sender.send_request(request).await?.into_body().collect().await?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        let count = done.load(Ordering::Relaxed) as f64;
        println!("{}", json!({ "units_per_s": count / begin.elapsed().as_secs_f64(), "cpu_s_per_1000": (own_cpu() - cpu) * 1000.0 / count }));
        Ok(())
    })
}
