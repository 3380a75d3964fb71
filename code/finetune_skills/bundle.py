"""Where the bundle is: the modules, templates, skills and examples that get copied to users."""

import json
import sys
from pathlib import Path

MARKER = "code/BUNDLE"
NAME = "finetune-skills"


def bundle_root() -> Path:
    """The folder that holds `code/BUNDLE`: inside the installed package, else this repository."""
    package = Path(__file__).resolve().parent
    for root in (package / "_bundle", package.parent.parent):
        if is_bundle(root):
            return root
    raise FileNotFoundError(
        f"{package}: no finetune-skills bundle here. The package needs its _bundle folder, "
        "or the repository around it. Install finetune-skills again."
    )


def is_bundle(root: Path) -> bool:
    """Whether `root` carries our marker; another project's file of that name does not count."""
    try:
        marker = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("name") == NAME


def use_bundle() -> Path:
    """Put the bundle's modules first on `sys.path`: a project's copies are never imported."""
    code = bundle_root() / "code"
    sys.path[:] = [str(code), *(each for each in sys.path if each != str(code))]
    return code
