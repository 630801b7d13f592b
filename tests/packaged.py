"""The package as others get it: built from a copy of the tree, installed into an environment of its own, offline.

The environment has the package from the wheel and nothing else of its own; torch and the rest are seen through a .pth
file. The folder that the .pth names is not searched for .pth files in turn, so that an editable install stays unseen.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path


ROOT = Path(__file__).parents[1]
PARTS = ("setup.cfg", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")


def copied(folder: Path) -> Path:
    """A copy of what a build reads, so that the tree gets no build/ and no egg-info."""
    folder.mkdir()
    for name in (*PARTS, "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "tuna_trl", folder / "tuna_trl", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def built(source: Path, output: Path) -> tuple[Path, Path]:
    """(wheel, sdist); the wheel is made from the sdist, as an index would."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = output.glob("*.whl")
    (sdist,) = output.glob("*.tar.gz")
    return wheel, sdist


def environment(folder: Path, wheel: Path) -> Path:
    """Install the wheel into a new, empty environment; returns its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, "-q", "--disable-pip-version-check"], check=True, capture_output=True)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python
