"""scripts/verify_receipt.py as its users meet it: a file, some files, an exit status."""

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.block import hash_genesis
from ledger.encoding import encode
from scripts import verify_receipt as script
from tests.builders import build_chain, build_disclosure, build_genesis, build_receipt

SCRIPT = Path(script.__file__)
ALLOWED_PACKAGES = {"bech32", "blake3", "nacl"}
TIMEOUT_S = 60
CHAIN = build_chain(1, blocks=[3])
BUNDLE = encode(CHAIN.bundle(1))
STATEMENT = encode(CHAIN.statement("client-1")) + b"\n"


@pytest.fixture
def files(tmp_path):
    """A bundle, its genesis and its disclosure as files."""
    contents = {
        "bundle.json": BUNDLE,
        "genesis.json": encode(CHAIN.genesis) + b"\n",
        "disclosure.json": encode(build_disclosure(2)),
        "other.json": encode(build_genesis(4)),
        "statement.json": STATEMENT,
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def run(files, *arguments, bundle="bundle.json"):
    """Run the script alone: -I keeps this checkout off its import path."""
    return subprocess.run(
        [sys.executable, "-I", SCRIPT, bundle, *arguments],
        cwd=files,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def run_inside(files, *arguments, bundle="bundle.json"):
    """Run main() here, with paths into `files`; returns the exit status."""
    places = [str(files / a) if a.endswith(".json") else a for a in arguments]
    return script.main([str(files / bundle), *places])


def test_it_imports_the_standard_library_and_three_packages_only():
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == ALLOWED_PACKAGES
    assert "importlib" not in imported
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"__import__", "eval", "exec", "open"}


def test_its_header_names_the_packages_it_imports():
    header = SCRIPT.read_text(encoding="utf-8").split("# ///\n")[0]
    assert header.startswith("# /// script\n")
    assert '# requires-python = ">=3.9"\n' in header
    assert [name for name in ("bech32", "blake3", "pynacl") if f'"{name}>=' not in header] == []


def test_a_genuine_bundle_is_verified_claim_by_claim(files):
    result = run(files, "--genesis", "genesis.json", "--disclosure", "disclosure.json")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:11]] == [
        [name, "verified"]
        for name in (
            "receipt",
            "provider_signature",
            "coordinator_signature",
            "inclusion",
            "header",
            "quorum",
            "authority_chain",
            "coordinator",
            "prompt_digest",
            "result_digest",
            "tokens_digest",
        )
    ]
    assert "VERIFIED: rcp_" in result.stdout
    assert "NOT VERIFIED" not in result.stdout
    assert all(sentence in result.stdout for sentence in script.NOT_PROVED)


def test_the_verdict_as_json(files):
    result = run(files, "--genesis", "genesis.json", "--json")
    verdict = json.loads(result.stdout)
    assert (result.returncode, result.stderr, verdict["verified"]) == (0, "", True)
    assert verdict["genesis"] == hash_genesis(CHAIN.genesis).hex()


def test_a_genuine_statement_is_verified_and_added_up(files):
    result = run(files, "--genesis", "genesis.json", bundle="statement.json")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines[:10]] == ["verified"] * 10
    assert lines[0].split()[0] == "account"
    assert lines[9].split()[0] == "period"
    assert "VERIFIED: the statement of client-1 is final at height 1" in result.stdout
    assert "in all: spent 0.000138 (3 receipts, 138 tokens)" in result.stdout
    assert "model 'smollm2:135m': spent 0.000138" in result.stdout
    assert "earned" not in result.stdout
    assert f"- {script.INCOMPLETE}" in lines
    verdict = json.loads(
        run(files, "--genesis", "genesis.json", "--json", bundle="statement.json").stdout
    )
    assert (verdict["verified"], verdict["totals"]["spent"]["price_micros"]) == (True, 138)


