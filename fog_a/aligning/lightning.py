"""fog_a in Lightning: one callback aligns, another attributes held-out batches as training goes on.

    class Training(L.LightningModule):
        def training_step(self, batch, index):
            return self.flow.loss(batch) + self.ag_repa(batch)          # the only line that changes

    Trainer(callbacks=[AlignmentCallback(reg)])

It becomes the submodule `ag_repa` before the optimizers are made: device, precision, `self.parameters()`, checkpoints
and resuming are Lightning's own. A plain export of the network, `flow.module.state_dict()`, holds nothing of it.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from fog_a.aligning.alignment import AGREPA
from fog_a.attributing.watch import Watch
from fog_a.errors import Unsupported


class AlignmentCallback(Callback):
    """Attach `reg` for a fit, log its scalars, and take its hooks off the model at the end.

    Args:
        reg: the regularizer; its steps follow the trainer's gradient accumulation.
        every: steps from log to log; by the module's own loggers (TensorBoard, W&B, CSV, …).

    Raises Unsupported where the module has something else under the name `ag_repa`.
    """

    name = "ag_repa"

    def __init__(self, reg: AGREPA, every: int = 50) -> None:
        self.reg, self.every = reg, every

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if getattr(pl_module, self.name, self.reg) is not self.reg:
            raise Unsupported(f"{type(pl_module).__name__} has another attribute {self.name!r}: rename that one")
        pl_module.add_module(self.name, self.reg)  # at every stage, so that a checkpoint of the fit fits
        if stage == "fit":
            self.reg.accumulate(trainer.accumulate_grad_batches)
            self.reg.open()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            self.reg.resume(optimizer)  # a checkpoint from before the callback was there

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reg.expect(trainer.estimated_stepping_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every == 0:
            pl_module.log_dict(self.reg.metrics(), batch_size=1)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.reg.close()


class AttributionCallback(Callback):
    """Attribute held-out batches every `every` optimizer steps, and log `scores.metrics()` by the module's loggers.

    Its arguments are those of `fog_a.attributing.watch.Watch`, which is `self.watch`.
    """

    def __init__(self, flow: Any, batch: Any, every: int = 1000, out: Any = None, **options: Any) -> None:
        self.watch = Watch(flow, batch, every, out, **options)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        metrics = self.watch(trainer.global_step) if trainer.global_step else {}
        if metrics:
            pl_module.log_dict(metrics, batch_size=1)
