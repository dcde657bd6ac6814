"""AG-REPA inside the real Accelerate, Lightning and Hugging Face Trainer: training, resuming, logging, leaving."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from small_flow import a_batch, a_flow, two_teachers
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fog_a.aligning.alignment import AGREPA
from fog_a.attributing.watch import Watch
from fog_a.errors import BadArgument, BadFeatures, Unsupported
from fog_a.scores.comparison import compare_scores

OPTIONS: dict[str, Any] = {"k": 2, "warmup": 4, "every": 2}


def rows(n: int = 32) -> list[dict[str, Any]]:
    """A dataset: one sample each."""
    whole = a_batch(n)
    return [{k: v[i] for k, v in whole.items()} for i in range(n)]


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {k: [i[k] for i in items] for k in items[0]}
    return {**out, "x1": torch.stack(out["x1"])}


def unhooked(module: nn.Module) -> bool:
    return all(not m._forward_hooks and not m._forward_pre_hooks for m in module.modules())


class Loss(nn.Module):
    """The flow's loss as a forward: what DDP, Accelerate and the Trainer wrap."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.net, self._flow = flow.module, [flow]

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        return {"loss": self._flow[0].loss(batch)}


class TestAccelerate:
    def train(self, folder: Path, stop: int | None = None, resume: bool = False) -> list[Tensor]:
        from accelerate import Accelerator
        from accelerate.utils import set_seed

        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        flow = a_flow()
        reg: Any = AGREPA(flow, two_teachers(), accumulation=2, **OPTIONS)
        model: Any = Loss(flow)
        optimizer: Any = torch.optim.AdamW([*model.parameters(), *reg.parameters()], lr=1e-2)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=20)
        loader: Any = DataLoader(rows(), batch_size=4, collate_fn=collate)
        model, reg, optimizer, loader, scheduler = accelerator.prepare(model, reg, optimizer, loader, scheduler)
        if resume:
            accelerator.load_state(str(folder))
        first = reg.step * 2
        for call in range(first, 16):
            if call == stop:
                accelerator.save_state(str(folder))
                break
            set_seed(call)
            batch = list(loader)[call % 8]
            with accelerator.accumulate(model, reg):
                loss = model(**batch)["loss"] + reg(batch)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        return [p.detach().clone() for p in [*flow.module.parameters(), *reg.parameters()]]

    @pytest.mark.parametrize("stop", [6, 12], ids=["in the warm-up", "after it"])
    def test_a_resumed_run_is_the_same_run(self, tmp_path: Path, stop: int) -> None:
        whole = self.train(tmp_path)
        self.train(tmp_path / "state", stop=stop)
        assert any("safetensors" in p.name for p in (tmp_path / "state").iterdir())
        again = self.train(tmp_path / "state", resume=True)
        assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


