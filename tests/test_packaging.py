"""What a user installs: the wheel's contents, its entry points, and what `import fog_a` costs."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python(code: str, *path: Path, cwd: Path) -> str:
    """Run code in a fresh interpreter, away from the repository; `path` comes before site-packages."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=cwd, env=env, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    run = subprocess.run(build, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


def test_wheel_holds_two_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"fog_a", "fog_a_adapters", f"fog_a-{PROJECT['version']}.dist-info"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name or name.endswith((".pyc", ".log"))]


def test_wheel_holds_every_source(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {"fog_a/py.typed", "fog_a_adapters/py.typed"} <= names
    for home in (ROOT, ROOT / "adapters"):
        for package in ("fog_a", "fog_a_adapters"):
            sources = {p.relative_to(home).as_posix() for p in (home / package).glob("**/*.py")}
            assert sources <= names, sources - names


def test_wheel_holds_the_demo_clips(wheel: zipfile.ZipFile) -> None:
    clips = [i for i in wheel.infolist() if i.filename.startswith("fog_a_adapters/dit/audio/clips/")]
    manifest = wheel.read("fog_a_adapters/dit/audio/clips/manifest.csv").decode().splitlines()
    flac = {i.filename.removeprefix("fog_a_adapters/dit/audio/clips/") for i in clips if i.filename.endswith(".flac")}
    listed = {line.split(",")[0] for line in manifest[1:]}
    assert flac == listed
    assert len(flac) >= 24
    assert sum(i.file_size for i in clips) <= 2 * 2**20


def test_demo_clips_load_from_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    wheel.extractall(tmp_path / "site")
    out = python(
        """
        import csv, fog_a_adapters.dit.audio, pathlib, soundfile
        clips = pathlib.Path(fog_a_adapters.dit.audio.__file__).parent / "clips"
        rows = list(csv.DictReader((clips / "manifest.csv").open()))
        seconds = [soundfile.info(clips / r["path"]).duration for r in rows]
        print(clips, len(rows), min(seconds) > 0.5)
        """,
        tmp_path / "site",
        cwd=tmp_path,
    ).split()
    assert out[0].startswith(str(tmp_path / "site")), "the extracted wheel, not the repository, was imported"
    assert out[2] == "True"


def test_entry_points_are_all_real(wheel: zipfile.ZipFile) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(f"fog_a-{PROJECT['version']}.dist-info/entry_points.txt").decode())
    points = dict(parser["fog_a.adapters"])
    assert set(points) == {"dit", "voicebox", "cosyvoice", "f5_tts", "matcha", "flow_matching", "diffusers"}
    names = set(wheel.namelist())
    for target in points.values():
        module, _, cls = target.partition(":")
        path = module.replace(".", "/")
        home = f"{path}.py" if f"{path}.py" in names else f"{path}/__init__.py"
        assert home in names, f"{target}: no such file in the wheel"
        assert cls in wheel.read(home).decode(), f"{target}: {home} does not name {cls}"
    assert parser["console_scripts"]["fog-a"] == "fog_a.shell.cli:main"


