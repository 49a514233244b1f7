#!/usr/bin/env python3
"""Hands in mail that is hard to sign, or verifies with dkimpy what arrived.

    dkim_check.py send PORT USER PASSWORD SENDER RECIPIENT     the names of the mails, as JSON
    dkim_check.py verify RECORDS FILE...                       what dkimpy says of each signature, as JSON

RECORDS is what `tasuki mail dkim add` printed: the lines of a zone file. The files are those of smtp-sink, whose lines end
with LF.
"""

import json
import re
import smtplib
import ssl
import sys

import dkim

HEAD = "From: =?utf-8?q?B=C3=BCro?= <{sender}>\r\nTo: {recipient}\r\nX-Case: {name}\r\n"
LONG = "Subject: " + "\r\n\t ".join(f"word{n:03} =?utf-8?b?44GT44KT?= " + "y" * 60 for n in range(40)) + "\r\n"
MANY = "Cc: " + ",\r\n ".join(f"Person {n} <p{n}@far.test>" for n in range(80)) + "\r\n"
CASES = {
    "white-space-only-end": ("Subject: spaces\r\n", b"hello  \t world\r\n\r\n \t \r\n\t\r\n   \r\n\r\n"),
    "only-white-space": ("Subject: spaces\r\n", b" \t \r\n\t\r\n \r\n"),
    "empty-body": ("Subject: empty\r\n", b""),
    "utf-8": ("Subject: =?utf-8?b?44GT44KT?=\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
              "Content-Transfer-Encoding: 8bit\r\n", "こんにちは、世界。\r\nGrüße  \r\n".encode()),
    "latin-1": ("Subject: latin\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=iso-8859-1\r\n"
                "Content-Transfer-Encoding: 8bit\r\n", "Grüße\xa0\r\n".encode("iso-8859-1")),
    "long-folded": (LONG + MANY, b"body\r\n"),
    "dots": ("Subject:dots\r\n", b".\r\n..\r\n. \r\nend\r\n.last\r\n"),
    "no-line-end": ("Subject:\tno end\t \r\n", b"no line end"),
    "large": ("Subject: large\r\n", b"0123456789 \t" * 6 + b"\r\n" + (b"x" * 70 + b"  \r\n") * 3000),
}


def send(port, user, password, sender, recipient):
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    client = smtplib.SMTP("127.0.0.1", int(port), local_hostname="client.test", timeout=60)
    client.starttls(context=trust)
    client.login(user, password)
    for name, (head, body) in CASES.items():
        text = (HEAD.format(sender=sender, recipient=recipient, name=name) + head + "\r\n").encode() + body
        client.sendmail(sender, [recipient], text, mail_options=["BODY=8BITMIME"])
    client.quit()
    return sorted(CASES)


def records_in(zone):
    found = {}
    for name, *strings in re.findall(r'^(\S+\._domainkey\.\S+)\s+IN TXT (?:\((.*?)\)|(.*?)$)', zone, re.M | re.S):
        found[name.rstrip(".").encode()] = "".join(re.findall(r'"([^"]*)"', "".join(strings))).encode()
    return found


def verify(text, records):
    look = lambda name, timeout=5: records.get(name.rstrip(b"."))
    verdicts = {}
    count = len(re.findall(rb"(?im)^dkim-signature:", text))
    for index in range(count):
        checker = dkim.DKIM(text)
        try:
            good = checker.verify(idx=index, dnsfunc=look)
        except dkim.DKIMException as error:
            good = f"{type(error).__name__}: {error}"
        verdicts[checker.signature_fields[b"a"].decode()] = good
    return verdicts


def check(zone, files):
    records = records_in(open(zone, encoding="ascii").read())
    results = {}
    for file in files:
        text = open(file, "rb").read().replace(b"\n", b"\r\n")
        name = re.search(rb"(?m)^X-Case: (\S+)", text).group(1).decode()
        # One octet of what is signed is another.
        forged = text.replace(b"Subject:", b"Subject: not", 1)
        results[name] = {"as it is": verify(text, records), "forged": verify(forged, records)}
    return {"records": sorted(name.decode() for name in records), "mails": results}


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    print(json.dumps(send(*rest) if what == "send" else check(rest[0], rest[1:])))
