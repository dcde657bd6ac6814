"""Train with AG-REPA in the Hugging Face Trainer: `AlignedTrainer` with `reg=`.

python examples/train_with_hf_trainer.py --steps 200
python examples/train_with_hf_trainer.py --steps 400 --resume runs/trainer/checkpoint-200
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainingArguments

import fog_a
from fog_a.aligning.transformers import AlignedTrainer
from fog_a.teachers import SpectralTeacher
from fog_a_adapters.dit import DiTConfig, FlowMatching
from fog_a_adapters.dit.audio.data import collate, load_corpus


class Model(nn.Module):
    """The bundled model as the Trainer calls models: keyword arguments in, a dict with the loss out."""

    def __init__(self, model: FlowMatching) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        return {"loss": self.model(batch)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled DiT with AG-REPA in the Hugging Face Trainer.")
    for name, default in (("steps", 200), ("warmup", 60), ("every", 10), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/trainer"))
    parser.add_argument("--resume", help="a checkpoint folder of an earlier run")
    args = parser.parse_args()

    model = FlowMatching(DiTConfig.tiny())
    teachers = {"speech": SpectralTeacher(), "sound": SpectralTeacher()}
    reg = fog_a.AGREPA(fog_a.wrap(model), teachers, k=2, warmup=args.warmup, every=args.every)
    arguments = TrainingArguments(
        str(args.out),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        learning_rate=2e-3,
        save_steps=args.steps,
        logging_steps=10,
        remove_unused_columns=False,  # the adapter reads ids, domains and audio
        report_to=[],  # or "tensorboard", "wandb": the alignment's scalars go where the loss goes
        use_cpu=args.cpu,
    )
    clips: Any = [item.crop(0, 100) for item in load_corpus(audio=True).train]
    trainer = AlignedTrainer(Model(model), arguments, train_dataset=clips, data_collator=collate, reg=reg)
    trainer.train(resume_from_checkpoint=args.resume)
    print(reg.selection)


if __name__ == "__main__":
    main()
