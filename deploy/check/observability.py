"""Holds the Grafana board against Grafana's own model of one, and writes its queries as recording rules,
for promtool to parse: RULES.

A metric that docs/telemetry.md does not list is a fault.
"""

import json
import re
import sys
from pathlib import Path

import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel, RowPanel

here = Path("deploy/observability")
rules_path = Path(sys.argv[1])

text = json.loads((here / "grafana-dashboard.json").read_text())
board = Dashboard.from_json(text)
panels = [panel for panel in board.panels if isinstance(panel, Panel)]
rows = [panel for panel in board.panels if isinstance(panel, RowPanel)]
assert len(panels) + len(rows) == len(text["panels"]) and panels, "panels that Grafana's model lost"
ids = [panel["id"] for panel in text["panels"]]
assert len(ids) == len(set(ids)), "two panels of one id"

cells = set()
for panel in text["panels"]:
    at = panel["gridPos"]
    assert at["x"] + at["w"] <= 24, panel["title"]
    mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
    assert not mine & cells, f"{panel['title']} lies over another panel"
    cells |= mine

queries = [target["expr"] for panel in text["panels"] for target in panel.get("targets", [])]
variables = {variable["name"] for variable in text["templating"]["list"]}
built_in = {"__rate_interval": "5m", "__range": "6h"}
rules = []
for number, query in enumerate(queries):
    for name in re.findall(r"\$\{?(\w+)", query):
        assert name in variables or name in built_in, f"${name} is no variable of the board"
        query = query.replace(f"${name}", built_in.get(name, "x"))
    rules.append({"record": f"board:{number}", "expr": query})
rules_path.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))

alerts = yaml.safe_load((here / "alerts.yaml").read_text())
queries += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]

listed = re.findall(r"^\| `([a-z_.]+)` \|.*\| `([a-z_]+)` \|$", Path("docs/telemetry.md").read_text(), re.M)
known = {prometheus for _, prometheus in listed}
assert known, "docs/telemetry.md lists no metric"
for query in queries:
    # Labels are no metrics.
    query = re.sub(r"\b(?:by|on|ignoring|without) ?\([^)]*\)", "", query)
    for name in re.findall(r"\b(?:promptmill|gen_ai|messaging)_\w+(?=[{\[)])", query):
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        assert name in known or base in known, f"{name} is not in docs/telemetry.md"
print(f"{len(panels)} panels, {len(queries)} queries, {len(known)} metrics")
