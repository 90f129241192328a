"""Drafting a change: what was asked for and nothing else, and a warning before it hurts."""

from dataclasses import replace

import pytest

from ledger.authorities import Authority, AuthoritySet
from ledger.block import build_genesis_tip
from ledger.changes import list_change_signers
from ledger.errors import LedgerError
from ledger.rules import verify_transaction
from ledger.transaction import MAX_ENVELOPE_BYTES, sign_payload
from node.cli.setchange import (
    ChangeRefusedError,
    Edits,
    apply_edits,
    build_payload,
    describe_change,
    describe_signatures,
    list_warnings,
)
from tests.builders import build_genesis, build_key, sign_change

KEYS = [build_key(f"member {i}") for i in range(4)]
NEW, COORDINATOR, OTHER = (build_key(name) for name in ("new", "coordinator", "other"))
NAMES = ["north", "east", "south", "west"]


def build_set(count=4, *, epoch=3, coordinators=(), url="http://10.0.0.{}:8001"):
    members = tuple(
        Authority(account=key.account, name=name, url=url.format(i))
        for i, (key, name) in enumerate(zip(KEYS[:count], NAMES, strict=False))
    )
    return AuthoritySet(
        epoch=epoch, members=members, coordinators=tuple(key.account for key in coordinators)
    )


CURRENT = build_set(coordinators=[COORDINATOR])
TIP = replace(build_genesis_tip(build_genesis(4)), height=9, authority_set=CURRENT)
JOINING = Authority(account=NEW.account, name="new", url="http://10.0.0.9:8001")


def names(authority_set):
    return [member.name for member in authority_set.members]


def test_who_joins_stands_last_and_who_leaves_is_gone():
    following = apply_edits(CURRENT, Edits(added=[JOINING], removed=["east"]))
    assert following.epoch == 4
    assert names(following) == ["north", "south", "west", "new"]
    assert following.members[3] == JOINING
    assert following.coordinators == CURRENT.coordinators
    by_account = apply_edits(CURRENT, Edits(added=[JOINING], removed=[KEYS[1].account]))
    assert by_account == following


def test_names_urls_and_coordinators_change_alone():
    renamed = apply_edits(CURRENT, Edits(renamed=[("east", "far east")]))
    assert names(renamed) == ["north", "far east", "south", "west"]
    moved = apply_edits(CURRENT, Edits(moved=[("east", "http://host:1/a"), ("west", "")]))
    assert [member.url for member in moved.members][1::2] == ["http://host:1/a", ""]
    assert names(moved) == NAMES
    listed = apply_edits(CURRENT, Edits(coordinators_added=[OTHER.account]))
    assert listed.coordinators == tuple(sorted([COORDINATOR.account, OTHER.account]))
    unlisted = apply_edits(CURRENT, Edits(coordinators_removed=[COORDINATOR.account]))
    assert unlisted.coordinators == ()


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (Edits(), "nothing would change"),
        (Edits(renamed=[("east", "east")]), "nothing would change"),
        (Edits(removed=["nobody"]), "nobody: no authority of the current set"),
        (Edits(removed=["east", "east"]), "no authority of the current set"),
        (Edits(renamed=[("north", "east")]), "two authorities would be called east"),
        (Edits(added=[JOINING, JOINING]), "one account stands in it twice"),
        (Edits(added=[CURRENT.members[0]]), "one account stands in it twice"),
        (Edits(added=[Authority(account="ait1", name="x", url="")]), "the next set: authority set"),
        (Edits(added=[Authority(account=NEW.account, name="a\n", url="")]), "the next set"),
        (Edits(added=[Authority(account=NEW.account, name="a", url="a b")]), "the next set"),
        (Edits(added=[Authority(account=NEW.account, name="", url="")]), "the next set"),
        (Edits(added=[Authority(account=NEW.account, name="a", url="a.b")]), "address of a node"),
        (Edits(moved=[("east", "http://host:8001x")]), "the next set: address of a node"),
        (Edits(removed=NAMES), "the next set"),
        (Edits(coordinators_removed=[OTHER.account]), "is not a coordinator that the set lists"),
        (Edits(coordinators_added=["ait1"]), "the next set"),
    ],
)
def test_what_cannot_be_is_refused_in_words(edits, message):
    with pytest.raises(ChangeRefusedError, match=message):
        apply_edits(CURRENT, edits)


def test_an_account_that_is_another_ones_name_is_not_guessed():
    members = (CURRENT.members[0], Authority(account=NEW.account, name=KEYS[0].account, url=""))
    with pytest.raises(ChangeRefusedError, match="2 authorities are; name one by account"):
        apply_edits(AuthoritySet(epoch=0, members=members), Edits(removed=[KEYS[0].account]))


