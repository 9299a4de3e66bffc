"""The measuring half of `benches/quota`: starts every case, waits for its end, reads the ledger."""

import json
import os
import random
import subprocess
import sys
import time
import urllib.request

mill, window, wanted = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
TPM = 1_200_000
# Whole windows that a case lasts, the cut ones at both ends aside.
LASTS = 8


def case(name, simulate="", tpm=TPM, told=True, sizes=(50, 8000), since=0, least=0.99, most=0.002):
    return dict(name=name, simulate=simulate.split(), tpm=tpm, told=told, sizes=sizes, since=since,
                least=least, most=most)


half = window * (LASTS / 2 + 0.5)
CASES = {
    "told": case("quota told"),
    "faults": case("the same, 5 % faults before and after the work was paid", "--faults 0.05"),
    "small": case("quota told, jobs of 80 tokens", sizes=(80, 80)),
    "untold": case("quota not told, from the third window on", told=False, since=2, least=0.95, most=0.02),
    "bare": case("quota not told, no headers either, jobs of 1,000 tokens, from the third window on",
                 "--no-rate-headers", told=False, sizes=(1000, 1000), since=2, least=0.95, most=0.02),
    "halved": case("halved half-way, from the second window after it on",
                   f"--change {half}s:tpm={TPM // 2}", since=LASTS // 2 + 2, least=0.95),
    "doubled": case("doubled half-way, from the second window after it on",
                    f"--change {half}s:tpm={TPM * 2}", since=LASTS // 2 + 2, least=0.95),
    "x0.6": case("the service charges 0.6 times our count", "--charge-factor 0.6", least=0.95, most=0.01),
    "x1.5": case("the service charges 1.5 times our count", "--charge-factor 1.5", least=0.95, most=0.01),
    "three": case("three deployments (1, 0.4 and 2 times the quota; 1, 5 and 2 s), the third away for "
                  "two windows: the others, and it before and after", "three", tpm=int(3.4 * TPM),
                  least=0.97, most=0.01),
    "flex": case("a flex tier above the standard one, room in two of four windows", "flex"),
}


def write_jobs(path, total, sizes):
    """Jobs whose charges add up to at least `total`: as many small as large by their logarithm."""
    rng, words, written = random.Random(1), "one two three four five six seven eight nine ten".split(), 0
    with open(path, "w") as out:
        jobs = 0
        while written < total:
            low, high = sizes
            size = int(low * (high / low) ** rng.random())
            asked = max(16, size // 2)
            text = f"{jobs}: " + " ".join(rng.choice(words) for _ in range(max(1, size - asked - 16)))
            body = {"model": "gpt-4.1-mini", "max_tokens": asked,
                    "messages": [{"role": "user", "content": text}]}
            out.write(json.dumps({"custom_id": f"job-{jobs}", "method": "POST",
                                  "url": "/v1/chat/completions", "body": body}) + "\n")
            written += size
            jobs += 1


def read(url):
    return json.load(urllib.request.urlopen(url))


def start(key, case):
    os.makedirs(key)
    flags, names = case["simulate"], ["one"]
    if key == "three":
        names = ["east", "north", "south"]
        down = f"{window * 3.5}s:south,down=503:{2 * window}s"
        flags = ["--change", down]
        for name, part, latency in [("east", 1, 1000), ("north", 0.4, 5000), ("south", 2, 2000)]:
            flags += ["--deployment", f"{name},tpm={int(part * TPM)},latency-ms={latency}"]
    elif key == "flex":
        names = ["one-flex", "one"]
        flags = ["--deployment", f"one,tpm={TPM},latency-ms=2000,flex={2 * window}s/{4 * window}s"]
    else:
        flags = ["--tpm", str(TPM), "--latency-ms", "2000", *flags]
    flags = [mill, "simulate", "--port", "0", "--window", str(window), "--spread", "0.3", *flags]
    with open(f"{key}/address", "w") as address:
        simulator = subprocess.Popen(flags, stdout=address, stderr=subprocess.DEVNULL)
    while not (url := open(f"{key}/address").read().strip()):
        time.sleep(0.02)
    factor = {"halved": 0.75, "doubled": 1.5, "x0.6": 1 / 0.6, "x1.5": 1 / 1.5}.get(key, 1)
    write_jobs(f"{key}/in.jsonl", case["tpm"] * window / 60 * (LASTS + 1) * factor, case["sizes"])
    with open(f"{key}/promptmill.toml", "w") as config:
        for name in names:
            quota = {"east": TPM, "north": int(0.4 * TPM), "south": 2 * TPM}.get(name, case["tpm"])
            config.write(f'[[deployments]]\nname = "{name}"\nendpoint = "{url}/openai/deployments"\n'
                         f'model = "gpt-4.1-mini"\ndeployment = "{name.removesuffix("-flex")}"\n'
                         f"concurrency = 1000\n")
            if key == "flex":
                config.write("flex = true\n" if name == "one-flex" else "tier = 1\n")
            if case["told"]:
                config.write(f"tpm = {quota}\n")
    log = open(f"{key}/log", "w")
    run = subprocess.Popen([mill, "run", "in.jsonl", "--json", "--quiet"], cwd=key,
                           env=os.environ | {"AZURE_OPENAI_API_KEY": "none"},
                           stdout=open(f"{key}/summary", "w"), stderr=log)
    return simulator, run, url


def judge(key, case, url):
    """The row of a case: what was used, what was refused, and whether that is enough."""
    ledger, summary = read(url + "/ledger"), json.load(open(f"{key}/summary"))
    by_name = {}
    for w in ledger["windows"]:
        by_name.setdefault(w["deployment"], []).append(w)
    used = []
    for name, windows in sorted(by_name.items()):
        # The first and the last of them are cut.
        whole = windows[1:-1][case["since"]:]
        if key == "three":
            end = min(len(w) for n, w in by_name.items()) - 1
            whole = [w for w in windows[1:end] if name != "south" or w["index"] - windows[0]["index"] not in (3, 4, 5)]
        used.append(sum(w["charged"] for w in whole) / sum(w["quota"] for w in whole))
    refused = ledger["refused"]["by_tokens"] + ledger["refused"]["by_requests"]
    rate, again = refused / ledger["answered"], ledger["billed_more_than_once"]["excess_requests"]
    lost = summary["jobs"] - sum(summary["endings"].values())
    good = min(used) >= case["least"] and rate <= case["most"] and lost == 0
    parts = ", ".join(f"{part:.2%}" for part in used)
    if key == "flex":
        billed = {tier: ledger["tiers"][tier]["requests"] for tier in ("flex", "standard")}
        parts += f", {billed['flex'] / sum(billed.values()):.0%} of the calls at the flex price"
    asked = f"≥ {case['least']:.0%}, ≤ {case['most']:.1%}"
    return f"| {case['name']} | {parts} | {rate:.3%} | {lost} | {again} | {asked} | {'yes' if good else 'NO'} |", good


running = {key: (CASES[key], *start(key, CASES[key])) for key in wanted or CASES}
print("| case | quota used | 429s | jobs lost | paid again | asked for | met |")
print("| --- | --- | --- | --- | --- | --- | --- |")
all_good = True
for key, (what, simulator, run, url) in running.items():
    run.wait()
    if run.returncode:
        print(f"{key}: exit {run.returncode}\n{open(f'{key}/log').read()}", file=sys.stderr)
    row, good = judge(key, what, url)
    print(row, flush=True)
    all_good &= good
    simulator.terminate()
sys.exit(0 if all_good else 1)
