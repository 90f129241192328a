"""Consistency documents: between any two trees of a ledger, and worth nothing about others."""

import contextlib
import itertools

import msgspec
import pytest

from ledger import merkle
from ledger.authorities import hash_authority_set
from ledger.consistency import (
    ConsistencyProof,
    HeadProof,
    parse_consistency,
    verify_extension,
    verify_head,
)
from ledger.encoding import encode
from ledger.errors import (
    InvalidCertificateError,
    InvalidProofError,
    LedgerError,
    StoreError,
)
from ledger.proof import Epoch
from ledger.store.chain import ChainStore
from ledger.views import TreeViews
from ledger.views.tree import find_block
from tests.builders import (
    build_authority_set,
    build_certificate,
    build_chain,
    build_genesis,
    build_members,
    build_receipt,
)

CHAIN = build_chain(4, blocks=[1, 2, 1, 5, 3, 1, 6])
SIZE = CHAIN.tip.tree_size
ENDS = {0, *(block.header.tree_size for block in CHAIN.blocks)}
replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = ChainStore(tmp_path_factory.mktemp("tree") / "ledger.db", CHAIN.genesis)
    for block, certificate in zip(CHAIN.blocks, CHAIN.certificates, strict=True):
        store.append(block, certificate).result()
    yield store
    store.close()


@pytest.fixture(scope="module")
def views(store):
    return TreeViews(store)


def root(size: int) -> bytes:
    return merkle.compute_root(size, CHAIN.read)


def proof_of(views: TreeViews, old: int, new: int) -> ConsistencyProof:
    data = views.consistency(old, new)
    proof = parse_consistency(data)
    assert encode(proof) == data
    return proof


def check(proof: ConsistencyProof, old: int, new: int) -> None:
    verify_extension(proof, old=(old, root(old)), new=(new, root(new)))


def test_every_tree_extends_every_smaller_one(views):
    for old, new in itertools.combinations_with_replacement(range(SIZE + 1), 2):
        proof = proof_of(views, old, new)
        check(proof, old, new)
        assert (proof.head is not msgspec.UNSET) == (new in ENDS - {0})
        if proof.head is not msgspec.UNSET:
            signers = verify_head(proof.head, genesis=CHAIN.genesis, size=new, root=root(new))
            assert signers == (CHAIN.genesis.authority_set,)


def test_without_a_second_size_the_newest_tree_is_meant(views):
    assert views.consistency(3, None) == views.consistency(3, SIZE)


@pytest.mark.parametrize("sizes", [(0, SIZE + 1), (SIZE + 1, SIZE + 1), (SIZE + 1, None), (5, 4)])
def test_trees_that_do_not_exist_have_no_proof(views, sizes):
    assert views.consistency(*sizes) is None


def test_no_proof_shows_another_root_or_size(views):
    wrong = bytes(32)
    for old, new in itertools.combinations_with_replacement(range(SIZE + 1), 2):
        proof = proof_of(views, old, new)
        for claimed in (
            replace(proof, from_root=wrong.hex()),
            replace(proof, to_root=wrong.hex()),
            replace(proof, from_size=proof.from_size + 1),
            replace(proof, to_size=proof.to_size + 1),
        ):
            with pytest.raises(InvalidProofError):
                check(claimed, old, new)
        # A document about those very roots does not help: only its path could.
        if old:
            with pytest.raises(InvalidProofError):
                verify_extension(
                    replace(proof, from_root=wrong.hex()), old=(old, wrong), new=(new, root(new))
                )
            with pytest.raises(InvalidProofError):
                verify_extension(
                    replace(proof, to_root=wrong.hex()), old=(old, root(old)), new=(new, wrong)
                )


def test_a_proof_with_a_changed_missing_or_spare_node_fails(views):
    for old, new in itertools.combinations(range(SIZE + 1), 2):
        proof = proof_of(views, old, new)
        path = proof.path
        spoiled = [(*path, "00" * 32), *(path[:i] + path[i + 1 :] for i in range(len(path)))]
        spoiled += [(*path[:i], "00" * 32, *path[i + 1 :]) for i in range(len(path))]
        for nodes in spoiled:
            with pytest.raises(InvalidProofError):
                check(replace(proof, path=nodes), old, new)


def test_the_empty_tree_has_one_root():
    proof = ConsistencyProof(
        from_size=0,
        from_root="11" * 32,
        to_size=1,
        to_root=root(1).hex(),
        path=(),
    )
    with pytest.raises(InvalidProofError, match="empty tree"):
        verify_extension(proof, old=(0, b"\x11" * 32), new=(1, root(1)))
    proof = replace(proof, from_root=merkle.EMPTY_ROOT.hex(), to_size=0, to_root="11" * 32)
    with pytest.raises(InvalidProofError, match="empty tree"):
        verify_extension(proof, old=(0, merkle.EMPTY_ROOT), new=(0, b"\x11" * 32))


def test_a_document_that_was_cut_off_or_changed_in_form_is_refused(views):
    data = views.consistency(3, SIZE)
    for length in range(len(data)):
        with pytest.raises(InvalidProofError):
            parse_consistency(data[:length])
    for changed in (data + b"\n", b" " + data, data.replace(b'"v":1', b'"v":2'), b"null", b"[]"):
        with pytest.raises(InvalidProofError):
            parse_consistency(changed)


