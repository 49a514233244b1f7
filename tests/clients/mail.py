#!/usr/bin/env python3
"""Sends mail with Python's smtplib and says on standard output what the server accepted, one JSON line each.

A message carries its id in `X-Test-Id` and ends with `END id`, so that a sink can tell a whole one from a torn one.
After a lost connection a thread stops: what it had sent without an answer is neither accepted nor refused.
"""

import argparse
import json
import smtplib
import ssl
import sys
import threading

BODY = [
    "こんにちは、世界。",
    ".",
    "..a line that begins with dots",
    "",
    "   spaces at both ends   ",
    "0123456789" * 60,
]


def message(options, identity):
    head = [
        f"From: <{options.sender}>", f"To: <{options.recipient}>", f"Subject: test {identity}",
        f"Message-ID: <{identity}@client.test>", "Date: Tue, 24 Nov 2026 12:00:00 +0900", "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: 8bit", f"X-Test-Id: {identity}", ""]
    filler = ["x" * 76] * (options.size // 78)
    return "\r\n".join([*head, *BODY, *filler, f"END {identity}", ""]).encode()


def connect(options):
    trust = ssl.create_default_context(cafile=options.ca_file)
    if not options.ca_file:
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    elif options.ca_without_name:
        trust.check_hostname = False
    if options.tls == "implicit":
        client = smtplib.SMTP_SSL(options.host, options.port, local_hostname="client.test", timeout=60, context=trust)
    else:
        client = smtplib.SMTP(options.host, options.port, local_hostname="client.test", timeout=60)
        if options.tls == "starttls":
            client.starttls(context=trust)
    if options.user:
        client.login(options.user, options.password)
    return client


def say(**event):
    sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
    sys.stdout.flush()


class Gate:
    """Holds all senders after a number of accepted messages, until a line comes on standard input."""

    def __init__(self, hold_after):
        self.left = threading.Semaphore(hold_after)
        self.opened = threading.Event()

    def open_by_line(self):
        sys.stdin.readline()
        self.opened.set()

    def pass_one(self):
        if not self.left.acquire(blocking=False):
            self.opened.wait()


def send(options, gate, identities):
    try:
        client = connect(options)
    except smtplib.SMTPConnectError as error:
        # Refused at the door: each mail would be.
        for identity in identities:
            say(refused=identity, code=error.smtp_code, text=error.smtp_error.decode("utf-8", "replace"))
        return
    except (OSError, smtplib.SMTPException) as error:
        say(error=f"{type(error).__name__}: {error}")
        return
    client.ehlo_or_helo_if_needed()
    for identity in identities:
        gate.pass_one()
        flags = ["BODY=8BITMIME"]
        if not (options.sender + options.recipient).isascii():
            flags.append("SMTPUTF8")
            client.command_encoding = "utf-8"
        flags += [f"{name}={value}" for name, value in (("RET", options.ret), ("ENVID", options.envid)) if value]
        wishes = [f"{name}={value}" for name, value in (("NOTIFY", options.notify), ("ORCPT", options.orcpt)) if value]
        destination = int(identity.removeprefix(options.name)) % options.destinations
        recipient = options.recipient.replace("ID", identity).replace("NUMBER", str(destination))
        try:
            client.sendmail(options.sender, [recipient], message(options, identity), flags, wishes)
            say(accepted=identity)
        except smtplib.SMTPRecipientsRefused as error:
            code, text = error.recipients[recipient]
            say(refused=identity, code=code, text=text.decode("utf-8", "replace"))
        except smtplib.SMTPResponseException as error:
            text = error.smtp_error
            say(refused=identity, code=error.smtp_code, text=text.decode() if isinstance(text, bytes) else text)
            if client.sock:
                # smtplib leaves the transaction open when DATA itself is refused.
                client.rset()
        except (OSError, smtplib.SMTPException) as error:
            say(unanswered=identity, error=f"{type(error).__name__}: {error}")
            return
    try:
        client.quit()
    except (OSError, smtplib.SMTPException):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tls", choices=("none", "starttls", "implicit"), default="none")
    parser.add_argument("--ca-file")
    parser.add_argument("--ca-without-name", action="store_true", help="check the chain, not the name")
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--sender", required=True)
    parser.add_argument("--recipient", required=True, help="ID in it becomes the message's id")
    parser.add_argument("--destinations", type=int, default=1, help="NUMBER in the recipient becomes one of so many")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--hold-after", type=int, metavar="N",
                        help="after N messages wait for a line on standard input")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--name", default="m")
    for wish in ("--notify", "--orcpt", "--ret", "--envid"):
        parser.add_argument(wish, help="RFC 3461, as it goes on the wire")
    options = parser.parse_args()
    identities = [f"{options.name}{number}" for number in range(options.count)]
    gate = Gate(options.count if options.hold_after is None else options.hold_after)
    if options.hold_after is not None:
        threading.Thread(target=gate.open_by_line, daemon=True).start()
    threads = [threading.Thread(target=send, args=(options, gate, identities[start::options.connections]))
               for start in range(options.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(done=True)


if __name__ == "__main__":
    main()
