//! DNS records as people paste them: a line of a zone file (RFC 1035 5.1), or the fields of a provider's web page.

use std::{fmt::Write as _, net::IpAddr};

#[cfg(test)]
mod tests;

/// Longest string in a TXT record, in octets (RFC 1035 3.3).
pub const MAX_STRING: usize = 255;

/// The strings that a long text is cut into, none longer than [`MAX_STRING`].
pub fn strings(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        let mut end = rest.len().min(MAX_STRING);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (string, more) = rest.split_at(end);
        found.push(string);
        if more.is_empty() {
            return found;
        }
        rest = more;
    }
}

/// A line of a zone file. The text of a TXT record is cut and quoted; of other records the value is taken as it is.
pub fn line(name: &str, kind: &str, value: &str) -> String {
    if kind != "TXT" {
        return format!("{name}. IN {kind} {value}");
    }
    let quoted: Vec<String> = strings(value).into_iter().map(quoted).collect();
    match quoted.as_slice() {
        [one] => format!("{name}. IN TXT {one}"),
        more => format!("{name}. IN TXT ( {} )", more.join(" ")),
    }
}

/// A string as zone files have it: quotes and what is not plain ASCII escaped (RFC 1035 5.1).
fn quoted(string: &str) -> String {
    let mut out = String::from("\"");
    for octet in string.bytes() {
        match octet {
            b'"' | b'\\' => {
                out.push('\\');
                out.push(char::from(octet));
            }
            b' '..=b'~' => out.push(char::from(octet)),
            other => {
                let _ = write!(out, "\\{other:03}");
            }
        }
    }
    out.push('"');
    out
}

/// The name of an address's PTR record (RFC 1035 3.5, RFC 3596 2.5).
pub fn reverse_name(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let mut name = String::new();
            for octet in v6.octets().iter().rev() {
                let _ = write!(name, "{:x}.{:x}.", octet & 15, octet >> 4);
            }
            name + "ip6.arpa"
        }
    }
}
