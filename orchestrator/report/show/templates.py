"""The templates of a report, with what they all may use."""

from __future__ import annotations

from typing import Any

from orchestrator.report.analyse.gaps import gaps
from orchestrator.report.analyse.labels import short_hash
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.show.parts import against_baseline, value_text
from orchestrator.report.show.style import VERDICT_MARKS, standings_legend
from orchestrator.report.show.tree import entry


def rendered(name: str, table: SweepTable, **values: Any) -> str:
    """The template ``name`` of ``assets`` about a sweep's table."""
    return filled_in(
        name,
        table=table,
        measured=table.measured,
        verdicts=VERDICT_MARKS,
        signs=standings_legend(table.tau),
        value=value_text,
        beneath=against_baseline,
        gaps=gaps(table, table.measured),
        **values,
    )


def filled_in(name: str, **values: Any) -> str:
    """The template ``name`` of ``assets``; one of HTML escapes whatever it is given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("orchestrator.report.show", "assets"),
        autoescape=name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not name.endswith(".html"),
    )
    environment.filters.update(short=short_hash, entry=entry, md=_markdown)
    return environment.get_template(name).render(values)


def _markdown(text: str) -> str:
    """Text inside a Markdown table or list: a pipe or a line break must not end the cell."""
    text = " ".join(text.split()).replace("\\", "\\\\")
    for sign in "|*_`<>[]":
        text = text.replace(sign, f"\\{sign}")
    return text
