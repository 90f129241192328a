import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from ledger import merkle
from ledger.authorities import Authority, AuthoritySet, hash_authority_set, validate_authority_set
from ledger.block import (
    Block,
    Limits,
    build_genesis_tip,
    hash_genesis,
    hash_header,
    parse_certificate,
    parse_genesis,
    parse_header,
    verify_certificate,
)
from ledger.encoding import encode
from ledger.errors import (
    InvalidBlockError,
    InvalidCertificateError,
    InvalidSignatureError,
    InvalidTransactionError,
)
from ledger.rules import build_block, validate_block
from ledger.transaction import build_transaction
from tests.builders import (
    build_authority_set,
    build_certificate,
    build_chain,
    build_genesis,
    build_key,
    build_members,
    build_receipt,
)

NETWORKS = json.loads(
    (Path(__file__).parent / "vectors" / "blocks.json").read_text(encoding="utf-8")
)["networks"]


@pytest.fixture
def chain():
    return build_chain(4, blocks=[3])


@pytest.fixture
def block(chain):
    return chain.propose(build_receipt(chain.genesis, 4), build_receipt(chain.genesis, 5))


def with_header(block, **changes):
    """The block with other header fields and the hash that fits them."""
    header = msgspec.structs.replace(block.header, **changes)
    return replace(block, header=header, hash=hash_header(header))


@pytest.mark.parametrize("network", NETWORKS, ids=["one authority", "four authorities"])
def test_golden_blocks(network):
    genesis = parse_genesis(network["genesis"].encode())
    header = parse_header(network["header"].encode())
    assert hash_genesis(genesis).hex() == network["genesis_hash"] == header.genesis
    assert hash_authority_set(genesis.authority_set).hex() == network["set_hash"]
    assert hash_header(header).hex() == network["block_hash"]
    for text in network["certificates"]:
        certificate = parse_certificate(text.encode())
        assert encode(certificate) == text.encode()
        verify_certificate(certificate, header=header, authority_set=genesis.authority_set)


def test_a_proposed_block_is_valid_on_its_tip(chain, block):
    validate_block(block, chain.tip, chain.read)


def test_a_sealed_chain_is_valid_from_genesis():
    chain = build_chain(1, blocks=[1, 5, 2, 8])
    tip, nodes = build_genesis_tip(chain.genesis), {}

    def read(level, index):
        return nodes[level, index]

    for block in chain.blocks:
        validate_block(block, tip, read)
        leaves = [merkle.hash_leaf(transaction.envelope) for transaction in block.transactions]
        nodes |= merkle.append_leaves(tip.tree_size, leaves, read)
        header = block.header
        tip = replace(
            tip,
            height=header.height,
            hash=block.hash,
            time_ms=header.time_ms,
            tree_size=header.tree_size,
        )
    assert tip == chain.tip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("genesis", "00" * 32),
        ("height", 1),
        ("height", 3),
        ("prev_hash", "00" * 32),
        ("tree_size", 4),
        ("tree_size", 6),
        ("tree_root", "00" * 32),
        ("set_hash", "00" * 32),
        ("next_set_hash", "00" * 32),
    ],
)
def test_a_header_that_does_not_follow_from_tip_and_body_is_refused(chain, block, field, value):
    with pytest.raises(InvalidBlockError, match=f"header {field}: expected .*, got "):
        validate_block(with_header(block, **{field: value}), chain.tip, chain.read)


def test_a_block_with_stale_parent_is_refused(chain, block):
    chain.append(build_receipt(chain.genesis, 9))
    later = with_header(block, time_ms=chain.tip.time_ms + 1)
    with pytest.raises(InvalidBlockError, match="header height"):
        validate_block(later, chain.tip, chain.read)


@pytest.mark.parametrize("step", [0, -1])
def test_time_that_does_not_move_on_is_refused(chain, block, step):
    late = with_header(block, time_ms=chain.tip.time_ms + step)
    with pytest.raises(InvalidBlockError, match="time_ms: expected above"):
        validate_block(late, chain.tip, chain.read)


@pytest.mark.parametrize("time_ms", [0, None])
def test_a_clock_that_stands_still_or_goes_back_still_builds_a_block(chain, time_ms):
    block = build_block(
        chain.tip,
        [build_receipt(chain.genesis, 4)],
        time_ms=chain.tip.time_ms if time_ms is None else time_ms,
        proposer=chain.members[0].account,
        read=chain.read,
    )
    assert block.header.time_ms == chain.tip.time_ms + 1
    validate_block(block, chain.tip, chain.read)


def test_a_proposer_outside_the_set_is_refused(chain, block):
    stranger = with_header(block, proposer=build_key("stranger").account)
    with pytest.raises(InvalidBlockError, match="is not an authority"):
        validate_block(stranger, chain.tip, chain.read)
    member = with_header(block, proposer=chain.members[3].account)
    validate_block(member, chain.tip, chain.read)


