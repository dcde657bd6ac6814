"""The command line: what it prints and writes, and that a mistake gives one message and exit code 2."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from fog_a.errors import BadArgument
from fog_a.scores.scores import Scores
from fog_a.shell import arguments, cli, tree

NETS = """
import torch
from torch import nn
import fog_a


class Block(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)
        nn.init.normal_(self.fc.weight, std=scale)

    def forward(self, x):
        return x + self.fc(self.norm(x)).tanh()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(s) for s in (0.1, 0.8, 0.3)])
        self.out = nn.Linear(8, 8)

    def forward(self, x, t=None):
        h = x if t is None else x + t.view(-1, 1, 1)
        for block in self.blocks:
            h = block(h)
        return self.out(h)


class Broken(Net):
    def forward(self, x):
        raise RuntimeError("the model's own trouble")


class Teacher:
    name, dim = "mean", 8

    def __call__(self, samples):
        return samples.audio.float().mean(1, keepdim=True) * torch.ones(8)


def batch():
    torch.manual_seed(1)
    return torch.randn(20, 5, 8)


def flow_batch():
    return {"x1": batch()}


def heard():
    audio = torch.randn(20, 50)
    return {"x1": batch() + audio.mean(1)[:, None, None], "audio": audio, "rate": 16000}


def plain():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU())


def fails():
    raise ValueError("factory trouble")


def sized(width, depth=2, *more, **options):
    return Net()


def largest(v, changed, batch):
    return (changed - v).abs().amax((1, 2))


class Stopped(Net):
    calls = 0

    def forward(self, x):
        Stopped.calls += 1
        if Stopped.calls > 5:
            raise KeyboardInterrupt
        return super().forward(x)


ready = Net()
number = 3


def a_task():
    from fog_a_adapters.compare import Task

    return Task("a task", build=None, batch=None, held_out=[], probe=[], teachers=None)
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


