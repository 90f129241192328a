from typing import Any


def build_bundles() -> dict[str, Any]:
    return {}
