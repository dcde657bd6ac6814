"""The cells of a measurement, one batch at one time each: spread over processes, kept on disk, gathered everywhere.

Cells are cut before they are spread, and each is measured by one process in one go: one process and many give the
same bits. With `checkpoint=` every finished cell is a file of its own. The next run goes on with the cells that are
missing, and refuses the directory of another run: each kept cell names its samples and the velocity that it was
measured from, and that velocity is run again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from fog_a.errors import BadArgument, BadBatch, BadScores, FogError
from fog_a.files import write
from fog_a.flows.case import Case, fingerprint
from fog_a.ranks import from_bytes, to_bytes

Values = Float[np.ndarray, "S L"]
"""One cell: samples × layers."""

_NEXT = "See its own error above; with checkpoint= the next run goes on from the finished cells"
_OTHERS = {
    "ids": "of samples with other ids",
    "velocity": "measured from another velocity (another sigma, path, forward=, guidance, autocast or weights)",
}
_DIGEST = hashlib.sha256().digest_size


class RankFailed(FogError, RuntimeError):
    """Another process ended before the results were gathered."""


@dataclass(frozen=True)
class Cell:
    """One batch at one time: its name on disk, its case, and what measures it.

    `measure()` gives the values, and the velocity that they are relative to where that is the bits of a plain run.
    """

    name: str
    case: Case
    measure: Callable[[], tuple[Values, Tensor | None]]


class Cells:
    """Measures cells, or reads them from disk, or leaves them to other processes.

    Args:
        identity: what the run is; another run's directory has another.
        directory: where finished cells are kept, or None.
        alone: measure every cell here, whatever other processes of `torch.distributed` there are.
    """

    def __init__(
        self, identity: Mapping[str, Any], directory: str | os.PathLike[str] | None, alone: bool = False
    ) -> None:
        together = not alone and dist.is_available() and dist.is_initialized()
        self.world = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        try:
            self.directory = None if directory is None else Path(directory)
        except TypeError:
            raise BadArgument(f"expected checkpoint= as the path of a folder, got {directory!r}") from None
        self._count = 0
        if self.directory is not None:
            self._claim(self.directory / "run.json", json.dumps(identity, sort_keys=True))

    def _claim(self, path: Path, identity: str) -> None:
        """Make the directory this run's, or see that it is."""
        if not os.path.exists(path):
            write(path, identity)
        elif _content(path) != identity.encode():
            raise BadScores(
                f"{path} is of another run (another model, batch, seed or options). "
                "Give checkpoint= an empty directory, or remove this one"
            )

    def collect(self, cells: list[Cell], mine: dict[int, Values] | None = None) -> list[Values]:
        """All cells, in order; those of other processes come from them.

        Args:
            mine: gets the values of each cell of this process as it is finished.

        Raises:
            RankFailed: another process ended.
            BadScores: a file of the checkpoint is corrupt, or was measured from another velocity.
        """
        mine = {} if mine is None else mine
        failure: Exception | None = None
        try:
            for i, cell in enumerate(cells, start=self._count):
                if i % self.world == self.rank:
                    mine[i - self._count] = self._values(cell)
        except Exception as error:  # the others must not wait for what will not come
            failure = error
        self._count += len(cells)
        values = self._gathered(mine, failure)
        if len(shapes := {v.shape for v in values}) > 1:
            raise BadScores(
                f"{self.directory} is corrupt (cells of shapes {sorted(shapes)}): remove it, and start again"
            )
        return values

    def _values(self, cell: Cell) -> Values:
        if self.directory is None:
            return cell.measure()[0]
        path = self.directory / f"{cell.name}.npy"
        if os.path.exists(path):
            return _read(path, cell)
        values, base = cell.measure()
        write(path, _packed(values, _provenance(cell, base)))
        return values

    # ---- other processes

    def _gathered(self, mine: Mapping[int, Values], failure: Exception | None) -> list[Values]:
        """Every process's cells on every process, if none failed."""
        try:
            parts = self.shared(None if failure else [(i, v.tolist()) for i, v in mine.items()])
        finally:
            if failure is not None:
                raise failure
        if None in parts:
            raise RankFailed(f"rank {self.rank}: rank {parts.index(None)} failed. {_NEXT}")
        return [np.array(values, np.float32) for _, values in sorted(cell for part in parts for cell in part)]

    def shared(self, value: Any) -> list[Any]:
        """Every process's JSON-able value, in order of rank.

        Raises:
            RankFailed: another process ended.
        """
        if self.world == 1:
            return [value]
        mine = to_bytes(value).to(_device())
        try:
            sizes = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(self.world)]
            dist.all_gather(sizes, torch.tensor([len(mine)], device=mine.device))
            longest = max(int(n) for n in sizes)
            padded = torch.cat([mine, mine.new_zeros(longest - len(mine))])
            data = [torch.empty_like(padded) for _ in range(self.world)]
            dist.all_gather(data, padded)
        except RuntimeError as error:
            raise RankFailed(f"rank {self.rank}: another process ended ({error}). {_NEXT}") from error
        return [from_bytes(d[: int(n)]) for d, n in zip(data, sizes, strict=True)]

    def same_everywhere(self, what: str) -> None:
        """Every process must have been given the same batch: it is fog_a that spreads the work."""
        if self.world == 1:
            return
        if len(set(self.shared(hashlib.sha256(what.encode()).hexdigest()))) > 1:
            raise BadBatch(
                f"rank {self.rank}: the processes were given different batches (unequal shards). attribute spreads its "
                "work over all processes of torch.distributed: give every process the same batches"
            )


