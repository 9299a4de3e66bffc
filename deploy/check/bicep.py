"""Holds the Bicep files against a parser and data models that others wrote.

    python deploy/check/bicep.py deploy/azure

Each file is parsed with the tree-sitter grammar of Bicep. Then every property of every resource is
looked up in the models of Microsoft's own management SDK for that service: its name must exist at
that place, and where the SDK lists the values, a literal must be one of them. Parameters of modules
and of parameter files must be those that the file they name declares.

It is no compiler: types of expressions and API versions are not checked.
"""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import tree_sitter_bicep
from tree_sitter import Language, Parser

# The SDK's package for a namespace of resources, and the model that a resource type is.
MODELS = {
    "Microsoft.App/containerApps": ("appcontainers", "ContainerApp"),
    "Microsoft.App/jobs": ("appcontainers", "Job"),
    "Microsoft.App/managedEnvironments": ("appcontainers", "ManagedEnvironment"),
    "Microsoft.ApiManagement/service": ("apimanagement", "ApiManagementServiceResource"),
    "Microsoft.ApiManagement/service/apis": ("apimanagement", "ApiCreateOrUpdateParameter"),
    "Microsoft.ApiManagement/service/apis/diagnostics": ("apimanagement", "DiagnosticContract"),
    "Microsoft.ApiManagement/service/apis/operations": ("apimanagement", "OperationContract"),
    "Microsoft.ApiManagement/service/apis/policies": ("apimanagement", "PolicyContract"),
    "Microsoft.ApiManagement/service/loggers": ("apimanagement", "LoggerContract"),
    "Microsoft.Authorization/roleAssignments": (
        "authorization/v2022_04_01",
        "RoleAssignmentCreateParameters",
    ),
    "Microsoft.CognitiveServices/accounts": ("cognitiveservices", "Account"),
    "Microsoft.CognitiveServices/accounts/deployments": ("cognitiveservices", "Deployment"),
    "Microsoft.ContainerInstance/containerGroups": ("containerinstance", "ContainerGroup"),
    "Microsoft.ContainerInstance/NGroups": ("containerinstance", "NGroup"),
    "Microsoft.ContainerInstance/containerGroupProfiles": (
        "containerinstance",
        "ContainerGroupProfile",
    ),
    "Microsoft.ContainerRegistry/registries": ("containerregistry", "Registry"),
    "Microsoft.DocumentDB/databaseAccounts": (
        "cosmosdb",
        "DatabaseAccountCreateUpdateParameters",
    ),
    "Microsoft.DocumentDB/databaseAccounts/sqlDatabases": (
        "cosmosdb",
        "SqlDatabaseCreateUpdateParameters",
    ),
    "Microsoft.DocumentDB/databaseAccounts/sqlDatabases/containers": (
        "cosmosdb",
        "SqlContainerCreateUpdateParameters",
    ),
    "Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments": (
        "cosmosdb",
        "SqlRoleAssignmentCreateUpdateParameters",
    ),
    "Microsoft.Insights/components": (
        "applicationinsights/v2020_02_02",
        "ApplicationInsightsComponent",
    ),
    "Microsoft.Insights/diagnosticSettings": (
        "monitor/v2021_05_01_preview",
        "DiagnosticSettingsResource",
    ),
    "Microsoft.ManagedIdentity/userAssignedIdentities": ("msi/v2018_11_30", "Identity"),
    "Microsoft.Network/natGateways": ("network", "NatGateway"),
    "Microsoft.Network/networkSecurityGroups": ("network", "NetworkSecurityGroup"),
    "Microsoft.Network/privateDnsZones": ("privatedns", "PrivateZone"),
    "Microsoft.Network/privateDnsZones/virtualNetworkLinks": ("privatedns", "VirtualNetworkLink"),
    "Microsoft.Network/privateEndpoints": ("network", "PrivateEndpoint"),
    "Microsoft.Network/privateEndpoints/privateDnsZoneGroups": ("network", "PrivateDnsZoneGroup"),
    "Microsoft.Network/publicIPAddresses": ("network", "PublicIPAddress"),
    "Microsoft.Network/virtualNetworks": ("network", "VirtualNetwork"),
    "Microsoft.OperationalInsights/workspaces": ("loganalytics", "Workspace"),
    "Microsoft.ServiceBus/namespaces": ("servicebus", "SBNamespace"),
    "Microsoft.ServiceBus/namespaces/queues": ("servicebus", "SBQueue"),
    "Microsoft.Storage/storageAccounts": ("storage", "StorageAccountCreateParameters"),
    "Microsoft.Web/serverfarms": ("web", "AppServicePlan"),
    "Microsoft.Web/sites": ("web", "Site"),
    "Microsoft.Web/sites/sitecontainers": ("web", "SiteContainer"),
}

