"""The node beside its peers: what is compared, the table, the plots. How fast, no test says."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from xml.etree import ElementTree as ET

import pytest

from scripts.bench_figures.measure import read_cpu_s
from scripts.bench_figures.usage import read_tree_cpu_s
from scripts.bench_peers import __main__ as command
from scripts.bench_peers import peers, servers, work
from scripts.bench_peers.peers import Turn, open_node
from scripts.bench_peers.plots import draw_all
from scripts.bench_peers.servers import PeerError, find_port, run_server, wait_for_port
from scripts.bench_peers.table import FIGURES, build_rows, format_markdown, format_text
from scripts.bench_peers.work import Order, Report, answer, drive

BURN = "import time\nuntil = time.process_time() + {}\nwhile time.process_time() < until: pass\n"
PARENT = (
    "import subprocess, sys\nsubprocess.run([sys.executable, '-c', {!r}])\n"
    "print('ended', flush=True)\ninput()\n"
)


def turn(per_second: float, server: float = 100, driver: float = 50) -> Turn:
    return Turn(per_second=per_second, server_micros=server, driver_micros=driver)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(work, "WARM_UP_S", 0.05)


# --- the table ----------------------------------------------------------------------------------


def test_a_row_compares_turns_of_one_round_and_says_whether_the_goal_is_met():
    turns = {
        "node": [turn(700), turn(80), turn(900)],
        "arq-always": [turn(100, 900), turn(10, 900), turn(200, 900)],
        "web": [turn(350, 250), turn(100, 250), turn(450, 250)],
    }
    arq, web = build_rows(turns)
    assert (arq.ours, arq.theirs, arq.ratio, arq.goal) == (700, 100, 7, 7)
    assert (arq.ours_micros, arq.theirs_micros) == (150, 950)
    text = format_text([arq, web]).splitlines()
    assert len(text) == 3
    assert [line.split()[0] for line in text[1:]] == ["job", "job"]
    assert "yes" in text[1]
    assert not {"yes", "no", ">="} & set(text[2].split()), "no goal"
    assert "no" in format_text(build_rows(turns | {"arq-always": [turn(101)] * 3})).splitlines()[1]


def test_peers_that_were_not_measured_have_no_row():
    assert build_rows({"node": [turn(1)], "anvil": [turn(1)]}) == []
    assert [row.peer for row in build_rows({"records": [turn(4)], "anvil": [turn(1)]})] == [
        "anvil, a block a second"
    ]


class Taken:
    def __enter__(self):
        return object()

    def __exit__(self, *_):
        pass


class Both(Taken):
    def __enter__(self):
        return object(), object()


class Missing(Taken):
    def __enter__(self):
        raise PeerError("it is missing")


def test_every_figure_is_measured_and_every_turn_is_in_a_figure(monkeypatch):
    for name in ("open_arq", "open_celery", "open_procrastinate", "open_web", "open_anvil"):
        monkeypatch.setattr(command, name, lambda *_: Taken())
    monkeypatch.setattr(command, "open_node", lambda *_: Both())
    with command.ExitStack() as stack:
        takes = set(command.open_takes(servers.ROOT, command.PEERS, stack))
    assert takes == {name for figure in FIGURES for name in (figure.ours, figure.theirs)}


def test_a_peer_that_fails_has_no_turns_and_the_others_have_theirs(monkeypatch, tmp_path, capsys):
    def fail(*_):
        raise PeerError("it hangs")

    tries = iter([fail, *[lambda: turn(1)] * 3])
    takes = {"node": lambda *_: turn(2), "web": lambda *_: next(tries)(), "anvil": fail}

    def open_takes(*_):
        return takes

    monkeypatch.setattr(command, "open_takes", open_takes)
    turns = command.take_turns(tmp_path, command.PEERS, 2, 0.1)
    assert {name: len(taken) for name, taken in turns.items()} == {"node": 2, "web": 2, "anvil": 0}
    said = capsys.readouterr().err
    assert "web failed, and has another turn: it hangs" in said
    assert "anvil is not measured: it hangs" in said
    monkeypatch.undo()
    monkeypatch.setattr(command, "open_node", lambda *_: Both())
    monkeypatch.setattr(command, "open_web", lambda *_: Missing())
    with command.ExitStack() as stack:
        assert list(command.open_takes(tmp_path, ["web"], stack)) == ["node"]


def test_documents_and_plots_hold_every_row():
    names = {name for figure in FIGURES for name in (figure.ours, figure.theirs)}
    rows = build_rows({name: [turn(10)] for name in names})
    assert len(rows) == len(FIGURES)
    assert len(format_markdown(rows).splitlines()) == len(rows) + 2
    plots = draw_all(rows)
    bars = 0
    for text in plots.values():
        root = ET.fromstring(text)
        bars += sum(element.tag.endswith("rect") for element in root.iter())
    assert bars == 2 * 7 + 2, "six peers and the node twice, one peer and the node once"
    assert all("&" not in text.replace("&amp;", "") for text in plots.values())


# --- turns --------------------------------------------------------------------------------------


def test_a_driver_counts_the_life_cycles_after_its_warm_up(quick, capsys):
    done = []

    async def cycle() -> None:
        await asyncio.sleep(0)
        done.append(time.perf_counter())

    report = asyncio.run(drive([cycle] * 3, 0.05))
    assert 0 < report.count < len(done)
    assert report.seconds >= 0.05
    assert capsys.readouterr().out == "begin\n"


def test_the_work_of_every_job_is_its_answer():
    assert answer("why", "model", 1)["text"] == work.TEXT
    for wrong in (("", "model", 1), ("why", "", 1), ("why", "model", 0)):
        with pytest.raises(ValueError, match="without a prompt"):
            answer(*wrong)


@pytest.mark.parametrize(
    "script",
    ["", "print('begin')\nraise SystemExit(1)", "print('{}')"],
    ids=["silent", "failing", "without begin"],
)
def test_a_driver_that_fails_is_no_result(monkeypatch, script):
    monkeypatch.setattr(peers, "_build_command", lambda *_: [sys.executable, "-c", script])
    order = Order(address="", connections=1, seconds=0.1)
    with pytest.raises(PeerError, match="failed"):
        peers.drive(sys.executable, "node_driver", order, [])


def test_a_turn_spreads_what_servers_spent_after_the_warm_up(monkeypatch):
    report = Report(count=4, seconds=2, cpu_s=0.002)
    said = json.dumps({"count": report.count, "seconds": report.seconds, "cpu_s": report.cpu_s})
    script = f"print('begin')\nprint({said!r})"
    monkeypatch.setattr(peers, "_build_command", lambda *_: [sys.executable, "-c", script])

    class Spender:
        looks = 0

        @property
        def cpu_s(self) -> float:
            self.looks += 1
            return self.looks * 0.001

    taken = peers.drive(
        sys.executable, "any", Order(address="", connections=1, seconds=1), [Spender(), Spender()]
    )
    assert taken.per_second == 2
    assert taken.server_micros == pytest.approx(500)
    assert taken.driver_micros == pytest.approx(500)


def test_a_node_takes_turns_of_life_cycles_and_of_records(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "RECORDS", 8)
    with open_node(tmp_path) as (cycles, records):
        for taken in (cycles(2, 0.2), records(2, 0.2)):
            assert taken.per_second > 0
            assert taken.server_micros > 0
            assert taken.driver_micros > 0


# --- servers ------------------------------------------------------------------------------------


def test_processor_time_counts_children_alive_and_ended():
    script = PARENT.format(BURN.format(0.3))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        while read_tree_cpu_s(process.pid) < 0.2:
            time.sleep(0.01)
        alive_s = read_cpu_s(process.pid)
        assert process.stdout.readline() == b"ended\n"
        assert read_tree_cpu_s(process.pid) >= 0.3
        assert alive_s <= read_cpu_s(process.pid) < 0.2, "its own is little"
        process.communicate(b"\n")
    assert read_tree_cpu_s(process.pid) == 0


def test_a_server_that_does_not_start_says_why(tmp_path):
    log = tmp_path / "broken.log"
    script = "import sys; print('no such option'); sys.exit(2)"
    with (
        run_server([sys.executable, "-c", script], log) as server,
        pytest.raises(PeerError, match="broken does not start: no such option"),
    ):
        wait_for_port(server, find_port(), log)


def test_sigterm_ends_what_was_started(tmp_path, monkeypatch):
    ended = []

    @contextmanager
    def open_takes(*_):
        try:
            signal.raise_signal(signal.SIGTERM)
            yield {}
        finally:
            ended.append(True)

    monkeypatch.setattr(
        command, "open_takes", lambda _f, _p, stack: stack.enter_context(open_takes())
    )
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            command.main(["--only", "arq"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (caught.value.code, ended) == (command.TERMINATED, [True])


def test_a_server_ends_with_its_context(tmp_path):
    log, port = tmp_path / "web.log", find_port()
    command_line = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with run_server(command_line, log) as server:
        wait_for_port(server, port, log)
        assert not server.has_ended
    assert server.has_ended


def test_peers_that_are_not_installed_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "ANVIL", tmp_path / "anvil")
    monkeypatch.setattr(servers, "POSTGRES", tmp_path)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    for open_server in (
        lambda: servers.run_redis(tmp_path, "always"),
        lambda: servers.run_postgres(tmp_path),
        lambda: servers.run_anvil(tmp_path, 1),
    ):
        with pytest.raises(PeerError, match="missing"), open_server():
            raise AssertionError("it ran")
