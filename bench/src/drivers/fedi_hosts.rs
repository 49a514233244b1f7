//! Many fediverse hosts in one process: each has its own name under `bench.test`, all answer by HTTPS.
//!
//! Prints `{"count":PORT}`. Whoever connects to the count port reads one JSON line:
//! accepts (hosts whose Follow was accepted), distinct (host and note pairs that arrived), total, and bad (of every
//! tenth delivery, those whose digest or signature does not verify). Behind the names: an actor of type Application,
//! NodeInfo of Mastodon, and on host 0 the author `alice`.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

#[derive(Args)]
pub(crate) struct Hosts {
    /// Where the hosts' address is; their names must resolve to it.
    #[arg(long)]
    listen: SocketAddr,
    /// Where to find and leave files: `ca.pem`, `key.der` (all hosts sign with one key).
    #[arg(long)]
    directory: PathBuf,
    /// The relay's actor as PEM of its public key is fetched from here when the first delivery arrives.
    #[arg(long)]
    relay_actor: String,
}

/// Makes the CA, the hosts' certificate and their key in `directory`.
pub(crate) fn make_files(directory: &std::path::Path) -> Result<()> {
    let mut ca = rcgen::CertificateParams::new(Vec::new())?;
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "bench CA");
    let ca_key = rcgen::KeyPair::generate()?;
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let host_key = rcgen::KeyPair::generate()?;
    let host = rcgen::CertificateParams::new(vec!["*.bench.test".to_owned(), "127.0.0.1".to_owned()])?
        .signed_by(&host_key, &issuer)?;
    std::fs::write(directory.join("ca.pem"), ca_certificate.pem())?;
    std::fs::write(directory.join("host.pem"), host.pem())?;
    std::fs::write(directory.join("host.key"), host_key.serialize_pem())?;
    let key = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048)?;
    let der = AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&key)?;
    std::fs::write(directory.join("key.der"), der.as_ref())?;
    Ok(())
}

#[derive(Default)]
struct Seen {
    accepts: HashSet<String>,
    distinct: HashSet<(String, u64)>,
    total: u64,
    checked: u64,
    bad: u64,
    first_bad: Option<String>,
}

struct World {
    seen: Mutex<Seen>,
    public_pem: String,
    relay_actor: String,
    relay_key: tokio::sync::OnceCell<Vec<u8>>,
}

pub(crate) fn run(hosts: &Hosts) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(serve(hosts))
}

async fn serve(hosts: &Hosts) -> Result<()> {
    use rustls_pki_types::pem::PemObject;
    let key = RsaKeyPair::from_pkcs8(&std::fs::read(hosts.directory.join("key.der"))?)?;
    let spki = AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(key.public_key())?;
    let world = Arc::new(World {
        seen: Mutex::default(),
        public_pem: pem("PUBLIC KEY", spki.as_ref()),
        relay_actor: hosts.relay_actor.clone(),
        relay_key: tokio::sync::OnceCell::new(),
    });
    let chain = vec![rustls_pki_types::CertificateDer::from_pem_file(
        hosts.directory.join("host.pem"),
    )?];
    let private = rustls_pki_types::PrivateKeyDer::from_pem_file(hosts.directory.join("host.key"))?;
    let mut tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let (web, count) = (
        TcpListener::bind(hosts.listen).await?,
        TcpListener::bind("127.0.0.1:0").await?,
    );
    println!("{{\"count\":{}}}", count.local_addr()?.port());
    loop {
        tokio::select! {
            accepted = web.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                let (tls, world) = (tls.clone(), Arc::clone(&world));
                tokio::spawn(async move {
                    let stream = tls.accept(stream).await?;
                    let service = service_fn(move |request| answer(request, Arc::clone(&world)));
                    hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service).await.map_err(|e| anyhow::anyhow!(e))
                });
            }
            accepted = count.accept() => {
                let (mut stream, _) = accepted?;
                let line = {
                    let seen = world.seen.lock().unwrap_or_else(PoisonError::into_inner);
                    json!({ "accepts": seen.accepts.len(), "distinct": seen.distinct.len(), "total": seen.total,
                            "checked": seen.checked, "bad": seen.bad, "first_bad": seen.first_bad })
                };
                let _ = stream.write_all(format!("{line}\n").as_bytes()).await;
            }
        }
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .filter_map(|c| std::str::from_utf8(c).ok())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

