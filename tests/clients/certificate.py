#!/usr/bin/env python3
"""Logs in by a client certificate with Python's smtplib, sends one mail, and says as JSON what the server said."""

import argparse
import json
import smtplib
import ssl


def main():
    parser = argparse.ArgumentParser()
    for name in ("--port", "--certificate", "--key", "--sender", "--recipient"):
        parser.add_argument(name, required=True)
    parser.add_argument("--implicit", action="store_true")
    options = parser.parse_args()
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    trust.load_cert_chain(options.certificate, options.key)
    if options.implicit:
        client = smtplib.SMTP_SSL("127.0.0.1", int(options.port), "client.test", timeout=60, context=trust)
    else:
        client = smtplib.SMTP("127.0.0.1", int(options.port), "client.test", timeout=60)
        client.starttls(context=trust)
    client.ehlo()
    said = {"offered": client.esmtp_features.get("auth", "").split()}
    try:
        code, text = client.auth("EXTERNAL", lambda challenge=None: "")
        said["login"] = [code, text.decode()]
        client.sendmail(options.sender, [options.recipient], f"From: <{options.sender}>\r\nSubject: by key\r\n\r\nhello\r\n")
        said["sent"] = True
    except smtplib.SMTPAuthenticationError as error:
        said["login"] = [error.smtp_code, error.smtp_error.decode()]
    except smtplib.SMTPSenderRefused as error:
        said["refused"] = [error.smtp_code, error.smtp_error.decode()]
    print(json.dumps(said))


if __name__ == "__main__":
    main()
