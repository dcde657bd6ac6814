"""CropTeacher: a clip's frames computed once, and pooled over the crop that the batch holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_flow import CHANNELS, a_flow
from torch import Tensor

import fog_a
from fog_a.aligning.alignment import AGREPA
from fog_a.errors import BadBatch, BadFeatures, Unsupported
from fog_a.flows.samples import Samples
from fog_a.teachers import CropTeacher, SpectralTeacher

RATE = 100


class Loudness:
    """Ten frames a second, each the mean of its audio and its number; it counts the clips that it was asked about."""

    name, dim = "loudness", 2

    def __init__(self) -> None:
        self.asked: list[str] = []

    def frames(self, samples: Samples) -> list[Tensor]:
        self.asked += samples.groups
        assert samples.audio is not None and samples.lengths is not None
        pairs = zip(samples.audio, samples.lengths, strict=True)
        waves = [wave[: int(n)].unflatten(0, (-1, 10)).mean(1) for wave, n in pairs]
        return [torch.stack([x, torch.arange(len(x)).float()], 1) for x in waves]

    def __call__(self, samples: Samples) -> Tensor:
        return torch.stack([x.mean(0) for x in self.frames(samples)])


def clips(lengths: tuple[int, ...] = (300, 200)) -> dict[str, Any]:
    """Whole clips "clip-0", "clip-1", of so many audio samples."""
    audio = torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(0))
    names = [f"clip-{i}" for i in range(len(lengths))]
    about = {"audio": audio, "rate": RATE, "audio_lengths": torch.tensor(lengths)}
    return {"x1": torch.randn(len(lengths), 30, CHANNELS), "ids": names, **about}


def crops(seconds: list[tuple[float, float]], groups: list[str]) -> dict[str, Any]:
    x = torch.randn(len(groups), 7, CHANNELS, generator=torch.Generator().manual_seed(1))
    return {"x1": x, "groups": groups, "crops": torch.tensor(seconds)}


def filled(folder: Path) -> tuple[Any, Loudness, CropTeacher]:
    flow, inner = a_flow(), Loudness()
    teacher = CropTeacher(inner, folder)
    assert teacher.fill(flow.samples(batch) for batch in (clips(), clips())) == 2
    assert inner.asked == ["clip-0", "clip-1"]
    return flow, inner, teacher


def test_a_crop_gets_the_mean_of_its_own_frames(tmp_path: Path) -> None:
    flow, inner, teacher = filled(tmp_path)
    whole = inner.frames(flow.samples(clips()))
    batch = crops([(0.5, 1.5), (0.0, 2.0), (2.95, 3.0), (0.51, 0.52)], ["clip-0", "clip-1", "clip-0", "clip-1"])
    expected = [whole[0][5:15], whole[1], whole[0][29:30], whole[1][5:6]]
    samples = flow.samples(batch)
    for frames, reference in zip(teacher.frames(samples), expected, strict=True):
        assert torch.equal(frames, reference)
    torch.testing.assert_close(teacher(samples), torch.stack([x.mean(0) for x in expected]))
    part = flow.samples(samples.rows([2, 0]))
    assert torch.equal(teacher(part), teacher(samples)[[2, 0]])
    again = CropTeacher(Loudness(), tmp_path)  # another process, without any audio
    assert torch.equal(again(samples), teacher(samples))
    assert torch.equal(again(flow.samples(clips())), torch.stack([x.mean(0) for x in whole]))


def test_alignment_with_random_crops(tmp_path: Path) -> None:
    """The network is given neither groups nor crops; domains are routed with them."""
    flow, _, teacher = filled(tmp_path)
    batch = crops([(0.0, 1.0), (1.0, 2.0)], ["clip-0", "clip-1"]) | {"domains": ["speech", "sound"]}
    reg = AGREPA(flow, {"speech": teacher, "sound": None}, "blocks.1", batch=batch)
    flow.loss(batch)
    reg(batch).backward()
    assert all(p.grad is not None for p in reg.parameters())
    scores = fog_a.attribute(flow, batch, times=[0.5], progress=False)
    assert scores.groups == ("clip-0", "clip-1")


def test_what_is_refused(tmp_path: Path) -> None:
    flow, _, teacher = filled(tmp_path)
    for seconds in ((1.5, 2.2), (1.0, 1.0), (-0.5, 1.0)):
        with pytest.raises(
            BadBatch, match=r"crop from .* s is not within its clip 'clip-1' of 2 s. Give start and end"
        ):
            teacher(flow.samples(crops([seconds], ["clip-1"])))
    with pytest.raises(BadBatch, match=r"crops: expected start and end of each sample, \(1, 2\), got \(1, 3\)"):
        flow.samples(crops([(0.0, 1.0, 2.0)], ["clip-1"]))  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadFeatures, match=r"no frames of clip 'clip-7'. Type teacher.fill\(batches of whole clips\)"):
        teacher(flow.samples(crops([(0.0, 1.0)], ["clip-7"])))
    with pytest.raises(BadBatch, match=r"fill\(\) reads whole clips: .*Leave out the key 'crops'"):
        teacher.fill([flow.samples({**clips(), "crops": torch.tensor([(0.0, 1.0)] * 2)})])
    with pytest.raises(Unsupported, match=r"'log-mel-statistics-64' only pools. Take WhisperTeacher"):
        CropTeacher(SpectralTeacher(), tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    flow, _, teacher = filled(tmp_path)
    path = next(teacher.folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 8
    path.write_bytes(content)
    again = CropTeacher(Loudness(), tmp_path)
    with pytest.raises(BadFeatures, match=rf"{path.name} is corrupt \(its checksum does not match\). Delete"):
        again(flow.samples(crops([(0.0, 1.0)] * 2, ["clip-0", "clip-1"])))
