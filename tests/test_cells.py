"""Cells of a measurement: kept on disk, gone on with, never mixed up with another run's."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribute_jobs import Breaks, failure, measured
from small_flow import a_batch, a_flow
from small_nets import Net, tokens
from torch import nn

import fog_a
from fog_a.attributing.cells import Cell, Cells
from fog_a.errors import BadScores, FogError


def attribute(where: Path, batch: Any = None, flow: Any = None, **options: Any) -> fog_a.Scores:
    given: dict[str, Any] = {"times": 3, "progress": False, "checkpoint": str(where), **options}
    return fog_a.attribute(flow or a_flow(), a_batch(3) if batch is None else batch, **given)


def files(where: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(where.iterdir())}


def broken(calls: int) -> Breaks:
    """A net that raises KeyboardInterrupt, as Ctrl-C does, at that call."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    return Breaks(lambda n: n == calls, interrupt)


def test_with_and_without_a_checkpoint(tmp_path: Path) -> None:
    plain = fog_a.attribute(a_flow(), a_batch(3), times=3, progress=False)
    first, again = attribute(tmp_path), attribute(tmp_path)
    assert plain.values.tobytes() == first.values.tobytes() == again.values.tobytes()
    assert (first.info["strategy"], again.info["strategy"]) == (plain.info["strategy"], "checkpoint")


@pytest.mark.parametrize("calls", [3, 8, 14, 25])
def test_an_interrupted_run_goes_on(tmp_path: Path, calls: int) -> None:
    """A cell is a base, four ablations and the base again; finding the blocks takes some calls before the first."""
    whole = broken(10**6)
    want = measured(whole)
    finding = whole.calls - 5 * 6
    with pytest.raises(KeyboardInterrupt):
        measured(broken(calls + finding), checkpoint=str(tmp_path))
    done = len(list(tmp_path.glob("*.npy")))
    assert done == (calls - 1) // 6
    rest = broken(10**6)
    scores = measured(rest, checkpoint=str(tmp_path))
    assert rest.calls == finding + 6 * (5 - done) + done  # the base of each kept cell is run again
    assert scores.values.tobytes() == want.values.tobytes()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]  # no half-written file


def test_what_was_measured_before_ctrl_c() -> None:
    """Two times of five are finished: they are those of a whole run, the others are missing, and each says so."""
    whole = broken(10**6)
    want = measured(whole)
    finding = whole.calls - 5 * 6
    with pytest.raises(fog_a.Interrupted, match=r"after 2 finished cells .* With checkpoint=FOLDER") as stop:
        measured(broken(finding + 2 * 6 + 3))
    scores = stop.value.scores
    assert scores.values[:, :2].tobytes() == want.values[:, :2].tobytes() and np.isnan(scores.values[:, 2:]).all()
    assert scores.ids == want.ids and "interrupted after 2" in scores.table() and not isinstance(stop.value, Exception)


def test_ctrl_c_before_the_first_cell(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="after 0 finished cells") as stop:
        measured(broken(3))
    assert stop.value.scores is None
    with pytest.raises(fog_a.Interrupted, match=f"kept in {tmp_path}: the same call goes on"):
        measured(broken(25), checkpoint=str(tmp_path))


