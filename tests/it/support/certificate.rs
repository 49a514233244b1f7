//! A CA for one test and a certificate that it signed, by OpenSSL.

use std::path::{Path, PathBuf};

use super::process;

/// Files in PEM.
pub(crate) struct Certificate {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Key and certificate in one.
    pub(crate) both: PathBuf,
}

impl Certificate {
    /// For all these names.
    pub(crate) fn issue(directory: &Path, names: &[&str]) -> Self {
        let file = |name: &str| directory.join(name);
        let alternatives: Vec<String> = names.iter().map(|name| format!("DNS:{name}")).collect();
        std::fs::write(
            file("san"),
            format!(
                "subjectAltName={}\nbasicConstraints=CA:FALSE\n",
                alternatives.join(",")
            ),
        )
        .unwrap();
        for arguments in [
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=test-ca -days 2 -keyout ca.key -out ca.pem",
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=web -keyout web.key -out web.csr",
            "x509 -req -in web.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out web.pem",
        ] {
            let mut command = process::tool("openssl");
            process::succeed(command.args(arguments.split(' ')).current_dir(directory));
        }
        let read = |name: &str| std::fs::read_to_string(file(name)).unwrap();
        std::fs::write(file("both.pem"), read("web.key") + &read("web.pem")).unwrap();
        Self {
            ca: file("ca.pem"),
            certificate: file("web.pem"),
            key: file("web.key"),
            both: file("both.pem"),
        }
    }
}
