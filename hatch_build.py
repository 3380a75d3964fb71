"""Build hook: puts the bundle into the wheel, as data under `finetune_skills/_bundle`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# A folder that does not exist (yet) adds nothing.
CONTENTS = ("code/BUNDLE", "code/*.py", "code/*.md", "code/templates/**/*", "skills/**/*")
CONTENTS += ("code/requirements.lock", "examples/**/*", "hooks/**/*", "bin/**/*")


class BundleHook(BuildHookInterface):
    """Adds every bundle file that git does not ignore; an editable install reads the repository."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"].update(self._bundle())

    def _bundle(self) -> dict[str, str]:
        return {str(path): f"finetune_skills/_bundle/{name}" for path, name in self._files()}

    def _files(self) -> Iterator[tuple[Path, str]]:
        root = Path(self.root)
        for path in sorted(found for pattern in CONTENTS for found in root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            if path.is_file() and not self.build_config.path_is_excluded(name):
                yield path, name
