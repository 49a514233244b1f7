//! The relaxed form of a body, hashed while it passes (RFC 6376 3.4.4).

use sha2::{Digest as _, Sha256};

/// White space within a line is one space, at its end nothing; empty lines at the end of the body are nothing. A line
/// of white space alone is an empty line too.
#[derive(Debug, Default)]
pub(super) struct BodyHash {
    hash: Sha256,
    scratch: Vec<u8>,
    /// Line ends that count only if something follows.
    line_ends: u64,
    gap: bool,
    cr: bool,
    any: bool,
}

impl BodyHash {
    pub(super) fn update(&mut self, mut octets: &[u8]) {
        while let Some(&first) = octets.first() {
            match first {
                b'\n' if self.cr => {
                    (self.cr, self.gap) = (false, false);
                    self.line_ends += 1;
                }
                _ if self.cr => {
                    // A CR alone is text.
                    self.cr = false;
                    self.text(b"\r");
                    continue;
                }
                b'\r' => self.cr = true,
                b' ' | b'\t' => self.gap = true,
                _ => {
                    let run = memchr::memchr3(b' ', b'\t', b'\r', octets).unwrap_or(octets.len());
                    self.text(&octets[..run]);
                    octets = &octets[run..];
                    continue;
                }
            }
            octets = &octets[1..];
        }
    }

    fn text(&mut self, run: &[u8]) {
        self.scratch.clear();
        for _ in 0..self.line_ends {
            if self.scratch.len() >= 4096 {
                self.hash.update(&self.scratch);
                self.scratch.clear();
            }
            self.scratch.extend_from_slice(b"\r\n");
        }
        self.line_ends = 0;
        if std::mem::take(&mut self.gap) {
            self.scratch.push(b' ');
        }
        self.hash.update(&self.scratch);
        self.hash.update(run);
        self.any = true;
    }

    pub(super) fn finish(mut self) -> [u8; 32] {
        if self.cr {
            self.cr = false;
            self.text(b"\r");
        }
        // A body that is not empty ends with one CRLF.
        if self.any {
            self.hash.update(b"\r\n");
        }
        self.hash.finalize().into()
    }
}
