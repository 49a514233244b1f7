#!/usr/bin/env python3
"""Prints what is at an HTTPS URL; `--ca` is the only CA that is believed."""

import argparse
import ssl
import sys
import urllib.request

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("url")
options.add_argument("--ca", required=True)
options = options.parse_args()
trust = ssl.create_default_context(cafile=options.ca)
with urllib.request.urlopen(options.url, timeout=30, context=trust) as answer:
    sys.stdout.write(answer.read(1024 * 1024).decode())
