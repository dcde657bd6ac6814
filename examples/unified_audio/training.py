"""Training of any stage through Accelerate: one process or torchrun, mixed precision, accumulation, clipping.

AdamW and one cycle of learning rate (10 % warm-up, ÷10 at the start, ÷1000 at the end; SPEC §5). A step is a function
of its number: batch, dropout and noise are drawn from (seed, step, rank), and a checkpoint is written whole or not at
all, so a run that was killed and started again ends with the same bits as one that was not.

    fit(tokenizer, lambda m, b: m(*b).loss, FrameBatches(…), Recipe(steps=2000), "runs/ast")          # tokenizer
    fit(stage, lambda m, b: m(b).loss, LanguageBatches(…), Recipe(steps=5000, lr=5e-5), "runs/lm")    # stage 1
    fit(flow, lambda m, b: m(b), MelBatches(…), Recipe(steps=5000, average=0.999), "runs/flow")       # stage 2

Probes, branch and arms are `unified_audio.protocol`'s.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.blocks.untouched import rng
from fog_a.errors import BadArgument, BadOutput, BadScores, MissingDependency, Unsupported
from fog_a.files import write_json
from fog_a_adapters.compare.files import write_state
from fog_a_adapters.dit.audio.mel import optional
from unified_audio.stage2 import Average


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        steps: optimizer steps. lr: peak. clip: largest norm of the gradient.
        accumulation: batches per step. precision: of Accelerate.
        average: decay of the moving average of the weights; None: none is kept.
        save_seconds: a checkpoint at least so often, and at the end.
    """

    steps: int = 400
    lr: float = 1e-4
    weight_decay: float = 0.1
    clip: float = 1.0
    accumulation: int = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    average: float | None = None
    seed: int = 666
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulation < 1 or self.lr <= 0:
            raise BadArgument(
                f"a recipe has at least one step and one batch a step and a positive learning rate, got steps="
                f"{self.steps}, accumulation={self.accumulation}, lr={self.lr}"
            )


@dataclass
class Trained:
    """What `fit` leaves: the loss after each step, the averaged weights where they were asked for, seconds spent."""

    losses: list[float]
    average: Average | None
    seconds: float


def fit(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Any], Float[Tensor, ""]],
    batch: Callable[[int], Any],
    recipe: Recipe,
    folder: str | Path,
    *,
    name: str = "training",
    cpu: bool = False,
    stop: int | None = None,
) -> Trained:
    """Train in place; started again on the same folder it goes on, and is done at once where it was done.

    Args:
        loss_of: (model, batch) → loss, by one forward of the model, so that DistributedDataParallel sees it.
        batch: number → batch of this rank; step s takes the batches s · accumulation and on.
        folder: of checkpoint.pt, settings.json and TensorBoard's files.
        stop: end after this step as a kill would, with a checkpoint.

    Raises:
        Unsupported: the folder holds another configuration's checkpoint.
        BadScores: a damaged checkpoint. BadOutput: the loss is not finite. NotWritten: a checkpoint found no room.
    """
    return _Run(model, loss_of, batch, recipe, Path(folder), name, cpu).to(recipe.steps if stop is None else stop)


