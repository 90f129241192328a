"""What operators copy holds: the unit, the dashboard and the alerts name what a node really has."""

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from api.errors import STATUSES
from ledger.store import writequeue
from node import sealer, server
from node.cli import cli
from node.cli.keys import keys
from node.gauges import NodeState, StateCollector
from node.metrics import NodeMetrics
from node.sync import syncer
from tests.market_node import MarketNode
from tests.test_configuration import parse
from tests.test_metrics import outcome, progress, samples

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs/operations"
UNIT = FOLDER / "aitbc.service"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))
GUIDE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
NAME = re.compile(r"\b(?:aitbc|process)_[a-z_]+\b")
SELECTOR = re.compile(r"(\w+)\{([^}]*)\}")
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""


@pytest.fixture(scope="module")
def exposed(tmp_path_factory):
    """Every sample of a node that has done a little of everything."""
    market = MarketNode(tmp_path_factory.mktemp("market"))
    metrics = NodeMetrics(release="1", mode="strict", role="authority")
    state = NodeState(
        chain=market.chain,
        market=market.store,
        clock_ms=lambda: market.now_ms,
        sync=progress,
        waiters={"work": lambda: 0, "job": lambda: 0, "block": lambda: 0},
    )
    metrics.registry.register(StateCollector(state))
    for code, status in STATUSES.items():
        metrics.note_request(outcome(status=status, error_code=code))
    metrics.note_request(outcome())
    for event in ("submitted", "claimed", "completed", "cancelled", "requeued"):
        metrics.note_job(event, "")
    metrics.note_job("failed", "miner_error")
    found = samples(metrics.render())
    market.close()
    return found


def expressions() -> list[str]:
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [*shown, *(rule["expr"] for rule in rules())]


def panels() -> list[dict]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def rules() -> list[dict]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


# --- metrics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_metrics_and_labels_that_exist(expression, exposed):
    names = {name for name, _ in exposed}
    used = set(NAME.findall(expression))
    assert used or expression == 'up{job="aitbc"} == 0'
    assert used <= names
    labels = {label for _, pairs in exposed for label, _ in pairs} | SCRAPED
    for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        assert set(grouped.split(", ")) <= labels
    for name, selector in SELECTOR.findall(expression):
        wanted = dict(re.findall(r'(\w+)=~?"([^"]*)"', selector))
        own = {label: text for label, text in wanted.items() if label not in SCRAPED}
        assert name == "up" or any(
            name == known and own.items() <= dict(pairs).items() for known, pairs in exposed
        )


def test_every_metric_of_ours_is_shown_and_explained(exposed):
    shown = {name for expression in expressions() for name in NAME.findall(expression)}
    for name, _ in exposed:
        if name.startswith("aitbc_"):
            family = re.sub(r"_(?:sum|count|bucket)$", "", name)
            assert shown & {name, f"{family}_bucket"}, f"{name} is on no panel"
            assert f"`{family}`" in GUIDE, f"{name} is not explained"


def test_the_guide_names_no_metric_that_is_not_there(exposed):
    known = {name for name, _ in exposed}
    known |= {name.removesuffix("_bucket") for name in known}
    assert set(re.findall(r"\baitbc_[a-z_]+\b", GUIDE)) <= known


def test_every_alert_says_what_it_means():
    for rule in rules():
        assert rule["annotations"]["summary"]
        assert f"| {rule['alert']} |" in GUIDE
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_the_panels_of_the_dashboard_have_ids_and_places_of_their_own():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels())


# --- the unit ---------------------------------------------------------------------------------


def read_unit() -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, strict=True, delimiters=("=",))
    parser.optionxform = str
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return {name: dict(parser[name]) for name in parser.sections()}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path):
    # The paths are those of an installation; a checkout somewhere else stands in for it here.
    copy = tmp_path / "aitbc.service"
    copy.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/aitbc/aitbc", "/bin/true"))
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_the_unit_starts_a_node_with_options_that_exist():
    launcher, name, *arguments = read_unit()["Service"]["ExecStart"].split()
    assert Path(launcher).name == "aitbc"
    params = parse(name, arguments).params
    assert params["mode"] == "strict"
    assert str(params["data"]) == "/var/lib/aitbc"


def test_the_unit_may_write_its_data_directory_and_nothing_else():
    service = read_unit()["Service"]
    assert service["ReadWritePaths"] == "/var/lib/aitbc"
    assert service["User"] not in {"", "root"}
    assert (service["ProtectSystem"], service["CapabilityBoundingSet"]) == ("strict", "")
    for switch in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices"):
        assert service[switch] == "yes"


def test_the_unit_waits_as_long_as_a_node_may_take_to_end():
    longest_s = (
        server.SHUTDOWN_S
        + syncer._JOIN_TIMEOUT_S
        + sealer._JOIN_TIMEOUT_S
        + 2 * writequeue.JOIN_TIMEOUT_S
    )
    assert int(read_unit()["Service"]["TimeoutStopSec"]) > longest_s


def test_the_unit_allows_as_many_files_as_a_node_uses():
    assert int(read_unit()["Service"]["LimitNOFILE"]) == server.MAX_OPEN_FILES


def test_the_example_options_of_the_guide_exist():
    names = {parameter.name for parameter in cli.commands["run"].params}
    for block in re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL):
        assert set(re.findall(r"^(\w+) =", block, re.MULTILINE)) <= names
    assert "list" in keys.commands
