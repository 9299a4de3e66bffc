"""Shares the samples of `perf script` out among the stations of a job's way.

A sample belongs to the innermost frame that names a station: an allocation is its caller's.
"""

import re
import sys
from collections import Counter

STATIONS = [
    ("intake: lines checked, tokens counted", r"promptmill::intake"),
    ("queue: enqueue", r"rows::insert"),
    ("queue: receive", r"rows::HandOut"),
    ("queue: settle", r"queue::local::settle"),
    ("commits: log, checkpoints, fsync", r"sqlite3VdbeHalt|sqlite3_wal_checkpoint|execute_batch"),
    ("call: request built", r"model::Client::request|model::body"),
    ("call: answer read", r"Called::judge|model::verdict"),
    ("call: HTTP client (reqwest, hyper, sockets)", r"hyper|reqwest|tower|model::Client"),
    ("worker: admission, conductor", r"promptmill::admission|worker::conductor"),
    ("worker: attempt, tasks", r"worker::attempt|tokio::task|JoinSet"),
    ("worker: pull, record, settle", r"worker::(record|pull|held|ends|hold)"),
    ("results: outcomes written to files", r"report::results|read_outcome|read_in_chunks"),
    ("runtime: scheduling, timers, wake-ups", r"tokio::runtime::(scheduler|blocking|time|task|io::driver)|tokio::time"),
]
RULES = [(name, re.compile(pattern)) for name, pattern in STATIONS]
RECORD = "store: record"


def samples(lines):
    thread, frames = None, []
    for line in lines:
        line = line.rstrip("\n")
        if not line:
            if thread is not None:
                yield thread, frames
            thread, frames = None, []
        elif not line[0].isspace():
            thread = line.strip()
        else:
            frames.append(line.strip().partition(" ")[2])
    if thread is not None:
        yield thread, frames


def station(thread, frames):
    for frame in frames:
        for name, pattern in RULES:
            if pattern.search(frame):
                return name
    # The compiler inlines the body of `record` into the writer's loop.
    return RECORD if thread == "sqlite-writer" else "other"


jobs, (user, system) = int(sys.argv[1]), map(float, sys.argv[2].split())
counts = Counter(station(*sample) for sample in samples(sys.stdin))
total, micros = sum(counts.values()), (user + system) / jobs * 1e6
for name, count in counts.most_common():
    print(f"{name:<46} {count / total * micros:>6.1f} us {count / total:>6.1%}")
print(f"{'together':<46} {micros:>6.1f} us; user {user / jobs * 1e6:.1f}, system {system / jobs * 1e6:.1f}")
