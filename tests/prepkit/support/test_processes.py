"""How instances are dealt to processes; tests/netspace/training/test_parallel.py starts several."""

import pytest

from prepkit.support.processes import ParallelError, Ranks


def test_what_cannot_be_dealt_evenly_is_refused():
    assert [Ranks(rank, 2).block(6) for rank in (0, 1)] == [slice(0, 3), slice(3, 6)]
    with pytest.raises(ParallelError, match=r"3 instances a batch cannot be dealt evenly to 2 .* of 4"):
        Ranks(0, 2).block(3)
