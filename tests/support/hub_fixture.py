"""The real client of the Hub, and a server on loopback that it talks to; Xet is off before the client is imported."""

import os

os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"

import pytest
from hub_server import HubServer
from huggingface_hub import constants


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty Hub, and an empty cache, for this test and for processes that it starts."""
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    for name in ("PREPKIT_CACHE", "PREPKIT_CACHE_BYTES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HF_TOKEN_PATH": str(tmp_path / "token"), "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    yield server
    server.stop()
