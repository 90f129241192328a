"""docs/api.md says what is so: its commands run, its answers are those of a real node.

`tests/api_story.py` tells the rules that a block has to keep.
"""

import json
import os
import re
import select
import shutil

import pytest

from tests import api_story
from tests.api_story import FENCE, ROOT, Story, compare, judge, read_blocks, split_commands
from tests.live import LiveNode

TEXT = (ROOT / "docs/api.md").read_text("utf-8")
BLOCKS = read_blocks(TEXT)
HEADING = re.compile(r"^#{1,4} (.+)$")
PROSE = FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), TEXT)
CURL = shutil.which("curl")
END_S = 30
KEYS = {"client_key": "client", "miner_key": "miner", "admin_key": "admin"}


def heading_of(line: int) -> str:
    """The heading that a line stands under, for the name of a test."""
    return [match[1] for text in PROSE.splitlines()[:line] if (match := HEADING.match(text))][-1]


@pytest.fixture(scope="module", name="story")
def start_story(tmp_path_factory):
    assert CURL, "the lines of docs/api.md need curl: run make browser as root, or install it"
    folder = tmp_path_factory.mktemp("story")
    # The webhook of the story leads to this machine, as it may on the node that a reader runs.
    node = LiveNode(folder / "data", "--mode", "strict", "--webhook-allow-private")
    keys = {name: node.create_key(role, role) for name, role in KEYS.items()}
    node.start()
    connection = {"url": node.url, **keys, "genesis": str(node.data.genesis), "pids": {}}
    node.data.connection.write_text(json.dumps(connection))
    story = Story(BLOCKS, folder, curl=CURL)
    try:
        yield story
    finally:
        story.close()
        assert node.stop() == 0


@pytest.mark.parametrize(
    "position",
    range(len(BLOCKS)),
    ids=[f"{heading_of(block.line)}, line {block.line}" for block in BLOCKS],
)
def test_a_block_does_what_the_document_says(story, position):
    problems = story.tell(position)
    assert problems == [], f"docs/api.md, line {BLOCKS[position].line}:\n" + "\n".join(problems)


def test_every_json_block_is_an_answer_to_the_commands_above_it():
    shown = [fence[2] for fence in FENCE.finditer(TEXT) if fence[1] == "json"]
    assert shown
    assert shown == [block.shown for block in BLOCKS if block.shown is not None]


def test_every_fenced_block_says_what_it_is():
    assert {fence[1] for fence in FENCE.finditer(TEXT)} <= {"sh", "json", "text", "python", "js"}


def test_every_link_into_the_document_has_a_heading():
    titles = [match[1] for line in PROSE.splitlines() if (match := HEADING.match(line))]
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    linked = set(re.findall(r"\]\(#([^)]+)\)", PROSE))
    assert linked <= anchors


# --- the harness itself ---------------------------------------------------------------------------


def test_commands_are_whole_however_many_lines_they_have():
    text = "A=1\n# a remark\ncurl x \\\n  -d 'y'  # 409\n\nfor n in 1 2; do\n  echo $n\ndone\n"
    assert split_commands(text) == [
        "A=1",
        "curl x \\\n  -d 'y'  # 409",
        "for n in 1 2; do\n  echo $n\ndone",
    ]


@pytest.mark.parametrize(
    ("command", "exit_status", "statuses", "count"),
    [
        ("curl x", 0, [200], 0),
        ("curl x", 0, [202, 204], 0),
        ("curl x", 0, [409], 1),
        ("curl x", 0, [None], 1),
        ("curl x", 6, [None], 2),
        ("curl x  # 409", 0, [409], 0),
        ("curl x  # 409", 0, [200], 1),
        ("curl x  # 409", 0, [], 1),
        ("curl x  # 200 or 202", 0, [202], 0),
        ("curl 'x # 409'", 0, [409], 1),
        ("./aitbc x", 0, [], 0),
        ("./aitbc x", 1, [], 1),
    ],
)
def test_a_command_is_held_to_its_exit_and_to_the_status_that_is_named(
    command, exit_status, statuses, count
):
    assert len(judge(command, exit_status, statuses)) == count


@pytest.mark.parametrize(
    ("shown", "answer", "count"),
    [
        ('{"a": 1}', '{"a": 2}', 0),
        ('{"a": 1}', '{"a": 2.5}', 0),
        ('{"a": 1}', '{"a": "x"}', 1),
        ('{"a": 1}', '{"a": true}', 1),
        ('{"a": 1}', '{"b": 1}', 2),
        ('{"a": "…"}', '{"a": {"b": 1}}', 0),
        ('{"…": "…"}', '{"b": 1}', 0),
        ('[{"a": 1}]', '[{"a": 1}, {"b": 1}]', 2),
        ('["…"]', '[{"a": 1}]', 0),
        ('["…"]', "[]", 1),
        ("[]", '[{"a": 1}]', 0),
        ('{"a": 1}', "oops", 1),
    ],
)
def test_an_answer_is_held_to_the_keys_and_types_that_are_shown(shown, answer, count):
    assert len(compare(shown, answer)) == count


def test_a_story_keeps_variables_functions_and_files_and_says_what_went_wrong(tmp_path):
    text = (
        "```sh\nA='x y'\nsay() { printf '%s' \"$1\"; }\n```\n"
        '```sh\nsay "$A" > note\n```\n'
        "```sh\ntest \"$(cat note)\" = 'x y'\n```\n"
        "```sh\necho oh no; exit 3\n```\n"
        "```sh\ncurl -s file:///dev/null\n```\n"
    )
    story = Story(read_blocks(text), tmp_path, curl=CURL or "curl")
    assert [story.tell(n) for n in range(3)] == [[], [], []]
    assert story.tell(3) == ["echo oh no; exit 3\n  exit status 3\n  oh no"]
    (problem,) = story.tell(4)
    assert "answered nothing, the document says 2xx" in problem


def test_what_a_command_leaves_running_ends_with_the_story(tmp_path):
    blocks = read_blocks("```sh\nsleep 1000 & ID=$!\n```\n```sh\nkill -0 $ID\n```\n")
    story = Story(blocks, tmp_path, curl=CURL or "curl")
    assert [story.tell(0), story.tell(1)] == [[], []]
    left = os.pidfd_open(int(story.variable("ID")))
    story.close()
    assert select.select([left], [], [], END_S)[0], "a process that ended makes this readable"
    os.close(left)


def test_a_command_that_takes_too_long_is_ended_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(api_story, "COMMAND_TIMEOUT_S", 0.5)
    story = Story(
        read_blocks("```sh\necho begun; sleep 1000\n```\n"), tmp_path, curl=CURL or "curl"
    )
    (problem,) = story.tell(0)
    assert "took longer than 0.5 s" in problem
    assert "begun" in problem
