"""Gives the program every setting that the deployment files would give it, and sees that it takes them.

    python deploy/check/settings.py PROGRAM COMPOSE.yaml MANIFESTS.yaml...

COMPOSE.yaml is the resolved compose file, MANIFESTS.yaml are rendered manifests. The settings of
deploy/azure are read from the files themselves; their values, known only in Azure, are made up.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import yaml

DEPLOY = Path(__file__).resolve().parent.parent
NUMBERS = ("TPM", "RPM", "CONCURRENCY")


class Program:
    def __init__(self, path: str):
        self.path = Path(path).resolve()
        self.tried, self.faults = 0, []

    def run(self, what: str, arguments: list, settings: dict, wanted=()):
        """Runs it with no settings but these; what is wanted must be in what it prints."""
        self.tried += 1
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [self.path, *arguments],
                env={"PATH": os.environ["PATH"], **settings},
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        missing = [text for text in wanted if text not in done.stdout]
        if done.returncode != 0:
            self.faults.append(f"{what}: {done.stderr.strip()}")
        elif missing:
            self.faults.append(f"{what}: not in force: {', '.join(missing)}")

    def takes(self, what: str, settings: dict):
        names = [name for name in settings if name.startswith("PROMPTMILL__")]
        self.run(what, ["config"], settings, names)

    def knows(self, what: str, command: list):
        """Each option of a command is one that its help tells."""
        options = [f"{word} " for word in command if word.startswith("--")]
        self.run(what, [command[0], "--help"], {}, [option.strip() for option in options])


def names_in(path: Path) -> list:
    names = re.findall(r"PROMPTMILL__(?:\w|\$\{i\})+", path.read_text(encoding="utf-8"))
    return [name.replace("${i}", "0") for name in names if not name.endswith("__")]


def made_up(name: str) -> str:
    if name.endswith(NUMBERS):
        return "1000"
    if name.endswith("__LISTEN"):
        return "0.0.0.0:8780"
    if name.endswith("__ROLE"):
        return "read"
    if name.endswith("__CREDENTIAL"):
        return "developer_tools"
    return "https://contoso.openai.azure.com" if name.endswith("ENDPOINT") else "contoso"


def has_settings(resource: dict) -> bool:
    return resource["kind"] == "ConfigMap" and "promptmill.toml" in resource["data"]


def main():
    program = Program(sys.argv[1])
    azure = DEPLOY / "azure"
    names = ("main.bicep", "documents.bicep", "up", "modules/dashboard.bicep")
    for file in (azure / name for name in names):
        program.takes(file.name, {name: made_up(name) for name in names_in(file)})
    compose = yaml.safe_load(Path(sys.argv[2]).read_text(encoding="utf-8"))
    for name, service in compose["services"].items():
        if service["image"] == "promptmill":
            environment = {key: str(value) for key, value in service.get("environment", {}).items()}
            program.takes(f"compose: {name}", environment)
            program.knows(f"compose: {name}", service["command"])
    for path in sys.argv[3:]:
        resources = list(yaml.safe_load_all(Path(path).read_text(encoding="utf-8")))
        file = next(r["data"]["promptmill.toml"] for r in resources if has_settings(r))
        shutdown = tomllib.loads(file)["worker"]["shutdown_grace_seconds"]
        for resource in resources:
            spec = resource.get("spec", {})
            template = spec.get("template") or spec.get("jobTargetRef", {}).get("template")
            template = template or spec.get("jobTemplate", {}).get("spec", {}).get("template")
            if has_settings(resource):
                with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
                    file.write(resource["data"]["promptmill.toml"])
                    file.flush()
                    program.run(path, ["--config", file.name, "config"], {}, ["[[deployments]]"])
            elif template:
                grace = template["spec"]["terminationGracePeriodSeconds"]
                container = template["spec"]["containers"][0]
                program.knows(path, container["args"])
                environment = {variable["name"]: variable["value"] for variable in container["env"]}
                program.takes(f"{path}: {container['name']}", environment)
                if grace <= shutdown:
                    program.faults.append(f"{path}: the pod is killed after {grace} s, too early")
    for line in (DEPLOY / "cron" / "documents.crontab").read_text(encoding="utf-8").splitlines():
        command = line.partition(" documents ")[2].partition(">>")[0].split()
        if command:
            program.knows("crontab", ["documents", *command])
    print("\n".join(program.faults))
    print(f"{program.tried} settings and commands tried, {len(program.faults)} faults")
    sys.exit(bool(program.faults))


main()
