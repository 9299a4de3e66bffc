"""The requests of a batch file, one a line, without their envelopes."""

import json
import sys

source, target = sys.argv[1:]
with open(source) as lines, open(target, "w") as out:
    for line in lines:
        out.write(json.dumps(json.loads(line)["body"]) + "\n")