class TestLightning:
    def fit(self, folder: Path, epochs: int, ckpt: str | None = None, align: bool = True) -> tuple[Any, AGREPA, Any]:
        import lightning.pytorch as pl
        from lightning.pytorch.loggers import CSVLogger

        from fog_a.aligning.lightning import AlignmentCallback

        flow = a_flow()
        reg = AGREPA(flow, two_teachers(), **OPTIONS)

        class Training(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = flow.module

            def training_step(self, batch: Any, index: int) -> Tensor:
                torch.manual_seed(100 * self.current_epoch + index)
                loss = flow.loss(batch)
                return loss + self.ag_repa(batch) if align else loss  # pyright: ignore[reportCallIssue]

            def validation_step(self, batch: Any, index: int) -> None:
                assert not align or self.ag_repa(batch) == 0  # pyright: ignore[reportCallIssue]

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.AdamW(self.parameters(), lr=1e-2)

        loader = DataLoader(rows(), batch_size=4, collate_fn=collate)
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=CSVLogger(str(folder), version="log"),
            callbacks=[AlignmentCallback(reg, every=1)] if align else [],
            accumulate_grad_batches=2,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        module = Training()
        trainer.fit(module, loader, loader, ckpt_path=ckpt)
        trainer.save_checkpoint(folder / "end.ckpt")
        return module, reg, trainer

    def test_it_trains_logs_resumes_and_leaves(self, tmp_path: Path) -> None:
        whole, reg, _ = self.fit(tmp_path / "a", 3)
        assert reg.step == 12 and reg.selection is not None
        header = next((tmp_path / "a").rglob("metrics.csv")).read_text().splitlines()[0]
        assert "ag_repa/loss" in header and "ag_repa/speech/blocks.3" in header
        assert unhooked(whole.net)
        self.fit(tmp_path / "b", 1)
        again, _, _ = self.fit(tmp_path / "c", 3, ckpt=str(tmp_path / "b" / "end.ckpt"))
        assert len(list(whole.parameters())) == len(list(again.parameters())) > len(list(whole.net.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))

    def test_a_run_begun_without_it_resumes_with_it(self, tmp_path: Path) -> None:
        plain, _, _ = self.fit(tmp_path / "a", 2, align=False)
        self.fit(tmp_path / "b", 1, align=False)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            late, reg, _ = self.fit(tmp_path / "c", 2, ckpt=str(tmp_path / "b" / "end.ckpt"))
        assert any("AG-REPA (ag_repa is not in it): it begins now, at step 0" in str(w.message) for w in heard)
        assert reg.step == 4 and reg.selection is not None
        assert all(torch.equal(a, b) for a, b in zip(plain.net.parameters(), late.net.parameters(), strict=True))

    def test_a_checkpoint_is_validated_elsewhere(self, tmp_path: Path) -> None:
        import lightning.pytorch as pl

        from fog_a.aligning.lightning import AlignmentCallback

        module, _, _ = self.fit(tmp_path, 1)
        again, reg, _ = self.fit(tmp_path / "b", 0)
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, callbacks=[AlignmentCallback(reg)], enable_progress_bar=False
        )
        loader = DataLoader(rows(), batch_size=4, collate_fn=collate)
        trainer.validate(again, loader, ckpt_path=str(tmp_path / "end.ckpt"), verbose=False)
        assert reg.step == 4 and unhooked(again.net)
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))

    def test_pure_bfloat16_and_a_run_that_is_too_short(self) -> None:
        """`bf16-true` turns heads and batch into bfloat16; sums over the training stay exact."""
        import lightning.pytorch as pl

        from fog_a.aligning.lightning import AlignmentCallback

        def fit(steps: int, **options: Any) -> AGREPA:
            flow = a_flow()
            reg = AGREPA(flow, two_teachers(), **{"k": 2, "warmup": 2, "every": 1, **options})

            class Training(pl.LightningModule):
                def __init__(self) -> None:
                    super().__init__()
                    self.net = flow.module

                def training_step(self, batch: Any, index: int) -> Tensor:
                    return flow.loss(batch) + self.ag_repa(batch)  # pyright: ignore[reportCallIssue]

                def configure_optimizers(self) -> torch.optim.Optimizer:
                    return torch.optim.AdamW(self.parameters(), lr=1e-2)

            quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
            trainer = pl.Trainer(
                max_steps=steps, accelerator="cpu", precision="bf16-true", enable_checkpointing=False,
                callbacks=[AlignmentCallback(reg)], **quiet,
            )  # fmt: skip
            trainer.fit(Training(), DataLoader(rows(), batch_size=4, collate_fn=collate))
            return reg

        reg = fit(5, center=True)
        assert reg.selection is not None and all(p.dtype == torch.bfloat16 for p in reg.parameters())
        assert reg.slots.center is not None and reg.slots.center.sums.dtype == torch.float64
        assert reg.slots.center.counts.tolist() == [6.0, 6.0]
        assert all(torch.isfinite(torch.tensor(v)) for v in reg.metrics().values())
        with warnings.catch_warnings(record=True) as said:  # Lightning's own are among them
            warnings.simplefilter("always")
            fit(3, warmup=40)
        message = "this run has 3 optimizer steps, and AGREPA's warm-up takes 40: nothing will be aligned. Type "
        assert [w for w in said if str(w.message).startswith(message)]

    def test_the_name_is_not_taken_from_another(self) -> None:
        import lightning.pytorch as pl

        from fog_a.aligning.lightning import AlignmentCallback

        class Other(pl.LightningModule):
            ag_repa = 3

        callback = AlignmentCallback(AGREPA(a_flow(), two_teachers(), **OPTIONS))
        with pytest.raises(Unsupported, match="another attribute 'ag_repa': rename that one"):
            callback.setup(pl.Trainer(logger=False, enable_checkpointing=False), Other(), "fit")

    def test_held_out_scores_as_training_goes_on(self, tmp_path: Path) -> None:
        """Every two steps, logged, kept and saved; training has the bits that it has without."""
        import lightning.pytorch as pl
        from lightning.pytorch.loggers import CSVLogger

        from fog_a.aligning.lightning import AttributionCallback

        def fit(watched: bool) -> tuple[Any, Any]:
            flow = a_flow()

            class Training(pl.LightningModule):
                def __init__(self) -> None:
                    super().__init__()
                    self.net = flow.module

                def training_step(self, batch: Any, index: int) -> Tensor:
                    return flow.loss(batch)

                def configure_optimizers(self) -> torch.optim.Optimizer:
                    return torch.optim.AdamW(self.parameters(), lr=1e-2)

            callback = AttributionCallback(flow, [a_batch(4, seed=9)], every=2, out=tmp_path / "scores", times=2)
            quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
            trainer = pl.Trainer(
                max_steps=4, accelerator="cpu", logger=CSVLogger(str(tmp_path), version=f"{watched}"),
                accumulate_grad_batches=2, callbacks=[callback] if watched else [], **quiet,
            )  # fmt: skip
            torch.manual_seed(0)
            module = Training()
            trainer.fit(module, DataLoader(rows(), batch_size=4, collate_fn=collate))
            return module, callback.watch

        plain, _ = fit(False)
        module, watch = fit(True)
        assert list(watch.history) == [2, 4] and watch.history[4].info["step"] == 4
        assert sorted(p.name for p in (tmp_path / "scores").iterdir()) == ["foga-2.json", "foga-4.json"]
        header = next(tmp_path.rglob("True/metrics.csv")).read_text().splitlines()[0]
        assert "contribution/speech/blocks.3" in header
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), module.parameters(), strict=True))
        assert compare_scores(watch.history).n == 4


