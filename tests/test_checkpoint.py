"""Checkpoints: three lines with one spelling, signed by who may, co-signed by who checked."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.block import build_vote_message, hash_genesis
from ledger.checkpoint import (
    Checkpoint,
    build_origin,
    cosign_checkpoint,
    encode_checkpoint,
    log_key,
    parse_checkpoint,
    read_checkpoint,
    sign_checkpoint,
    verify_checkpoint,
    witness_key,
)
from ledger.encoding import MAX_INTEGER
from ledger.errors import InvalidKeyError, InvalidNoteError
from ledger.note import is_key_name
from scripts import vectors
from tests.builders import build_genesis, build_key

GENESIS = build_genesis()
ORIGIN = build_origin(GENESIS)
LOG, WITNESS = build_key("authority 0"), build_key("witness")
CHECKPOINT = Checkpoint(origin=ORIGIN, size=70, root=bytes(range(32)))
KEYS = [log_key(ORIGIN, LOG.account)]
VECTORS = json.loads((vectors.VECTORS / "checkpoints.json").read_text(encoding="utf-8"))


def test_the_origin_names_network_and_genesis_and_is_a_key_name():
    digest = hash_genesis(GENESIS).hex()
    assert f"aitbc/test-net/{digest[:16]}" == ORIGIN
    longest = build_origin(build_genesis(network="n" * 63))
    assert is_key_name(ORIGIN)
    assert is_key_name(longest)


@given(st.integers(0, MAX_INTEGER), st.binary(min_size=32, max_size=32))
def test_a_checkpoint_survives_a_round_trip(size, root):
    checkpoint = Checkpoint(origin=ORIGIN, size=size, root=root)
    assert parse_checkpoint(encode_checkpoint(checkpoint)) == checkpoint
    assert read_checkpoint(sign_checkpoint(checkpoint, LOG)) == checkpoint


TEXT = encode_checkpoint(CHECKPOINT)
ORIGIN_LINE, SIZE_LINE, ROOT_LINE = TEXT.splitlines()
NO_CHECKPOINTS = {
    "empty": "\n",
    "two lines": f"{ORIGIN_LINE}\n{SIZE_LINE}\n",
    "an extension line": TEXT + "more\n",
    "an empty line behind": TEXT + "\n",
    "an empty origin": f"\n{SIZE_LINE}\n{ROOT_LINE}\n",
    "an empty size": f"{ORIGIN_LINE}\n\n{ROOT_LINE}\n",
    "a leading zero": f"{ORIGIN_LINE}\n070\n{ROOT_LINE}\n",
    "a sign": f"{ORIGIN_LINE}\n+70\n{ROOT_LINE}\n",
    "a negative size": f"{ORIGIN_LINE}\n-1\n{ROOT_LINE}\n",
    "other digits": f"{ORIGIN_LINE}\n\u0667\n{ROOT_LINE}\n",
    "a space behind the size": f"{ORIGIN_LINE}\n70 \n{ROOT_LINE}\n",
    "a size of 54 bits": f"{ORIGIN_LINE}\n{MAX_INTEGER + 1}\n{ROOT_LINE}\n",
    "a size of many digits": f"{ORIGIN_LINE}\n{'9' * 5000}\n{ROOT_LINE}\n",
    "a short root": f"{ORIGIN_LINE}\n70\nAAAA\n",
    "a long root": f"{ORIGIN_LINE}\n70\n{'A' * 44}\n",
    "a root without padding": TEXT.replace("=", ""),
    "a root of a second spelling": TEXT.replace("8=", "9="),
    "a root in hex": f"{ORIGIN_LINE}\n70\n{bytes(32).hex()}\n",
    "a root that is not ASCII": f"{ORIGIN_LINE}\n70\n\u00e9{ROOT_LINE[1:]}\n",
}


@pytest.mark.parametrize("text", NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS.keys())
def test_what_is_no_checkpoint_is_refused(text):
    assert text != TEXT
    with pytest.raises(InvalidNoteError):
        parse_checkpoint(text)


def test_a_signed_checkpoint_says_who_signed_it():
    signed = verify_checkpoint(sign_checkpoint(CHECKPOINT, LOG), origin=ORIGIN, keys=KEYS)
    assert signed.checkpoint == CHECKPOINT
    assert [(s.key, s.time_s) for s in signed.signatures] == [(KEYS[0], None)]


def test_a_checkpoint_of_another_log_is_refused_whoever_signed_it():
    other = build_origin(build_genesis(network="other-net"))
    data = sign_checkpoint(Checkpoint(origin=other, size=70, root=CHECKPOINT.root), LOG)
    with pytest.raises(InvalidNoteError, match="another log's"):
        verify_checkpoint(data, origin=ORIGIN, keys=[*KEYS, log_key(other, LOG.account)])


def test_a_witness_adds_its_line_and_drops_those_that_it_does_not_know():
    stranger = sign_checkpoint(CHECKPOINT, build_key("stranger")).split(b"\n\n")[1]
    data = sign_checkpoint(CHECKPOINT, LOG)
    signed = verify_checkpoint(data + stranger, origin=ORIGIN, keys=KEYS)
    cosigned = cosign_checkpoint(signed, WITNESS, time_s=1_767_225_600)
    assert cosigned.startswith(data)
    assert stranger not in cosigned
    both = verify_checkpoint(cosigned, origin=ORIGIN, keys=[*KEYS, witness_key(WITNESS.account)])
    assert [s.time_s for s in both.signatures] == [None, 1_767_225_600]
    assert both.encode() == cosigned


def test_a_key_that_is_no_account_is_refused():
    with pytest.raises(InvalidKeyError):
        verify_checkpoint(
            sign_checkpoint(CHECKPOINT, LOG), origin=ORIGIN, keys=[witness_key("ait1")]
        )


def test_no_other_message_that_authorities_sign_begins_as_a_checkpoint():
    """An origin never ends its line where the domain of another message does."""
    vote = build_vote_message(
        genesis_hash=bytes(32), kind="finalize", height=1, view=0, block_hash=bytes(32)
    )
    for network in ("vote", "tx", "miner-registration", "block"):
        origin = build_origin(build_genesis(network=network))
        text = encode_checkpoint(Checkpoint(origin=origin, size=0, root=bytes(32))).encode()
        assert text.split(b"\n")[0] != vote.split(b"\n")[0]
        assert not text.startswith(f"aitbc/{network}/v1\n".encode())


# --- golden vectors -----------------------------------------------------------------------------


def test_the_vectors_verify_with_the_keys_that_they_name():
    genesis_keys = {case["account"]: case["key"] for case in VECTORS["keys"]}
    for case in VECTORS["checkpoints"]:
        keys = [log_key(VECTORS["origin"], account) for account in case["signed_by"]]
        keys += [witness_key(account) for account in case["cosigned_by"]]
        signed = verify_checkpoint(case["note"].encode(), origin=VECTORS["origin"], keys=keys)
        assert len(signed.signatures) == len(keys)
        assert [str(key) for key in keys] == [genesis_keys[key.account] for key in keys]
        assert (signed.checkpoint.size, signed.checkpoint.root.hex()) == (
            case["size"],
            case["root"],
        )


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["why"])
def test_the_vectors_that_are_to_be_refused(case):
    keys = [log_key(VECTORS["origin"], LOG.account), witness_key(WITNESS.account)]
    with pytest.raises(InvalidNoteError):
        verify_checkpoint(case["note"].encode(), origin=VECTORS["origin"], keys=keys)
