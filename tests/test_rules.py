from dataclasses import replace

import msgspec
import pytest

from ledger.block import build_genesis_tip, hash_genesis
from ledger.errors import InvalidSignatureError, InvalidTransactionError
from ledger.rules import list_signers, validate_receipt, verify_transaction
from ledger.transaction import build_transaction, sign_payload
from tests.builders import (
    build_authority_set,
    build_genesis,
    build_key,
    build_members,
    build_payload,
    build_receipt,
    sign_receipt,
)

GENESIS = build_genesis(4)
GENESIS_HASH = hash_genesis(GENESIS)
TIP = build_genesis_tip(GENESIS)
COORDINATOR, PROVIDER, STRANGER = build_key("authority 0"), build_key("miner"), build_key("x")


def verify(transaction, authority_set=GENESIS.authority_set):
    verify_transaction(transaction, replace(TIP, authority_set=authority_set))


def sign(payload, *roles):
    return build_transaction(payload, [sign_payload(payload, key, role) for role, key in roles])


def test_a_receipt_signed_by_both_sides_is_valid():
    verify(build_receipt(GENESIS))


def test_a_provider_without_a_key_leaves_the_coordinator_alone():
    receipt = build_receipt(GENESIS, provider="miner-1")
    assert list_signers(receipt.payload) == [("coordinator", COORDINATOR.account)]
    verify(receipt)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genesis": "ab" * 32}, "receipt genesis"),
        ({"receipt_id": "rcp_" + "a" * 26}, "receipt receipt_id"),
        ({"coordinator": "somebody"}, "receipt coordinator"),
        ({"provider": "ait1qqq"}, "receipt provider"),
        ({"provider": PROVIDER.account[:-1] + "q"}, "receipt provider"),
        ({"completed_at_ms": 0}, "receipt completed_at_ms"),
        ({"max_tokens": 9}, "receipt completion_tokens"),
        ({"units_micros": 45_999_999}, "receipt units_micros"),
        ({"units_micros": 46_000_001}, "receipt units_micros"),
        ({"unit_type": "gpu_seconds", "units_micros": 830_001}, "receipt units_micros"),
    ],
)
def test_every_rule_of_a_receipt_has_a_failing_case(changes, message):
    receipt = build_receipt(GENESIS, **changes)
    with pytest.raises(InvalidTransactionError, match=f"^{message}: expected .*, got "):
        validate_receipt(receipt.payload, genesis_hash=GENESIS_HASH)
    with pytest.raises(InvalidTransactionError, match=message):
        verify(receipt)


@pytest.mark.parametrize(
    "changes",
    [
        {"completed_at_ms": 5, "started_at_ms": 5},
        {"max_tokens": 10},
        {"unit_type": "gpu_seconds", "units_micros": 830_000},
        {"unit_type": "gpu_seconds", "units_micros": 0},
        {"model_digest": "", "tokens_digest": "", "sampler": ""},
        {"prompt_tokens": 0, "completion_tokens": 0, "units_micros": 0},
    ],
)
def test_the_edges_of_the_rules_are_valid(changes):
    verify(build_receipt(GENESIS, **changes))


@pytest.mark.parametrize("network", [build_genesis(4, network="other-net"), build_genesis(1)])
def test_a_receipt_of_another_network_is_refused(network):
    receipt = build_receipt(network)
    with pytest.raises(InvalidTransactionError, match="receipt genesis"):
        verify(receipt)


@pytest.mark.parametrize(
    "roles",
    [
        [],
        [("coordinator", COORDINATOR)],
        [("provider", PROVIDER)],
        [("provider", COORDINATOR), ("coordinator", PROVIDER)],
        [("coordinator", COORDINATOR), ("provider", COORDINATOR)],
        [("coordinator", PROVIDER), ("provider", PROVIDER)],
        [("coordinator", COORDINATOR), ("provider", STRANGER)],
        [("coordinator", STRANGER), ("provider", PROVIDER)],
        [("coordinator", COORDINATOR), ("provider", PROVIDER), ("provider", STRANGER)],
        [("coordinator", COORDINATOR), ("provider", PROVIDER), ("auditor", STRANGER)],
        [("coordinator", COORDINATOR), ("authority", PROVIDER)],
    ],
    ids=lambda roles: " ".join(role for role, _ in roles) or "none",
)
def test_signers_missing_spare_or_swapped_are_refused(roles):
    with pytest.raises(InvalidSignatureError, match="signers: expected"):
        verify(sign(build_payload(GENESIS), *roles))


def test_a_nameless_provider_needs_no_signature_and_may_have_none():
    payload = build_payload(GENESIS, provider="miner-1")
    verify(sign(payload, ("coordinator", COORDINATOR)))
    with pytest.raises(InvalidSignatureError, match="signers"):
        verify(sign(payload, ("coordinator", COORDINATOR), ("provider", PROVIDER)))


@pytest.mark.parametrize("place", [0, 1])
def test_a_signature_over_another_payload_is_refused(place):
    payload, other = build_payload(GENESIS), build_payload(GENESIS, price_micros=47)
    signatures = sign_receipt(payload)
    signatures[place] = sign_receipt(other)[place]
    with pytest.raises(InvalidSignatureError, match="does not verify"):
        verify(build_transaction(payload, signatures))


@pytest.mark.parametrize("place", [0, 1])
def test_a_signature_by_another_key_under_the_right_name_is_refused(place):
    payload = build_payload(GENESIS)
    signatures = sign_receipt(payload)
    forged = sign_payload(payload, STRANGER, signatures[place].role)
    signatures[place] = msgspec.structs.replace(signatures[place], sig=forged.sig)
    with pytest.raises(InvalidSignatureError, match="does not verify"):
        verify(build_transaction(payload, signatures))


def test_only_accounts_that_the_authorities_list_coordinate():
    payload = build_payload(GENESIS, coordinator=STRANGER.account)
    receipt = build_transaction(payload, sign_receipt(payload, coordinator=STRANGER))
    with pytest.raises(InvalidSignatureError, match="not a coordinator of this network"):
        verify(receipt)
    members = build_members(4)
    verify(receipt, build_authority_set(members, coordinators=[STRANGER.account]))
    for member in members:
        payload = build_payload(GENESIS, coordinator=member.account)
        verify(build_transaction(payload, sign_receipt(payload, coordinator=member)))
