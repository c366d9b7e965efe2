"""The stages' tests of registration use the registries of tests/registry."""

from tests.registry.conftest import client, migrated, registered, store

__all__ = ["client", "migrated", "registered", "store"]