def test_a_hash_of_another_header_is_refused(chain, block):
    wrong = Block(hash=chain.tip.hash, header=block.header, transactions=block.transactions)
    with pytest.raises(InvalidBlockError, match="block hash"):
        validate_block(wrong, chain.tip, chain.read)


@pytest.mark.parametrize("change", ["swapped", "shortened", "replaced"])
def test_another_body_is_refused(chain, block, change):
    first, second = block.transactions
    bodies = {
        "swapped": (second, first),
        "shortened": (first,),
        "replaced": (first, build_receipt(chain.genesis, 6)),
    }
    with pytest.raises(InvalidBlockError, match="header tree_"):
        validate_block(replace(block, transactions=bodies[change]), chain.tip, chain.read)


def test_an_empty_block_is_refused(chain):
    with pytest.raises(InvalidBlockError, match="transactions: expected 1 to"):
        validate_block(chain.propose(), chain.tip, chain.read)


def test_too_many_transactions_are_refused(chain, block):
    tip = replace(chain.tip, limits=Limits(max_block_transactions=1))
    with pytest.raises(InvalidBlockError, match="transactions: expected 1 to 1, got 2"):
        validate_block(block, tip, chain.read)


def test_too_many_bytes_are_refused(chain):
    tip = replace(chain.tip, limits=Limits(max_block_bytes=65536))
    receipts = [build_receipt(chain.genesis, 10 + i) for i in range(50)]
    assert sum(len(receipt.envelope) for receipt in receipts) > 65536
    with pytest.raises(InvalidBlockError, match="block size: expected at most 65536 bytes"):
        validate_block(chain.propose(*receipts), tip, chain.read)


def test_one_receipt_twice_in_a_block_is_refused(chain):
    first = build_receipt(chain.genesis, 4)
    for second in (first, build_receipt(chain.genesis, 4, price_micros=1)):
        with pytest.raises(InvalidBlockError, match="one receipt stands in the block twice"):
            validate_block(chain.propose(first, second), chain.tip, chain.read)


def test_an_invalid_transaction_makes_the_block_invalid(chain):
    unsigned = build_transaction(build_receipt(chain.genesis, 4).payload, [])
    foreign = build_receipt(build_genesis(1), 4)
    for transaction, error in (
        (unsigned, InvalidSignatureError),
        (foreign, InvalidTransactionError),
    ):
        with pytest.raises(error):
            validate_block(chain.propose(transaction), chain.tip, chain.read)


def test_every_quorum_of_votes_is_a_certificate(chain):
    header = chain.blocks[0].header
    for voters in ([0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3], [0, 1, 2, 3]):
        for view in (0, 7):
            certificate = build_certificate(header, chain.members, voters=voters, view=view)
            verify_certificate(
                certificate, header=header, authority_set=chain.genesis.authority_set
            )


@pytest.mark.parametrize(
    ("count", "quorum"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (100, 67)]
)
def test_a_quorum_is_more_than_two_thirds(count, quorum):
    assert build_authority_set(build_members(count)).quorum == quorum
    assert 3 * quorum > 2 * count
    assert 3 * (quorum - 1) <= 2 * count


def test_a_set_finds_its_members_by_account():
    keys = build_members(4)
    authority_set = build_authority_set(keys)
    assert [authority_set.index_of(key.account) for key in keys] == [0, 1, 2, 3]
    assert authority_set.index_of(build_key("stranger").account) is None


def check(chain, certificate, **changes):
    header = msgspec.structs.replace(chain.blocks[0].header, **changes)
    verify_certificate(certificate, header=header, authority_set=chain.genesis.authority_set)


@pytest.mark.parametrize(
    ("voters", "message"),
    [
        ([], "at least 3 votes of 4, got 0"),
        ([0, 1], "at least 3 votes of 4, got 2"),
        ([0, 0, 0], "distinct voters in ascending order"),
        ([0, 1, 2, 2], "distinct voters in ascending order"),
        ([2, 1, 0], "distinct voters in ascending order"),
    ],
)
def test_votes_too_few_repeated_or_out_of_order_are_refused(chain, voters, message):
    certificate = build_certificate(chain.blocks[0].header, chain.members, voters=voters)
    with pytest.raises(InvalidCertificateError, match=message):
        check(chain, certificate)


@pytest.mark.parametrize("kind", ["notarize", "nullify"])
def test_votes_of_another_kind_are_refused(chain, kind):
    certificate = build_certificate(chain.blocks[0].header, chain.members, kind=kind)
    with pytest.raises(InvalidCertificateError, match="does not verify"):
        check(chain, certificate)