# What Bicep itself adds to every resource.
OF_BICEP = {"name", "parent", "scope", "dependsOn", "location", "tags"}


class Sdk:
    """The models of one SDK package, read from its source without running it."""

    def __init__(self, package: str):
        folder = Path(importlib.util.find_spec("azure.mgmt").submodule_search_locations[0])
        folder = folder / package / "models"
        self.classes = {}
        self.enums = {}
        for file in sorted(folder.glob("_models*.py")) + sorted(folder.glob("*_enums.py")):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    self._take(node)

    def _take(self, node: ast.ClassDef):
        bases = [ast.unparse(base).split(".")[-1] for base in node.bases]
        if any("Enum" in base for base in bases) or "CaseInsensitiveEnumMeta" in ast.dump(node):
            self.enums[node.name] = {
                item.value.value
                for item in node.body
                if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
            }
            return
        fields = {}
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and "rest_" in ast.unparse(item.value or item):
                name = item.target.id
                for keyword in getattr(item.value, "keywords", []):
                    if keyword.arg == "name":
                        name = keyword.value.value
                fields[name] = ast.unparse(item.annotation)
            elif isinstance(item, ast.Assign) and item.targets[0].id == "_attribute_map":
                for attribute in ast.literal_eval(item.value).values():
                    self._take_flattened(node.name, fields, attribute)
        self.classes[node.name] = (fields, bases)

    def _take_flattened(self, owner: str, fields: dict, attribute: dict):
        """Older models write `properties.x` for a property of a property."""
        path = re.split(r"(?<!\\)\.", attribute["key"])
        for outer in path[:-1]:
            inner = f"{owner}/{outer}"
            fields.setdefault(outer, inner)
            fields, _ = self.classes.setdefault(inner, ({}, []))
            owner = inner
        fields[path[-1].replace("\\", "")] = attribute["type"]

    def fields(self, name: str) -> dict:
        own, bases = self.classes.get(name, ({}, []))
        found = {}
        for base in bases:
            if base != name:
                found |= self.fields(base)
        return found | own

    def known(self, annotation: str, among: dict) -> str | None:
        """The model or enumeration that an annotation such as `Optional[list['_models.X']]` names.
        Subclasses of it are told apart by a property, so all that any of them has is taken."""
        words = re.findall(r"[\w/]+", annotation)
        return next((word for word in reversed(words) if word in among), None)

    def with_subclasses(self, name: str) -> dict:
        found = self.fields(name)
        for other, (_, bases) in self.classes.items():
            if name in bases and other != name:
                found |= self.with_subclasses(other)
        return found


def text(node) -> str:
    return node.text.decode()


def children(node, kind: str):
    return [child for child in node.children if child.type == kind]


class File:
    def __init__(self, path: Path):
        self.path = path
        self.faults = []
        source = path.read_text(encoding="utf-8")
        if path.suffix == ".bicepparam":
            # The grammar knows no assignments to parameters; what stands right of them is the same.
            source = re.sub(r"^param (\w+) =", r"var \1 =", source, flags=re.M)
        parser = Parser(Language(tree_sitter_bicep.language()))
        self.root = parser.parse(source.encode()).root_node
        self._find_errors(self.root)
        self.variables = {}
        for node in children(self.root, "variable_declaration"):
            self.variables[text(node.children[1])] = node.children[-1]

    def fault(self, node, what: str):
        self.faults.append(f"{self.path}:{node.start_point[0] + 1}: {what}")

    def _find_errors(self, node):
        if node.type == "ERROR" or node.is_missing:
            self.fault(node, f"no Bicep: {text(node)[:60]!r}")
        for child in node.children:
            self._find_errors(child)

    def parameters(self) -> dict:
        """Each parameter, and whether it needs a value."""
        found = {}
        for node in children(self.root, "parameter_declaration"):
            found[text(children(node, "identifier")[0])] = "=" not in [
                child.type for child in node.children
            ]
        return found

    def objects(self, node):
        """The objects that an expression may be, variables followed one step."""
        if node.type == "object":
            return [node]
        if node.type == "for_statement":
            # What is looped over is no part of what comes of it.
            return self.objects(node.named_children[-1])
        if node.type == "identifier" and text(node) in self.variables:
            return self.objects(self.variables[text(node)])
        if node.type in ("member_expression", "subscript_expression", "string", "property_identifier"):
            return []
        return [found for child in node.children for found in self.objects(child)]

    def properties(self, node):
        for item in children(node, "object_property"):
            yield text(item.children[0]).strip("'"), item, item.children[-1]