Shell = Callable[..., Result]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Run `fog-a` in a folder that holds nets.py and batch.pt."""
    (tmp_path / "fog_a_cli_nets.py").write_text(NETS)
    torch.manual_seed(1)
    torch.save(torch.randn(20, 5, 8), tmp_path / "batch.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    sys.modules.pop("fog_a_cli_nets", None)

    def run(*words: str) -> Result:
        words = tuple(w.replace("nets:", "fog_a_cli_nets:") for w in words)
        with pytest.raises(SystemExit) as exit:
            cli.main(words)
        captured = capsys.readouterr()
        return Result(int(exit.value.code or 0), captured.out, captured.err)

    return run


NET = ("--model", "nets:Net", "--batch", "batch.pt")


def test_blocks_prints_a_table_per_stack(shell: Shell) -> None:
    code, out, _ = shell("blocks", *NET)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "blocks  3 blocks"
    assert lines[1].split() == ["name", "form", "gate", "0", "parameters", "depends", "on"]
    own = sum(p.numel() for p in nn.ModuleList([nn.LayerNorm(8), nn.Linear(8, 8)]).parameters())
    assert [line.split()[:4] for line in lines[2:5]] == [
        [str(i), f"blocks.{i}", "stream", "identity"] for i in range(3)
    ]
    assert all(str(own) in line for line in lines[2:5])
    assert lines[-2:] == ["3 blocks in 1 stack", "3 updates: 3 closed by 3 blocks"]


def test_blocks_names_inputs_only_where_they_tell_something() -> None:
    assert tree._needs(frozenset("abcd"), frozenset("abcd")) == "all 4 inputs"
    assert tree._needs(frozenset("abc"), frozenset("abcd")) == "a, b, c"
    assert tree._needs(frozenset("ab"), frozenset("ab")) == "a, b"
    assert tree._needs(frozenset(), frozenset("ab")) == "–"


def test_check_prints_its_table(shell: Shell) -> None:
    wrapped = ("check", "--model", "nets:Net", "--batch", "nets:flow_batch", "--option", "x=x", "--option", "t=t")
    code, out, _ = shell(*wrapped, "--samples", "8")
    assert code == 0 and out.startswith("Net: 8 of 20 samples") and 'declared: path="linear", target="v"' in out
    assert "Nothing fits" in out and "blocks   3 (blocks 3)" in out
    code, out, _ = shell(*wrapped, "--option", "target=eps")
    assert code == 0 and 'declared: path="linear", target="eps"' in out
    code, _, err = shell("check", "--model", "nets:Net", "--batch", "nets:batch")
    assert code == 2 and "check reads a wrapped flow, got Net" in err


def test_blocks_takes_options(shell: Shell) -> None:
    _, out, _ = shell("blocks", *NET, "--include", "blocks.1")
    assert "blocks.1" in out and "blocks.0" not in out


def test_attribute_writes_what_the_library_computes(shell: Shell) -> None:
    pytest.importorskip("matplotlib")
    code, out, _ = shell("attribute", *NET, "--out", "res", "--k", "2", "--seed", "3")
    assert code == 0 and sorted(os.listdir("res")) == ["foga.csv", "foga.json", "foga.png"]
    scores = Scores.load("res/foga.json")
    import fog_a

    expected = fog_a.attribute(arguments.made("fog_a_cli_nets:Net", ""), torch.load("batch.pt"), seed=3)
    assert np.array_equal(scores.values, expected.values) and scores.layers == expected.layers
    assert scores.info["seed"] == 3
    assert scores.table(2) in out and "wrote foga.json, foga.csv, foga.png in res" in out
    order = [line.split()[2] for line in out.splitlines() if line.split()[:1] in (["1"], ["2"])]
    assert order == list(scores.top(2).names)


def test_attribute_on_a_wrapped_flow_has_times(shell: Shell) -> None:
    common = ("--model", "nets:Net", "--batch", "nets:flow_batch", "--option", "x=x", "--option", "t=t")
    code, _, err = shell("attribute", *common, "--times", "0.25,0.75", "--out", "res", "--block", "blocks.1")
    assert code == 0, err
    scores = Scores.load("res/foga.json")
    assert scores.times == (0.25, 0.75) and scores.layers == ("blocks.1",)
    shell("attribute", *common, "--times", "3", "--out", "res3")
    assert Scores.load("res3/foga.json").times == pytest.approx((1 / 6, 1 / 2, 5 / 6))


def test_attribute_by_another_yardstick(shell: Shell) -> None:
    common = ("--model", "nets:Net", "--batch", "nets:flow_batch", "--option", "x=x", "--option", "t=t", "--times", "1")
    assert shell("attribute", *common, "--metric", "loss", "--out", "loss").code == 0
    assert Scores.load("loss/foga.json").kind == "loss"
    assert shell("attribute", *NET, "--metric", "nets:largest", "--out", "res").code == 0
    scores = Scores.load("res/foga.json")
    net, x = arguments.made("fog_a_cli_nets:Net", ""), torch.load("batch.pt")
    with torch.no_grad():
        closed = net.out(net.blocks[2](net.blocks[1](x)))
        expected = (closed - net(x)).abs().amax((1, 2))
    assert scores.kind == "metric" and np.allclose(scores.values[:, 0, 0], expected.numpy(), atol=1e-6)
    code, _, err = shell("attribute", *NET, "--metric", "largest")
    assert code == 2 and "--metric 'largest': expected package.module:name" in err


def test_a_ready_object_is_taken_as_it_is(shell: Shell) -> None:
    assert shell("blocks", "--model", "nets:ready", "--batch", "nets:batch").code == 0


def test_weights_are_loaded(shell: Shell) -> None:
    net = arguments.made("fog_a_cli_nets:Net", "")
    with torch.no_grad():
        net.blocks[1].fc.weight.zero_()
        net.blocks[1].fc.bias.zero_()
    torch.save({"state_dict": net.state_dict()}, "w.pt")
    assert shell("attribute", *NET, "--weights", "w.pt", "--out", "res").code == 0
    assert Scores.load("res/foga.json").mean()[1] == 0.0
    torch.save({"nothing": torch.zeros(1)}, "other.pt")
    code, _, err = shell("attribute", *NET, "--weights", "other.pt")
    assert code == 2 and "no state dict of Net" in err


@pytest.mark.filterwarnings("ignore:the head of")  # fitted on ten samples, it tells nothing of others; and says so
def test_lasp(shell: Shell) -> None:
    wrapped = ("--option", "x=x", "--option", "sigma=0.5", "--times", "2", "--teacher", "nets:Teacher", "--out", "res")
    code, out, err = shell("lasp", "--model", "nets:Net", "--batch", "nets:heard", *wrapped)
    assert code == 0, err
    scores = Scores.load("res/lasp.json")
    assert scores.kind == "storage" and scores.times == (0.25, 0.75) and len(scores.layers) == 3
    assert np.abs(scores.values).max() <= 1.0 + 1e-5 and "storage" in out


def test_options_of_an_adapter_are_numbers_or_text() -> None:
    assert [arguments._pair(o) for o in ("sigma=0.5", "x=null", "t=time", "clip=true")] == [
        ("sigma", 0.5),
        ("x", None),
        ("t", "time"),
        ("clip", True),
    ]


def saved(folder: Path, kind: str, name: str, **info: Any) -> Path:
    values = np.random.default_rng(len(name)).gamma(9.0, 0.01, size=(20, 2, 5))
    scores = Scores(values, tuple(f"b.{i}" for i in range(5)), times=(0.25, 0.75), kind=kind, info=info)
    scores.save(folder / name)
    return folder / name


def test_plot(shell: Shell, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    foga, storage = saved(tmp_path, "contribution", "foga.json"), saved(tmp_path, "storage", "lasp.json")
    assert shell("plot", str(foga)).code == 0 and foga.with_suffix(".png").exists()
    for kind in ("scores", "time", "depth"):
        assert shell("plot", str(foga), "--kind", kind, "--out", f"deep/{kind}.svg").code == 0
        assert Path(f"deep/{kind}.svg").read_text().startswith("<?xml")
    assert shell("plot", str(storage), str(foga), "--out", "scd.png").code == 0  # auto: Figure 1
    assert shell("plot", str(foga), str(storage), "--kind", "scatter", "--out", "scatter.png").code == 0
    assert Path("scd.png").exists() and Path("scatter.png").exists()
    later = saved(tmp_path, "contribution", "step_200.json")
    assert shell("plot", str(foga), str(later), "--kind", "stability", "--out", "stable.png").code == 0
    code, _, err = shell("plot", str(foga), str(later))
    assert code == 2 and "--kind scores draws one file, got 2" in err
    code, _, err = shell("plot", str(foga), "--kind", "scd")
    assert code == 2 and "needs two files, one of storage (lasp) and one of contribution" in err


def test_report(shell: Shell, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    foga = saved(tmp_path, "contribution", "foga.json", seed=5)
    code, out, _ = shell("report", str(foga), "--out", "page.html", "--title", "My net")
    assert code == 0 and "wrote page.html" in out
    assert "<title>My net</title>" in Path("page.html").read_text()


def test_adapters_lists_the_registered_ones(shell: Shell) -> None:
    code, out, _ = shell("adapters")
    assert code == 0 and out.splitlines()[0].split()[0] == "name"
    assert {"dit", "f5_tts", "generic"} <= {line.split()[0] for line in out.splitlines()[1:]}


def test_demo_hands_its_options_on(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from fog_a_adapters.dit import demo

    seen: dict[str, Any] = {}

    def run(data: Any = None, out: Any = "d", steps: int = 9, seed: int = 0, layers: int = 1, dim: int = 1) -> None:
        seen.update(data=data, out=out, steps=steps, seed=seed, layers=layers, dim=dim)

    assert set(inspect.signature(run).parameters) <= set(inspect.signature(demo.run).parameters)
    monkeypatch.setattr(demo, "run", run)
    assert shell("demo", "--steps", "5", "--out", "o", "--seed", "2", "--layers", "3", "--dim", "16").code == 0
    assert seen == {"data": None, "out": Path("o"), "steps": 5, "seed": 2, "layers": 3, "dim": 16}


def test_compare_hands_its_options_on(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from fog_a_adapters.dit.demo import bundled_task

    seen: dict[str, Any] = {}

    def run(
        data: Any = None, out: Any = "d", *, arms: Any = None, seeds: int = 3, steps: int = 1, layers: int = 8
    ) -> None:
        seen.update(data=data, out=out, arms=arms, seeds=seeds, steps=steps, layers=layers)

    monkeypatch.setattr(bundled_task, "run", run)
    assert shell("compare", "--data", "clips", "--arm", "base", "--arm", "foga", "--seeds", "2").code == 0
    assert seen == {"data": Path("clips"), "out": "d", "arms": ["base", "foga"], "seeds": 2, "steps": 1, "layers": 8}
    code, _, err = shell("compare", "--warmup", "3")
    assert code == 2 and "--warmup: run has no such option in this version" in err


def test_compare_of_the_bundled_model_takes_every_option(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the real `run`: a signature that names no option refuses all of them."""
    from fog_a_adapters.compare import Plan, Task, command
    from fog_a_adapters.dit.demo import bundled_task

    seen: list[Any] = []
    task = Task("t", build=Any, batch=Any, held_out=(), probe=(), teachers=None)
    monkeypatch.setattr(bundled_task, "bundled_task", lambda data, **how: seen.append((data, how)) or task)
    monkeypatch.setattr(command, "compare", lambda task, plan, out, progress: seen.append(plan))
    (tmp_path / "compare.md").write_text("done")
    words = "--data clips --arms foga,each --seeds 2 --warmup 4 --steps 5 --k 1 --layers 3 --dim 16 --teacher whisper:w"
    assert shell("compare", "--out", str(tmp_path), *words.split()).code == 0
    (data, how), plan = seen
    assert data == Path("clips") and (how["config"].layers, how["config"].dim, how["teacher"]) == (3, 16, "whisper:w")
    assert plan == Plan(("base", "foga", "each"), (0, 1), warmup=4, steps=5, k=1, center=True)


