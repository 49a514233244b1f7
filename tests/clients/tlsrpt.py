"""Reads a TLS report (RFC 8460) from standard input, as `mail` or as `file` (gzip), and prints its JSON.

It demands the members, types and sums that the RFC gives, with nothing but Python's own libraries.
"""

import datetime
import email
import email.policy
import gzip
import ipaddress
import json
import sys

RESULTS = {
    "starttls-not-supported", "certificate-host-mismatch", "certificate-expired", "certificate-not-trusted",
    "validation-failure", "tlsa-invalid", "dnssec-invalid", "dane-required",
    "sts-policy-fetch-error", "sts-policy-invalid", "sts-webpki-invalid",
}
DETAIL = {
    "result-type", "sending-mta-ip", "receiving-mx-hostname", "receiving-mx-helo", "receiving-ip",
    "failed-session-count", "additional-information", "failure-reason-code",
}


def members(thing, required, optional=()):
    assert isinstance(thing, dict), thing
    assert set(required) <= set(thing) <= set(required) | set(optional), sorted(thing)


def strings(thing):
    assert isinstance(thing, list) and all(isinstance(text, str) for text in thing), thing


def check_policy(entry):
    members(entry, ["policy", "summary"], ["failure-details"])
    policy = entry["policy"]
    members(policy, ["policy-type", "policy-domain"], ["policy-string", "mx-host"])
    assert policy["policy-type"] in {"tlsa", "sts", "no-policy-found"}, policy
    for name in ("policy-string", "mx-host"):
        if name in policy:
            strings(policy[name])
    summary = entry["summary"]
    members(summary, ["total-successful-session-count", "total-failure-session-count"])
    failed = 0
    for detail in entry.get("failure-details", []):
        members(detail, ["result-type", "failed-session-count"], DETAIL)
        assert detail["result-type"] in RESULTS, detail
        for name in ("sending-mta-ip", "receiving-ip"):
            if name in detail:
                ipaddress.ip_address(detail[name])
        failed += detail["failed-session-count"]
    assert failed == summary["total-failure-session-count"], entry


def check(report):
    members(report, ["organization-name", "date-range", "contact-info", "report-id", "policies"])
    members(report["date-range"], ["start-datetime", "end-datetime"])
    start, end = (
        datetime.datetime.fromisoformat(report["date-range"][name].replace("Z", "+00:00"))
        for name in ("start-datetime", "end-datetime")
    )
    assert end - start == datetime.timedelta(seconds=86399) and start.time() == datetime.time(), (start, end)
    assert "@" in report["contact-info"]
    assert report["policies"]
    for entry in report["policies"]:
        check_policy(entry)


def from_mail(octets):
    message = email.message_from_bytes(octets, policy=email.policy.default)
    assert message.get_content_type() == "multipart/report", message.get_content_type()
    assert message.get_param("report-type") == "tlsrpt", message["Content-Type"]
    assert message["TLS-Required"] == "No"
    domain, submitter = message["TLS-Report-Domain"], message["TLS-Report-Submitter"]
    subject = message["Subject"]
    assert subject.startswith(f"Report Domain: {domain} Submitter: {submitter} Report-ID: <"), subject
    text, report = message.iter_parts()
    assert text.get_content_type() == "text/plain"
    assert report.get_content_type() == "application/tlsrpt+gzip"
    name = report.get_filename()
    assert name.startswith(f"{submitter}!{domain}!") and name.endswith(".json.gz"), name
    return report.get_payload(decode=True)


octets = sys.stdin.buffer.read()
if sys.argv[1] == "mail":
    octets = from_mail(octets)
report = json.loads(gzip.decompress(octets))
check(report)
json.dump(report, sys.stdout)