def test_a_draft_becomes_valid_with_the_signatures_it_asks_for():
    payload = build_payload(apply_edits(CURRENT, Edits(added=[JOINING])), TIP, valid_for=5)
    assert payload.expires_height == 14
    signers = list_change_signers(payload, CURRENT)
    lines = describe_signatures([], signers, payload, CURRENT)
    assert lines[0] == "Signed by 0 of 4 authorities, 3 needed."
    assert f"  missing: new {NEW.account} as authority" in lines
    signatures = [sign_payload(payload, key, "authority") for key in (KEYS[0], NEW)]
    lines = describe_signatures(signatures, signers, payload, CURRENT)
    assert lines[0] == "Signed by 1 of 4 authorities, 3 needed."
    assert [line.split()[1] for line in lines[1:]] == ["north", "new"]
    verify_transaction(sign_change(payload, [*KEYS[:3], NEW]), TIP)


def test_a_change_that_no_envelope_holds_is_refused_before_anybody_signs():
    long = [
        Authority(
            account=build_key(f"long {i}").account,
            name=f"{'😀' * 60}{i}",
            url="http://" + "u" * 249,
        )
        for i in range(96)
    ]
    with pytest.raises(ChangeRefusedError, match="make it in several steps"):
        build_payload(apply_edits(CURRENT, Edits(added=long)), TIP, valid_for=5)
    payload = build_payload(apply_edits(CURRENT, Edits(added=long[:80])), TIP, valid_for=5)
    keys = [build_key(f"long {i}") for i in range(80)]
    signed = sign_change(payload, [*KEYS[:3], *keys])
    assert len(signed.envelope) <= MAX_ENVELOPE_BYTES
    verify_transaction(signed, TIP)


def test_a_change_is_described_member_by_member():
    edits = Edits(
        added=[JOINING],
        removed=["west"],
        renamed=[("east", "far east")],
        coordinators_removed=[COORDINATOR.account],
        coordinators_added=[OTHER.account],
    )
    lines = describe_change(CURRENT, build_payload(apply_edits(CURRENT, edits), TIP, valid_for=5))
    assert lines[:2] == [
        "Epoch 3 becomes 4, not above block 14.",
        "Members 4 -> 4, quorum 3 -> 3.",
    ]
    assert [line.split()[:2] for line in lines[2:]] == [
        ["stays", "north"],
        ["changes", "far"],
        ["stays", "south"],
        ["joins", "new"],
        ["leaves", "west"],
        ["coordinator", "enters"],
        ["coordinator", "leaves"],
    ]
    assert f"was east {KEYS[1].account}" in lines[3]


def warn(current, edits):
    return " ".join(list_warnings(current, apply_edits(current, edits)))


@pytest.mark.parametrize(
    ("current", "edits", "words"),
    [
        (build_set(1), Edits(added=[JOINING]), "2 authorities tolerate nobody's absence"),
        (CURRENT, Edits(removed=["west"]), "3 authorities tolerate nobody's absence"),
        (CURRENT, Edits(removed=["west"]), "Fewer may be down: 0 of 3 instead of 1 of 4"),
        (CURRENT, Edits(removed=["west"]), "Receipts by west that are not final by then"),
        (build_set(1), Edits(added=[JOINING]), "at least 1 of the 1 new ones must run"),
        (
            CURRENT,
            Edits(removed=["west", "south"], added=[JOINING]),
            "Only 2 of today's authorities stay and 3 votes are needed: at least 1 of the 1 new",
        ),
        (CURRENT, Edits(moved=[("east", "")]), "Peers are not told where to reach east"),
        (CURRENT, Edits(moved=[("east", "http://10.0.0.0:8001")]), "state the same address"),
    ],
)
def test_a_risk_is_named(current, edits, words):
    assert words in warn(current, edits)


@pytest.mark.parametrize(
    "edits",
    [
        Edits(renamed=[("east", "far east")]),
        Edits(coordinators_added=[OTHER.account]),
        Edits(added=[JOINING, *[
            Authority(account=build_key(f"x{i}").account, name=f"x{i}", url=f"http://x{i}")
            for i in range(2)
        ]]),
    ],
)  # fmt: skip
def test_a_harmless_change_warns_of_nothing(edits):
    if len(edits.added) == 3:
        # 7 members need 5, of whom 4 stay: one new one has to run, and that is said.
        assert warn(CURRENT, edits).count(".") == 1
    else:
        assert warn(CURRENT, edits) == ""


def test_refusals_are_errors_of_ours():
    assert issubclass(ChangeRefusedError, LedgerError)
