"""Fixtures for all tests."""

import ctypes
import os
import signal
from types import SimpleNamespace

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread that spins while it waits takes a core from another
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores, so that they and the processes that they start take one thread each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("FORCE_COLOR", None)  # the commands that tests start would colour what the tests compare

import torch
import unflushed  # noqa: F401
from forked_python import ForkedPython
from hub_fixture import hub as hub
from hypothesis import HealthCheck, settings

# A deadline measures how busy the machine is: an example of 10 ms once took more than the 200 ms that are allowed.
settings.register_profile("prepkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("prepkit")

# A shell starts background jobs with Ctrl-C ignored, and the commands that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_thread():
    """On shared cores, threads that wait for each other take longer than the small tensors of most tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undrawn_cards():
    """Cards get no picture: to draw it takes four fifths of the time in which a small zoo is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prepkit.zoo.card.card.picture_of", lambda zoo: None)
        yield


@pytest.fixture(scope="session")
def forked_python():
    """What starts programs in Python that import torch, but at once."""
    python = ForkedPython()
    yield python
    python.close()


@pytest.fixture
def mallopt_calls(monkeypatch):
    """The arguments of each call of the C library's `mallopt`, which changes the whole process; none is passed on."""
    calls = []
    library = SimpleNamespace(mallopt=lambda *arguments: calls.append(arguments))
    load = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name, *args, **kwargs: load(name, *args, **kwargs) if name else library)
    return calls