def check_value(file: File, sdk: Sdk, node, annotation: str, path: str):
    model = sdk.known(annotation, sdk.classes)
    if model and sdk.fields(model):
        for found in file.objects(node):
            check_object(file, sdk, found, model, path)
    enum = sdk.known(annotation, sdk.enums)
    if enum and node.type == "string" and "$" not in text(node):
        value = text(node).strip("'")
        if value.lower() not in {str(known).lower() for known in sdk.enums[enum]}:
            file.fault(node, f"{path}: '{value}' is none of {sorted(sdk.enums[enum])}")


def check_object(file: File, sdk: Sdk, node, model: str, path: str):
    fields = sdk.with_subclasses(model)
    for name, item, value in file.properties(node):
        if name.startswith("'") or "$" in name:
            continue
        if name not in fields:
            file.fault(item, f"{path}.{name}: {model} of the SDK has {sorted(fields)}")
            continue
        check_value(file, sdk, value, fields[name], f"{path}.{name}")


def check_resources(file: File, sdks: dict) -> int:
    count = 0
    for node in children(file.root, "resource_declaration"):
        kind, _, _version = text(children(node, "string")[0]).strip("'").partition("@")
        if kind not in MODELS:
            file.fault(node, f"{kind}: which model of the SDK is it? Add it to MODELS")
            continue
        package, model = MODELS[kind]
        if package not in sdks:
            sdks[package] = Sdk(package)
        sdk = sdks[package]
        if model not in sdk.classes:
            file.fault(node, f"{kind}: the SDK has no model {model}")
            continue
        fields = sdk.with_subclasses(model)
        bodies = file.objects(node.children[-1])
        for name, item, value in (found for body in bodies[:1] for found in file.properties(body)):
            count += 1
            if name in fields:
                check_value(file, sdk, value, fields[name], f"{kind}.{name}")
            elif name not in OF_BICEP:
                file.fault(item, f"{kind}.{name}: {model} of the SDK has {sorted(fields)}")
    return count


def check_given(file: File, node, given: set, declared: dict, what: str):
    for name in sorted(given - declared.keys()):
        file.fault(node, f"{what} has no parameter {name}")
    for name in sorted(name for name, needed in declared.items() if needed and name not in given):
        file.fault(node, f"{what} needs the parameter {name}")


def check_modules(file: File, files: dict):
    for node in children(file.root, "module_declaration"):
        target = (file.path.parent / text(children(node, "string")[0]).strip("'")).resolve()
        if target not in files:
            file.fault(node, f"there is no {target}")
            continue
        body = file.objects(node.children[-1])[0]
        values = {name: value for name, _, value in file.properties(body)}
        given = set()
        if "params" in values:
            given = {name for name, _, _ in file.properties(values["params"])}
        check_given(file, node, given, files[target].parameters(), target.name)


def main():
    folder = Path(sys.argv[1])
    paths = sorted(folder.rglob("*.bicep")) + sorted(folder.rglob("*.bicepparam"))
    files = {path.resolve(): File(path) for path in paths}
    sdks = {}
    resources = 0
    for path, file in files.items():
        if path.suffix == ".bicepparam":
            using = children(file.root, "using_statement")[0]
            target = (path.parent / text(children(using, "string")[0]).strip("'")).resolve()
            check_given(file, using, set(file.variables), files[target].parameters(), target.name)
        else:
            check_resources(file, sdks)
            resources += len(children(file.root, "resource_declaration"))
            check_modules(file, files)
    faults = [fault for file in files.values() for fault in file.faults]
    print("\n".join(faults))
    print(f"{len(files)} Bicep files, {resources} resources, {len(faults)} faults")
    sys.exit(bool(faults))


main()
