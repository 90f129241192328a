"""Types of the wire formats are known before threads parse them: else the process would crash."""

import subprocess
import sys

from ledger.block import hash_genesis
from ledger.encoding import encode
from tests.builders import build_genesis, build_receipt
from tests.live import ROOT

PROCESSES = 3
_SCRIPT = """
import sys, threading
from ledger.block import parse_genesis
from ledger.transaction import parse_transaction
genesis, envelope = map(bytes.fromhex, sys.argv[1:])
sys.setswitchinterval(1e-7)
together = threading.Barrier(8)

def parse(number):
    together.wait()
    parse_genesis(genesis) if number % 2 else parse_transaction(envelope)

threads = [threading.Thread(target=parse, args=(n,)) for n in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_may_parse_the_first_documents_of_a_process_at_once():
    genesis = build_genesis(4)
    documents = [encode(genesis), build_receipt(genesis, 1).envelope]
    assert hash_genesis(genesis)
    command = [sys.executable, "-c", _SCRIPT, *(document.hex() for document in documents)]
    for _ in range(PROCESSES):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