class _Run:
    """One training."""

    def __init__(
        self, model: nn.Module, loss_of: Callable[[nn.Module, Any], Tensor], batch: Callable[[int], Any],
        recipe: Recipe, folder: Path, name: str, cpu: bool,
    ) -> None:  # fmt: skip
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise MissingDependency(f"training needs accelerate ({error}): pip install 'fog-a[train]'") from error
        # Accumulation is done here, so that a step's batches are known by their numbers.
        self.accelerator: Any = Accelerator(cpu=cpu, mixed_precision=recipe.precision)
        self.plain, self.loss_of, self.batch, self.recipe, self.name = model, loss_of, batch, recipe, name
        self.path, self.folder = folder / "checkpoint.pt", folder
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.lr, total_steps=recipe.steps + 1, pct_start=0.1, div_factor=10, final_div_factor=100
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.average = None if recipe.average is None else Average(model, recipe.average)
        self.losses: list[float] = []
        self.seconds = 0.0
        self._claim()
        if self.path.exists():
            self._load()

    def to(self, until: int) -> Trained:
        """Train up to a step."""
        saved = time.monotonic()
        self.model.train()
        tqdm = optional("tqdm").tqdm
        main = self.accelerator.is_main_process
        with (
            tqdm(total=until, initial=len(self.losses), desc=self.name, disable=None if main else True) as bar,
            _tensorboard(self.folder, main) as board,
        ):
            while len(self.losses) < until:
                start, step = time.perf_counter(), len(self.losses)
                self.losses.append(self._step(step))
                self.seconds += time.perf_counter() - start
                if board is not None:
                    board.add_scalar(f"{self.name}/loss", self.losses[-1], step)
                    board.add_scalar(f"{self.name}/lr", self.cycle.get_last_lr()[0], step)
                if time.monotonic() - saved > self.recipe.save_seconds:
                    self._save()
                    saved = time.monotonic()
                bar.set_postfix_str(f"{self.losses[-1]:.3f}", refresh=False)
                bar.update()
        self._save()
        self.model.eval()
        return Trained(self.losses, self.average, self.seconds)

    def _step(self, step: int) -> float:
        r, total = self.recipe, 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for i in range(r.accumulation):
            number = step * r.accumulation + i
            some = moved(self.batch(number), self.accelerator.device)
            key = f"{r.seed}/{number}/{self.accelerator.process_index}"
            last = i == r.accumulation - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model), rng(zlib.crc32(key.encode())):
                with self.accelerator.autocast():
                    loss = self.loss_of(self.model, some) / r.accumulation
                if not bool(loss.isfinite()):
                    raise BadOutput(
                        f"{self.name}: the loss is {loss.item()} at step {step}; lower the learning rate ({r.lr}) or "
                        "look at this batch. The last checkpoint is whole"
                    )
                self.accelerator.backward(loss)
            total += loss.item()
        self.accelerator.clip_grad_norm_(self.model.parameters(), r.clip)
        self.optimizer.step()
        self.cycle.step()
        if self.average is not None:
            self.average.update(self.plain)
        return total

    def _claim(self) -> None:
        """The folder is this configuration's, or becomes it."""
        shapes = [f"{k} {tuple(v.shape)}" for k, v in sorted(self.plain.state_dict().items())]
        how = {k: v for k, v in asdict(self.recipe).items() if k != "save_seconds"}
        here = {"model": type(self.plain).__name__, "weights": zlib.crc32("\n".join(shapes).encode()), **how}
        path = self.folder / "settings.json"
        if path.exists():
            there = json.loads(path.read_text(encoding="utf-8"))
            differ = [f"{k} (there {there.get(k)}, here {here[k]})" for k in here if there.get(k) != here[k]]
            if differ:
                raise Unsupported(
                    f"{self.folder} holds a checkpoint of another configuration: {', '.join(differ)}. Give another "
                    "folder, or delete this one to train anew"
                )
        elif self.accelerator.is_main_process:
            write_json(path, here)

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "model": self.plain.state_dict(), "optimizer": self.optimizer.state_dict(),
            "cycle": self.cycle.state_dict(), "losses": self.losses, "seconds": self.seconds,
            "average": None if self.average is None else self.average.state(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }  # fmt: skip
        write_state(self.path, state)

    def _load(self) -> None:
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise BadScores(
                f"the checkpoint {self.path} cannot be read ({type(error).__name__}: {error}); delete it to train anew"
            ) from error
        self.plain.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.cycle.load_state_dict(state["cycle"])
        self.losses, self.seconds = state["losses"], state["seconds"]
        if self.average is not None:
            self.average.load(state["average"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


@contextmanager
def _tensorboard(folder: Path, main: bool) -> Iterator[Any]:
    """TensorBoard's writer on the first rank, where the package is there; None otherwise."""
    board = _writer() if main else None
    if board is None:
        yield None
        return
    writer = board(str(folder / "tensorboard"))
    try:
        yield writer
    finally:
        writer.close()


def _writer() -> Any:
    """TensorBoard's class, or None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter


def moved(batch: Any, device: str | torch.device) -> Any:
    """Tensors of a batch on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {k: moved(v, device) for k, v in batch.items()}
    if isinstance(batch, tuple):
        return tuple(moved(v, device) for v in batch)
    return batch
