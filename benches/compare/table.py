"""The tools' figures, each tool's best round, beside promptmill's."""

import sys

path, jobs = sys.argv[1], int(sys.argv[2])
best: dict[str, tuple[float, float, float]] = {}
for line in open(path):
    name, user, system, wall, kib, answered = line.split()
    if int(answered) != jobs:
        sys.exit(f"{name} had {answered} of {jobs} prompts answered")
    figures = (float(wall), (float(user) + float(system)) / jobs * 1e3, float(kib) / 1024)
    best[name] = min(best.get(name, figures), figures)
print(f"{'':<12} {'jobs/s':>9} {'ratio':>7} {'CPU ms/job':>11} {'ratio':>7} {'peak MiB':>9} {'ratio':>7}")
wall0, cpu0, mib0 = best["promptmill"]
for name, (wall, cpu, mib) in best.items():
    print(f"{name:<12} {jobs / wall:>9.0f} {wall0 / wall:>7.3f} {cpu:>11.3f} {cpu / cpu0:>7.1f}"
          f" {mib:>9.0f} {mib / mib0:>7.2f}")
