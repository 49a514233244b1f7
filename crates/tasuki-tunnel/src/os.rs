//! What differs between operating systems.

/// The system's resolv.conf(5). `None` where there is none: then only the system itself can ask the DNS.
pub(crate) fn resolv_conf() -> Option<String> {
    std::fs::read_to_string("/etc/resolv.conf").ok()
}
