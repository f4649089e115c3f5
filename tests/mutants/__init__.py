"""The defences of docs/security.rst, each put out to see whether the tests of its row notice."""

from . import caching, cookies, identity, keeping

__all__ = ["MUTANTS"]

MUTANTS = [*identity.MUTANTS, *cookies.MUTANTS, *caching.MUTANTS, *keeping.MUTANTS]
