"""Templates of this folder to files."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dlrm_dist.errors import UserError


def write(template: str, path: Path, **values: Any) -> None:
    """Write a page, whole or not at all.

    Args:
        template: the template's file name in this folder.
        path: the file to write.
        values: what the template names.

    Raises:
        UserError: it cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("dlrm_dist", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    html = environment.get_template(template).render(**values)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(html)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror}; name a file in a folder that exists") from None


def figure(value: Any) -> str:
    """A value as a reader wants it: five digits, thousands apart; a list with commas; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 or (value.is_integer() and abs(value) >= 1) else f"{value:.5g}"
    if isinstance(value, list | tuple):
        return ", ".join(figure(each) for each in value)
    return str(value)
