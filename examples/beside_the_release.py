"""Does `fog_a_adapters.released` give the numbers of the authors' own code? Both run on the same random nets.

    git clone https://github.com/zpforlove/AG-REPA      # MIT; nothing of it is part of this project
    python examples/beside_the_release.py AG-REPA

Reads the clone's `Fusion_single_codebook/models.py` (FoG-A, LASP, L_BiT) and `REPA_single_codebook/models.py` (loss and
gradients). Their imports that no number here needs are left out, so nothing has to be installed. Dropout is 0: the
two draw it in another order.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fog_a
from fog_a.aligning.warmup import Draw
from fog_a.flows.samples import Samples
from fog_a.scores.selection import Selection
from fog_a_adapters import released

ABSENT = ["torchaudio", "torchdiffeq"]
ABSENT += [f"repcodec.modules.{name}" for name in ("decoder", "encoder", "projector", "quantizer")]
DOMAINS, TEACHERS = ("speech", "audio"), {"speech": 12, "audio": 9}
LAYERS, BATCH, FRAMES, MELS, WIDTH = 21, 6, 20, 10, 16
FLOW = {
    "hidden_dim": WIDTH, "token_embedding_dim": WIDTH, "n_heads": 4, "n_layers": LAYERS, "ff_mult": 2, "dropout": 0.0,
    "sigma": 0.5, "cond_drop_prob": 0.0, "drop_ref_prob": 0.0, "n_timesteps": 32, "cfg_scale": 3.0, "s3_vocab_size": 8,
    "loss_weights": {"teacher_speech": 0.5, "teacher_audio": 1.0},
}  # fmt: skip
CONFIG = {"vocos": {"mel": {"n_mels": MELS}}, "hyperparameters": {"flow": FLOW}}


def theirs(clone: Path, part: str, seed: int, teachers: Mapping[str, int]) -> Any:
    """The authors' FlowMatchingModel of one folder, with random weights: at its own start every layer is shut."""
    folder = clone / part
    spec = importlib.util.spec_from_file_location(f"release_{part}", folder / "models.py")
    if spec is None or spec.loader is None or not (folder / "models.py").is_file():
        raise SystemExit(f"{folder / 'models.py'} is not there: give the folder of a clone of zpforlove/AG-REPA")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in ABSENT}):
        sys.modules.pop("utils", None)
        sys.path.insert(0, str(folder))
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(folder))
    torch.manual_seed(seed)
    model = module.FlowMatchingModel(CONFIG, teachers.get("speech", 0), teachers.get("audio", 0))
    for p in model.parameters():
        nn.init.normal_(p, std=0.3 if p.ndim > 1 else 0.1)
    return model


class Velocity(nn.Module):
    """The velocity network inside the authors' model, as one module with one forward."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return self.model._predict_velocity(x, t, condition)


class Beside(fog_a.Flow):
    """Reads the authors' model; a batch is what its forward takes: "x" (B, M, T) and its dictionary of conditions."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.module = model, Velocity(model)

    def velocity(self, batch: Any, t: float | Tensor, seed: int = 0) -> Tensor:
        noise = 0.5 * torch.randn(batch["x"].shape, generator=torch.Generator().manual_seed(seed))
        t = torch.as_tensor(t, dtype=torch.float32).expand(len(noise))
        at = t[:, None, None]
        condition = torch.cat([batch["fused_embed"], batch["ref_mel_for_cond"]], 1)
        return self.module((1 - at) * noise + at * batch["x"], t, condition)

    def samples(self, batch: Any) -> Samples:
        n = len(batch["x"])
        return Samples(
            ids=tuple(map(str, range(n))),
            domains=tuple(DOMAINS[d] for d in batch["domain_ids"].tolist()),
            rows=lambda rows: {key: value[list(rows)] for key, value in batch.items()},
        )

    def interface(self, batch: Any) -> Tensor:
        return batch["fused_embed"].transpose(1, 2)

    def loss(self, batch: Any) -> Tensor:
        """The model's own forward: L_FM, and whatever terms it has teachers for."""
        return self.model(batch["x"], batch["t"], batch).mean()


def a_batch(seed: int) -> dict[str, Tensor]:
    """Random clips of both domains in turn, their conditions and their teachers' features."""
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(BATCH, MELS, FRAMES, generator=g),
        "t": torch.rand(BATCH, generator=g),
        "fused_embed": torch.randn(BATCH, WIDTH, FRAMES, generator=g) + 0.5,
        "ref_mel_for_cond": torch.randn(BATCH, MELS, FRAMES, generator=g),
        "domain_ids": torch.arange(BATCH) % 2,
        "teacher_speech_global": torch.randn(BATCH, TEACHERS["speech"], generator=g),
        "teacher_audio_global": torch.randn(BATCH, TEACHERS["audio"], generator=g),
    }


