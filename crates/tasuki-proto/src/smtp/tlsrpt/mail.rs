//! The mail that brings a report (RFC 8460 5.3).

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use time::OffsetDateTime;

use crate::{
    names::{Domain, Mailbox},
    smtp::rfc5322_date,
};

/// A mail with a report.
#[derive(Clone, Debug)]
pub struct ReportMail<'a> {
    /// Who sends it; the domain must sign it (RFC 8460 3).
    pub from: &'a Mailbox,
    /// Where the domain wants it.
    pub to: &'a Mailbox,
    /// Whose sessions it is about.
    pub domain: &'a Domain,
    /// Who reports.
    pub submitter: &'a Domain,
    /// The report's id.
    pub id: &'a str,
    /// Midnight (UTC) at the beginning of the day that it is about.
    pub start: OffsetDateTime,
    /// Now.
    pub date: OffsetDateTime,
    /// Unique for this mail: names it in Message-ID, and separates its parts. Letters and digits.
    pub unique: &'a str,
    /// The report, compressed with gzip.
    pub report: &'a [u8],
}

/// The report's file (RFC 8460 5.1); `id` has letters, digits, dots and hyphens only.
pub fn file_name(submitter: &Domain, domain: &Domain, start: OffsetDateTime, id: &str) -> String {
    let start = start.unix_timestamp();
    format!("{submitter}!{domain}!{start}!{}!{id}.json.gz", start + 86_399)
}

/// Writes the mail with CRLF line ends.
pub fn write(mail: &ReportMail<'_>) -> Vec<u8> {
    let ReportMail {
        domain,
        submitter,
        id,
        unique,
        ..
    } = mail;
    let boundary = format!("=_tasuki_{unique}");
    let file = file_name(submitter, domain, mail.start, id);
    let mut out = String::with_capacity(2048 + mail.report.len() * 3 / 2);
    // Writing to a String cannot fail. RFC 8689 3: what is wrong with the domain's TLS must not keep the report from it.
    let _ = write!(
        out,
        "From: <{from}>\r\n\
         To: <{to}>\r\n\
         Subject: Report Domain: {domain}\r\n Submitter: {submitter}\r\n Report-ID: <{id}@{submitter}>\r\n\
         Date: {date}\r\n\
         Message-ID: <{unique}@{submitter}>\r\n\
         TLS-Report-Domain: {domain}\r\n\
         TLS-Report-Submitter: {submitter}\r\n\
         TLS-Required: No\r\n\
         Auto-Submitted: auto-generated\r\n\
         MIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=\"tlsrpt\";\r\n\tboundary=\"{boundary}\"\r\n\
         \r\n\
         This is a report about TLS in MIME format.\r\n\
         \r\n\
         --{boundary}\r\n\
         Content-Type: text/plain; charset=us-ascii\r\n\
         Content-Transfer-Encoding: 7bit\r\n\
         \r\n\
         This is a report (RFC 8460) about the TLS of mail sessions from {submitter}\r\n\
         to the mail servers of {domain}.\r\n\
         \r\n\
         --{boundary}\r\n\
         Content-Type: application/tlsrpt+gzip\r\n\
         Content-Transfer-Encoding: base64\r\n\
         Content-Disposition: attachment;\r\n\tfilename=\"{file}\"\r\n\
         \r\n",
        from = mail.from,
        to = mail.to,
        date = rfc5322_date(mail.date),
    );
    // 57 octets make a line of 76 characters (RFC 2045 6.8).
    for line in mail.report.chunks(57) {
        STANDARD.encode_string(line, &mut out);
        out.push_str("\r\n");
    }
    let _ = write!(out, "\r\n--{boundary}--\r\n");
    out.into_bytes()
}