def test_a_changed_line_of_a_statement_is_named_and_nothing_is_added_up(files, capsys):
    changed = STATEMENT.replace(b'"price_micros":46', b'"price_micros":45', 1)
    (files / "statement.json").write_bytes(changed)
    assert run_inside(files, "--genesis", "genesis.json", bundle="statement.json") == 1
    out = capsys.readouterr().out
    receipt = CHAIN.transactions[0].payload.receipt_id
    assert f"line {receipt} at leaf 0: provider_signature: " in out
    assert out.count("\nline ") == 1
    assert "NOT VERIFIED: the statement of client-1: failed: provider_signature, " in out
    assert "in all" not in out


def test_a_statement_with_a_hostile_model_cannot_steer_a_terminal(files, capsys):
    chain = build_chain(1, blocks=[1])
    chain.append(build_receipt(chain.genesis, 2, model="\u202e\u009b2J😀"))
    (files / "statement.json").write_bytes(encode(chain.statement("client-1")))
    assert run_inside(files, "--genesis", "genesis.json", bundle="statement.json") == 0
    assert capsys.readouterr().out.isascii()


@pytest.mark.parametrize("data", [STATEMENT[:-2], b'{"account":', b'{"account":"x","v":1}'])
def test_what_only_begins_like_a_statement_ends_with_1(files, capsys, data):
    (files / "statement.json").write_bytes(data)
    assert run_inside(files, "--genesis", "genesis.json", bundle="statement.json") == 1
    assert "NOT VERIFIED: this is no bundle" in capsys.readouterr().err


def test_a_disclosure_for_a_statement_is_wrong_use(files, capsys):
    arguments = ["--genesis", "genesis.json", "--disclosure", "disclosure.json"]
    assert run_inside(files, *arguments, bundle="statement.json") == 2
    assert "a disclosure is of one receipt" in capsys.readouterr().err


def test_a_statement_over_its_bound_is_refused(files, capsys):
    padded = STATEMENT + b" " * script.MAX_STATEMENT_BYTES
    (files / "statement.json").write_bytes(padded)
    assert run_inside(files, "--genesis", "genesis.json", bundle="statement.json") == 1
    assert "longer than 33554432 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["price_micros", "tree_root", "votes", "sig"])
def test_a_changed_byte_ends_with_1_and_names_the_claim(files, place):
    position = BUNDLE.index(place.encode()) + len(place) + 10
    position = next(i for i in range(position, len(BUNDLE)) if chr(BUNDLE[i]).isalnum())
    byte = b"1" if BUNDLE[position : position + 1] != b"1" else b"2"
    (files / "bundle.json").write_bytes(BUNDLE[:position] + byte + BUNDLE[position + 1 :])
    result = run(files, "--genesis", "genesis.json")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert " FAILED " in result.stdout or "this is no bundle" in result.stderr


def test_a_changed_price_names_both_signatures_and_the_inclusion(files):
    changed = BUNDLE.replace(b'"price_micros":46', b'"price_micros":45')
    (files / "bundle.json").write_bytes(changed)
    result = run(files, "--genesis", "genesis.json")
    assert result.returncode == 1
    assert "failed: provider_signature, coordinator_signature, inclusion" in result.stdout


def test_another_genesis_ends_with_1(files, capsys):
    assert run_inside(files, "--genesis", "other.json") == 1
    out = capsys.readouterr().out
    assert "failed: receipt, header, quorum, authority_chain, coordinator" in out


def test_a_receipt_of_a_miner_without_a_key_says_so(files, capsys):
    chain = build_chain(1, blocks=[1])
    chain.append(build_receipt(chain.genesis, 2, provider="old-miner"))
    (files / "bundle.json").write_bytes(encode(chain.bundle(1)))
    assert run_inside(files, "--genesis", "genesis.json") == 0
    assert "not applicable  old-miner has no key" in capsys.readouterr().out


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"{}", b"[" * 100_000, b'{"a":' * 100_000, BUNDLE[:-1], BUNDLE + b" "],
    ids=["empty", "not text", "object", "deep list", "deep object", "truncated", "trailing"],
)
def test_what_is_no_bundle_ends_with_1_and_one_line(files, data):
    (files / "bundle.json").write_bytes(data)
    result = run(files, "--genesis", "genesis.json")
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert "NOT VERIFIED: this is no bundle" in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"index":1', b'"index":1,"index":1', "an object has the same key twice"),
        (b'"index":1', b'"index":1.0', "a number is not an integer"),
        (b'"index":1', b'"index":9007199254740992', "a number is not below 2^53"),
        (b'"index":1', b'"index":' + b"9" * 100_000, "a number is not below 2^53"),
        (b'"index":1', b'"index":-0', "not in canonical form"),
        (b'"index":1', b'"index":-1', "bundle.index: expected 0 to"),
        (b'"index":1', b'"index":1,"more":1', "bundle: expected no field 'more'"),
        (b'"index":1,', b"", "bundle: expected the field index"),
    ],
)
def test_the_one_line_says_what_is_wrong(files, capsys, old, new, reason):
    (files / "bundle.json").write_bytes(BUNDLE.replace(old, new, 1))
    assert run_inside(files, "--genesis", "genesis.json") == 1
    assert reason in capsys.readouterr().err


