"""The cells of a measurement, one batch at one time each: spread over processes, kept on disk, gathered everywhere.

Cells are cut before they are spread, and each is measured by one process in one go: one process and many give the
same bits. With `checkpoint=` every finished cell is a file of its own, written in one move; a run that was ended goes
on with the cells that are missing, and refuses the directory of another run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float

from fog_a.errors import BadBatch, BadScores, FogError
from fog_a.files import write

Values = Float[np.ndarray, "G S L"]
"""One cell: gate values × samples × layers."""


_AGAIN = "See its own error above; with checkpoint= the next run goes on from the finished cells"


class RankFailed(FogError, RuntimeError):
    """Another process ended before the results were gathered."""


class Cells:
    """Measures cells, or finds them on disk, or leaves them to other processes.

    Args:
        identity: what the run is; another run's directory has another.
        directory: where finished cells are kept, or None.
        spread: share the cells with the other processes of `torch.distributed`, where there are any.
    """

    def __init__(self, identity: Mapping[str, Any], directory: str | os.PathLike[str] | None, spread: bool) -> None:
        together = spread and dist.is_available() and dist.is_initialized()
        self.world = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        self.directory = None if directory is None else Path(directory)
        self._count = 0
        if self.directory is not None:
            self._claim(json.dumps(identity, sort_keys=True))

    def _claim(self, identity: str) -> None:
        """Make the directory this run's, or see that it is."""
        assert self.directory is not None
        path = self.directory / "run.json"
        if path.exists():
            if path.read_text() != identity:
                raise BadScores(
                    f"{path} is of another run (another model, batch, seed or options). "
                    "Give checkpoint= an empty directory, or remove this one"
                )
        else:
            write(path, identity)

    def collect(self, cells: list[tuple[str, Callable[[], Values]]]) -> list[Values]:
        """All cells, in order; those of other processes come from them.

        Raises:
            RankFailed: another process ended.
            BadScores: a file of the checkpoint is corrupt.
        """
        own: dict[int, Values] = {}
        failure: Exception | None = None
        try:
            for i, (name, measure) in enumerate(cells):
                if (self._count + i) % self.world == self.rank:
                    own[i] = self._kept(name, measure)
        except Exception as error:  # the others must not wait for what will not come
            failure = error
        self._agree(failure)
        self._count += len(cells)
        shapes = {v.shape for v in own.values()}
        if len(shapes) > 1:
            raise BadScores(
                f"{self.directory} is corrupt (cells of shapes {sorted(shapes)}): remove it, and start again"
            )
        return [own[i] for i in range(len(cells))] if self.world == 1 else self._gathered(own, len(cells))

    def _agree(self, failure: Exception | None) -> None:
        """Go on if no process failed."""
        try:
            failed = [i for i, x in enumerate(self.shared(failure is not None)) if x]
        finally:
            if failure is not None:
                raise failure
        if failed:
            raise RankFailed(f"rank {self.rank}: rank {failed[0]} failed. {_AGAIN}")

    def shared(self, value: Any) -> list[Any]:
        """Every process's JSON-able value, in order of rank.

        Raises:
            RankFailed: another process ended.
        """
        if self.world == 1:
            return [value]
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(_device())
        try:
            sizes = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(self.world)]
            dist.all_gather(sizes, torch.tensor([len(mine)], device=mine.device))
            longest = max(int(n) for n in sizes)
            padded = torch.cat([mine, mine.new_zeros(longest - len(mine))])
            data = [torch.empty_like(padded) for _ in range(self.world)]
            dist.all_gather(data, padded)
        except RuntimeError as error:
            raise RankFailed(f"rank {self.rank}: another process ended ({error}). {_AGAIN}") from error
        return [json.loads(bytes(d[: int(n)].cpu().tolist())) for d, n in zip(data, sizes, strict=True)]

    def _kept(self, name: str, measure: Callable[[], Values]) -> Values:
        if self.directory is None:
            return measure()
        path = self.directory / f"{name}.npy"
        if path.exists():
            try:
                return np.load(path, allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise BadScores(f"{path} is corrupt ({error}): remove it, and it is measured again") from error
        values = measure()
        data = io.BytesIO()
        np.save(data, values, allow_pickle=False)
        write(path, data.getvalue())
        return values

    def _gathered(self, own: dict[int, Values], count: int) -> list[Values]:
        """Every process's cells on every process."""
        device = _device()
        found: list[Values] = []
        try:
            for i in range(count):
                owner = (self._count - count + i) % self.world
                shape = torch.tensor(own[i].shape if i in own else (0, 0, 0), device=device)
                dist.broadcast(shape, src=owner)
                data = torch.empty(tuple(int(n) for n in shape), dtype=torch.float32, device=device)
                if i in own:
                    data.copy_(torch.from_numpy(own[i]))
                dist.broadcast(data, src=owner)
                found.append(data.cpu().numpy())
        except RuntimeError as error:
            raise RankFailed(
                f"rank {self.rank}: another process ended before its cells were gathered ({error}). {_AGAIN}"
            ) from error
        return found

    def same_everywhere(self, what: bytes) -> None:
        """Every process must have been given the same batch: it is fog_a that spreads the work."""
        if self.world == 1:
            return
        if len(set(self.shared(hashlib.sha256(what).hexdigest()))) > 1:
            raise BadBatch(
                f"rank {self.rank}: the processes were given different batches (unequal shards). Give every process "
                "the same one: attribute spreads cells over them; or pass spread=False to measure each on its own"
            )


def _device() -> torch.device:
    """Where collectives want their tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
