"""Holds KEDA's resources in rendered manifests against models made from KEDA's own definitions.

    python deploy/check/keda.py MANIFESTS.yaml...

The models take unknown fields silently, so what they did not take up is told here.
"""

import sys

import yaml
from cloudcoil.models.keda import v1alpha1
from pydantic import ValidationError

MODELS = {
    "ScaledJob": v1alpha1.ScaledJob,
    "ScaledObject": v1alpha1.ScaledObject,
    "TriggerAuthentication": v1alpha1.TriggerAuthentication,
}


def lost(given, taken, path):
    """The paths of what was given and not taken up."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(taken, dict) or key not in taken:
                yield f"{path}.{key}"
            else:
                yield from lost(value, taken[key], f"{path}.{key}")
    elif isinstance(given, list):
        for n, value in enumerate(given):
            yield from lost(value, taken[n], f"{path}[{n}]")


def main():
    count, faults = 0, []
    for file in sys.argv[1:]:
        with open(file, encoding="utf-8") as stream:
            for resource in yaml.safe_load_all(stream):
                if not resource["apiVersion"].startswith("keda.sh/"):
                    continue
                count += 1
                kind = resource["kind"]
                try:
                    model = MODELS[kind].model_validate(resource)
                except ValidationError as error:
                    faults.append(f"{file}: {kind}: {error}")
                    continue
                taken = model.model_dump(by_alias=True, exclude_unset=True, mode="json")
                faults += [f"{file}: unknown: {path}" for path in lost(resource, taken, kind)]
    print("\n".join(faults))
    print(f"{count} resources of KEDA, {len(faults)} faults")
    sys.exit(bool(faults) or count == 0)


main()
