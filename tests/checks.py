"""What the checks of shipped files share: counting what holds, and a Python that has packages from PyPI."""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

passed = 0


def holds(what, is_so):
    """Counts what is so, and ends with what is not."""
    global passed
    if not is_so:
        sys.exit(f"FAILED: {what}")
    passed += 1


def with_packages(name, packages):
    """Goes on where the packages are there; elsewhere runs this program once more, by a Python that has them."""
    folder = ROOT / "target" / name
    if Path(sys.prefix) == folder:
        return
    mark, python, wanted = folder / "packages", folder / "bin/python", "\n".join(packages)
    if not mark.exists() or mark.read_text() != wanted:
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
        mark.write_text(wanted)
    os.execv(python, [python, *sys.argv])