def test_compare_on_another_task_imports_no_bundled_model(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("def none(): return 3\n")
    code = (
        "import sys\nfrom fog_a.shell import cli\ntry:\n    cli.main(['compare', '--task', 'tasks:none'])\n"
        "except SystemExit as end:\n    print(end.code, [m for m in sys.modules if m.startswith('fog_a_adapters.dit')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "2 []" and "a task is a fog_a_adapters.compare.Task" in done.stderr


def test_compare_takes_another_task(shell: Shell) -> None:
    code, _, err = shell("compare", "--task", "nets:number")
    assert code == 2 and "a task is a fog_a_adapters.compare.Task, or a factory of one; got int" in err
    code, _, err = shell("compare", "--task", "nets:a_task", "--layers", "3")
    assert code == 2 and "a task has its own data and model: leave out --data, --layers and --dim" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("blocks", "--model", "nets", "--batch", "batch.pt"),
            "'nets': expected package.module:name, e.g. my_model:make",
        ),
        (("blocks", "--model", "no_such_module:f", "--batch", "batch.pt"), "there is no module 'no_such_module' here"),
        (("blocks", "--model", "nets:Nett", "--batch", "batch.pt"), "fog_a_cli_nets has no 'Nett'; near: Net"),
        (("blocks", "--model", "nets:number", "--batch", "batch.pt"), "gave a int: expected an nn.Module or a Flow"),
        (("blocks", "--model", "nets:Net", "--batch", "none.pt"), "--batch none.pt: there is no such file"),
        (("blocks", "--model", "nets:plain", "--batch", "batch.pt"), "compute h + f(h), found none in Sequential"),
        (("blocks", *NET, "--device", "nowhere"), "--device 'nowhere' cannot be used"),
        (("blocks", *NET, "--option", "x"), "--option 'x': expected name=value"),
        (("blocks", *NET, "--adapter", "f5tts"), "no adapter is named 'f5tts'; did you mean 'f5_tts'"),
        (("attribute", *NET, "--times", "two"), "--times 'two': expected a number of midpoints (8) or a list"),
        (("attribute", *NET, "--times", "4"), "a bare module has no time axis"),
        (("attribute", *NET, "--block", "blocks.11"), "no block is named 'blocks.11'"),
        (("plot", "none.json"), "cannot read none.json: No such file or directory"),
        (("plot", "batch.pt"), "batch.pt is not JSON"),
        (("report", "batch.pt"), "batch.pt is not JSON"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(shell: Shell, words: tuple[str, ...], message: str) -> None:
    code, out, err = shell(*words)
    assert code == 2 and out == ""
    assert err.startswith("fog-a: ") and message.lower() in err.lower() and "Traceback" not in err


def test_usage_errors_exit_2(shell: Shell) -> None:
    code, _, err = shell("attribute", "--model", "nets:Net")
    assert code == 2 and "--batch" in err
    assert shell("no-such-command").code == 2


def test_the_models_own_exception_is_shown(shell: Shell) -> None:
    code, _, err = shell("attribute", "--model", "nets:Broken", "--batch", "batch.pt")
    assert code in (1, 2) and "the model's own trouble" in err and "Traceback" not in err
    code, _, err = shell("attribute", "--model", "nets:fails", "--batch", "batch.pt")
    assert code == 1 and err.startswith("ValueError: factory trouble\n  at ") and "fog_a_cli_nets.py" in err


def test_debug_shows_the_traceback(shell: Shell) -> None:
    with pytest.raises(BadArgument):
        cli.main(["blocks", "--model", "nets", "--batch", "x", "--debug"])


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", lambda **_: warnings.warn("mind this", stacklevel=1) or sys.exit(0))
    assert shell("adapters").err == "fog-a: mind this\n"


def test_interrupt(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stop)
    code, _, err = shell("adapters")
    assert code == 130 and err == "fog-a: interrupted\n"


def test_a_batch_file_runs_no_code(shell: Shell, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"x": Trap()}, "trap.pt")
    code, _, err = shell("blocks", "--model", "nets:Net", "--batch", "trap.pt")
    assert code == 2 and "cannot be read without running code in it" in err and not (tmp_path / "ran").exists()


def test_safetensors_batch(shell: Shell) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.randn(20, 5, 8)}, "b.safetensors")
    assert shell("blocks", "--model", "nets:Net", "--batch", "b.safetensors").code == 0
    Path("bad.safetensors").write_bytes(b"nonsense")
    code, _, err = shell("blocks", "--model", "nets:Net", "--batch", "bad.safetensors")
    assert code == 2 and "no safetensors file, or a damaged one" in err


