"""The cards of zoos that are written here lack their picture, which tests/prepkit/zoo/card draws."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _undrawn(undrawn_cards):
    pass
