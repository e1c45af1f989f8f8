"""README.md as the package's description: outside of the repository its relative links lead nowhere.

With a `Repository` among `project.urls` they become absolute; without one, links become their text and pictures go.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# Code is left as it is; so are absolute links.
LINK = re.compile(
    r"```.*?```|`[^`\n]*`|(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?!https?://)(?P<target>[^)\s]+)\)", re.DOTALL
)


def description(readme: str, repository: str | None, version: str) -> str:
    """The text of README.md with links that hold anywhere."""

    def anywhere(found: re.Match[str]) -> str:
        picture, text, target = found["picture"], found["text"], found["target"]
        if target is None:
            return found[0]
        if repository is None or target.startswith("#"):
            return "" if picture else text
        kind = "raw" if picture else "blob"
        return f"{picture}[{text}]({repository.rstrip('/')}/{kind}/v{version}/{target})"

    return LINK.sub(anywhere, readme)


class CustomMetadataHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        text = description(readme, repository, metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
