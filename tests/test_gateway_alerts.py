"""The dashboard and the alert rules of recipes/gateway: they name metrics that the gateway has, and promtool runs the
rules' own tests where it is installed (`make setup-promtool`)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from motes.gateway.admission import Admission
from motes.gateway.metrics import Metrics

HERE = Path(__file__).parents[1] / "recipes/gateway"
DASHBOARD: dict[str, Any] = json.loads((HERE / "grafana.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((HERE / "alerts.yaml").read_text())["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = [*(target["expr"] for target in TARGETS), *(rule["expr"] for rule in RULES)]
OF_PROMETHEUS = {"job", "instance", "le"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: make setup-promtool, as root on Debian"
)


def metrics() -> dict[str, set[str]]:
    """The labels of each metric of the gateway, by the names that queries use."""
    registry = Metrics(Admission(1, 1)).registry
    labels = {
        name: set(getattr(collector, "_labelnames", ()))
        for collector, names in registry._collector_to_names.items()
        for name in names
    }
    of_process = {sample.name: set(sample.labels) for family in registry.collect() for sample in family.samples}
    return {**of_process, **labels, "motes_build_info": {"version"}}


def test_every_metric_and_label_exists():
    known = metrics()
    shown: set[str] = set()
    for place, expression in enumerate(EXPRESSIONS):
        labels = set(OF_PROMETHEUS)
        for name, matchers in re.findall(r"\b((?:motes|process|python)_\w+)(\{[^}]*\})?", expression):
            assert name in known, f"{name} in {expression}"
            shown |= {name} if place < len(TARGETS) else set()
            labels |= known[name]
            named = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert named <= known[name] | OF_PROMETHEUS, expression
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            assert set(group.split(", ")) <= labels, expression
    for target in TARGETS:
        names = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        groups = re.findall(r"\bby \(([^)]*)\)", target["expr"])
        assert not groups or names <= set(groups[-1].split(", ")), target
    own = {name for name in known if name.startswith("motes_") and not name.endswith("_created")}
    bases = {re.sub(r"_(bucket|sum|count|total|info)$", "", name) for name in shown}
    assert {re.sub(r"_(bucket|sum|count|total|info)$", "", name) for name in own} <= bases, "the dashboard has all"


def test_the_dashboard_is_one():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "no panel covers another"
    assert max(x for x, _ in cells) == 23
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for target in TARGETS:
        assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {"__rate_interval"}
        assert target["datasource"]["uid"] == "${datasource}"


def promtool(*arguments: str) -> str:
    ended = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@needs_promtool
def test_the_rules_do_what_their_tests_say():
    assert f"{len(RULES)} rules found" in promtool("check", "rules", str(HERE / "alerts.yaml"))
    assert "SUCCESS" in promtool("test", "rules", str(HERE / "alerts_test.yaml"))


@needs_promtool
def test_the_queries_of_the_dashboard_are_queries(tmp_path):
    """promtool reads them as rules."""
    expressions = [re.sub(r"\$\w+", ".*", target["expr"].replace("$__rate_interval", "5m")) for target in TARGETS]
    rules = [{"record": f"query:{number}", "expr": expression} for number, expression in enumerate(expressions)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "rules.yaml"))


def test_every_rule_has_a_test_in_which_it_fires_and_one_in_which_it_does_not():
    tests = yaml.safe_load((HERE / "alerts_test.yaml").read_text())["tests"]
    alerts = [alert for each in tests for alert in each["alert_rule_test"]]
    fire = [alert["alertname"] for alert in alerts if "exp_alerts" in alert]
    silent = [alert["alertname"] for alert in alerts if "exp_alerts" not in alert]
    assert sorted(fire) == sorted(silent) == sorted(rule["alert"] for rule in RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
