"""Train with AG-REPA in Lightning: a callback keeps the regularizer, one line of the training step uses it.

python examples/train_with_lightning.py --steps 200
python examples/train_with_lightning.py --steps 400 --resume runs/lightning/last.ckpt
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

import fog_a
from fog_a.aligning.lightning import AlignmentCallback
from fog_a.teachers import SpectralTeacher
from fog_a_adapters.dit import DiTConfig, FlowMatching
from fog_a_adapters.dit.audio.data import collate, load_corpus


class Training(pl.LightningModule):
    """The bundled model as anyone would write it; `self.ag_repa` is what the callback attached."""

    ag_repa: fog_a.AGREPA

    def __init__(self, model: FlowMatching) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.model.loss(batch)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch["ids"]))
        return loss + self.ag_repa(batch)  # the only line that changes

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)  # the heads are among them


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled DiT with AG-REPA in Lightning.")
    for name, default in (("steps", 200), ("warmup", 60), ("every", 10), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/lightning"))
    parser.add_argument("--resume", help="a checkpoint of an earlier run")
    args = parser.parse_args()

    pl.seed_everything(0)
    clips = [item.crop(0, 100) for item in load_corpus(audio=True).train]
    loader: Any = DataLoader(clips, batch_size=args.batch, shuffle=True, collate_fn=collate)  # pyright: ignore[reportArgumentType]
    model = FlowMatching(DiTConfig.tiny())
    teachers = {"speech": SpectralTeacher(), "sound": SpectralTeacher()}
    reg = fog_a.AGREPA(fog_a.wrap(model), teachers, k=2, warmup=args.warmup, every=args.every)
    trainer = pl.Trainer(
        max_steps=args.steps,
        accelerator=args.accelerator,
        logger=CSVLogger(str(args.out)),
        callbacks=[AlignmentCallback(reg, every=10)],
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Training(model), loader, ckpt_path=args.resume)
    trainer.save_checkpoint(args.out / "last.ckpt")
    print(reg.selection)


if __name__ == "__main__":
    main()
