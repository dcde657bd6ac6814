"""Seven training loops that others wrote, each put on a CPU with a few steps of random data, for training_loops.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

STEPS, BATCH = 8, 4


class Config(dict[str, Any]):
    """A configuration whose keys are attributes, as OmegaConf's; what is not set is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


def config(**items: Any) -> Config:
    return Config(items)


@dataclass(frozen=True)
class Loop:
    """A loop: its repository, commit and script, what is another on this machine, and how it is started."""

    repository: str
    commit: str
    script: str
    stage: Sequence[tuple[str, str]] = ()
    argv: Sequence[str] = ()
    paths: Sequence[str] = (".",)
    before: Callable[[], None] = lambda: None


def images(channels: int, size: int) -> Callable[..., list[tuple[Tensor, int]]]:
    """A stand-in for torchvision's data sets."""
    return lambda *args, **kwargs: [(torch.randn(channels, size, size), i % 10) for i in range(STEPS * BATCH)]


def torchvision_sets() -> None:
    """Random images in the place of torchvision's data sets."""
    parts: tuple[Any, ...] = tuple(
        importlib.import_module(f"torchvision{part}") for part in ("", ".datasets", ".utils")
    )
    package, datasets, utils = parts
    package.datasets = datasets
    datasets.MNIST, datasets.CIFAR10, datasets.ImageFolder = images(1, 32), images(3, 32), images(3, 256)
    utils.make_grid = lambda pictures, **options: pictures[0].expand(3, -1, -1)


def sit_stage() -> None:
    """One process on a CPU, and latents of the images without the VAE's weights."""
    torchvision_sets()
    models: Any = importlib.import_module("diffusers.models")
    dist: Any = torch.distributed

    store = dist.HashStore()
    start = dist.init_process_group
    dist.init_process_group = lambda backend: start("gloo", store=store, rank=0, world_size=1)
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
    torch.cuda.set_device, torch.cuda.synchronize = lambda device: None, lambda: None
    encoded = SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda: torch.randn(BATCH, 4, 32, 32)))
    vae = SimpleNamespace(encode=lambda x: encoded)
    models.AutoencoderKL = SimpleNamespace(from_pretrained=lambda name: SimpleNamespace(to=lambda device: vae))


def diffusers_stage() -> None:
    """Random images in the place of a data set of the hub."""

    class Images(list[dict[str, Tensor]]):
        def set_transform(self, transform: Any) -> None:
            pass

    package: Any = importlib.import_module("datasets")
    package.load_dataset = lambda *a, **k: Images({"input": torch.randn(3, 32, 32)} for _ in range(STEPS * BATCH))


def f5_stage() -> None:
    """A tiny F5-TTS on random clips; its train.py takes the configuration that hydra would read."""
    import light_imports

    light_imports.importable("f5_tts")
    package, data = sys.modules["f5_tts.model"], importlib.import_module("f5_tts.model.dataset")
    package.Trainer = importlib.import_module("f5_tts.model.trainer").Trainer  # pyright: ignore
    clips = [{"mel_spec": torch.randn(100, 12 + i % 5), "text": "some text"} for i in range(STEPS * BATCH)]
    data.load_dataset = lambda *args, **kwargs: clips  # pyright: ignore
    arch = config(dim=32, depth=3, heads=2, dim_head=16, ff_mult=2, text_dim=16)
    mel = config(mel_spec_type="vocos", n_mel_channels=100)
    batches = config(name="clips", batch_size_per_gpu=BATCH, batch_size_type="sample", max_samples=BATCH, num_workers=0)
    saves = config(save_per_updates=100, keep_last_n_checkpoints=0, save_dir="out", logger=None, last_per_updates=100)
    cfg = config(
        model=config(name="tiny", backbone="DiT", arch=arch, tokenizer="byte", mel_spec=mel),
        optim=config(epochs=1, learning_rate=1e-3, num_warmup_updates=1, grad_accumulation_steps=1, max_grad_norm=1.0),
        ckpts=config(**saves, log_samples=False),
        datasets=batches,
    )
    cfg.model["vocoder"] = config(is_local=False, local_path=None)
    hydra = sys.modules["hydra"]
    hydra.main = lambda **options: lambda main: lambda: main(cfg)  # pyright: ignore
    hydra.utils.get_class = lambda name: sys.modules["f5_tts.model.backbones.dit"].DiT  # pyright: ignore