def test_command_line_starts(tmp_path: Path) -> None:
    run = subprocess.run(
        [Path(sys.executable).parent / "fog-a", "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    for command in ("blocks", "attribute", "plot", "demo"):
        assert command in run.stdout


def test_no_package_named_adapters(tmp_path: Path) -> None:
    """PyPI has a package `adapters`: where it is installed, it wins over our folder of that name."""
    assert not (ROOT / "adapters" / "__init__.py").exists()
    site = tmp_path / "site"
    (site / "adapters").mkdir(parents=True)
    (site / "adapters" / "__init__.py").write_text("from_pypi = True\n")
    code = "import adapters, fog_a_adapters, fog_a; print(adapters.from_pypi)"
    # Last on the path, as a site-packages is that comes after an editable install's folders.
    last = f"import sys; sys.path.append({str(site)!r}); {code}"
    assert python(code, site, cwd=tmp_path).strip() == "True"
    assert python(last, ROOT, ROOT / "adapters", cwd=tmp_path).strip() == "True"


HEAVY = "matplotlib transformers diffusers torchaudio nnsight pandas accelerate lightning tensorboard soundfile sklearn"


def test_import_is_light(tmp_path: Path) -> None:
    code = "import fog_a, sys; dir(fog_a); print(*sys.modules)"
    loaded = {name.split(".")[0] for name in python(code, cwd=tmp_path).split()}
    assert not loaded & set(HEAVY.split())
    assert "fog_a_adapters" not in loaded


def test_attribution_needs_no_extra(tmp_path: Path) -> None:
    """The whole main path runs with every optional package out of reach."""
    out = python(
        f"""
        import sys
        for name in {HEAVY.split()!r}:
            sys.modules[name] = None  # import raises ImportError
        import torch, fog_a
        class Block(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.f = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
            def forward(self, x):
                return x + self.f(x)
        torch.manual_seed(0)
        net = torch.nn.Sequential(*[Block() for _ in range(3)])
        scores = fog_a.attribute(net, torch.randn(16, 8), progress=False)
        print(scores.values.shape, all(float(v) > 0 for v in scores.mean()))
        """,
        cwd=tmp_path,
    )
    assert out.strip().endswith("(16, 1, 3) True")


def test_import_time(tmp_path: Path) -> None:
    """At most 0.3 s after torch, in processor time: in one of five, since other processes share the machine."""
    code = """
        import time, torch, numpy
        start = time.process_time()
        import fog_a
        print(time.process_time() - start)
        """
    assert any(float(python(code, cwd=tmp_path)) <= 0.3 for _ in range(5))


def test_rooms_with_public_names_need_no_import(tmp_path: Path) -> None:
    code = """
        import sys, fog_a
        print(any(name.startswith("fog_a.") for name in sys.modules), fog_a.teachers.LatentTeacher.__name__)
        print(fog_a.errors.BadBatch.__name__)
        """
    assert python(code, ROOT, cwd=tmp_path).split() == ["False", "LatentTeacher", "BadBatch"]


def test_constraints_pin_everything() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line for line in lines), "exact, and without a local version"
    pinned = {line.split("==")[0] for line in lines}
    assert len(pinned) == len(lines)
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    wanted = {re.split(r"[\[<>=]", requirement)[0].replace(".", "-") for group in groups for requirement in group}
    wanted |= {r for r in (ROOT / "tests/requirements.txt").read_text().splitlines() if r and not r.startswith("#")}
    assert wanted - {"fog-a"} <= pinned, wanted - pinned


def test_version_is_said_once() -> None:
    import fog_a

    assert fog_a.__version__ == PROJECT["version"] == metadata.version("fog-a")


def test_make_says_what_is_missing(tmp_path: Path) -> None:
    run = subprocess.run(
        ["make", "demo", "PYTHON=", f"VENV={tmp_path / 'venv'}"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert run.returncode != 0
    assert "no Python >= 3.11 with venv and pip was found" in run.stdout
    assert "make PYTHON=/path/to/python3.11" in run.stdout
    assert not (tmp_path / "venv").exists()


def fake_torchaudio(site: Path, loads: bool) -> Path:
    """A package that fails like torchaudio's CUDA build: its libraries cannot be loaded, unless `loads`."""
    lib = site / "torchaudio" / "lib"
    lib.mkdir(parents=True)
    (lib / "libtorchaudio.abi3.so").write_bytes(b"")
    (site / "torchaudio" / "__init__.py").write_text(
        "import pathlib\n"
        "lib = pathlib.Path(__file__).parent / 'lib' / 'libtorchaudio.abi3.so'\n"
        f"if lib.exists() and not {loads}:\n    raise OSError(f'Could not load this library: {{lib}}')\n"
    )
    return lib / "libtorchaudio.abi3.so"


@pytest.mark.parametrize("loads", [True, False])
def test_torchaudio_is_mended_only_where_it_fails(tmp_path: Path, loads: bool) -> None:
    import torch

    library = fake_torchaudio(tmp_path, loads)
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "mend_torchaudio.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        timeout=120,
    )
    if loads:
        assert run.returncode == 0 and not run.stdout
        assert library.exists()
    elif torch.version.cuda is None:
        assert run.returncode == 0 and "removed libtorchaudio.abi3.so" in run.stdout
        assert not library.exists()
    else:
        assert run.returncode == 1 and "Install the torchaudio that was built for this torch's CUDA" in run.stdout
        assert library.exists(), "beside a CUDA torch nothing is removed"