def test_moved_keeps_the_nesting() -> None:
    from fog_a.flows.samples import Inputs

    value = {"a": [torch.ones(1), (torch.ones(2), "text", None)], "b": Inputs(torch.ones(3), k=torch.ones(4))}
    out = arguments.moved(value, "meta")
    assert out["a"][0].device.type == "meta" and out["a"][1][0].device.type == "meta"
    assert out["a"][1][1:] == ("text", None) and out["b"].kwargs["k"].device.type == "meta"
    assert [t.device.type for t in arguments.moved(iter([torch.ones(1)]), "meta")] == ["meta"]


def test_the_installed_command(tmp_path: Path) -> None:
    """As a process of its own: entry point, exit code, no heavy import for --help."""
    done = subprocess.run(
        [sys.executable, "-m", "fog_a.shell.cli", "plot", "none.json"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and "cannot read none.json" in done.stderr and "Traceback" not in done.stderr
    code = (
        "import sys, json\nfrom fog_a.shell import cli\ntry:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(json.dumps([m for m in ('torch', 'matplotlib', 'scipy', 'pydantic') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_version_and_short_help(shell: Shell) -> None:
    assert shell("--version").out.startswith("fog-a 0.")
    assert "--how" in shell("attribute", "-h").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "1", "--seed", "2"], r"--seed is given 2 times: give it once"),
        (["--how", "loop", "--rows", "8"], r"--rows is an option of --how shared, not of --how loop"),
        (["--how", "shared", "--projections", "8"], r"--projections is an option of --how first-order"),
        (["--looks", "3"], r"--looks is an option of --until settled: type --until settled as well"),
    ],
)
def test_options_that_exclude_each_other(shell: Shell, words: list[str], message: str) -> None:
    done = shell("attribute", *NET, *words)
    assert done.code == 2 and re.search(message, done.err), done.err