def test_ctrl_c_between_batches() -> None:
    def batches() -> Any:
        yield a_batch(3)
        raise KeyboardInterrupt

    with pytest.raises(fog_a.Interrupted) as stop:
        fog_a.attribute(a_flow(), batches(), times=2, progress=False)
    assert stop.value.scores.values.shape == (3, 2, 4) and not stop.value.scores.missing


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"times": 4},
        {"gate": 0.5},
        {"how": "loop"},
        {"level": "branch"},
        {"blocks": ["blocks.0", "blocks.2"]},
        {"batch": a_batch(3, seed=1)},
        {"batch": a_batch(4)},
        {"mask": torch.arange(7)[None, :, None] < 3},
        {"flow": a_flow(scales=(0.1, 1.0, 0.2))},
        {"flow": a_flow(seed=1)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_the_directory_of_another_run_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    attribute(tmp_path)
    before = files(tmp_path)
    with pytest.raises(BadScores, match=r"run\.json is of another run .*empty directory, or remove this one"):
        attribute(tmp_path, **other)
    assert files(tmp_path) == before


def test_a_model_that_was_trained_on_is_another(tmp_path: Path) -> None:
    flow = a_flow()
    attribute(tmp_path, flow=flow)
    optimizer = torch.optim.Adam(flow.module.parameters(), lr=1e-4)
    flow.loss(a_batch(3)).backward()
    optimizer.step()
    with pytest.raises(BadScores, match="another run"):
        attribute(tmp_path, flow=flow)


def test_a_later_batch_that_changed_is_measured_again(tmp_path: Path) -> None:
    attribute(tmp_path, [a_batch(3), a_batch(3, seed=1)])
    changed = attribute(tmp_path, [a_batch(3), a_batch(3, seed=2)])
    plain = fog_a.attribute(a_flow(), [a_batch(3), a_batch(3, seed=2)], times=3, progress=False)
    assert changed.values.tobytes() == plain.values.tobytes()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x93NUMPY\x01\x00", None])
def test_a_corrupt_cell_is_named_and_measured_again_when_removed(tmp_path: Path, content: bytes | None) -> None:
    whole = attribute(tmp_path)
    cell = sorted(tmp_path.glob("*.npy"))[1]
    cell.write_bytes(cell.read_bytes()[:-7] if content is None else content)
    with pytest.raises(BadScores, match=rf"{cell.name} is corrupt .*remove it, and it is measured again"):
        attribute(tmp_path)
    cell.unlink()
    assert attribute(tmp_path).values.tobytes() == whole.values.tobytes()


def flips(count: int, where: Path) -> None:
    """One flipped bit anywhere in a checkpoint, each file in turn: a FogError, or the very same scores."""
    want = attribute(where).values.tobytes()
    wholes, draw, refused = {path: path.read_bytes() for path in sorted(where.iterdir())}, random.Random(count), 0
    for n in range(count):
        path, whole = list(wholes.items())[n % len(wholes)]
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            assert attribute(where).values.tobytes() == want, f"{path.name}, byte {place}, bit {bit}"
        except FogError:
            refused += 1
        for name, content in wholes.items():
            name.write_bytes(content)
    assert refused > 0.9 * count


def test_a_flipped_bit_is_never_silent(tmp_path: Path) -> None:
    flips(30, tmp_path)


@pytest.mark.soak
def test_thousands_of_flipped_bits_are_never_silent(tmp_path: Path) -> None:
    flips(400, tmp_path)


def test_a_cell_executes_nothing(tmp_path: Path) -> None:
    attribute(tmp_path)
    cell = sorted(tmp_path.glob("*.npy"))[0]
    content = io.BytesIO()
    np.save(content, np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    cell.write_bytes(content.getvalue() + hashlib.sha256(content.getvalue()).digest())
    with pytest.raises(BadScores, match=r"is corrupt .*allow_pickle=False"):
        attribute(tmp_path)


def test_a_cell_of_another_shape_is_corrupt(tmp_path: Path) -> None:
    attribute(tmp_path)
    cell = sorted(tmp_path.glob("*.npy"))[0]
    np.save(cell, np.zeros((1, 2, 4), np.float32))
    with pytest.raises(BadScores, match=r"is corrupt .*remove it"):
        attribute(tmp_path)


def test_a_bare_module(tmp_path: Path) -> None:
    net = Net()
    a = fog_a.attribute(net, tokens(), checkpoint=str(tmp_path), progress=False)
    b = fog_a.attribute(net, tokens(), checkpoint=str(tmp_path), progress=False)
    assert a.values.tobytes() == b.values.tobytes()


def test_nothing_is_kept_of_a_cell_that_failed(tmp_path: Path) -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) * torch.nan

    told = failure(lambda: fog_a.attribute(Bad(), tokens(), checkpoint=str(tmp_path), progress=False))
    assert told.startswith("BadOutput") and not list(tmp_path.glob("*.npy"))


def test_without_other_processes_everything_is_ones_own() -> None:
    cells = Cells({}, None)
    values = [np.full((2, 3), i, np.float32) for i in range(4)]
    found = cells.collect([Cell(str(i), None, lambda v=v: (v, None)) for i, v in enumerate(values)])  # type: ignore[arg-type]
    assert all((a == b).all() for a, b in zip(found, values, strict=True))
    assert cells.shared({"a": 1}) == [{"a": 1}]
