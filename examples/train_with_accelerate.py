"""Train with AG-REPA under Accelerate: `reg` is prepared like the model, and saved and resumed with it.

accelerate launch examples/train_with_accelerate.py --steps 200
torchrun --nproc_per_node 2 examples/train_with_accelerate.py --cpu --steps 200 --resume runs/accelerate
"""

from __future__ import annotations

import argparse
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

import fog_a
from fog_a.teachers import SpectralTeacher
from fog_a_adapters.dit import DiTConfig, FlowMatching
from fog_a_adapters.dit.audio.data import collate, load_corpus


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled DiT with AG-REPA under Accelerate.")
    for name, default in (("steps", 200), ("warmup", 60), ("every", 10), ("batch", 8), ("accumulation", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16", "fp16"])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/accelerate"))
    parser.add_argument("--resume", type=Path, help="a folder that an earlier run left")
    args = parser.parse_args()

    set_seed(0)
    accelerator = Accelerator(
        cpu=args.cpu, mixed_precision=args.mixed_precision, gradient_accumulation_steps=args.accumulation
    )
    corpus = load_corpus(audio=True)
    clips = [item.crop(0, 100) for item in corpus.train]
    model = FlowMatching(DiTConfig.tiny())
    reg = fog_a.AGREPA(
        fog_a.wrap(model),
        {"speech": SpectralTeacher(), "sound": SpectralTeacher()},
        k=2,
        warmup=args.warmup,
        every=args.every,
        accumulation=args.accumulation,
    )
    optimizer = torch.optim.AdamW([*model.parameters(), *reg.parameters()], lr=2e-3)
    loader: Any = DataLoader(clips, batch_size=args.batch, shuffle=True, collate_fn=collate)  # pyright: ignore[reportArgumentType]
    train, align, optimizer, loader = accelerator.prepare(model, reg, optimizer, loader)
    if args.resume:
        accelerator.load_state(str(args.resume))

    calls = args.steps * args.accumulation
    for batch in islice(cycle(loader), reg.step * args.accumulation, calls):
        with accelerator.accumulate(train, align):
            loss = train(batch) + align(batch)  # the model's forward is its loss, so that DDP sees it
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if reg.step % 20 == 0:
            accelerator.print(f"step {reg.step}: loss {loss.item():.3f}")
    accelerator.save_state(str(args.out))
    accelerator.print(f"{reg.metrics()}\n{reg.selection}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
