"""The zoo's judge in a process of its own: `python zoo_judge.py FOLDER` reads names, a line each, and answers in JSON.

Apart from the tests' process, since the zoo puts stand-ins for the heavy parts of other people's packages into
`sys.modules`, and other tests import those packages as they are.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from typing import Any


def verdict(name: str) -> dict[str, Any]:
    """What the judge says of one entry, or which package is missing, or how it failed."""
    judge, zoo = importlib.import_module("judge"), importlib.import_module("zoo")
    try:
        blocks, scores, also = judge.run(zoo.ZOO[name])
    except ModuleNotFoundError as missing:
        ours = str(missing.name).startswith("fog_a")
        return {"error": traceback.format_exc()} if ours else {"missing": str(missing.name)}
    except Exception:
        return {"error": traceback.format_exc()}
    return {"blocks": blocks, "scores": scores, "also": also}


def main(folder: str) -> None:
    sys.path.insert(0, folder)
    answers, sys.stdout = sys.stdout, sys.stderr  # models print
    for name in map(str.strip, sys.stdin):
        print(json.dumps(verdict(name)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
