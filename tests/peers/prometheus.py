"""Reads a server's metrics with Prometheus's own parser, and prints them as JSON.

    python prometheus.py http://127.0.0.1:PORT TOKEN

Needs the package `prometheus_client`.
"""

import json
import sys
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families

base, token = sys.argv[1:]
request = urllib.request.Request(f"{base}/metrics", headers={"Authorization": f"Bearer {token}"})
with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
    assert answer.headers["content-type"].startswith("application/openmetrics-text"), answer.headers
    text = answer.read().decode()
found = {}
for family in text_string_to_metric_families(text):
    assert family.documentation and family.type == "gauge", family
    for sample in family.samples:
        labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
        found[f"{sample.name}{{{labels}}}"] = sample.value
print(json.dumps(found))
