"""Ed25519 arithmetic in plain integers (RFC 8032, section 5.1), to forge what no signer would make.

Slow and not constant in time: for test keys only.
"""

from __future__ import annotations

from hashlib import sha512

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P

Point = tuple[int, int]
IDENTITY: Point = (0, 1)


def add(a: Point, b: Point) -> Point:
    """Return the sum of two points."""
    product = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + product, -1, P)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, P)
    return x % P, y % P


def multiply(scalar: int, point: Point) -> Point:
    """Return `scalar` times `point`."""
    result = IDENTITY
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point, scalar = add(point, point), scalar >> 1
    return result


def recover_x(y: int, sign: int) -> int | None:
    """Return the x of a point with this y and sign, or None."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P:
        return None
    return P - x if x & 1 != sign else x


def encode(point: Point) -> bytes:
    """Return the 32 bytes of a point."""
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


BASE_Y = 4 * pow(5, -1, P) % P
BASE: Point = (recover_x(BASE_Y, 0) or 0, BASE_Y)


def _find_torsion() -> Point:
    """Return a point of order 8: L times a point leaves only its small part."""
    for y in range(2, 100):
        x = recover_x(y, 0)
        if x is not None:
            point = multiply(L, (x, y))
            if multiply(4, point) != IDENTITY:
                return point
    raise AssertionError("no point of order 8 below y = 100")


TORSION = _find_torsion()
SMALL_ORDER = [multiply(i, TORSION) for i in range(8)]


def challenge(r: bytes, public_key: bytes, message: bytes) -> int:
    """Return the hash that a signature answers."""
    return int.from_bytes(sha512(r + public_key + message).digest(), "little") % L


def forge(
    message: bytes, *, secret: int, nonce: int, key_torsion: Point, nonce_torsion: Point
) -> tuple[bytes, bytes, int]:
    """Sign with points moved by small-order ones. Returns public key, signature, challenge."""
    public_key = encode(add(multiply(secret, BASE), key_torsion))
    r = encode(add(multiply(nonce, BASE), nonce_torsion))
    k = challenge(r, public_key, message)
    return public_key, r + ((nonce + k * secret) % L).to_bytes(32, "little"), k
