"""Where figures_for was. Goes when chat imports it from billing.ledgers."""

from billing.ledgers import figures_for

__all__ = ["figures_for"]
