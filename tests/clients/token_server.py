#!/usr/bin/env python3
"""Microsoft's login server, as far as a device login goes (RFC 8628): it shows a code, and the second question brings tokens.

Prints `{}` when it listens on port 443.
"""

import argparse
import http.server
import json
import ssl
import urllib.parse


class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if self.path == "/example.onmicrosoft.com/oauth2/v2.0/devicecode":
            self.answer(200, {"device_code": "D", "user_code": "ABCD-EFGH", "expires_in": 900, "interval": 1,
                              "verification_uri": "https://microsoft.com/devicelogin"})
        elif self.path != "/example.onmicrosoft.com/oauth2/v2.0/token" or form["device_code"] != ["D"]:
            self.answer(400, {"error": "invalid_request"})
        elif Handler.asked == 0:
            Handler.asked = 1
            self.answer(400, {"error": "authorization_pending"})
        else:
            self.answer(200, {"token_type": "Bearer", "access_token": "A", "refresh_token": "R", "expires_in": 3600})

    def answer(self, status, value):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--certificate", required=True)
options.add_argument("--key", required=True)
options = options.parse_args()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(options.certificate, options.key)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 443), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("{}", flush=True)
server.serve_forever()