# --- heads --------------------------------------------------------------------------------------


def head_at(views: TreeViews, size: int) -> HeadProof:
    head = proof_of(views, 0, size).head
    assert isinstance(head, HeadProof)
    return head


def test_the_block_that_reaches_a_size_is_found(store):
    reader = store.database.reader
    for size in range(1, SIZE + 1):
        expected = next(b.header for b in CHAIN.blocks if b.header.tree_size >= size)
        assert find_block(reader, size) == expected
    assert find_block(reader, 0) is None
    assert find_block(reader, SIZE + 1) is None


def test_a_head_with_too_few_votes_or_another_tree_is_refused(views):
    head = head_at(views, SIZE)
    votes = head.certificate.votes

    def verify(changed: HeadProof, **expected) -> None:
        wanted = {"genesis": CHAIN.genesis, "size": SIZE, "root": root(SIZE)} | expected
        verify_head(changed, **wanted)

    verify(head)
    few = replace(head, certificate=replace(head.certificate, votes=votes[:2]))
    with pytest.raises(InvalidCertificateError, match="at least 3 votes"):
        verify(few)
    for expected in ({"size": SIZE - 1}, {"root": bytes(32)}):
        with pytest.raises(InvalidProofError, match="head: expected"):
            verify(head, **expected)
    with pytest.raises(InvalidProofError, match="another network"):
        verify(head, genesis=build_genesis(4, network="other-net"))
    stranger = build_certificate(head.header, build_members(4, epoch=7))
    with pytest.raises(LedgerError):
        verify(replace(head, certificate=stranger))


def build_changed() -> tuple[HeadProof, HeadProof]:
    """The head of a block that brings in other authorities, and that of the block after it."""
    chain = build_chain(4, blocks=[2])
    members = build_members(4, epoch=1)
    following = build_authority_set(members, epoch=1)
    change = chain.change_authorities(members, build_receipt(chain.genesis, 100))
    first = HeadProof(
        header=change.header, certificate=chain.certificates[-1], epochs=(), next_set=following
    )
    block = chain.append(build_receipt(chain.genesis, 101))
    epoch = Epoch(header=change.header, certificate=first.certificate, authority_set=following)
    second = HeadProof(header=block.header, certificate=chain.certificates[-1], epochs=(epoch,))
    return first, second


def test_at_a_change_of_authorities_both_sets_may_sign_and_later_the_new_one():
    first, second = build_changed()
    genesis = build_genesis(4)

    def signers(head: HeadProof) -> list[str]:
        size, root = head.header.tree_size, bytes.fromhex(head.header.tree_root)
        sets = verify_head(head, genesis=genesis, size=size, root=root)
        return [hash_authority_set(members).hex() for members in sets]

    old, new = first.header.set_hash, first.header.next_set_hash
    assert old != new
    assert signers(first) == [old, new]
    assert signers(second) == [new]
    with pytest.raises(InvalidProofError, match="next set"):
        signers(replace(first, next_set=genesis.authority_set))
    with pytest.raises(InvalidProofError, match="does not show the next"):
        signers(replace(first, next_set=msgspec.UNSET))
    with pytest.raises(InvalidProofError, match="genesis leads to"):
        signers(replace(second, epochs=()))


def test_a_ledger_shows_its_changes_of_authorities_with_its_heads(tmp_path):
    chain = build_chain(4, blocks=[2])
    new = build_members(4, epoch=1)
    change = chain.change_authorities(new, build_receipt(chain.genesis, 100))
    chain.append(build_receipt(chain.genesis, 101))
    store = ChainStore(tmp_path / "ledger.db", chain.genesis)
    with contextlib.closing(store):
        for block, certificate in zip(chain.blocks, chain.certificates, strict=True):
            store.append(block, certificate).result()
        views = TreeViews(store)
        found = []
        for block in chain.blocks:
            size = block.header.tree_size
            sets = verify_head(
                head_at(views, size),
                genesis=chain.genesis,
                size=size,
                root=bytes.fromhex(block.header.tree_root),
            )
            found.append([hash_authority_set(members).hex() for members in sets])
    old, following = change.header.set_hash, change.header.next_set_hash
    assert found == [[old], [old, following], [following]]


def test_a_ledger_with_a_missing_block_says_so_instead_of_guessing(tmp_path):
    store = ChainStore(tmp_path / "ledger.db", CHAIN.genesis)
    with contextlib.closing(store):
        for block, certificate in zip(CHAIN.blocks, CHAIN.certificates, strict=True):
            store.append(block, certificate).result()
        store.database.write(_lose_a_block).result()
        with pytest.raises(StoreError, match="is missing; run fsck"):
            find_block(store.database.reader, 1)


def _lose_a_block(connection) -> None:
    connection.execute("PRAGMA defer_foreign_keys = ON")
    connection.execute("UPDATE blocks SET height = 1000 WHERE height = 4")
    connection.execute("UPDATE transactions SET height = 1000 WHERE height = 4")
