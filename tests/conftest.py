"""What every test gets: one thread, seeds of its own, a place for pictures that needs no screen."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would download fails at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import shapes
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("fog_a", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fog_a")

SHARED = Path(os.environ.get("FOG_A_SHARED", Path(__file__).resolve().parents[2] / "shared"))
"""Material beside the repository (a zoo of labelled models, an hour of audio); tests skip where it is absent."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tests that take `device` put their models: cpu, cuda")


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def forked_seeds() -> Iterator[None]:
    """Each test starts from the same random states, and leaves none behind."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


@pytest.fixture(autouse=True)
def forgiving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input is for fog_a to refuse, not for the shape checker (tests/shapes.py)."""
    if request.module.__name__ == "test_bad_input":
        monkeypatch.setattr(shapes, "checking", False)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    wanted = torch.device(str(request.config.getoption("--device")))
    if wanted.type == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"--device {wanted}: torch {torch.__version__} sees no CUDA device")
    return wanted


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository, or a skip."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: set FOG_A_SHARED to the folder that holds zoo/ and audio/")
    return SHARED


@pytest.fixture(scope="session")
def zoo_path(shared: Path) -> Path:
    """The zoo of labelled third-party models, or a skip."""
    if not (shared / "zoo" / "zoo.py").is_file():
        pytest.skip(f"{shared / 'zoo'} is absent: set FOG_A_SHARED to the folder that holds it")
    return shared / "zoo"


@pytest.fixture(scope="session")
def audio_path(shared: Path) -> Path:
    """An hour of real audio in two domains, or a skip."""
    if not (shared / "audio" / "manifest.csv").is_file():
        pytest.skip(f"{shared / 'audio'} is absent: set FOG_A_SHARED to the folder that holds it")
    return shared / "audio"
