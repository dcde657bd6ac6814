"""Train with AG-REPA in a plain PyTorch loop: two lines more than without.

    python examples/train_with_ag_repa.py --steps 300 --warmup 100

The bundled DiT learns the packaged clips (40 of speech and sound). For the first steps AG-REPA only probes; then it
prints the layers it chose and why, and aligns them. The teacher is the log-mel's statistics, which needs no weights;
with weights it is e.g. {"speech": WhisperTeacher("openai/whisper-small"), "sound": BEATsTeacher("BEATs.pt")}.
"""

from __future__ import annotations

import argparse

import torch
from tqdm import trange

import fog_a
from fog_a.teachers import SpectralTeacher
from fog_a_adapters.dit import DiTConfig, FlowMatching
from fog_a_adapters.dit.audio.data import load_corpus


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled DiT with AG-REPA.")
    for name, default in (("steps", 300), ("warmup", 100), ("every", 10), ("batch", 8), ("layers", 4), ("dim", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()

    torch.manual_seed(0)
    corpus = load_corpus(audio=True)
    model = FlowMatching(DiTConfig.tiny(layers=args.layers, dim=args.dim))
    flow = fog_a.wrap(model)
    teachers = {"speech": SpectralTeacher(), "sound": SpectralTeacher()}
    reg = fog_a.AGREPA(flow, teachers, k=2, warmup=args.warmup, every=args.every)  # one line more ...
    optimizer = torch.optim.AdamW([*model.parameters(), *reg.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=args.steps + 1)

    for step in (bar := trange(args.steps)):
        batch = corpus.batch(step, args.batch, frames=100)
        flow_loss = flow.loss(batch)
        loss = flow_loss + reg(batch)  # ... and another
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(flow=f"{flow_loss.item():.3f}", aligned=f"{reg.metrics().get('ag_repa/loss', 0.0):.3f}")

    print(reg.selection)
    reg.close()
    torch.save({"model": model.state_dict(), "ag_repa": reg.state_dict()}, "ag_repa.pt")


if __name__ == "__main__":
    main()