def matcha_stage() -> None:
    """A tiny Matcha-TTS on random clips with their durations, trained by Lightning as its train.py does."""
    import flow_cases
    import lightning

    case = flow_cases.matcha_tts()
    model = case.model
    model.hparams.optimizer, model.hparams.scheduler = partial(torch.optim.Adam, lr=1e-3), None

    class Data(lightning.LightningDataModule):
        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader([case.batch] * STEPS, batch_size=None)  # pyright: ignore

    options = {"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False, "enable_progress_bar": False}
    made = {"model": lambda **_: model, "data": lambda **_: Data()}
    made["trainer"] = lambda **_: lightning.Trainer(**options, logger=False, limit_val_batches=0)
    utils = sys.modules["matcha.utils"]
    utils.task_wrapper = lambda train: train  # pyright: ignore
    utils.instantiate_callbacks = utils.instantiate_loggers = lambda config: []  # pyright: ignore
    sections = {name: config(_target_=name) for name in made}
    cfg = config(**sections, train=True)
    hydra = sys.modules["hydra"]
    hydra.utils.instantiate = lambda section, **options: made[section["_target_"]](**options)  # pyright: ignore
    hydra.main = lambda **options: lambda main: lambda: sys.modules["__main__"].train(cfg)  # pyright: ignore


LOOPS = {
    "minrf": Loop(
        "minRF",
        "4fc10e0",
        "rf.py",
        [
            (".cuda()", ""),
            ("batch_size=256", f"batch_size={BATCH}"),
            ("range(100)", "range(1)"),
            ("sample_steps=50", "sample_steps=2"),
        ],
        before=torchvision_sets,
    ),
    "torchcfm": Loop(
        "conditional-flow-matching",
        "cacd4dc",
        "examples/images/cifar10/train_cifar10.py",
        [("num_head_channels=64", "num_head_channels=16")],
        f"--model=icfm --total_steps={STEPS} --batch_size={BATCH} --num_channel=32 --num_workers=0 --save_step=0 "
        "--warmup=1 --lr=0.01".split(),
        [".", "examples/images/cifar10"],
        torchvision_sets,
    ),
    "flow_matching": Loop(
        "flow_matching",
        "11568d3",
        "examples/image/train.py",
        [('"num_res_blocks": 4', '"num_res_blocks": 1'), ('"model_channels": 128', '"model_channels": 32')],
        f"--dataset=cifar10 --batch_size={BATCH} --epochs=1 --device=cpu --num_workers=0 --output_dir=out "
        "--eval_frequency=0".split(),
        ["examples/image"],
        torchvision_sets,
    ),
    "sit": Loop(
        "SiT",
        "947f95b",
        "train.py",
        [("device_ids=[device]", "device_ids=None"), ("device = rank % torch.cuda.device_count()", 'device = "cpu"')],
        ["--data-path=x", "--model=SiT-S/8", "--epochs=1", f"--global-batch-size={BATCH}", "--num-workers=0"],
        before=sit_stage,
    ),
    "diffusers": Loop(
        "diffusers",
        "58eb52c",
        "examples/unconditional_image_generation/train_unconditional.py",
        [
            ("(128, 128, 256, 256, 512, 512)", "(32, 32, 64, 64, 64, 64)"),
            ("layers_per_block=2", "layers_per_block=1"),
            ('if args.logger == "tensorboard":', "if False:"),
            ("log_with=args.logger", "log_with=None"),
        ],
        f"--dataset_name=x --resolution=32 --train_batch_size={BATCH} --num_epochs=1 --output_dir=out "
        "--eval_batch_size=1 --ddpm_num_inference_steps=2 --lr_warmup_steps=1 --learning_rate=1e-3".split(),
        before=diffusers_stage,
    ),
    "f5-tts": Loop(
        "f5_tts",
        "1.1.22",
        "f5_tts/train/train.py",
        [("persistent_workers=True", "persistent_workers=False")],
        before=f5_stage,
    ),
    "matcha-tts": Loop(
        "matcha", "0.0.7.2", "matcha/train.py", stage=[("LatentTeacher(80", "LatentTeacher(16")], before=matcha_stage
    ),
}