def test_what_is_no_bundle_as_json(files, capsys):
    (files / "bundle.json").write_bytes(b"{}")
    assert run_inside(files, "--genesis", "genesis.json", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["verified"] is False
    assert set(answer) == {"verified", "error"}


def test_hostile_names_cannot_fill_or_steer_a_terminal(files, capsys):
    hostile = b'{"' + b"\\u001b[2J" * 10_000 + b'":1,"v":1}'
    (files / "bundle.json").write_bytes(hostile)
    assert run_inside(files, "--genesis", "genesis.json") == 1
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert len(err) < 500
    document = json.loads(BUNDLE)
    document["envelope"]["signatures"][0]["key_id"] = "\x1b[2J\u202e"
    (files / "bundle.json").write_bytes(encode(document))
    assert run_inside(files, "--genesis", "genesis.json") == 1
    assert capsys.readouterr().out.isascii()


def test_a_bundle_over_its_bound_is_refused_without_reading_on(files, capsys):
    assert script.main(["/dev/zero", "--genesis", str(files / "genesis.json")]) == 1
    assert "longer than 16777216 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--genesis", "missing.json"],
        ["--genesis", "bundle.json"],
        ["--genesis", "genesis.json", "--disclosure", "missing.json"],
        ["--genesis", "genesis.json", "--disclosure", "bundle.json"],
    ],
)
def test_a_file_of_the_verifier_that_is_missing_or_malformed_ends_with_2(files, capsys, arguments):
    assert run_inside(files, *arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert run_inside(files, *arguments, "--json") == 2
    assert json.loads(capsys.readouterr().out)["verified"] is False


def test_wrong_use_ends_with_2(files):
    assert run(files).returncode == 2
    assert run(files, "--genesis", "genesis.json", "--nonsense").returncode == 2
    assert run(files, "--genesis", "genesis.json", bundle="missing.json").returncode == 2
    assert run(files, "--genesis", "genesis.json", bundle=".").returncode == 2


def test_without_its_packages_it_names_them_and_ends_with_2(files):
    """-S hides them. 1 would say that a claim failed."""
    command = [sys.executable, "-I", "-S", SCRIPT, "bundle.json", "--genesis", "genesis.json"]
    done = subprocess.run(command, cwd=files, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bech32 is missing: pip install bech32 blake3 pynacl\n"


def test_a_reader_that_has_seen_enough_is_no_failed_claim(files):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-I", SCRIPT, "bundle.json", "--genesis", "genesis.json"]
    with os.fdopen(writing, "wb") as output:
        done = subprocess.run(
            command, cwd=files, stdout=output, stderr=subprocess.PIPE, timeout=TIMEOUT_S
        )
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


def test_a_genesis_with_a_bad_set_is_refused(files):
    document = json.loads(encode(CHAIN.genesis))
    for change in (
        lambda d: d["authority_set"].update(epoch=1),
        lambda d: d["authority_set"]["members"].append(d["authority_set"]["members"][0]),
        lambda d: d["authority_set"]["members"][0].update(account="ait1"),
        lambda d: d.update(network="x\n"),
    ):
        changed = json.loads(json.dumps(document))
        change(changed)
        with pytest.raises(script.MalformedError):
            script.parse_genesis(encode(changed))
    assert script.parse_genesis(encode(document)) == document
