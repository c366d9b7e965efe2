"""The made-up registry of tests/registry, to be hurt."""

from tests.registry.conftest import (  # noqa: F401
    champion,
    client,
    migrated,
    registered,
    registry,
    service,
    snapshot,
    store,
    url,
)
