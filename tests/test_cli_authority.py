"""`aitbc authority` as operators use it: propose, sign, submit, on real authorities over HTTP."""

import contextlib
from dataclasses import replace

import pytest
from click.testing import CliRunner

from ledger.block import build_genesis_tip
from ledger.encoding import encode
from ledger.proof import verify_bundle
from ledger.store.chain import ChainStore
from ledger.store.fsck import verify_chain
from ledger.transaction import build_transaction, parse_transaction
from node.cli import cli
from node.datadir import DataDirectory, create_key, load_key
from tests.authorities import Authorities, serve_node
from tests.builders import (
    build_authority_set,
    build_change_payload,
    build_evidence,
    build_key,
)
from tests.caller import Caller

TIMEOUT = ["--timeout", "60"]


def aitbc(*arguments, text=None):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=text)


def done(*arguments, text=None) -> str:
    result = aitbc(*arguments, text=text)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments, text=None) -> str:
    result = aitbc(*arguments, text=text)
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


@pytest.fixture
def data(tmp_path):
    """The directory of the one authority of a network, with an empty chain."""
    root = tmp_path / "data"
    done("init", "--data", root, "--name", "first")
    directory = DataDirectory(root)
    ChainStore(directory.ledger, directory.load_genesis()).close()
    return directory


@pytest.fixture
def draft(tmp_path):
    return tmp_path / "change.json"


def read(path):
    return parse_transaction(path.read_bytes().removesuffix(b"\n"))


def join(root, data) -> tuple[DataDirectory, str]:
    """A new node with a key of its own on the network of `data`; and its account."""
    text = done("init", "--data", root, "--genesis", data.genesis)
    account = load_key(DataDirectory(root).authority_key)[0].account
    assert account in text
    return DataDirectory(root), account


# --- the whole story --------------------------------------------------------------------------


def test_an_authority_that_lost_its_votes_is_replaced_and_the_new_one_decides(
    tmp_path, draft, data, monkeypatch
):
    """The last of four is gone for good. Its successor draws a key, joins, and its vote counts."""
    # What lies at the default place is of another network, and nobody named it.
    monkeypatch.chdir(data.root.parent)
    network = Authorities(tmp_path, 4)
    api_key = network.create_key(0, "admin")
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(contextlib.ExitStack()) for _ in range(3)]
        for index, running in enumerate(nodes):
            running.enter_context(network.run(index))
        coordinator = stack.enter_context(Caller(network.urls[0], api_key))
        first = coordinator.finish_job()
        coordinator.wait_for_block(1)

        successor, account = join(tmp_path / "successor", network.directories[0])
        url = network.urls[3]
        near = ["--data", network.directories[0].root]
        text = done(
            "authority", "propose", *near, "--add", f"fourth={account}={url}",
            "--remove", "authority 3", "--out", draft,
        )  # fmt: skip
        assert "Members 4 -> 4, quorum 3 -> 3." in text
        assert f"missing: fourth {account} as authority" in text
        for index in range(3):
            where = network.directories[index].root
            text = done("authority", "sign", draft, "--data", where, "--yes")
            assert f"Signed by {index + 1} of 4 authorities, 3 needed." in text
        assert "expected" in refused("authority", "submit", draft, "--url", network.urls[1])
        done(
            "authority", "sign", draft, "--data", successor.root, "--url", network.urls[2], "--yes"
        )
        text = done("authority", "submit", draft, "--url", network.urls[1], "--wait", *TIMEOUT)
        assert "Final in block 2; the new set certifies the blocks from 3 on." in text
        text = done("authority", "submit", draft, "--url", network.urls[0], "--wait", *TIMEOUT)
        assert "final" in text

        stack.enter_context(serve_node(successor, url, peers=tuple(network.urls[:3])))
        with Caller(url) as newcomer:
            newcomer.wait_for_block(2)
            nodes[2].close()  # now two old ones are left, and nothing is final without the new one
            second = coordinator.finish_job()
            newcomer.wait_for_block(3)
        text = done("authority", "show", *near, "--url", url)
        assert "Epoch 1 at height 3: 3 of 4 make a block final." in text
        assert f"3  fourth  {account}  {url}" in text
        for receipt_id in (first, second):
            bundle = coordinator.get(f"/v1/receipts/{receipt_id}/proof").content
            assert verify_bundle(bundle, genesis=network.genesis).verified
    tip = verify_chain(successor.ledger, network.genesis, lambda *_: None)
    assert tip.authority_set.index_of(account) == 3


# --- propose ----------------------------------------------------------------------------------