@dataclass
class Story:
    """How the cells were measured, for `info`."""

    strategies: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    noise: float = 0.0
    floor: float = 0.0
    """Scores up to here may be rounding."""

    def add(self, strategy: str, notes: Sequence[str] = (), noise: float = 0.0, floor: float = 0.0) -> None:
        """One cell's part."""
        self.strategies.add(strategy)
        self.notes += [n for n in notes if n not in self.notes]
        self.noise, self.floor = max(self.noise, noise), max(self.floor, floor)

    def merge(self, cells: Cells) -> None:
        """The parts of all processes: the same story on each."""
        for strategies, notes, noise, floor in cells.shared(
            [sorted(self.strategies), self.notes, self.noise, self.floor]
        ):
            for strategy in strategies:
                self.add(strategy, notes, noise, floor)


def _provenance(cell: Cell, base: Tensor | None = None) -> dict[str, Any]:
    """What a cell is measured from: its samples, and the mark of its base velocity, which is run where it is None."""
    if base is None:
        with cell.case.opened():
            base = cell.case.run()
    return {"ids": list(cell.case.samples.ids), "velocity": fingerprint(base)}


def _packed(values: Values, provenance: Mapping[str, Any]) -> bytes:
    """The array as .npy (numpy reads it), its provenance as JSON, and the SHA-256 of both."""
    data = io.BytesIO()
    np.save(data, values, allow_pickle=False)
    data.write(json.dumps(provenance).encode())
    content = data.getvalue()
    return content + hashlib.sha256(content).digest()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadScores(f"cannot read {path}: {error.strerror}. Give checkpoint= an empty directory") from error


def _read(path: Path, cell: Cell) -> Values:
    data = _content(path)
    content, digest = data[:-_DIGEST], data[-_DIGEST:]
    try:
        if hashlib.sha256(content).digest() != digest:  # first: a reader may raise anything at a damaged header
            raise ValueError("its checksum does not fit")
        stream = io.BytesIO(content)
        values = np.load(stream, allow_pickle=False)
        provenance = json.loads(stream.read())
    except (ValueError, EOFError, OSError) as error:
        raise BadScores(f"{path} is corrupt ({error}): remove it, and it is measured again") from error
    for name, now in _provenance(cell).items():
        if provenance.get(name) != now:
            raise BadScores(f"{path} is {_OTHERS[name]}. Give checkpoint= an empty directory, or remove this one")
    return values


def _device() -> torch.device:
    """Where collectives want their tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