def test_a_pickle_is_refused_without_advice_to_load_it(shell: Shell) -> None:
    torch.save({"x": Path("x")}, "evil.pt")
    done = shell("blocks", "--model", "nets:Net", "--batch", "evil.pt")
    assert done.code == 2 and "cannot be read without running code in it" in done.err
    assert "weights_only" not in done.err and "add_safe_globals" not in done.err


def test_a_factory_that_needs_arguments(shell: Shell) -> None:
    code, _, err = shell("blocks", "--model", "nets:sized", "--batch", "batch.pt")
    assert code == 2 and "needs arguments (width)" in err and "def tiny(): return sized(width=…)" in err


def test_an_interrupted_measurement_says_how_to_go_on(shell: Shell) -> None:
    code, _, err = shell("attribute", "--model", "nets:Stopped", "--batch", "batch.pt", "--how", "loop")
    assert code == 130 and "interrupted. With --checkpoint FOLDER" in err and "Traceback" not in err


def test_a_refused_pickle_does_not_quote_torchs_advice(shell: Shell, tmp_path: Path) -> None:
    torch.save({"x": argparse.Namespace()}, "odd.pt")
    code, _, err = shell("blocks", "--model", "nets:Net", "--batch", "odd.pt")
    assert code == 2 and "torch.save({'x': x, 't': t}, path)" in err
    assert not any(word in err for word in ("weights_only", "add_safe_globals", "trusted"))
    code, _, err = shell("attribute", "--model", "nets:Net", "--batch", "batch.pt", "--weights", "odd.pt")
    assert code == 2 and "weights_only" not in err
