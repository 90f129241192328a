"""Who may do what, and who may read a job's text.

`dev` mode: what the reference leaves open is open, so only submitting needs a key. `strict` mode:
every write needs one, and reads show prompt, result and parameters to the key that submitted the
job, the key that claimed it, and admins only. Where a key is needed it is held to its role;
where none is, a good key takes nothing away, so a client may send its one key everywhere. A key
that is not one is refused wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from api.errors import RequestError
from api.ports import Keys
from api.requests import ANONYMOUS
from ledger.jobs import Caller, Job, KeyRole

ApiMode = Literal["dev", "strict"]

RECHECK_S = 1.0
"""A key that was good so long ago is looked up again before anything more is shown."""


def authenticate(secret: str | None, keys: Keys) -> Caller:
    """Return whose request this is.

    Raises:
        RequestError: AUTH_INVALID_KEY.
    """
    if secret is None:
        return ANONYMOUS
    caller = keys.authenticate(secret)
    if caller is None:
        raise RequestError("AUTH_INVALID_KEY", "this API key is unknown to this node, or revoked")
    return caller


class KeyWatch:
    """Whether the key of a request that takes long is still good. It may be revoked meanwhile."""

    def __init__(
        self, caller: Caller, secret: str | None, keys: Keys, *, clock_s: Callable[[], float]
    ) -> None:
        self._caller = caller
        self._secret = secret
        self._keys = keys
        self._clock_s = clock_s
        self._looked_at = clock_s()

    def is_good(self) -> bool:
        """Look anew, if the last look is RECHECK_S old."""
        now = self._clock_s()
        if self._secret is None or self._caller.role is None or now < self._looked_at + RECHECK_S:
            return True
        self._looked_at = now
        return self._keys.authenticate(self._secret) == self._caller


def check_role(caller: Caller, role: KeyRole | None, *, key_needed: bool) -> None:
    """Raise unless the caller may do the work of `role`.

    Raises:
        RequestError: AUTH_MISSING_KEY or AUTH_INSUFFICIENT_SCOPE.
    """
    if not key_needed:
        return
    if caller.role is None:
        raise RequestError(
            "AUTH_MISSING_KEY", "send an API key as X-Api-Key or Authorization: Bearer"
        )
    if role is not None and caller.role != role and not caller.is_admin:
        raise RequestError(
            "AUTH_INSUFFICIENT_SCOPE", f"expected the key of a {role} or admin, got a {caller.role}"
        )


def may_read(caller: Caller, job: Job, *, mode: ApiMode) -> bool:
    """Tell whether the caller may see the prompt, result and parameters of a job."""
    if mode == "dev" or caller.is_admin:
        return True
    return bool(caller.key) and caller.key in {job.owner, job.claimed_by}
