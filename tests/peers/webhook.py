"""A webhook's receiver: SECRET FAILURES. Refuses the first FAILURES posts, then verifies each by the
package of the Standard Webhooks specification.

Prints its port first, then a line of JSON for each post.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

secret, failures = sys.argv[1], int(sys.argv[2])
seen = 0


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        global seen
        body = self.rfile.read(int(self.headers["content-length"]))
        seen += 1
        line = {"id": self.headers["webhook-id"], "refused": seen <= failures}
        try:
            line["event"] = Webhook(secret).verify(body, dict(self.headers))
        except WebhookVerificationError as error:
            line["forged"] = str(error)
        os.write(1, (json.dumps(line) + "\n").encode())
        self.send_response(503 if line["refused"] else 400 if "forged" in line else 204)
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
os.write(1, f"{server.server_port}\n".encode())
# Ends with whoever started it: nobody writes to this pipe.
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
