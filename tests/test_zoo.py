"""The zoo of third-party models beside the repository: its judge must call every entry right.

What is right is said at the head of `zoo/judge.py`: exactly the labelled layers in order of execution, and scores of
the hand-written reference ablations to 1e-4. An entry is skipped, and says so, where its package is absent.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED

ZOO = SHARED / "zoo"
ABSENT = f"{ZOO} is absent: set FOG_A_SHARED to the folder that holds it"


def entries() -> list[Any]:
    """The names of the zoo's entries; one skipped test where there is no zoo."""
    if not (ZOO / "zoo.py").is_file():
        return [pytest.param("", marks=pytest.mark.skip(reason=ABSENT), id="absent")]
    sys.path.insert(0, str(ZOO))
    try:
        with warnings.catch_warnings():
            zoo = importlib.import_module("zoo")  # registers the entries, builds none
    finally:
        sys.path.remove(str(ZOO))
    return list(zoo.ZOO)


class Judge:
    """A process that judges entries by name."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("zoo_judge.py")), str(ZOO)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, name: str) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the judge died of {name} (exit status {self.process.poll()})"
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.terminate()
        self.process.wait(timeout=60)
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    process = Judge()
    yield process
    process.close()


@pytest.mark.parametrize("name", entries())
def test_entry(judge: Judge, name: str) -> None:
    verdict = judge(name)
    if "missing" in verdict:
        pytest.skip(f"{name} needs the package {verdict['missing']}: pip install --no-deps -r tests/requirements.txt")
    assert "error" not in verdict, verdict["error"]
    assert not verdict["blocks"].startswith("WRONG"), verdict
    assert not verdict["scores"].startswith("WRONG"), verdict
