"""fog_a in the Hugging Face Trainer: AG-REPA by `AlignedTrainer`, held-out scores by `AttributionCallback`.

    trainer = AlignedTrainer(model, args, train_dataset=data, data_collator=collate, reg=reg)

For a Trainer of your own there is the mix-in `Aligned`. The heads join the optimizer before the scheduler is made,
`compute_loss` adds the term, checkpoints hold the state as `ag_repa.safetensors` beside the model's own files, and a
resumed run reads it from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from fog_a.aligning.alignment import AGREPA
from fog_a.attributing.watch import Watch
from fog_a.errors import BadFeatures
from fog_a.files import write

FILE = "ag_repa.safetensors"


class AlignmentCallback(TrainerCallback):
    """Saves the regularizer's state with each checkpoint, and takes its hooks off the model at the end.

    The Trainer clears the gradients of its model, not of its optimizer: those of the heads are cleared here.
    """

    def __init__(self, reg: AGREPA) -> None:
        self.reg = reg

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.reg.expect(state.max_steps)

    def on_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.reg.zero_grad()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero or args.output_dir is None:
            return
        target = Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE
        write(target, save({name: t.detach().cpu().contiguous() for name, t in self.reg.state_dict().items()}))

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.reg.close()


class AttributionCallback(TrainerCallback):
    """Attribute held-out batches every `every` optimizer steps.

    Args:
        flow, batch, every, out, options: of `fog_a.attributing.watch.Watch`, which is `self.watch`.
        log: gets `scores.metrics()`; with `log=trainer.log` they go where the trainer's own scalars go.
    """

    def __init__(
        self, flow: Any, batch: Any, every: int = 1000, out: Any = None, log: Any = None, **options: Any
    ) -> None:
        self.watch, self.log = Watch(flow, batch, every, out, **options), log

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        metrics = self.watch(state.global_step)
        if metrics and self.log is not None:
            self.log(metrics)


class Aligned:
    """The mix-in: `class MyTrainer(Aligned, Trainer)` for a Trainer of your own; `reg=` is its one new argument."""

    def __init__(self, *args: Any, reg: AGREPA, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reg = reg.to(self.args.device)  # pyright: ignore[reportAttributeAccessIssue]
        reg.accumulate(self.args.gradient_accumulation_steps)  # pyright: ignore[reportAttributeAccessIssue]
        self.add_callback(AlignmentCallback(reg))  # pyright: ignore[reportAttributeAccessIssue]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The trainer's loss plus the alignment of the batch that was just run; in evaluation that is 0."""
        output = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # pyright: ignore[reportAttributeAccessIssue]
        loss: Tensor = output[0] if return_outputs else output
        if torch.is_grad_enabled() and model.training:
            loss = loss + self.reg(inputs) / self._undivided(num_items_in_batch)
        return (loss, output[1]) if return_outputs else loss

    def _undivided(self, num_items_in_batch: Any) -> int:
        """By what the Trainer will not divide the loss: a model that was told the number of items of all the
        micro-batches of a step has divided its own part by it already."""
        trainer: Any = self
        divided = getattr(trainer, "loss_is_scaled_for_ga", None)
        if divided is None:
            informed = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
            divided = informed or trainer.compute_loss_func is not None
        calls = getattr(trainer, "current_gradient_accumulation_steps", trainer.args.gradient_accumulation_steps)
        return calls if divided else 1

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The trainer's optimizer with the heads as one more group, without weight decay."""
        optimizer = super().create_optimizer(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        here = {id(p) for group in optimizer.param_groups for p in group["params"]}
        heads = [p for p in self.reg.parameters() if id(p) not in here]
        if heads:
            optimizer.add_param_group({"params": heads, "weight_decay": 0.0})
        return optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's scalars, with the alignment's beside the training loss."""
        more = self.reg.metrics() if "loss" in logs else {}
        super().log({**logs, **more}, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        path = Path(resume_from_checkpoint) / FILE
        if not path.is_file():
            raise BadFeatures(
                f"{path} is absent: this checkpoint was saved without AG-REPA. Resume it with a plain Trainer, or load "
                "its weights, model = Model.from_pretrained(checkpoint), and start anew with trainer.train()"
            )
        self.reg.load_state_dict(load_file(path))


class AlignedTrainer(Aligned, Trainer):
    """`transformers.Trainer` with `reg=`, an AGREPA on the model that is trained.

    The batch that the model gets as keyword arguments is the batch that the flow's adapter reads; so
    `remove_unused_columns=False` keeps what only the adapter needs (ids, domains, audio).
    """
