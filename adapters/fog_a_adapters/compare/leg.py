"""One leg of a training run, from a step to a step, that goes on where it was when it is killed.

A leg trains a flow's model together with the terms that are added to its loss (BiT-C, AG-REPA). What is random in a
step is drawn from (seed, step), the state is written whole or not at all, so a leg that was killed and started again
ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fog_a.blocks.untouched import rng
from fog_a.errors import BadOutput, BadScores
from fog_a.flows.flow import Flow
from fog_a_adapters.compare.files import write_state

SAVE_SECONDS = 20.0


@dataclass
class Progress:
    """What a leg has done: steps so far, what was measured after which, and seconds spent on steps."""

    step: int
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """One cycle of the learning rate (SPEC §5): from a tenth of the peak to it in a tenth of the steps, then down to a
    thousandth, both by half a cosine; the same as torch's OneCycleLR, but a function of the step.
    """

    peak: float
    total: int

    def __call__(self, step: int) -> float:
        top = max(1.0, 0.1 * (self.total + 1) - 1)
        if step <= top:
            return self._between(self.peak / 10, self.peak, step / top)
        return self._between(self.peak, self.peak / 1000, min(1.0, (step - top) / (self.total - top)))

    @staticmethod
    def _between(a: float, b: float, done: float) -> float:
        return b + (a - b) * 0.5 * (1 + math.cos(math.pi * done))


class Leg:
    """A model, the terms beside its loss, and one optimizer over all of them.

    Args:
        flow: what is trained.
        terms: name → module with `term(batch)`, added to the loss; each has a parameter group of its own.
        schedule: learning rate by absolute step.
        weight_decay: of AdamW.
        precision: "bf16" runs forwards under autocast.
        average: decay of the exponential average of the model's weights; 0: none is kept.
    """

    def __init__(
        self, flow: Flow, terms: Mapping[str, nn.Module], schedule: Schedule, weight_decay: float,
        precision: Literal["no", "bf16"] = "no", average: float = 0.0,
    ) -> None:  # fmt: skip
        self.flow, self.schedule, self.precision, self.decay = flow, schedule, precision, average
        self.model: nn.Module = flow.model if isinstance(flow.model, nn.Module) else flow.module
        self.device = next(self.model.parameters()).device
        # A shared CPU's wall clock measures its other users too.
        self.clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        self.mean = {n: p.detach().clone() for n, p in self.model.named_parameters()} if average else {}
        self.terms = {name: term.to(self.device) for name, term in terms.items()}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=schedule.peak, weight_decay=weight_decay)
        for term in self.terms.values():
            self.optimizer.add_param_group({"params": list(term.parameters())})

    def add(self, name: str, term: nn.Module) -> None:
        """One more term, with a fresh optimizer state."""
        self.terms[name] = term.to(self.device)
        self.optimizer.add_param_group({"params": list(term.parameters())})

    def run(
        self,
        batch: Callable[[int, int], Any],
        seed: int,
        until: int,
        progress: Progress,
        path: Path,
        *,
        look: Callable[[], dict[str, float]] | None = None,
        at: frozenset[int] = frozenset(),
        tick: Callable[[float], None] = lambda loss: None,
    ) -> Progress:
        """Train up to step `until`, saving to `path` now and then and at the end.

        `look()` is measured after the steps in `at`; `tick(loss)` is called after each step.

        Raises BadOutput where the loss is not finite.
        """
        saved = time.monotonic()
        self.train()
        while progress.step < until:
            start = self.clock()
            loss = self.step(batch(seed, progress.step), seed, progress.step)
            progress.step += 1
            progress.seconds += self.clock() - start
            if look is not None and progress.step in at:
                progress.curve.append((progress.step, look()))
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save(path, progress)
                saved = time.monotonic()
            tick(loss)
        self.save(path, progress)
        return progress

    def train(self) -> None:
        """Model and terms in train mode."""
        for module in (self.model, *self.terms.values()):
            module.train()

    def step(self, batch: Any, seed: int, step: int) -> float:
        """One optimizer step; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(step)
        cast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with rng(zlib.crc32(f"{seed}/{step}".encode())), cast:
            loss = self.flow.loss(batch)
            for term in self.terms.values():
                loss = loss + term(batch)
        if not bool(loss.isfinite()):
            raise BadOutput(f"the loss is {loss.item()} at step {step}: lower the learning rate ({self.schedule.peak})")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 1.0)
        self.optimizer.step()
        weights = dict(self.model.named_parameters())
        for name, mean in self.mean.items():
            mean.lerp_(weights[name].detach(), 1 - self.decay)
        return loss.item()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights inside, if any are kept; with its last ones again afterwards."""
        last = {n: p.detach().clone() for n, p in self.model.named_parameters()} if self.mean else {}
        try:
            self.model.load_state_dict(self.mean, strict=False)
            yield
        finally:
            self.model.load_state_dict(last, strict=False)

    def save(self, path: Path, progress: Progress) -> None:
        """Write everything, whole or not at all. Raises NotWritten."""
        state = {
            "model": self.model.state_dict(),
            "mean": self.mean,
            "terms": {name: term.state_dict() for name, term in self.terms.items()},
            "optimizer": self.optimizer.state_dict(),
            "step": progress.step,
            "curve": progress.curve,
            "seconds": progress.seconds,
        }
        write_state(path, state)

    def load(self, path: Path) -> Progress:
        """The reverse of `save`; terms that the file does not know stay as they are."""
        state = read(path)
        self.model.load_state_dict(state["model"])
        for name, mean in self.mean.items():
            mean.copy_(state["mean"][name])
        for name, values in state["terms"].items():
            self.terms[name].load_state_dict(values)
        self.optimizer.load_state_dict(state["optimizer"])
        return Progress(state["step"], state["curve"], state["seconds"])


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's contents; nothing in it is run. Raises BadScores where it is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadScores(
            f"the checkpoint {path} cannot be read ({type(error).__name__}: {error}). Delete it: only what it was "
            "saved for is trained again"
        ) from error
