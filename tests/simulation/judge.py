"""What is checked after a history, trusting nothing that the nodes say.

Every ledger is verified from genesis, as `fsck` does it, and compared with all that was ever called
final anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledger.authorities import hash_authority_set
from ledger.block import Block, Certificate, Genesis, verify_certificate
from ledger.errors import InvalidBlockError, LedgerError
from ledger.payloads import AuthoritySetPayload, EvidencePayload
from ledger.store.fsck import verify_connection
from tests.simulation.machine import Machine
from tests.simulation.network import Network


def judge(network: Network) -> None:
    """Verify every ledger, and find in it all that was final.

    Raises:
        BrokenError: a ledger does not verify, differs from another, or has lost a block.
    """
    for machine in network.machines:
        try:
            chain = read_chain(machine, network.genesis)
            check_sets(network.genesis, chain)
        except LedgerError as error:
            network.fail("a ledger does not verify", f"node {machine.index}: {error}")
        if [block.hash for block, _ in chain] != [
            network.finals.get(h + 1) for h in range(len(chain))
        ]:
            network.fail("fork", f"node {machine.index} has other blocks than were final")
        if len(chain) < machine.final_height:
            network.fail("lost final", f"node {machine.index}: {machine.final_height}")
        network.counts.evidence = max(network.counts.evidence, count_evidence(chain))
    network.counts.set_changes = max(m.tip.authority_set.epoch for m in network.machines)


def read_chain(machine: Machine, genesis: Genesis) -> list[tuple[Block, Certificate]]:
    """Return the verified blocks of a node.

    Raises:
        LedgerError: they do not verify.
    """
    verify_connection(machine.disk.ledger, genesis, _ignore)
    return machine.read_chain()


def check_sets(genesis: Genesis, chain: Sequence[tuple[Block, Certificate]]) -> None:
    """Check once more, on its own, which set certified which block: a change counts one higher.

    Raises:
        InvalidBlockError, InvalidCertificateError: a block was certified by another set.
    """
    current = genesis.authority_set
    for block, certificate in chain:
        if block.header.set_hash != hash_authority_set(current).hex():
            raise InvalidBlockError(f"block {block.header.height} names a set before its time")
        verify_certificate(certificate, header=block.header, authority_set=current)
        for transaction in block.transactions:
            if isinstance(transaction.payload, AuthoritySetPayload):
                current = transaction.payload.authority_set


def count_evidence(chain: Sequence[tuple[Block, Certificate]]) -> int:
    return sum(
        isinstance(transaction.payload, EvidencePayload)
        for block, _ in chain
        for transaction in block.transactions
    )


def _ignore(height: int, last: int) -> None:
    """Nobody watches the progress."""
