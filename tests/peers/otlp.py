"""An OTLP receiver: decodes each request by OpenTelemetry's own protobuf classes, and hands it on to
the collector `rotel`, whose answer is the answer.

Prints its port first, then a line of JSON for each request that was accepted.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import rotel
from google.protobuf.json_format import MessageToDict
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def refuse_unknown(message):
    """A field that the classes don't know is one that nobody would read."""
    assert len(UnknownFieldSet(message)) == 0, f"unknown fields in {type(message).__name__}"
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        many = value if field.is_repeated else [value]
        for one in many:
            refuse_unknown(one)


class Collector:
    def __init__(self):
        folder = tempfile.mkdtemp()
        self.port = free_port()
        agent = Path(rotel.__file__).with_name("rotel-agent")
        self.process = subprocess.Popen(
            [agent, "start", "--exporter", "blackhole"]
            + ["--otlp-http-endpoint", f"127.0.0.1:{self.port}"]
            + ["--otlp-grpc-endpoint", f"127.0.0.1:{free_port()}"]
            + ["--pid-file", f"{folder}/pid", "--log-file", f"{folder}/log"],
            stdout=sys.stderr,
        )

    def wait_until_up(self):
        while self.process.poll() is None:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
        raise SystemExit("the collector ended")

    def post(self, path, headers, body):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        kind = self.headers["content-type"]
        assert kind == "application/x-protobuf", kind
        message = KINDS[self.path].FromString(body)
        refuse_unknown(message)
        status, answer = collector.post(self.path, {"content-type": kind}, body)
        line = {"path": self.path, "status": status, "request": MessageToDict(message)}
        # In one write, since requests come side by side.
        os.write(1, (json.dumps(line) + "\n").encode())
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


collector = Collector()
try:
    collector.wait_until_up()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    os.write(1, f"{server.server_port}\n".encode())
    # Ends with whoever started it: nobody writes to this pipe.
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
finally:
    collector.process.kill()
