"""A change of the authority set: who must sign, who may, and when it is too late."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.authorities import Authority, hash_authority_set
from ledger.block import advance_tip, build_genesis_tip
from ledger.changes import count_deciding, find_missing, has_say, list_change_signers
from ledger.encoding import encode
from ledger.errors import InvalidBlockError, InvalidSignatureError, InvalidTransactionError
from ledger.rules import build_block, validate_block, verify_transaction
from ledger.transaction import (
    MAX_ENVELOPE_BYTES,
    build_transaction,
    parse_transaction,
    sign_payload,
)
from tests.builders import (
    build_authority_set,
    build_chain,
    build_change_payload,
    build_genesis,
    build_key,
    build_members,
    build_receipt,
    sign_change,
    sign_receipt,
)
from tests.strategies import draw_changed_byte

CHAIN = build_chain(4, blocks=[2])
TIP, OLD = CHAIN.tip, CHAIN.members
JOINING = build_key("joining")
COORDINATOR, STRANGER = build_key("coordinator"), build_key("stranger")
NEW = [*OLD[1:], JOINING]
"""Authority 0 leaves, one joins: a quorum of the old set is three."""


def build_following(members=NEW, *, epoch=1, coordinators=(COORDINATOR,)):
    return build_authority_set(
        members, epoch=epoch, coordinators=[key.account for key in coordinators]
    )


def change(authorities=(*OLD[:3], JOINING), coordinators=(COORDINATOR,), following=None, **changes):
    payload = build_change_payload(TIP, following or build_following(), **changes)
    return sign_change(payload, authorities, coordinators)


def test_a_quorum_of_the_old_members_and_everybody_who_enters_change_the_set():
    verify_transaction(change(), TIP)


@pytest.mark.parametrize("left_out", range(4))
def test_any_three_of_four_members_decide_the_leaving_one_too(left_out):
    deciding = [key for i, key in enumerate(OLD) if i != left_out]
    verify_transaction(change([*deciding, JOINING]), TIP)
    verify_transaction(change([*OLD, JOINING]), TIP)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_a_quorum_of_the_old_members_decide_nothing(count):
    message = f"expected at least 3 of the 4 current authorities, got {count}"
    with pytest.raises(InvalidSignatureError, match=message):
        verify_transaction(change([*OLD[:count], JOINING]), TIP)


def test_new_members_do_not_count_towards_the_quorum():
    joining = [build_key(f"new {i}") for i in range(5)]
    following = build_following([*OLD, *joining])
    with pytest.raises(InvalidSignatureError, match="at least 3 of the 4 current"):
        verify_transaction(change([*OLD[:2], *joining], following=following), TIP)
    verify_transaction(change([*OLD[:3], *joining], following=following), TIP)


@pytest.mark.parametrize(
    ("authorities", "coordinators", "role"),
    [
        (OLD, [COORDINATOR], "authority"),
        ([*OLD, JOINING], [], "coordinator"),
    ],
    ids=["member", "coordinator"],
)
def test_nobody_enters_without_a_proof_that_the_key_is_theirs(authorities, coordinators, role):
    with pytest.raises(InvalidSignatureError, match=f"who enters, to sign as {role}"):
        verify_transaction(change(authorities, coordinators), TIP)


@pytest.mark.parametrize(
    ("key", "role"),
    [
        (STRANGER, "authority"),
        (STRANGER, "coordinator"),
        (STRANGER, "auditor"),
        (OLD[0], "auditor"),
        (OLD[0], "provider"),
        (OLD[0], "coordinator"),
        (JOINING, "coordinator"),
        (COORDINATOR, "authority"),
        (COORDINATOR, "auditor"),
        (COORDINATOR, "provider"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_spare_signature_is_refused(key, role):
    sound = change()
    spare = sign_payload(sound.payload, key, role)
    with pytest.raises(InvalidSignatureError, match=f"has no say as {role}"):
        verify_transaction(build_transaction(sound.payload, [*sound.signatures, spare]), TIP)


def test_who_is_listed_already_signs_no_second_time():
    """A member that becomes coordinator, and a coordinator that stays one."""
    payload = build_change_payload(TIP, build_following(OLD, coordinators=[OLD[0]]))
    verify_transaction(sign_change(payload, OLD), TIP)
    with pytest.raises(InvalidSignatureError, match="has no say as coordinator"):
        verify_transaction(sign_change(payload, OLD, [OLD[0]]), TIP)
    tip = replace(TIP, authority_set=build_following(OLD, epoch=0))
    payload = build_change_payload(tip, build_following(OLD))
    verify_transaction(sign_change(payload, OLD), tip)
    with pytest.raises(InvalidSignatureError, match="has no say as coordinator"):
        verify_transaction(sign_change(payload, OLD, [COORDINATOR]), tip)


def test_a_new_member_that_is_listed_as_coordinator_too_proves_its_key_in_both_roles():
    following = build_following(coordinators=[JOINING])
    verify_transaction(change(following=following, coordinators=[JOINING]), TIP)
    with pytest.raises(InvalidSignatureError, match="who enters, to sign as coordinator"):
        verify_transaction(change(following=following, coordinators=[]), TIP)


@pytest.mark.parametrize("place", range(5))
def test_every_signature_is_over_this_very_change(place):
    sound, other = change(), change(expires_height=TIP.height + 7)
    signatures = list(sound.signatures)
    signatures[place] = other.signatures[place]
    with pytest.raises(InvalidSignatureError, match="does not verify"):
        verify_transaction(build_transaction(sound.payload, signatures), TIP)


@pytest.mark.parametrize("place", range(5))
def test_a_signature_by_another_key_under_the_right_name_is_refused(place):
    sound = change()
    signatures = list(sound.signatures)
    forged = sign_payload(sound.payload, STRANGER, signatures[place].role)
    signatures[place] = msgspec.structs.replace(signatures[place], sig=forged.sig)
    with pytest.raises(InvalidSignatureError, match="does not verify"):
        verify_transaction(build_transaction(sound.payload, signatures), TIP)


@pytest.mark.parametrize("epoch", [0, 2, 3, 2**53 - 1])
def test_the_epoch_is_the_next_one(epoch):
    with pytest.raises(InvalidTransactionError, match=f"epoch: expected 1, got {epoch}"):
        verify_transaction(change(following=build_following(epoch=epoch)), TIP)


def test_a_change_serves_once():
    chain = build_chain(4, blocks=[2])
    sound = change()
    chain.append(sound)
    assert chain.tip.authority_set.epoch == 1
    with pytest.raises(InvalidTransactionError, match="epoch: expected 2, got 1"):
        verify_transaction(sound, chain.tip)


def test_a_change_that_the_set_before_signed_is_stale():
    """The old set signs the set after next; its signatures are worth nothing by then."""
    chain = build_chain(4, blocks=[2])
    chain.change_authorities(build_members(4, epoch=1))
    payload = build_change_payload(chain.tip, build_following(OLD, epoch=2, coordinators=[]))
    with pytest.raises(InvalidSignatureError, match="at least 3 of the 4 current"):
        verify_transaction(sign_change(payload, OLD), chain.tip)


def test_a_change_expires():
    sound = change(expires_height=TIP.height + 1)
    verify_transaction(sound, TIP)
    with pytest.raises(InvalidTransactionError, match="expires_height: expected at least height"):
        verify_transaction(sound, replace(TIP, height=TIP.height + 1))


def test_a_change_of_another_network_is_refused():
    """Of the same authorities, so that every signature would fit."""
    other = build_genesis_tip(build_genesis(4, network="other-net"))
    foreign = sign_change(
        build_change_payload(other, build_following()), [*OLD, JOINING], [COORDINATOR]
    )
    verify_transaction(foreign, other)
    with pytest.raises(InvalidTransactionError, match="authority_set genesis"):
        verify_transaction(foreign, TIP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": ("twice",)}, "one account stands in it twice"),
        ({"members": ("no account",)}, "authority set: account"),
        ({"coordinators": ("ait1",)}, "authority set: account"),
        ({"coordinators": "unsorted"}, "distinct and sorted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_set_that_is_none_is_refused(changes, message):
    following = build_following()
    members, coordinators = following.members, following.coordinators
    if changes.get("members") == ("twice",):
        members = (*members, members[0])
    elif "members" in changes:
        members = (*members, Authority(account="ait1", name="x", url=""))
    elif changes["coordinators"] == "unsorted":
        coordinators = tuple(sorted([COORDINATOR.account, STRANGER.account], reverse=True))
    else:
        coordinators = changes["coordinators"]
    broken = msgspec.structs.replace(following, members=members, coordinators=coordinators)
    with pytest.raises(InvalidTransactionError, match=message):
        verify_transaction(change([*OLD, JOINING], [COORDINATOR, STRANGER], following=broken), TIP)


@given(
    authorities=st.sets(st.integers(0, 5)),
    coordinators=st.sets(st.integers(0, 5)),
)
def test_exactly_the_sets_of_signers_that_the_rule_names_are_accepted(authorities, coordinators):
    keys = [*OLD, JOINING, COORDINATOR]
    is_valid = (
        len(authorities & {0, 1, 2, 3}) >= 3
        and authorities - {0, 1, 2, 3} == {4}
        and coordinators == {5}
    )
    transaction = change([keys[i] for i in authorities], [keys[i] for i in coordinators])
    try:
        verify_transaction(transaction, TIP)
    except InvalidSignatureError:
        assert not is_valid
    else:
        assert is_valid


def test_a_draft_tells_whose_signature_it_still_needs():
    payload = build_change_payload(TIP, build_following())
    signers = list_change_signers(payload, TIP.authority_set)
    missing = [("authority", JOINING.account), ("coordinator", COORDINATOR.account)]
    assert find_missing([], signers) == missing
    given = change(OLD[:2], [COORDINATOR]).signatures
    assert count_deciding(given, signers) == 2
    in_other_roles = [sign_payload(payload, OLD[3], role) for role in ("coordinator", "auditor")]
    assert count_deciding([*given, *in_other_roles], signers) == 2
    assert find_missing(given, signers) == missing[:1]
    assert has_say("authority", JOINING.account, signers)
    assert not has_say("authority", STRANGER.account, signers)


# --- in blocks --------------------------------------------------------------------------------


def test_the_block_of_a_change_names_the_next_set_and_is_certified_by_the_old_one():
    block = CHAIN.propose(build_receipt(CHAIN.genesis, 9), change())
    validate_block(block, TIP, CHAIN.read)
    assert block.header.set_hash == hash_authority_set(TIP.authority_set).hex()
    assert block.header.next_set_hash == hash_authority_set(build_following()).hex()
    assert advance_tip(TIP, block).authority_set == build_following()


def test_a_header_that_hides_or_invents_a_change_is_refused():
    old, new = (hash_authority_set(s).hex() for s in (TIP.authority_set, build_following()))
    for transactions, claimed in (
        ([change()], old),
        ([build_receipt(CHAIN.genesis, 9)], new),
        ([change()], "00" * 32),
    ):
        block = CHAIN.propose(*transactions)
        header = msgspec.structs.replace(block.header, next_set_hash=claimed)
        with pytest.raises(InvalidBlockError, match="header next_set_hash"):
            validate_block(replace(block, header=header), TIP, CHAIN.read)


def test_a_block_holds_one_change_at_most():
    other = change(following=build_following(OLD), authorities=OLD)
    verify_transaction(other, TIP)
    with pytest.raises(InvalidBlockError, match="at most 1 change of the authority set, got 2"):
        validate_block(CHAIN.propose(change(), other), TIP, CHAIN.read)


def test_a_change_twice_in_a_block_is_refused():
    with pytest.raises(InvalidBlockError, match="one transaction stands in the block twice"):
        validate_block(CHAIN.propose(change(), change()), TIP, CHAIN.read)


def test_receipts_of_the_block_that_changes_the_set_are_judged_by_the_old_set():
    """The leaving authority's receipt is still valid there, the entering coordinator's is not."""
    payload = build_receipt(CHAIN.genesis, 9).payload
    leaving = build_transaction(payload, sign_receipt(payload))
    validate_block(CHAIN.propose(change(), leaving), TIP, CHAIN.read)
    entering = build_receipt_of(COORDINATOR)
    with pytest.raises(InvalidSignatureError, match="not a coordinator"):
        validate_block(CHAIN.propose(change(), entering), TIP, CHAIN.read)
    chain = build_chain(4, blocks=[2])
    chain.change_authorities(NEW, coordinators=[COORDINATOR])
    validate_block(chain.propose(entering), chain.tip, chain.read)
    with pytest.raises(InvalidSignatureError, match="not a coordinator"):
        validate_block(chain.propose(leaving), chain.tip, chain.read)


def build_receipt_of(coordinator):
    payload = build_receipt(CHAIN.genesis, 9, coordinator=coordinator.account).payload
    return build_transaction(payload, sign_receipt(payload, coordinator=coordinator))


def test_the_old_authorities_seal_nothing_after_the_change():
    chain = build_chain(4, blocks=[2])
    chain.change_authorities(NEW, coordinators=[COORDINATOR])
    block = build_block(
        chain.tip,
        [build_receipt_of(OLD[1])],
        time_ms=chain.tip.time_ms + 1,
        proposer=OLD[0].account,
        read=chain.read,
    )
    with pytest.raises(InvalidBlockError, match="proposer"):
        validate_block(block, chain.tip, chain.read)


# --- sizes and forms --------------------------------------------------------------------------


def test_a_hundred_members_can_be_replaced_by_a_hundred_others_at_once():
    """With names of 40 characters and addresses of 60 bytes: the bound that protocol.md states."""
    old = [build_key(f"old {i}") for i in range(100)]
    new = [build_key(f"new {i}") for i in range(100)]
    tip = replace(TIP, authority_set=build_authority_set(old))
    following = msgspec.structs.replace(
        build_authority_set(new, epoch=1),
        members=tuple(Authority(account=key.account, name="n" * 40, url="u" * 60) for key in new),
    )
    payload = build_change_payload(tip, following)
    quorum = tip.authority_set.quorum
    transaction = sign_change(payload, [*old[:quorum], *new])
    assert len(transaction.signatures) == 167
    assert len(transaction.envelope) <= MAX_ENVELOPE_BYTES
    verify_transaction(transaction, tip)


SOUND = change()


@pytest.mark.parametrize(
    "mutate",
    [
        lambda d: d["payload"].update(v=2),
        lambda d: d["payload"].update(x=1),
        lambda d: d["payload"].update(expires_height=0),
        lambda d: d["payload"].update(expires_height=2**53),
        lambda d: d["payload"].update(expires_height=True),
        lambda d: d["payload"].pop("expires_height"),
        lambda d: d["payload"].pop("genesis"),
        lambda d: d["payload"].update(genesis="ab"),
        lambda d: d["payload"].update(authority_set=None),
        lambda d: d["payload"]["authority_set"].update(members=[]),
        lambda d: d["payload"]["authority_set"].update(epoch=-1),
        lambda d: d["payload"]["authority_set"].update(x=1),
        lambda d: d["payload"]["authority_set"].pop("coordinators"),
        lambda d: d["payload"]["authority_set"]["members"][0].update(name=""),
        lambda d: d["payload"]["authority_set"]["members"][0].update(url="http://a b"),
        lambda d: d["payload"]["authority_set"].update(
            members=d["payload"]["authority_set"]["members"] * 26
        ),
        lambda d: d["payload"]["authority_set"].update(coordinators=["ait1"] * 101),
    ],
)
def test_a_malformed_change_is_no_transaction(mutate):
    document = msgspec.json.decode(SOUND.envelope)
    mutate(document)
    with pytest.raises(InvalidTransactionError):
        parse_transaction(encode(document))


@given(st.data())
def test_no_changed_byte_of_a_change_leaves_it_valid(data):
    changed = draw_changed_byte(data, SOUND.envelope)
    with pytest.raises(InvalidTransactionError):
        verify_transaction(parse_transaction(changed), TIP)
