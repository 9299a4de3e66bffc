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
    ttl = re.search(r"SHARES_TTL_S: u32 = (\d+)", init)[1]
    texts = re.search(r"fn outcomes_index.*?excluding\(&\[(.*?)\]\)", init, re.S)[1]
    excluded = {"OUTCOMES": re.findall(r'"(.*?)"', texts), "PAYLOADS": ["/*"]}
    return {
        names[name]: (key, ttl if name == "SHARES" else "-1", excluded.get(name, []))
        for name, key in re.findall(r'\((\w+), "(/\w+)"\)', init)
    }


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
