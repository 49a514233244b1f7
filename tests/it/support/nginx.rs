//! nginx in front of relays, configured as the README says.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::certificate::Certificate;
use super::process::{self, Running};
use super::readme;

/// What it stands in front of.
pub(crate) struct Site<'a> {
    pub(crate) name: &'a str,
    pub(crate) listen: SocketAddr,
    pub(crate) upstream: SocketAddr,
}

impl Site<'_> {
    /// The README's block, with these addresses and this certificate.
    fn block(&self, certificate: &Certificate) -> String {
        let block = readme::block("nginx")
            .replace("relay.example.org", self.name)
            .replace("listen 443", &format!("listen {}", self.listen))
            .replace("127.0.0.1:8080", &self.upstream.to_string());
        let line = |line: &str| match line.trim().split(' ').next() {
            Some("ssl_certificate") => format!("ssl_certificate {};\n", certificate.certificate.display()),
            Some("ssl_certificate_key") => format!("ssl_certificate_key {};\n", certificate.key.display()),
            _ => format!("{line}\n"),
        };
        block
            .lines()
            .filter(|line| !line.contains("[::]"))
            .map(line)
            .collect()
    }
}

/// Starts `nginx`; its files are in the directory.
pub(crate) fn start(
    mut nginx: Command,
    directory: &Path,
    certificate: &Certificate,
    sites: &[Site<'_>],
) -> Running {
    let blocks: String = sites.iter().map(|site| site.block(certificate)).collect();
    let base = directory.display();
    let scratch: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {base}/nginx-{name};\n"))
        .collect();
    let user = if process::is_root() { "user root;\n" } else { "" };
    let text = format!(
        "{user}daemon off;\nmaster_process off;\npid {base}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{scratch}{blocks}}}\n"
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    nginx.arg("-e").arg("stderr").arg("-c").arg(&file);
    Running::start("nginx", &mut nginx, &directory.join("nginx.log"))
}
