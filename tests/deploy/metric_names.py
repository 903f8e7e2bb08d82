"""Holds every expression, and the running process, to the one list of metrics.

    metric_names.py expressions FILE…      rules (.yml) and dashboards (.json): each metric, label and recorded name
                                           that an expression uses exists
    metric_names.py scraped FILE           a saved /metrics: the list and the process say the same
    metric_names.py alerts ALERTS TESTS GUIDE   each alert has a test in which it fires and a section in the guide

Prints each problem, exit 1 when there is one.
"""

import json
import re
import sys
from pathlib import Path

import yaml

LIST = Path(__file__).with_name("metrics.txt")
# Of nodes that share a database alone; tests/process/tier.rs holds them to these.
OF_TIERS = Path(__file__).with_name("metrics-of-tiers.txt")
# What Prometheus and the scrape configuration add to every sample.
ADDED = {"job", "instance", "node", "le", "__name__"}
SUFFIXES = ("_bucket", "_sum", "_count")
NAME = re.compile(r"(?<![:\w])(egressd_\w+)(?!:)")
RECORDED = re.compile(r"\b(\w+:egressd_\w+:\w+)\b")
SELECTOR = re.compile(r"(?<![:\w])(egressd_\w+)\s*\{([^}]*)\}")
GROUPING = re.compile(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)")


def listed(*more):
    metrics = {}
    for line in (line for path in (LIST, *more) for line in path.read_text().splitlines()):
        fields = line.split("#", 1)[0].split()
        if fields:
            name, kind, *labels = fields
            metrics[name] = (kind, set(labels[0].split(",")) if labels else set())
    return metrics


def family(name, metrics):
    """The listed metric that a sample's name belongs to, or None."""
    if name in metrics:
        return None if metrics[name][0] == "histogram" else name
    for suffix in SUFFIXES:
        base = name.removesuffix(suffix)
        if base != name and metrics.get(base, ("",))[0] == "histogram":
            return base
    return None


def expressions_of(path):
    """(where, expression) of a rule file or a dashboard, and the names that a rule file records."""
    if path.suffix == ".json":

        def walk(value, where):
            if isinstance(value, dict):
                for key, inner in value.items():
                    if key == "expr" or (key == "query" and isinstance(inner, str) and "egressd" in inner):
                        yield where, inner
                    else:
                        yield from walk(inner, f"{where}/{value.get('title', key)}")
            elif isinstance(value, list):
                for inner in value:
                    yield from walk(inner, where)

        return list(walk(json.loads(path.read_text()), path.name)), set()
    found, recorded = [], set()
    for group in yaml.safe_load(path.read_text())["groups"]:
        for rule in group["rules"]:
            name = rule.get("alert") or rule["record"]
            found.append((f"{path.name}/{name}", rule["expr"]))
            if "record" in rule:
                recorded.add(rule["record"])
    return found, recorded


def check_expressions(paths):
    metrics, found, recorded = listed(OF_TIERS), [], set()
    for path in paths:
        of_file, records = expressions_of(Path(path))
        found += of_file
        recorded |= records
    known_labels = ADDED.union(*(labels for _, labels in metrics.values()))
    for where, expression in found:
        for name in NAME.findall(expression):
            if family(name, metrics) is None:
                yield f"{where}: no such metric: {name}"
        for name in RECORDED.findall(expression):
            if name not in recorded:
                yield f"{where}: no rule records {name}"
        for name, matchers in SELECTOR.findall(expression):
            base = family(name, metrics)
            allowed = ADDED | (metrics[base][1] if base else set())
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', matchers)):
                if label not in allowed:
                    yield f"{where}: {name} has no label {label}"
        for group in GROUPING.findall(expression):
            for label in filter(None, (label.strip() for label in group.split(","))):
                if label not in known_labels:
                    yield f"{where}: nothing has a label {label}"
    if not found:
        yield "no expression found"


def check_scraped(path):
    metrics, kinds, seen = listed(), {}, {}
    for line in Path(path).read_text().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            kinds[name] = kind
        elif line and not line.startswith("#"):
            name = re.match(r"\w+", line).group()
            labels = re.findall(
                r'(\w+)="(?:[^"\\]|\\.)*"',
                line.split(" ", 1)[0] if "{" not in line else line[line.index("{") : line.rindex("}")],
            )
            base = family(name, metrics) or name
            seen.setdefault(base, set()).update(set(labels) - {"le"})
    for name, kind in kinds.items():
        if not name.startswith("egressd_"):
            continue
        if name not in metrics:
            yield f"/metrics has {name} ({kind}), the list does not"
        elif metrics[name][0] != kind:
            yield f"{name} is a {kind}, the list says {metrics[name][0]}"
    for name, (kind, labels) in metrics.items():
        if name not in kinds:
            yield f"the list has {name} ({kind}), /metrics does not"
        elif name in seen and not seen[name] <= labels:
            yield f"{name} has the labels {sorted(seen[name])}, the list says {sorted(labels)}"


def check_alerts(alerts, tests, guide):
    rules = [rule for group in yaml.safe_load(Path(alerts).read_text())["groups"] for rule in group["rules"]]
    fires = {
        case["alertname"]
        for test in yaml.safe_load(Path(tests).read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case.get("exp_alerts")
    }
    sections = {
        line.removeprefix("### ").strip() for line in Path(guide).read_text().splitlines() if line.startswith("### ")
    }
    for rule in rules:
        name = rule["alert"]
        if name not in fires:
            yield f"{name}: no test in which it fires"
        if name not in sections:
            yield f"{name}: no section in {guide}"
        if rule["annotations"].get("runbook") != f"OPERATIONS.md#{name.lower()}":
            yield f"{name}: its runbook is not OPERATIONS.md#{name.lower()}"
        if rule["labels"].get("severity") not in ("critical", "warning"):
            yield f"{name}: its severity is neither critical nor warning"
    for section in sections:
        if section.startswith("Egressd") and section not in {rule["alert"] for rule in rules}:
            yield f"{guide}: {section} is no alert"


def main():
    verb, *arguments = sys.argv[1:]
    problems = list(
        {
            "expressions": lambda: check_expressions(arguments),
            "scraped": lambda: check_scraped(*arguments),
            "alerts": lambda: check_alerts(*arguments),
        }[verb]()
    )
    print("\n".join(problems))
    sys.exit(1 if problems else 0)


main()