def features(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Domain → the teachers' features of its samples."""
    return {d: batch[f"teacher_{d}_global"][batch["domain_ids"] == i] for i, d in enumerate(DOMAINS)}


def foga(clone: Path, seed: int) -> float:
    """The largest difference of a layer's FoG-A, over layers and domains."""
    model, batch = theirs(clone, "Fusion_single_codebook", seed, TEACHERS), a_batch(seed)
    flow = Beside(model)
    with torch.no_grad():
        ref = model.fog_attribution(batch["x"], batch)
    scores = released.Probe(every=1)(flow, batch, fog_a.find_blocks(flow, batch).main, Draw(0, 0.8, 0))
    return max(abs(scores.mean(d)[k] - ref[k][d]) for k in range(LAYERS) for d in DOMAINS)


def lasp(clone: Path, seed: int) -> float:
    """The largest difference of a layer's LASP, with the sign flip."""
    model, batch = theirs(clone, "Fusion_single_codebook", seed, TEACHERS), a_batch(seed)
    flow = Beside(model)
    with torch.no_grad():
        ref = model.probe_layers(batch["x"], batch, list(range(LAYERS)))
    scores = released.lasp(flow, batch, head=heads_of(flow, model), features=features(batch), beside=())
    key = {"speech": "sem", "audio": "evt"}
    return max(abs(scores.mean(d)[k] - ref[k][key[d]]) for k in range(LAYERS) for d in DOMAINS)


def heads_of(flow: Beside, model: Any) -> released.BiTC:
    """The release's BiT-C with the authors' heads."""
    bitc = released.BiTC(flow, TEACHERS, weight={"speech": 0.5, "audio": 1.0}, width=WIDTH)
    for d in DOMAINS:
        bitc.head(d).weight.data.copy_(getattr(model, f"teacher_proj_{d}").weight)
    return bitc


def bitc(clone: Path, seed: int) -> tuple[float, float]:
    """Relative differences of L_FM + L_BiT and of its gradients on the heads."""
    model, batch = theirs(clone, "Fusion_single_codebook", seed, TEACHERS), a_batch(seed)
    plain = theirs(clone, "Fusion_single_codebook", seed, {})
    plain.load_state_dict(model.state_dict(), strict=False)
    flow = Beside(plain)
    term = heads_of(flow, model)
    ref = drawn(seed, lambda: Beside(model).loss(batch))
    ours = drawn(seed, lambda: flow.loss(batch) + term(batch, features=features(batch)))
    pairs = [(term.head(d).weight, getattr(model, f"teacher_proj_{d}").weight) for d in DOMAINS]
    return abs(ours / ref - 1), gap(pairs)


def alignment(clone: Path, seed: int) -> tuple[float, float]:
    """Relative differences of L_FM + L_BiT + the alignment term, and of its gradients on model and heads."""
    model, batch = theirs(clone, "REPA_single_codebook", seed, TEACHERS), a_batch(seed)
    plain = theirs(clone, "REPA_single_codebook", seed, {})
    plain.load_state_dict(model.state_dict(), strict=False)
    flow = Beside(plain)
    names = fog_a.find_blocks(flow, batch).main.names
    weights = {d: {names[k]: w for k, w in getattr(model, f"repa_lambda_{d}").items()} for d in DOMAINS}
    layers = {d: [{"layer": n, "depth": names.index(n), "weight": w} for n, w in weights[d].items()] for d in DOMAINS}
    chosen = Selection.model_validate({"domains": layers, "weighting": "proportional", "total": 2.0})
    reg = released.AGREPA(flow, TEACHERS, chosen, batch=batch)
    term = heads_of(flow, model)
    pairs = [(p, dict(model.named_parameters())[n]) for n, p in plain.named_parameters()]
    for d in DOMAINS:
        for k, head in getattr(model, f"repa_heads_{d}").items():
            mine: Any = list(reg.slots.heads[d].children())[reg.slots.bound[d].index(names[int(k)])]
            for ours, own in ((mine.inner, head[0]), (mine.outer, head[2])):
                ours.load_state_dict(own.state_dict())
                pairs += list(zip(ours.parameters(), own.parameters(), strict=True))

    def total() -> Tensor:
        loss = flow.loss(batch)
        return loss + term(batch, features=features(batch)) + reg(batch, features=features(batch))

    ours, ref = drawn(seed, total), drawn(seed, lambda: Beside(model).loss(batch))
    return abs(ours / ref - 1), gap(pairs)


def drawn(seed: int, loss: Any) -> float:
    """A loss under the seed's noise, and its gradients."""
    torch.manual_seed(seed)
    value = loss()
    value.backward()
    return value.item()


def gap(pairs: Any) -> float:
    """‖g − g′‖ ÷ ‖g′‖ over all parameters that have a gradient in the authors' code."""
    found = [(a.grad, b.grad) for a, b in pairs if b.grad is not None]
    ours, ref = (torch.cat([pair[side].flatten() for pair in found]).double() for side in (0, 1))
    return ((ours - ref).norm() / ref.norm()).item()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("clone", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    seeds = range(args.seeds)
    print(f"largest difference over {args.seeds} random nets of {LAYERS} layers, float32 (losses, gradients: relative)")
    for name, measure in (("FoG-A", foga), ("LASP", lasp)):
        print(f"{name}: {max(measure(args.clone, s) for s in seeds):.1e}")
    for name, both in (("L_FM + L_BiT", bitc), ("L_FM + L_BiT + alignment", alignment)):
        found = [both(args.clone, s) for s in seeds]
        print(f"{name}: loss {max(v for v, _ in found):.1e}, gradients {max(g for _, g in found):.1e}")


if __name__ == "__main__":
    main()
