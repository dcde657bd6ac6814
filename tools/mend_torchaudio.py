"""Makes `import torchaudio` work beside a torch without CUDA.

torchaudio's public wheel links its three compiled libraries against CUDA. Beside a CPU-only torch they cannot be
loaded, `import torchaudio` fails, and with it transformers. Without them torchaudio is pure Python, which is all that
spectrograms, filter banks and resampling need. Nothing is touched where the import works, or where torch has CUDA.

    python tools/mend_torchaudio.py
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

LIBRARIES = ("_torchaudio.abi3.so", "libtorchaudio.abi3.so", "torchaudio_prefixctc.abi3.so")


def import_error() -> str:
    """What `import torchaudio` says in a fresh process: the last line, or nothing if it works."""
    run = subprocess.run([sys.executable, "-c", "import torchaudio"], capture_output=True, text=True)
    return "" if run.returncode == 0 else (run.stderr.strip().splitlines() or ["unknown"])[-1]


def main() -> int:
    spec = importlib.util.find_spec("torchaudio")
    if spec is None or not spec.submodule_search_locations:
        return 0  # not installed: nothing to mend
    error = import_error()
    if not error:
        return 0
    import torch

    if torch.version.cuda is not None:
        print(f"torchaudio does not import beside torch {torch.__version__}: {error}")
        print("Install the torchaudio that was built for this torch's CUDA.")
        return 1
    lib = Path(spec.submodule_search_locations[0]) / "lib"
    removed = [name for name in LIBRARIES if (lib / name).exists()]
    for name in removed:
        (lib / name).unlink()
    error = import_error()
    if error:
        print(f"torchaudio does not import, also without {', '.join(removed) or 'its libraries'}: {error}")
        return 1
    print(f"torchaudio: removed {', '.join(removed)}, which need CUDA; the rest works")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
