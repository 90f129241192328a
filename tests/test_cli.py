"""The `aitbc` command: what it does, what it refuses, and the one line it says then."""

import json
import runpy
import signal
import socket
import subprocess
import sys

import click
import httpx2
import pytest
from click.testing import CliRunner

from ledger.block import hash_genesis
from ledger.encoding import encode
from ledger.store.chain import ChainStore
from ledger.store.market import open_market
from node.cli import cli
from node.datadir import DataDirectory
from tests.builders import build_chain, build_disclosure, build_genesis
from tests.live import ROOT, LiveNode

TIMEOUT_S = 60


def aitbc(*arguments, env=None):
    """Run the command in this process."""
    return CliRunner(env=env).invoke(cli, [str(argument) for argument in arguments])


def refusal(result) -> str:
    """The one line of a refused command."""
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def run_node(*arguments, **options) -> subprocess.CompletedProcess[str]:
    """Run a node that is expected to refuse its start."""
    command = [sys.executable, "-m", "node", "run", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        **options,
    )


def one_line(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 1
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    return line


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    assert aitbc("init", "--data", root).exit_code == 0
    return DataDirectory(root)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A running node in a process of its own."""
    live = LiveNode(tmp_path_factory.mktemp("live") / "data")
    live.start()
    yield live
    assert live.stop() == 0


# --- help and configuration -------------------------------------------------------------------


def list_commands(command=cli, path=()):
    yield path
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from list_commands(child, (*path, name))


@pytest.mark.parametrize("path", list(list_commands()), ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself(path, flag):
    result = aitbc(*path, flag)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    command = cli
    for name in path:
        command = command.commands[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{' '.join(path)} {parameter.name}"


def test_the_version_is_told():
    assert aitbc("--version").stdout.startswith("aitbc 0.")


def init_network(tmp_path, *arguments, env=None, before=()) -> str:
    root = tmp_path / "made"
    result = aitbc(*before, "init", "--data", root, *arguments, env=env)
    assert result.exit_code == 0, result.output
    return DataDirectory(root).load_genesis().network


def test_a_flag_counts_more_than_a_variable_and_that_more_than_the_file(tmp_path):
    config = tmp_path / "aitbc.toml"
    config.write_text('network = "from-file"\nport = 1\n')
    given = {"before": ("--config", config)}
    variable = {"AITBC_NETWORK": "from-variable"}
    for case, (arguments, env, options, expected) in enumerate(
        (
            ((), {}, {}, "aitbc-local"),
            ((), {}, given, "from-file"),
            ((), variable, given, "from-variable"),
            (("--network", "from-flag"), variable, given, "from-flag"),
            ((), {"AITBC_CONFIG": str(config)}, {}, "from-file"),
        )
    ):
        place = tmp_path / str(case)
        place.mkdir()
        assert init_network(place, *arguments, env=env, **options) == expected


def test_the_file_reaches_the_commands_of_a_group_too(data, tmp_path):
    config = tmp_path / "aitbc.toml"
    config.write_text(f'data = "{data.root}"\nrole = "miner"\n')
    assert aitbc("--config", config, "keys", "create").stdout.startswith("aik_")
    assert " miner " in aitbc("--config", config, "keys", "list").stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prot = 8001\nhots = 'x'", "unknown keys hots, prot"),
        ("port = ", "is not TOML"),
        (b"\xff", "is not TOML"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_configuration_file_with_a_mistake_is_refused(tmp_path, content, message):
    config = tmp_path / "aitbc.toml"
    if content is not None:
        config.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refusal(aitbc("--config", config, "init", "--data", tmp_path / "data"))
    assert message in line
    assert "aitbc.toml" in line
    assert not (tmp_path / "data").exists()


def test_a_value_of_the_wrong_type_is_refused_by_its_option(tmp_path):
    config = tmp_path / "aitbc.toml"
    config.write_text("port = 'many'")
    result = aitbc("--config", config, "run", "--data", tmp_path)
    assert result.exit_code == 2
    assert "--port" in result.stderr


def test_a_value_of_the_wrong_type_in_a_data_directory_names_the_file(data):
    data.options.write_text("port = 'many'")
    line = refusal(aitbc("run", "--data", data.root))
    assert "node.toml: port: 'many' is not a valid integer" in line


def test_a_repeatable_option_whose_value_is_no_list_is_told_so(data, tmp_path):
    config = tmp_path / "aitbc.toml"
    for path, at in ((config, ("--config", config)), (data.options, ())):
        path.write_text('trusted_proxies = "127.0.0.1"')
        line = refusal(aitbc(*at, "run", "--data", data.root))
        assert f"{path}: trusted_proxies: expected a list" in line


def test_an_interrupt_before_anything_has_begun_ends_without_a_traceback(monkeypatch):
    class Interrupting:
        @staticmethod
        def find_spec(name, _path, _target=None):
            if name == "node.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "node.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupting, *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("node", run_name="__main__")
    assert ended.value.code == 130


# --- init -------------------------------------------------------------------------------------


def test_init_names_what_it_made(tmp_path):
    root = tmp_path / "data"
    result = aitbc("init", "--data", root, "--network", "my-net", "--name", "alpha")
    genesis = DataDirectory(root).load_genesis()
    assert result.exit_code == 0
    assert "network my-net" in result.stdout
    assert genesis.authority_set.members[0].account in result.stdout
    assert hash_genesis(genesis).hex() in result.stdout


def test_init_twice_is_refused(data):
    before = data.genesis.read_bytes()
    assert "is not an empty directory" in refusal(aitbc("init", "--data", data.root))
    assert data.genesis.read_bytes() == before


def test_init_refuses_an_address_that_no_peer_could_call(tmp_path):
    result = aitbc("init", "--data", tmp_path / "data", "--url", "http://host:8001x")
    assert "address of a node" in refusal(result)
    assert not (tmp_path / "data").exists()


def test_init_refuses_a_name_that_no_genesis_may_hold(tmp_path):
    line = refusal(aitbc("init", "--data", tmp_path / "data", "--network", "My Net"))
    assert "network" in line
    assert not (tmp_path / "data").exists()


# --- keys -------------------------------------------------------------------------------------


def test_keys_are_made_listed_and_revoked(data):
    key = aitbc("keys", "create", "--data", data.root, "--role", "client").stdout.strip()
    named = aitbc(
        "keys", "create", "--data", data.root, "--role", "admin", "--client", "ann"
    ).stdout.strip()
    prefix = key.split("_")[1]
    listed = aitbc("keys", "list", "--data", data.root).stdout.splitlines()
    assert {line.split()[0] for line in listed} == {
        f"aik_{k.split('_')[1]}_…" for k in (key, named)
    }
    assert key.split("_", 2)[2] not in "".join(listed)
    assert any("ann" in line and "admin" in line for line in listed)
    assert aitbc("keys", "revoke", "--data", data.root, prefix).exit_code == 0
    listed = aitbc("keys", "list", "--data", data.root).stdout.splitlines()
    assert sorted(line.split()[2] for line in listed) == ["active", "revoked"]
    assert "no active key" in refusal(aitbc("keys", "revoke", "--data", data.root, prefix))


def test_a_key_is_made_with_limits_that_are_shown_and_changed(data):
    at = ("--data", data.root)
    made = aitbc("keys", "create", *at, "--role", "client", "--max-pending", 5, "--daily-jobs", 9)
    prefix = made.stdout.split("_")[1]

    def shown() -> list[str]:
        return aitbc("keys", "list", *at).stdout.split()[4:]

    assert shown() == ["max-pending=5", "daily-jobs=9"]
    limit = ("keys", "limit", prefix, *at)
    assert aitbc(*limit, "--daily-tokens", 1000, "--daily-jobs", "none").exit_code == 0
    assert shown() == ["max-pending=5", "daily-tokens=1000"]
    assert aitbc(*limit, "--max-pending", 7).exit_code == 0
    assert shown() == ["max-pending=7", "daily-tokens=1000"]
    for wrong in ("0", "-1", "x", "1.5", str(10**13)):
        assert aitbc(*limit, "--max-pending", wrong).exit_code == 2
    nobody = refusal(aitbc("keys", "limit", "nobody", *at, "--daily-jobs", 1))
    assert "no key with prefix" in nobody
    assert "name a limit to change" in aitbc(*limit).output
    assert shown() == ["max-pending=7", "daily-tokens=1000"]


@pytest.mark.parametrize("spell", [lambda k: k, lambda k: k.split("_")[1]])
def test_a_key_is_revoked_by_any_spelling_that_is_shown(data, spell):
    key = aitbc("keys", "create", "--data", data.root, "--role", "client").stdout.strip()
    assert aitbc("keys", "revoke", "--data", data.root, spell(key)).exit_code == 0
    key = aitbc("keys", "create", "--data", data.root, "--role", "client").stdout.strip()
    (line,) = [
        line
        for line in aitbc("keys", "list", "--data", data.root).stdout.splitlines()
        if " active " in line
    ]
    assert aitbc("keys", "revoke", "--data", data.root, line.split()[0]).exit_code == 0


def test_a_holder_whom_no_receipt_can_name_is_refused(data):
    line = refusal(
        aitbc("keys", "create", "--data", data.root, "--role", "client", "--client", "Ann Smith")
    )
    assert "client name 'Ann Smith'" in line
    assert aitbc("keys", "list", "--data", data.root).stdout == ""


@pytest.mark.parametrize("command", [("create", "--role", "client"), ("list",), ("revoke", "x")])
def test_keys_of_a_directory_that_is_none_are_refused_and_nothing_is_made(tmp_path, command):
    root = tmp_path / "data"
    assert "aitbc init" in refusal(aitbc("keys", *command, "--data", root))
    assert not root.exists()


# --- a running node ---------------------------------------------------------------------------


def test_a_running_node_takes_a_new_key_at_once_and_a_revoked_one_no_more(node):
    made = aitbc("keys", "create", "--data", node.data.root, "--role", "client")
    headers = {"X-Api-Key": made.stdout.strip()}
    with httpx2.Client(base_url=node.url, headers=headers, trust_env=False) as http:
        assert http.post("/v1/jobs", json={"prompt": "p"}).status_code == 201
        revoked = aitbc("keys", "revoke", "--data", node.data.root, headers["X-Api-Key"])
        assert revoked.exit_code == 0
        answer = http.post("/v1/jobs", json={"prompt": "p"})
        assert (answer.status_code, answer.json()["error_code"]) == (401, "AUTH_INVALID_KEY")


def submit(node, *arguments):
    key = aitbc("keys", "create", "--data", node.data.root, "--role", "client").stdout.strip()
    return aitbc("submit", "Why?", "--url", node.url, "--key", key, *arguments)


def test_a_job_for_a_model_that_nobody_serves_is_accepted_and_says_so(node):
    result = submit(node, "--model", "never-heard-of")
    assert result.exit_code == 0
    assert result.stdout.startswith("job_")
    assert result.stderr.strip() == "pending; active miners that serve never-heard-of: 0"


def test_waiting_for_a_job_has_an_end_and_the_job_is_not_lost(node):
    result = submit(node, "--model", "never-heard-of", "--wait", "--timeout", "0")
    assert result.exit_code == 1
    assert "it is not lost, ask for it later" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-tokens", "0"), "400: params.max_tokens"),
        (("--temperature", "9"), "400: params.temperature"),
        (("--top-p", "0"), "400: params.top_p"),
        (("--temperature", "nan"), "cannot be sent"),
        (("--model", ""), "400: model"),
    ],
)
def test_what_the_node_refuses_is_told_in_one_line(node, arguments, message):
    assert message in refusal(submit(node, *arguments))


def test_a_key_that_is_none_is_told_in_one_line(node):
    line = refusal(aitbc("submit", "p", "--url", node.url, "--key", "aik_a_b"))
    assert "AUTH_INVALID_KEY" in line


def test_a_node_that_does_not_answer_is_told_in_one_line(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        line = refusal(aitbc("submit", "p", "--url", url, "--key", "k"))
    assert "is the node running there?" in line


def test_without_a_connection_file_submit_says_what_it_needs(tmp_path):
    assert "give its address with --url" in refusal(aitbc("submit", "p", "--data", tmp_path))
    (tmp_path / "connection.json").write_text("{}")
    assert "give its address with --url" in refusal(aitbc("submit", "p", "--data", tmp_path))


def test_a_second_node_on_the_same_directory_is_refused(node):
    line = one_line(run_node("--data", node.data.root, "--port", 0))
    assert "another node runs on this data directory" in line
    assert httpx2.get(node.url + "/health", trust_env=False).status_code == 200


def test_a_port_in_use_is_told_with_a_way_out(data, node):
    port = node.url.rsplit(":", 1)[1]
    line = one_line(run_node("--data", data.root, "--port", port))
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in line
    assert "--port" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_ends_cleanly_on_a_signal(tmp_path, number):
    live = LiveNode(tmp_path / "data")
    live.start()
    assert live._end(number) == 0


# --- starts that are refused ------------------------------------------------------------------


def test_a_directory_without_genesis_says_how_to_make_one(tmp_path):
    line = one_line(run_node("--data", tmp_path / "none", "--port", 0))
    assert "./aitbc init --data" in line


def test_a_missing_votes_db_is_never_made_anew(data):
    data.votes.unlink()
    line = one_line(run_node("--data", data.root, "--port", 0))
    assert "votes.db: missing, so this authority refuses to vote" in line
    assert "never restore votes.db from a backup" in line
    assert not data.votes.exists()


def test_a_votes_db_of_another_key_is_refused(data, tmp_path):
    assert aitbc("init", "--data", tmp_path / "other").exit_code == 0
    data.votes.write_bytes((tmp_path / "other" / "votes.db").read_bytes())
    line = one_line(run_node("--data", data.root, "--port", 0))
    assert "was not made with this node's key" in line


@pytest.mark.parametrize("name", ["ledger.db", "node.db"])
def test_a_directory_of_another_network_is_refused(data, tmp_path, name):
    other = build_genesis(network="other-net")
    path = data.root / name
    if name == "ledger.db":
        ChainStore(path, other).close()
    else:
        open_market(path, hash_genesis(other)).close()
    line = one_line(run_node("--data", data.root, "--port", 0))
    assert name in line
    assert "data directory" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host", "0.0.0.0", "--mode", "dev"), "refused on 0.0.0.0; use --mode strict"),
        (("--host", "::", "--mode", "dev"), "refused on ::"),
        # An address for documents, which no machine has.
        (("--host", "192.0.2.1"), "cannot listen on 192.0.2.1 port 0"),
        (("--peer", "http://[::1"), "address of a node"),
    ],
)
def test_an_address_that_will_not_do_is_refused(data, arguments, message):
    assert message in one_line(run_node("--data", data.root, "--port", 0, *arguments))


# --- fsck -------------------------------------------------------------------------------------


@pytest.fixture
def chain(data):
    """A data directory that holds a chain of two blocks."""
    chain = build_chain(1, blocks=(2, 1))
    data.genesis.write_bytes(encode(chain.genesis) + b"\n")
    store = ChainStore(data.ledger, chain.genesis)
    for block, certificate in zip(chain.blocks, chain.certificates, strict=True):
        store.append(block, certificate).result()
    store.close()
    return chain


def test_fsck_tells_what_it_verified(data, chain):
    result = aitbc("fsck", "--data", data.root)
    assert result.exit_code == 0
    assert result.stdout == f"ok: 2 blocks, 3 transactions, head {chain.tip.hash.hex()}\n"


def test_fsck_tells_what_is_wrong(data, chain):
    content = data.ledger.read_bytes()
    data.ledger.write_bytes(content.replace(b'"client":"client-1"', b'"client":"client-2"', 1))
    assert "ledger.db" in refusal(aitbc("fsck", "--data", data.root))
    data.ledger.unlink()
    assert "ledger.db" in refusal(aitbc("fsck", "--data", data.root))


# --- verify -----------------------------------------------------------------------------------


@pytest.fixture
def proof(tmp_path):
    """Files as a user keeps them: bundle, genesis, disclosure."""
    chain = build_chain(1, blocks=(2, 1))
    for name, content in (
        ("bundle.json", encode(chain.bundle(0))),
        ("genesis.json", encode(chain.genesis) + b"\n"),
        ("other.json", encode(build_genesis(network="other-net"))),
        ("disclosure.json", encode(build_disclosure(1))),
        ("wrong.json", encode(build_disclosure(2))),
    ):
        (tmp_path / name).write_bytes(content)
    return tmp_path


def verify(proof, bundle="bundle.json", genesis="genesis.json", *arguments):
    return aitbc("verify", proof / bundle, "--genesis", proof / genesis, *arguments)


def test_a_good_bundle_is_verified_claim_by_claim(proof):
    result = verify(proof)
    assert result.exit_code == 0
    assert "FAILED" not in result.stdout
    assert "verified       quorum" in result.stdout
    assert "verified, block 1" in result.stdout
    assert "Not proved:" in result.stdout


def test_what_the_owner_discloses_is_verified_too(proof):
    right = verify(proof, "bundle.json", "genesis.json", "--disclosure", proof / "disclosure.json")
    assert right.exit_code == 0
    assert "verified       result_digest" in right.stdout
    wrong = verify(proof, "bundle.json", "genesis.json", "--disclosure", proof / "wrong.json")
    assert wrong.exit_code == 1
    assert "FAILED         prompt_digest" in wrong.stdout


def test_a_bundle_under_another_genesis_fails_and_says_where(proof):
    result = verify(proof, "bundle.json", "other.json")
    assert result.exit_code == 1
    assert "FAILED         header" in result.stdout
    assert "NOT VERIFIED" in result.stdout


@pytest.mark.parametrize(("genesis", "status"), [("genesis.json", 0), ("other.json", 1)])
def test_the_verdict_as_json_is_for_programs(proof, genesis, status):
    result = verify(proof, "bundle.json", genesis, "--json")
    verdict = json.loads(result.stdout)
    assert result.exit_code == status
    assert verdict["verified"] is (status == 0)
    assert {claim["status"] for claim in verdict["claims"]} <= {
        "verified",
        "failed",
        "not_applicable",
    }


@pytest.mark.parametrize(
    ("bundle", "genesis"),
    [
        ("missing.json", "genesis.json"),
        ("bundle.json", "missing.json"),
        ("genesis.json", "genesis.json"),
        ("bundle.json", "bundle.json"),
        (".", "genesis.json"),
    ],
)
def test_files_that_are_no_proof_are_refused_in_one_line(proof, bundle, genesis):
    result = verify(proof, bundle, genesis)
    assert result.exit_code != 0
    assert result.stdout == ""
    assert "Error" in result.stderr


@pytest.fixture
def statement(proof):
    """The file of a statement beside the others."""
    chain = build_chain(1, blocks=(2, 1))
    path = proof / "statement.json"
    path.write_bytes(encode(chain.statement("client-1")))
    return path


def test_a_good_statement_is_verified_and_added_up(proof, statement):
    result = verify(proof, "statement.json")
    assert result.exit_code == 0
    assert "FAILED" not in result.stdout
    assert "verified       period" in result.stdout
    assert "statement of client-1 verified: 3 lines, block 2" in result.stdout
    assert "in all: spent 0.000138 (3 receipts, 138 tokens)" in result.stdout
    assert "model 'smollm2:135m': spent 0.000138" in result.stdout
    assert "left out" in result.stdout
    verdict = json.loads(verify(proof, "statement.json", "genesis.json", "--json").stdout)
    assert verdict["verified"]
    assert verdict["totals"]["spent"]["tokens_micros"] == 138_000_000


def test_a_changed_line_of_a_statement_is_named_and_nothing_is_added_up(proof, statement):
    changed = statement.read_bytes().replace(b'"price_micros":46', b'"price_micros":45', 1)
    statement.write_bytes(changed)
    result = verify(proof, "statement.json")
    assert result.exit_code == 1
    assert "FAILED         provider_signature" in result.stdout
    assert result.stdout.count("  line rcp_") == 1
    assert "at leaf 0: provider_signature: " in result.stdout
    assert "statement of client-1 NOT VERIFIED" in result.stdout
    assert "in all" not in result.stdout


def test_a_statement_that_is_none_or_meets_a_disclosure_is_refused(proof, statement):
    disclosed = verify(
        proof, "statement.json", "genesis.json", "--disclosure", proof / "disclosure.json"
    )
    assert disclosed.exit_code == 2
    assert "a disclosure is of one receipt" in disclosed.stderr
    statement.write_bytes(statement.read_bytes()[:-1])
    result = verify(proof, "statement.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: statement: ")


def test_a_genesis_to_trust_is_asked_for(proof):
    result = aitbc("verify", proof / "bundle.json")
    assert result.exit_code == 2
    assert "--genesis" in result.stderr
