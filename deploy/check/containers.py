"""The containers that deploy/azure makes are those that `promptmill init` makes: python containers.py"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def of_program() -> dict:
    folder = ROOT / "src" / "store" / "cosmos"
    items = (folder / "items.rs").read_text(encoding="utf-8")
    names = dict(re.findall(r'const (\w+): &str = "(\w+)"', items))
    init = (folder / "init.rs").read_text(encoding="utf-8")
    texts = re.search(r"fn outcomes_index.*?(excluding\(.*?\))", init, re.S)[1]
    arms = re.search(r"match name \{\n(.*?)\n        _ => ", init, re.S)[1]
    said = dict(re.findall(r"^        (\w+) => (.*?),$", arms.replace("outcomes_index()", texts), re.S | re.M))
    return {
        names[name]: (key, time_to_live(said.get(name, "")), excluded(said.get(name, "")))
        for name, key in re.findall(r'\((\w+), "(/\w+)"\)', init)
    }


def excluded(said: str) -> list:
    paths = re.search(r"excluding\(&\[(.*?)\]\)", said, re.S)
    return re.findall(r'"(.*?)"', paths[1]) if paths else []


def time_to_live(said: str) -> str:
    if "TimeToLive" not in said:
        return "0"
    constant = re.search(r"TimeToLive::Seconds\((\w+)", said)
    if not constant:
        return "-1"
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.rs"))
    return re.search(rf"const {constant[1]}: Duration = Duration::from_secs\((\d+)\)", sources)[1]


def of_templates() -> dict:
    text = (ROOT / "deploy" / "azure" / "modules" / "store.bicep").read_text(encoding="utf-8")
    everything = re.search(r"var everything = \[.*?path: '(.*?)'", text, re.S)[1]
    found = {}
    listed = re.search(r"var containers = \[\n(.*?)\n\]", text, re.S)[1]
    for entry in listed.split("\n  }\n"):
        value = {key: re.search(rf"{key}: '?([^'\n]+)", entry)[1] for key in ("name", "key", "ttl")}
        excluded = entry.partition("excluded:")[2]
        paths = re.findall(r"path: '(.*?)'", excluded) or (
            [everything] if "everything" in excluded else []
        )
        found[value["name"]] = (value["key"], value["ttl"], paths)
    return found


def main():
    program, templates = of_program(), of_templates()
    for name in sorted(program.keys() | templates.keys()):
        if program.get(name) != templates.get(name):
            print(f"{name}: init makes {program.get(name)}, Bicep {templates.get(name)}")
    print(f"{len(program)} containers, {'as' if program == templates else 'NOT as'} init makes them")
    sys.exit(program != templates or not program)


main()
