"""The measuring half of `benches/shares`: starts workers, kills one, adds one, reads the ledger."""

import json
import subprocess
import sys
import time
import urllib.request

mill, url, window, store = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]


def windows():
    ledger = json.load(urllib.request.urlopen(url + "/ledger"))
    return ledger["windows"]


def work():
    return subprocess.Popen([mill, "work"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def window_begins():
    """Waits for the next window; gives its index."""
    now = windows()[-1]["index"] if windows() else 0
    while not windows() or windows()[-1]["index"] == now:
        time.sleep(0.02)
    return now + 1


def told(name, part):
    charged, quota = sum(w["charged"] for w in part), sum(w["quota"] for w in part)
    admitted, refused = sum(w["admitted"] for w in part), sum(w["refused"] for w in part)
    wanted = charged * (1 + refused / admitted)
    print(f"| {store} | {name} | {charged / quota:.1%} | {refused / admitted:.2%} "
          f"| {wanted / quota:.1%} |", flush=True)


def until_in_use_again():
    """Seconds from now until 97 % of the quota is used over two seconds."""
    began, seen = time.monotonic(), []
    rate = windows()[-1]["quota"] / window
    while time.monotonic() < began + min(20, window - 1):
        seen.append((time.monotonic() - began, windows()[-1]["charged"]))
        before = [s for s in seen if s[0] <= seen[-1][0] - 2]
        # Not before the loss can be seen at all.
        if before and seen[-1][0] > 3.5:
            (t0, c0), (t1, c1) = before[-1], seen[-1]
            if (c1 - c0) / (t1 - t0) >= 0.97 * rate:
                return t1
        time.sleep(0.1)
    return float("inf")


workers = [work() for _ in range(8)]
try:
    while not windows():
        time.sleep(0.02)
    time.sleep(10)
    first = window_begins()
    window_begins()
    killed = window_begins()
    workers[0].kill()
    again = until_in_use_again()
    joined = window_begins()
    workers.append(work())
    last = window_begins()
    by_index = {w["index"]: w for w in windows()}
    print("| store | | quota used | 429s | asked for |\n| --- | --- | --- | --- | --- |")
    told("eight workers, two windows", [by_index[i] for i in range(first, killed)])
    told(f"one killed: in use again after {again:.1f} s", [by_index[killed]])
    told("a ninth joins", [by_index[joined]])
finally:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait()