@pytest.mark.parametrize(
    "changes",
    [{"genesis": "ab" * 32}, {"height": 2}, {"time_ms": 1}, {"proposer": "nobody"}],
)
def test_votes_of_another_chain_height_or_block_are_refused(chain, changes):
    header = msgspec.structs.replace(chain.blocks[0].header, **changes)
    elsewhere = build_certificate(header, chain.members)
    with pytest.raises(InvalidCertificateError, match="does not verify"):
        check(chain, elsewhere)
    with pytest.raises(InvalidCertificateError, match="does not verify"):
        check(chain, chain.certificates[0], **changes)


def test_votes_of_another_view_are_refused(chain):
    certificate = msgspec.structs.replace(chain.certificates[0], view=1)
    with pytest.raises(InvalidCertificateError, match="does not verify"):
        check(chain, certificate)


def test_a_member_that_does_not_exist_is_refused(chain):
    votes = list(chain.certificates[0].votes)
    votes[3] = (4, votes[3][1])
    certificate = msgspec.structs.replace(chain.certificates[0], votes=tuple(votes))
    with pytest.raises(InvalidCertificateError, match="member 4 of 4 does not exist"):
        check(chain, certificate)


def test_one_bad_vote_beside_a_quorum_is_refused(chain):
    members = [*chain.members[:3], build_key("stranger")]
    certificate = build_certificate(chain.blocks[0].header, members)
    with pytest.raises(InvalidCertificateError, match="vote of member 3"):
        check(chain, certificate)


def test_a_certificate_under_another_set_is_refused(chain):
    other = build_authority_set(build_members(4, epoch=1))
    with pytest.raises(InvalidCertificateError, match="another authority set"):
        verify_certificate(
            chain.certificates[0], header=chain.blocks[0].header, authority_set=other
        )


ACCOUNTS = sorted(build_key(name).account for name in "ab")


@pytest.mark.parametrize(
    ("members", "coordinators", "message"),
    [
        ([ACCOUNTS[0], ACCOUNTS[0]], [], "stands in it twice"),
        ([ACCOUNTS[0], "ait1"], [], "authority set: account"),
        ([ACCOUNTS[0]], ["ait1"], "authority set: account"),
        ([ACCOUNTS[0]], [ACCOUNTS[1], ACCOUNTS[1]], "distinct and sorted"),
        ([ACCOUNTS[0]], ACCOUNTS[::-1], "distinct and sorted"),
    ],
)
def test_a_malformed_authority_set_is_refused(members, coordinators, message):
    authority_set = AuthoritySet(
        epoch=0,
        members=tuple(Authority(account=account, name="a", url="") for account in members),
        coordinators=tuple(coordinators),
    )
    with pytest.raises(InvalidBlockError, match=message):
        validate_authority_set(authority_set)
    sound = msgspec.structs.replace(
        authority_set, members=authority_set.members[:1], coordinators=tuple(ACCOUNTS)
    )
    validate_authority_set(sound)


def test_a_genesis_file_may_end_in_one_line_feed():
    genesis = build_genesis(4)
    assert parse_genesis(encode(genesis)) == parse_genesis(encode(genesis) + b"\n") == genesis


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(network="Upper"),
        lambda d: d.update(network="test\n"),
        lambda d: d.update(network=""),
        lambda d: d.update(settlement="on_chain"),
        lambda d: d.update(v=2),
        lambda d: d.pop("limits"),
        lambda d: d["limits"].update(max_block_bytes=1),
        lambda d: d["limits"].pop("max_block_bytes"),
        lambda d: d["authority_set"].update(members=[]),
        lambda d: d["authority_set"].update(epoch=1),
        lambda d: d["authority_set"].pop("coordinators"),
        lambda d: d["authority_set"]["members"][0].update(account="ait1"),
        lambda d: d["authority_set"]["members"][0].update(url="http://a b"),
        lambda d: d["authority_set"]["members"][0].update(name=""),
        lambda d: d["authority_set"]["members"][0].update(name="a\n"),
        lambda d: d["authority_set"].update(members=d["authority_set"]["members"] * 101),
    ],
)
def test_a_malformed_genesis_is_refused(change):
    document = msgspec.json.decode(encode(build_genesis(1)))
    change(document)
    with pytest.raises(InvalidBlockError):
        parse_genesis(encode(document))


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"[" * 5000, b"{}\n\n", b" " * 5000])
def test_hostile_bytes_are_neither_header_nor_certificate_nor_genesis(data):
    with pytest.raises(InvalidBlockError):
        parse_header(data)
    with pytest.raises(InvalidCertificateError):
        parse_certificate(data)
    with pytest.raises(InvalidBlockError):
        parse_genesis(data)
