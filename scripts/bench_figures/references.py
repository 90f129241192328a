"""What the figures are compared with: the disk's fdatasync and libsodium's signatures."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from nacl.signing import SigningKey

APPEND_BYTES = 4096
MESSAGE_BYTES = 1000
"""About the size of a receipt's payload."""


class Appender:
    """Appends to a file and waits until each append is on the disk."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._data = b"\0" * APPEND_BYTES

    def __enter__(self) -> Appender:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def append(self) -> int:
        """One durable append."""
        os.write(self._descriptor, self._data)
        os.fdatasync(self._descriptor)
        return 1


class Signatures:
    """Signs and verifies one message with libsodium, and nothing else."""

    def __init__(self) -> None:
        self._key = SigningKey(bytes(range(32)))
        self._message = b"\0" * MESSAGE_BYTES
        self._signature = self._key.sign(self._message).signature
        self._verifier = self._key.verify_key

    def sign_and_verify(self) -> int:
        """One signature and its verification."""
        self._key.sign(self._message)
        return self.verify()

    def verify(self) -> int:
        """One verification."""
        self._verifier.verify(self._message, self._signature)
        return 1
