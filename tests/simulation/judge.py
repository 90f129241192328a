"""What is checked after a history, trusting nothing that the nodes say.

Every ledger is verified from genesis, as `fsck` does it, and compared with all that was ever called
final anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledger.authorities import hash_authority_set
from ledger.block import Block, Certificate, Genesis, verify_certificate
from ledger.errors import InvalidBlockError, LedgerError
from ledger.payloads import AuditPayload, AuthoritySetPayload, EvidencePayload, Payload
from ledger.store.fsck import verify_connection
from tests.simulation.network import Network


def judge(network: Network) -> None:
    """Verify every ledger, and find in it all that was final.

    Raises:
        BrokenError: a ledger does not verify, differs from another, or has lost a block.
    """
    for machine in network.machines:
        try:
            tip = verify_connection(machine.disk.ledger, network.genesis, _ignore)
        except LedgerError as error:
            network.fail("a ledger does not verify", f"node {machine.index}: {error}")
        rows = machine.disk.ledger.execute("SELECT hash FROM blocks ORDER BY height")
        finals = [network.finals.get(height + 1) for height in range(tip.height)]
        if [row[0] for row in rows] != finals:
            network.fail("fork", f"node {machine.index} has other blocks than were final")
        if tip.height < machine.final_height:
            network.fail("lost final", f"node {machine.index}: {machine.final_height}")
    # All are beginnings of the longest one.
    chain = max(network.machines, key=lambda machine: machine.tip.height).read_chain()
    try:
        check_sets(network.genesis, chain)
    except LedgerError as error:
        network.fail("a set decides at a height that is not its own", str(error))
    network.counts.evidence = count_payloads(chain, EvidencePayload)
    network.counts.audits = count_payloads(chain, AuditPayload)
    network.counts.set_changes = max(m.tip.authority_set.epoch for m in network.machines)


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


def count_payloads(chain: Sequence[tuple[Block, Certificate]], kind: type[Payload]) -> int:
    return sum(
        isinstance(transaction.payload, kind)
        for block, _ in chain
        for transaction in block.transactions
    )


def _ignore(height: int, last: int) -> None:
    """Nobody watches the progress."""