def test_a_draft_is_the_envelope_without_signatures_and_overwrites_nothing(data, draft):
    account = build_key("new").account
    near = ["--data", data.root, "--out", draft]
    text = done("authority", "propose", *near, "--add", f"second={account}=http://h:1/x=1")
    assert "Warning: 2 authorities tolerate nobody's absence" in text
    transaction = read(draft)
    assert transaction.signatures == ()
    assert transaction.envelope + b"\n" == draft.read_bytes()
    assert transaction.payload.authority_set.members[1].url == "http://h:1/x=1"
    assert transaction.payload.expires_height == 1_000
    before = draft.read_bytes()
    assert "exists already" in refused("authority", "propose", *near, "--rename", "first=x")
    assert draft.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing would change"),
        (["--remove", "nobody"], "no authority of the current set is called this"),
        (["--remove", "first"], "the next set"),
        (["--add", f"first={build_key('new').account}"], "two authorities would be called first"),
        (["--add", "second=ait1typo"], "the next set: authority set: account"),
        (["--remove-coordinator", "x"], "is not a coordinator"),
    ],
)
def test_a_proposal_that_cannot_be_is_refused_and_writes_nothing(data, draft, options, message):
    text = refused("authority", "propose", "--data", data.root, "--out", draft, *options)
    assert message in text
    assert not draft.exists()


@pytest.mark.parametrize(
    "options",
    [["--add", "x"], ["--add", "=ait1"], ["--rename", "x"], ["--url-of", "=y"],
     ["--expires-in", "0"]],
)  # fmt: skip
def test_an_option_of_the_wrong_form_is_a_usage_error(data, draft, options):
    result = aitbc("authority", "propose", "--data", data.root, "--out", draft, *options)
    assert result.exit_code == 2


def test_without_a_chain_there_is_nothing_to_propose(tmp_path, draft):
    assert "there is no chain here yet" in refused(
        "authority", "propose", "--data", tmp_path, "--out", draft
    )


# --- sign -------------------------------------------------------------------------------------


def propose(data, draft, *options):
    done("authority", "propose", "--data", data.root, "--out", draft, *options)


def test_whoever_signs_is_asked_and_may_say_no(data, draft):
    propose(data, draft, "--rename", "first=renamed")
    before = draft.read_bytes()
    command = ["authority", "sign", draft, "--data", data.root]
    text = refused(*command, text="n\n")
    assert "changes renamed" in text
    assert "Sign this as authority with ait1" in text
    assert draft.read_bytes() == before
    done(*command, text="y\n")
    (signature,) = read(draft).signatures
    assert (signature.role, signature.key_id) == (
        "authority",
        load_key(data.authority_key)[0].account,
    )


def test_a_key_that_has_no_say_adds_no_signature(data, draft, tmp_path):
    propose(data, draft, "--rename", "first=renamed")
    before = draft.read_bytes()
    stranger = tmp_path / "stranger.json"
    create_key(stranger)
    text = refused("authority", "sign", draft, "--data", data.root, "--keyfile", stranger, "--yes")
    assert "has no say in this change" in text
    assert draft.read_bytes() == before


def test_a_key_that_enters_in_two_roles_signs_in_both(data, draft, tmp_path):
    keyfile = tmp_path / "new.json"
    account = create_key(keyfile).account
    propose(data, draft, "--add", f"second={account}", "--add-coordinator", account)
    done("authority", "sign", draft, "--data", data.root, "--keyfile", keyfile, "--yes")
    done("authority", "sign", draft, "--data", data.root, "--keyfile", keyfile, "--yes")
    assert [(s.role, s.key_id) for s in read(draft).signatures] == [
        ("authority", account),
        ("coordinator", account),
    ]


def write_change(path, data, *, epoch=1, network=None):
    tip = build_genesis_tip(data.load_genesis())
    if network is not None:
        tip = replace(tip, genesis_hash=network)
    following = build_authority_set([load_key(data.authority_key)[0]], epoch=epoch)
    draft = build_transaction(build_change_payload(tip, following), [])
    path.write_bytes(draft.envelope + b"\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 2}, "epoch: expected 1, got 2"),
        ({"network": bytes(32)}, "genesis: expected"),
    ],
)
def test_nobody_signs_what_can_never_be_valid(data, draft, changes, message):
    write_change(draft, data, **changes)
    before = draft.read_bytes()
    assert message in refused("authority", "sign", draft, "--data", data.root, "--yes")
    assert draft.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a draft"),
        (b"{}", "is not a draft"),
        (b"no draft\n", "is not a draft"),
        (b"\xff" * 70_000, "expected at most 65536 bytes"),
    ],
)
def test_what_is_no_draft_is_refused(data, draft, content, message):
    draft.write_bytes(content)
    for command in ("sign", "show", "submit"):
        assert message in refused("authority", command, draft, "--data", data.root)


