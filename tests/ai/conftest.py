"""Provider on loopback, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.ai.provider_server import ProviderServer, providing

Provide = Callable[..., ProviderServer]


@pytest.fixture(scope="module")
def provider_server() -> Iterator[ProviderServer]:
    with providing() as server:
        yield server


@pytest.fixture
def provide(provider_server: ProviderServer) -> Provide:
    """Return a function that sets the answers of the provider and returns it."""
    return provider_server.script