async fn answer(request: Request<Incoming>, world: Arc<World>) -> Result<Response<Full<Bytes>>> {
    let host = request
        .uri()
        .authority()
        .map(|a| a.as_str().to_owned())
        .or_else(|| {
            request
                .headers()
                .get("host")
                .and_then(|h| h.to_str().ok())
                .map(str::to_owned)
        })
        .unwrap_or_default();
    let base = format!("https://{host}");
    let path = request.uri().path().to_owned();
    let document = match (request.method(), path.as_str()) {
        (&Method::POST, "/inbox") => return take(request, host, &world).await,
        (_, "/actor") => actor(&base, "/actor", "Application", &host, &world.public_pem),
        (_, "/users/alice") => actor(&base, "/users/alice", "Person", "alice", &world.public_pem),
        (_, "/.well-known/nodeinfo") => json!({ "links": [
            { "rel": "http://nodeinfo.diaspora.software/ns/schema/2.0", "href": format!("{base}/nodeinfo/2.0") } ] }),
        (_, "/nodeinfo/2.0") => {
            json!({ "version": "2.0", "software": { "name": "mastodon", "version": "4.5.0" },
            "protocols": ["activitypub"], "services": { "inbound": [], "outbound": [] }, "openRegistrations": false,
            "usage": { "users": {} }, "metadata": {} })
        }
        (_, "/.well-known/webfinger") => json!({ "subject": format!("acct:{host}@{host}"),
            "links": [{ "rel": "self", "type": "application/activity+json", "href": format!("{base}/actor") }] }),
        _ => {
            return Ok(Response::builder()
                .status(StatusCode::NOT_FOUND)
                .body(Full::default())?);
        }
    };
    let kind = if path.contains("nodeinfo") || path.contains("webfinger") {
        "application/json"
    } else {
        "application/activity+json"
    };
    Ok(Response::builder()
        .header("content-type", kind)
        .body(Full::from(document.to_string()))?)
}

fn actor(base: &str, path: &str, kind: &str, name: &str, public_pem: &str) -> serde_json::Value {
    let id = format!("{base}{path}");
    json!({ "@context": ["https://www.w3.org/ns/activitystreams", "https://w3id.org/security/v1"], "id": id, "type": kind,
        "preferredUsername": name, "inbox": format!("{base}/inbox"), "outbox": format!("{base}/outbox"),
        "endpoints": { "sharedInbox": format!("{base}/inbox") },
        "publicKey": { "id": format!("{id}#main-key"), "owner": id, "publicKeyPem": public_pem } })
}

async fn take(request: Request<Incoming>, host: String, world: &World) -> Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let check = {
        let mut seen = world.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.total += 1;
        match note_number(&body) {
            Some(note) => {
                seen.distinct.insert((host.clone(), note));
            }
            None if body.windows(8).any(|w| w == b"\"Accept\"") => {
                seen.accepts.insert(host.clone());
            }
            None => {}
        }
        seen.total.is_multiple_of(10)
    };
    if check {
        let problem = verify(&head, &host, &body, world).await.err();
        let mut seen = world.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.checked += 1;
        if let Some(problem) = problem {
            seen.bad += 1;
            seen.first_bad.get_or_insert_with(|| format!("{problem:#}"));
        }
    }
    Ok(Response::builder()
        .status(StatusCode::ACCEPTED)
        .body(Full::default())?)
}

/// The number in the first `…/notes/NUMBER` of the body.
fn note_number(body: &[u8]) -> Option<u64> {
    const MARK: &[u8] = b"/notes/";
    let at = body.windows(MARK.len()).position(|w| w == MARK)? + MARK.len();
    let digits = body[at..].iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&body[at..at + digits]).ok()?.parse().ok()
}

async fn verify(head: &http::request::Parts, host: &str, body: &[u8], world: &World) -> Result<()> {
    let header = |name: &str| {
        head.headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .with_context(|| format!("no {name}"))
    };
    let digest = STANDARD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body));
    anyhow::ensure!(
        header("digest")?.eq_ignore_ascii_case(&format!("SHA-256={digest}")),
        "the digest is wrong"
    );
    let signature = header("signature")?;
    let field = |name: &str| {
        signature.split(',').find_map(|part| {
            part.trim()
                .strip_prefix(name)?
                .strip_prefix("=\"")?
                .strip_suffix('"')
        })
    };
    let mut lines = Vec::new();
    for name in field("headers").context("no headers")?.split(' ') {
        lines.push(match name {
            "(request-target)" => format!("(request-target): post {}", head.uri.path()),
            "host" => format!("host: {host}"),
            other => format!("{other}: {}", header(other)?),
        });
    }
    let key = world
        .relay_key
        .get_or_try_init(|| relay_key(&world.relay_actor))
        .await?;
    let bytes = STANDARD.decode(field("signature").context("no signature")?)?;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key)
        .verify(lines.join("\n").as_bytes(), &bytes)
        .map_err(|_| anyhow::anyhow!("the signature is wrong over {lines:?}"))
}

async fn relay_key(actor: &str) -> Result<Vec<u8>> {
    let url: http::Uri = actor.parse()?;
    let document = super::fedi_load::get_plain(&url, "relay.bench.test").await?;
    let text = document["publicKey"]["publicKeyPem"]
        .as_str()
        .context("the relay's key")?;
    let base64: String = text.lines().filter(|l| !l.starts_with("-----")).collect();
    Ok(STANDARD.decode(base64.trim())?)
}