def test_another_transaction_is_no_draft(data, draft):
    key = load_key(data.authority_key)[0]
    draft.write_bytes(build_evidence(data.load_genesis(), key).envelope)
    text = refused("authority", "sign", draft, "--data", data.root, "--yes")
    assert "expected a change of the authority set, got evidence" in text


def test_hostile_names_are_written_out_before_anybody_signs(data, draft):
    propose(data, draft, "--add", f"\u202eevil\u0085={build_key('new').account}")
    text = done("authority", "show", draft, "--data", data.root)
    assert "⟨U+202E⟩evil⟨U+0085⟩" in text
    assert not {"\u202e", "\u0085"} & set(text)


# --- submit and show --------------------------------------------------------------------------


def test_copies_that_were_signed_apart_are_put_together(tmp_path, draft):
    network = Authorities(tmp_path, 4)
    with contextlib.ExitStack() as stack:
        for index in range(3):
            stack.enter_context(network.run(index))
        near = ["--data", network.directories[0].root, "--url", network.urls[0]]
        done("authority", "propose", *near, "--rename", "authority 3=gone", "--out", draft)
        copies = []
        for index in range(3):
            copies.append(tmp_path / f"copy-{index}.json")
            copies[-1].write_bytes(draft.read_bytes())
            where = network.directories[index].root
            done(
                "authority", "sign", copies[-1], "--data", where, "--url", network.urls[1], "--yes"
            )
        assert "at least 3 of the 4" in refused("authority", "submit", *copies[:2], *near)
        text = done("authority", "submit", *copies, *near, "--wait", *TIMEOUT)
        assert "Final in block 1" in text
        assert "epoch: expected 2, got 1" in refused("authority", "show", copies[0], *near)


def test_drafts_of_different_changes_are_not_mixed(data, draft, tmp_path):
    other = tmp_path / "other.json"
    propose(data, draft, "--rename", "first=a")
    propose(data, other, "--rename", "first=b")
    text = refused("authority", "submit", draft, other, "--data", data.root, "--url", "http://x")
    assert "different changes" in text


def test_a_node_of_another_network_is_not_asked(tmp_path, data, draft):
    network = Authorities(tmp_path / "other", 1)
    propose(data, draft, "--rename", "first=a")
    with network.run(0):
        for command in (["submit", draft], ["show"]):
            text = refused("authority", *command, "--data", data.root, "--url", network.urls[0])
            assert "is of network" in text


def test_without_an_address_submit_says_what_to_give(data, draft):
    propose(data, draft, "--rename", "first=a")
    text = refused("authority", "submit", draft, "--data", data.root)
    assert "give its address with --url" in text


def test_show_tells_who_seals_now(data):
    account = load_key(data.authority_key)[0].account
    text = done("authority", "show", "--data", data.root)
    assert "Epoch 0 at height 0: 1 of 1 make a block final." in text
    assert f"  0  first  {account}" in text


# --- joining ----------------------------------------------------------------------------------


def test_joining_makes_a_key_and_its_votes_but_no_network(data, tmp_path):
    joined, account = join(tmp_path / "joined", data)
    assert joined.genesis.read_bytes() == data.genesis.read_bytes()
    assert joined.votes.exists()
    assert account != load_key(data.authority_key)[0].account
    assert load_key(joined.authority_key)[1] != load_key(data.authority_key)[1]
    assert joined.authority_key.stat().st_mode & 0o077 == 0


def test_a_founder_may_say_where_others_will_reach_it(tmp_path):
    done("init", "--data", tmp_path / "alpha", "--url", "https://alpha.example")
    genesis = DataDirectory(tmp_path / "alpha").load_genesis()
    assert genesis.authority_set.members[0].url == "https://alpha.example"
    text = refused("init", "--data", tmp_path / "bad", "--url", "no address")
    assert "address of a node" in text
    assert not (tmp_path / "bad").exists()


def test_joining_prints_how_it_is_proposed(data, tmp_path):
    options = ["--name", "beta", "--url", "https://beta.example"]
    text = done("init", "--data", tmp_path / "beta", "--genesis", data.genesis, *options)
    account = load_key(DataDirectory(tmp_path / "beta").authority_key)[0].account
    assert f"--add beta={account}=https://beta.example\n" in text


def test_joining_takes_no_name_of_a_new_network(data, tmp_path):
    result = aitbc(
        "init", "--data", tmp_path / "x", "--genesis", data.genesis, "--network", "other"
    )
    assert result.exit_code == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("content", [b"", b"{}", encode({"v": 1})])
def test_joining_needs_a_genesis(tmp_path, content):
    path = tmp_path / "genesis.json"
    path.write_bytes(content)
    assert "genesis" in refused("init", "--data", tmp_path / "x", "--genesis", path)
    assert not (tmp_path / "x").exists()