class TestTrainer:
    def trainer(self, folder: Path, steps: int) -> tuple[Any, AGREPA, Any]:
        from transformers import TrainingArguments

        from fog_a.aligning.transformers import AlignedTrainer

        flow = a_flow()
        reg = AGREPA(flow, two_teachers(), **OPTIONS)
        args = TrainingArguments(
            str(folder),
            max_steps=steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            save_steps=3,
            logging_steps=1,
            remove_unused_columns=False,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=0,
        )
        return flow, reg, AlignedTrainer(Loss(flow), args, train_dataset=rows(), data_collator=collate, reg=reg)

    def test_it_trains_logs_resumes_and_leaves(self, tmp_path: Path) -> None:
        flow, reg, trainer = self.trainer(tmp_path / "a", 9)
        trainer.train()
        assert reg.step == 9 and reg.selection is not None
        assert any("ag_repa/sound/blocks.3" in entry for entry in trainer.state.log_history)
        assert unhooked(flow.module)
        for cut in (3, 6):  # in the warm-up, and after it
            again, other, trainer = self.trainer(tmp_path / f"b{cut}", 9)
            trainer.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{cut}"))
            mine = [*flow.module.parameters(), *reg.parameters()]
            theirs = [*again.module.parameters(), *other.parameters()]
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def test_held_out_scores_as_training_goes_on(self, tmp_path: Path) -> None:
        from transformers import Trainer, TrainingArguments

        from fog_a.aligning.transformers import AttributionCallback

        flow = a_flow()
        args = TrainingArguments(
            str(tmp_path), max_steps=4, per_device_train_batch_size=4, remove_unused_columns=False, report_to=[],
            use_cpu=True, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        trainer = Trainer(Loss(flow), args, train_dataset=rows(), data_collator=collate)  # pyright: ignore[reportArgumentType]
        callback = AttributionCallback(flow, a_batch(4, seed=9), every=2, log=trainer.log, times=2)
        trainer.add_callback(callback)
        trainer.train()
        logged = [entry["step"] for entry in trainer.state.log_history if "contribution/sound/blocks.0" in entry]
        assert logged == [2, 4] == list(callback.watch.history)

    def test_a_run_that_is_too_short_says_so(self, tmp_path: Path) -> None:
        _, reg, trainer = self.trainer(tmp_path, 4)
        with pytest.warns(UserWarning, match="this run has 4 optimizer steps, and AGREPA's warm-up takes 4"):
            trainer.train()
        assert reg.selection is not None  # chosen after the last step

    @pytest.mark.parametrize("labels", [False, True])
    def test_accumulation_does_not_change_its_weight(self, tmp_path: Path, labels: bool) -> None:
        """Also where the model divides its own loss by the number of items, and the Trainer divides no more."""
        from transformers import TrainerCallback, TrainingArguments

        from fog_a.aligning.transformers import AlignedTrainer

        class Items(Loss):
            def forward(self, labels: Any = None, num_items_in_batch: Any = None, **batch: Any) -> dict[str, Tensor]:
                each = self.net(batch["x1"], torch.zeros(len(batch["x1"]))).square().mean((1, 2))
                return {"loss": each.mean() if num_items_in_batch is None else each.sum() / num_items_in_batch}

        def collated(items: list[dict[str, Any]]) -> dict[str, Any]:
            return collate(items) | ({"labels": torch.zeros(len(items), dtype=torch.long)} if labels else {})

        def gradient(calls: int) -> Tensor:
            flow = a_flow()
            reg = AGREPA(flow, two_teachers(), "blocks.1", batch=collate(rows(4)))
            found: list[Tensor] = []

            class Look(TrainerCallback):
                def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
                    whole = [*flow.module.parameters(), *reg.parameters()]
                    found.append(torch.cat([p.grad.flatten() for p in whole if p.grad is not None]))

            args = TrainingArguments(
                str(tmp_path),
                max_steps=1,
                per_device_train_batch_size=8 // calls,
                gradient_accumulation_steps=calls,
                max_grad_norm=0.0,
                train_sampling_strategy="sequential",
                remove_unused_columns=False,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
            )
            AlignedTrainer(
                Items(flow), args, train_dataset=rows(8), data_collator=collated, reg=reg, callbacks=[Look()]
            ).train()
            return found[0]

        assert torch.allclose(gradient(1), gradient(2), atol=1e-6)

    def test_a_checkpoint_without_it_is_refused(self, tmp_path: Path) -> None:
        _, _, trainer = self.trainer(tmp_path, 3)
        trainer.train()
        (tmp_path / "checkpoint-3" / "ag_repa.safetensors").unlink()
        _, _, trainer = self.trainer(tmp_path, 6)
        with pytest.raises(BadFeatures, match="saved without AG-REPA"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


class TestWatch:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"every": 0}, "every = 0: expected a number of optimizer steps, e.g. every=1000"),
            ({"batch": iter([])}, r"got an iterator\. Type list\(batches\)"),
        ],
    )
    def test_bad_input(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(BadArgument, match=message):
            Watch(a_flow(), **{"batch": a_batch(2), **options})

    def test_a_net_at_its_zero_initialisation_is_skipped(self) -> None:
        flow = a_flow()
        nn.init.zeros_(flow.module.out[1].weight)
        nn.init.zeros_(flow.module.out[1].bias)
        watch = Watch(flow, a_batch(2), every=5)
        with pytest.warns(UserWarning, match="step 5 is not attributed: .*zero"):
            assert watch(5) == {}
        assert watch(6) == {} and not watch.history
