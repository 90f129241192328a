"""docs/configuration.md is complete and true: held against the commands and what they take."""

import re

import click
import pytest

from node.cli import cli
from scripts.configuration import FILE, list_tables, rewrite

TEXT = FILE.read_text(encoding="utf-8")
COMMANDS = ("run", "miner", "up", "network")
ROW = re.compile(r"^\| `(--[^`]+)` \| (?:`(\w+)`)? \| `(\w+)` \| (.*?) \| (.*) \|$", re.MULTILINE)
REQUIRED = {"miner": ["--keyfile", "key.json"]}


def section(name: str) -> str:
    return TEXT.split(f"<!-- options of {name} -->\n")[1].split("<!-- end -->")[0]


def sample(option: click.Option) -> str:
    """A value that is not the default."""
    if isinstance(option.type, click.Choice):
        return str(option.type.choices[-1])
    if isinstance(option.type, (click.IntRange, click.FloatRange)):
        value = int(option.type.min or 0) + 6
        return str(value if option.type.max is None else min(value, int(option.type.max)))
    if option.is_flag:
        return "false" if option.default is True else "true"
    return "given"


def read(name: str, *, defaults: dict | None = None) -> dict:
    return parse(name, list(REQUIRED.get(name, ())), default_map=defaults).params


def parse(name: str, arguments: list[str], **settings) -> click.Context:
    """What a command has read, below the group: a command remembers how it was first called."""
    group = click.Context(cli, **cli.context_settings)
    with cli.commands[name].make_context(name, arguments, parent=group, **settings) as context:
        return context


CASES = [
    pytest.param(name, *match.groups()[:3], id=f"{name} {match[1]}")
    for name in COMMANDS
    for match in ROW.finditer(section(name))
]


def test_the_tables_are_those_of_the_commands_now():
    assert rewrite(TEXT) == TEXT, "write them anew: python -m scripts.configuration"
    assert list_tables(TEXT) == ["aitbc", *COMMANDS]


def test_a_missing_or_wrong_row_is_noticed():
    rows = [match[0] for match in ROW.finditer(TEXT)]
    assert len(rows) > 30
    for row in rows:
        for broken in ("", row.replace("--", "--other-")):
            assert rewrite(TEXT.replace(row, broken, 1)) == TEXT


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_that_is_not_hidden_has_its_row(name):
    documented = {flag for row in ROW.findall(section(name)) for flag in row[0].split("/")}
    taken = {
        flag
        for option in cli.commands[name].params
        if isinstance(option, click.Option) and not option.hidden
        for flag in [*option.opts, *option.secondary_opts]
    }
    assert documented == taken


def test_a_witness_takes_what_run_takes():
    assert cli.commands["witness"].params == cli.commands["run"].params
    assert "the options of `run`" in TEXT


@pytest.mark.parametrize(("name", "flags", "variable", "key"), CASES)
def test_a_variable_and_a_key_of_the_file_set_what_their_row_says(
    name, flags, variable, key, monkeypatch
):
    option = next(o for o in cli.commands[name].params if flags.split("/")[0] in o.opts)
    plain, given = read(name), sample(option)
    if variable:
        monkeypatch.setenv(variable, given)
        changed = read(name)
        monkeypatch.delenv(variable)
        # The flag of an option that is required is given, and counts more.
        assert option.required or changed[key] != plain[key]
        assert {k: v for k, v in changed.items() if k != key} == {
            k: v for k, v in plain.items() if k != key
        }
    from_file = read(name, defaults={key: [given] if option.multiple else given})
    assert option.required or from_file[key] != plain[key]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_stated_default_is_what_the_command_uses(name):
    plain = read(name)
    for _, _, key, default, _ in ROW.findall(section(name)):
        stated = re.fullmatch(r"`(.*)`", default)
        if stated:
            assert str(plain[key]) == stated[1]
        elif default == "on":
            assert plain[key] is True
        elif default in {"", "required"}:
            assert default == "required" or plain[key] in {None, (), "", False}
        else:
            assert plain[key] is None, "what depends on the mode is decided later"


def test_the_example_file_is_taken(tmp_path):
    example = re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)[1]
    path = tmp_path / "aitbc.toml"
    path.write_text(example)
    with cli.make_context("aitbc", ["--config", str(path), "run"]) as context:
        context.invoke(cli.callback, config=path)
        params = read("run", defaults=context.default_map["run"])
    assert params["trusted_proxies"] == ("10.0.0.2",)
    assert (params["port"], params["mode"], params["access_log"]) == (9000, "strict", True)
