"""The public face for people: server-rendered pages over the ledger's read models."""

from explorer_ui.routes import build_error_handler, build_explorer
from explorer_ui.sources import ClosingError, HeadWatch, Market, Views

__all__ = ["ClosingError", "HeadWatch", "Market", "Views", "build_error_handler", "build_explorer"]
