"""Features on disk: computed once, whole or absent, and never silently wrong."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fog_a.errors import BadFeatures
from fog_a.flows.samples import Samples
from fog_a.teachers.cached import CachedTeacher, prints
from fog_a.teachers.store import key
from fog_a.teachers.teacher import Teacher


class Moments:
    """A teacher that counts how often it is asked."""

    name = "moments"
    dim: int = 2

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, samples: Samples) -> Tensor:
        self.asked += len(samples)
        assert samples.audio is not None
        return torch.stack([samples.audio.mean(1), samples.audio.std(1)], 1)


def clips(*names: str) -> Samples:
    audio = torch.stack([torch.randn(500, generator=torch.Generator().manual_seed(sum(map(ord, n)))) for n in names])
    return Samples(names, ("all",) * len(names), list, audio, 16_000)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def test_computed_once(tmp_path: Path) -> None:
    inner = Moments()
    teacher = CachedTeacher(inner, tmp_path)
    assert isinstance(teacher, Teacher) and (teacher.name, teacher.dim) == ("moments", 2)
    first = teacher(clips("a", "b", "a"))
    assert inner.asked == 2 and len(teacher) == 2 and "b" in teacher  # one id twice in a batch is one computation
    assert torch.equal(first, Moments()(clips("a", "b", "a")))
    assert torch.equal(teacher(clips("b", "c")), Moments()(clips("b", "c")))
    assert inner.asked == 3
    again = CachedTeacher(other := Moments(), tmp_path)
    assert torch.equal(again(clips("c", "a", "b")), Moments()(clips("c", "a", "b")))
    assert other.asked == 0


def test_read_only_needs_no_audio(tmp_path: Path) -> None:
    assert CachedTeacher(Moments(), tmp_path).fill([clips("a", "b"), clips("c")]) == 3
    reader = CachedTeacher(None, tmp_path)
    assert reader.dim == 2
    bare = Samples(("c", "a"), ("all", "all"), list)
    assert torch.equal(reader(bare), Moments()(clips("c", "a")))
    with pytest.raises(BadFeatures, match=r"no features of 2 samples: d, e.*3 are there.*\.fill\("):
        reader(clips("a", "d", "e"))


def test_keyed_by_teacher_and_pooling(tmp_path: Path) -> None:
    mean, release = Moments(), Moments()
    release.pool = "release"  # pyright: ignore[reportAttributeAccessIssue]
    weights = Moments()
    weights.fingerprint = "0123abcd"  # pyright: ignore[reportAttributeAccessIssue]
    assert {key(mean), key(release), key(weights)} == {"moments-mean", "moments-release", "moments-mean-0123abcd"}
    for teacher in (mean, release, weights):
        CachedTeacher(teacher, tmp_path)(clips("a"))
        assert teacher.asked == 1
    with pytest.raises(BadFeatures, match=r"one teacher's features.*'moments-mean', 'moments-mean-0123abcd'.*name="):
        CachedTeacher(None, tmp_path)
    assert len(CachedTeacher(None, tmp_path, name="moments-release")) == 1
    with pytest.raises(BadFeatures, match=r"got nothing.*\.fill"):
        CachedTeacher(None, tmp_path / "elsewhere")


def test_several_writers(tmp_path: Path) -> None:
    """What another process has written is read, not computed."""
    one, two = CachedTeacher(Moments(), tmp_path), CachedTeacher(inner := Moments(), tmp_path)
    one(clips("a", "b"))
    two(clips("a", "b"))
    assert inner.asked == 0
    two(clips("c"))
    assert len(files(tmp_path)) == 2
    one.compact()
    assert len(files(tmp_path)) == 1
    third = CachedTeacher(inner, tmp_path)
    assert torch.equal(third(clips("a", "b", "c")), Moments()(clips("a", "b", "c"))) and inner.asked == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "bits"])
def test_corrupt_file(tmp_path: Path, damage: str) -> None:
    """The error names the one file to delete; what the others hold is still there, and the lost is computed again."""
    teacher = CachedTeacher(Moments(), tmp_path)
    teacher(clips("a", "b"))
    (first,) = files(tmp_path)
    teacher(clips("c"))
    whole = first.read_bytes()
    damaged = {
        "cut": whole[:-4], "empty": b"", "foreign": b"x" * 200, "bits": whole[:-1] + bytes([whole[-1] ^ 1]),
    }[damage]  # fmt: skip
    first.write_bytes(damaged)
    with pytest.raises(
        BadFeatures, match=r"corrupt.*Delete this one file \(rm '.*'\).*other files are as they were"
    ) as e:
        CachedTeacher(Moments(), tmp_path)(clips("a", "c"))
    assert str(first) in str(e.value)
    first.unlink()
    inner = Moments()
    assert torch.equal(CachedTeacher(inner, tmp_path)(clips("a", "b", "c")), Moments()(clips("a", "b", "c")))
    assert inner.asked == 2


def flips(count: int, tmp_path: Path) -> None:
    """One flipped bit anywhere in a file, header and ids included: BadFeatures, or the very same features."""
    CachedTeacher(Moments(), tmp_path)(clips("a", "b", "c"))
    (path,) = files(tmp_path)
    whole, want, draw, refused = path.read_bytes(), Moments()(clips("a", "b", "c")), random.Random(count), 0
    for _ in range(count):
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        inner = Moments()
        try:
            got = CachedTeacher(inner, tmp_path)(clips("a", "b", "c"))
        except BadFeatures:
            refused += 1
            continue
        assert torch.equal(got, want) and not inner.asked, f"byte {place}, bit {bit}"
    assert refused > 0.9 * count


def test_a_flipped_bit_is_never_silent(tmp_path: Path) -> None:
    flips(200, tmp_path)


@pytest.mark.soak
def test_thousands_of_flipped_bits_are_never_silent(tmp_path: Path) -> None:
    flips(4600, tmp_path)


def test_survives_a_kill(tmp_path: Path) -> None:
    """Killed (SIGKILL) while it writes; what was written is whole, and only the rest is computed again."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        sys.path.insert(0, sys.argv[2])
        from test_feature_cache import CachedTeacher, Moments, clips
        teacher = CachedTeacher(Moments(), sys.argv[1])
        real = os.replace
        def killed(source, target):
            if len(teacher) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)
        os.replace = killed
        teacher.fill([clips("a", "b"), clips("c", "d"), clips("e", "f")])
        """
    )
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), here], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert any(p.suffix == ".part" for p in (tmp_path / "moments-mean").iterdir())  # the killed write
    inner = Moments()
    teacher = CachedTeacher(inner, tmp_path)
    assert sorted(teacher.store.notes) == ["a", "b", "c", "d"]
    teacher.fill([clips("a", "b"), clips("c", "d"), clips("e", "f")])
    assert inner.asked == 2


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = CachedTeacher(Moments(), tmp_path)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as m:
        m.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            teacher(clips("a"))
    assert list((tmp_path / "moments-mean").iterdir()) == [] and len(teacher) == 0
    assert teacher(clips("a")).shape == (1, 2)


def test_ids_must_name_the_clip(tmp_path: Path) -> None:
    """Ids that are positions in the batch would give another clip's features: it is said, once."""
    teacher = CachedTeacher(Moments(), tmp_path)
    teacher(clips("a", "b"))
    moved = replace(clips("b", "a"), ids=("a", "b"))
    with pytest.warns(UserWarning, match=r"sample 'a' \(2 of 2\) now has other audio.*check=False"):
        teacher(moved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teacher(moved)
        CachedTeacher(Moments(), tmp_path, check=False)(moved)


def test_padding_does_not_change_the_print() -> None:
    short = clips("a")
    assert short.audio is not None
    long = replace(short, audio=torch.nn.functional.pad(short.audio, (0, 99)), lengths=torch.tensor([500]))
    assert prints(short) == prints(long) != prints(clips("b"))


def test_bad_features_are_not_kept(tmp_path: Path) -> None:
    inner = Moments()
    teacher = CachedTeacher(inner, tmp_path)
    broken = replace(clips("a"), audio=torch.full((1, 10), float("nan")))
    with pytest.raises(BadFeatures, match="NaN or inf in rows"):
        teacher(broken)
    inner.dim = 3
    with pytest.raises(BadFeatures, match=r"teacher 'moments' gave \(1, 2\), expected \(1, 3\)"):
        teacher(clips("a"))
    assert files(tmp_path) == []


def test_other_width_in_the_folder(tmp_path: Path) -> None:
    CachedTeacher(Moments(), tmp_path)(clips("a"))
    wide = Moments()
    wide.dim = 5
    with pytest.raises(BadFeatures, match="width 2, but moments has 5"):
        CachedTeacher(wide, tmp_path)
