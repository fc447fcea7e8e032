"""A tenant's authority key lies sealed: how is tenants.sealing's, that it does is decided here. Must never log one."""

from tenants.sealing import seal, unseal

__all__ = ["seal", "unseal"]
