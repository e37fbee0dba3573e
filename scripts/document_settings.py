"""Write the tables of docs/configuration.md from the settings' own descriptions.

`make docs` runs it; a test fails when the committed page differs.
"""

from __future__ import annotations

from pathlib import Path

from shoal_server.presets import PRESETS
from shoal_server.settings import ENV_PREFIX, Settings, show

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
BEGIN = "<!-- settings: written by make docs -->"
END = "<!-- end of settings -->"


def tables() -> str:
    """One Markdown table for each group of settings."""
    groups: dict[str, list[str]] = {}
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        group = str(extra["group"]) if isinstance(extra, dict) else "Other"
        default = show(field.default).replace("|", "\\|")
        row = f"| `{name}` | `{ENV_PREFIX}{name.upper()}` | `{default}` | {field.description} |"
        groups.setdefault(group, []).append(row)
    head = "| setting | variable | default | what it does |\n|---|---|---|---|\n"
    parts = [f"### {group}\n\n{head}" + "\n".join(rows) for group, rows in groups.items()]
    return "\n\n".join([*parts, presets()])


def presets() -> str:
    """A Markdown table of what each preset sets."""
    names = sorted({name for preset in PRESETS.values() for name in preset})
    rows = [
        f"| `{name}` | "
        + " | ".join(f"`{show(each[name])}`" if name in each else "" for each in PRESETS.values())
        + " |"
        for name in names
    ]
    head = f"| setting | {' | '.join(PRESETS)} |\n|---{'|---' * len(PRESETS)}|\n"
    return f"### Presets\n\n{head}" + "\n".join(rows)


def updated(page: str) -> str:
    """The page with fresh tables between its two marks."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
