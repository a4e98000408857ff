"""A gate's result as JUnit XML, which every CI system can show. Plain values in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from orchestrator.report.analyse.labels import short_hash

_ELEMENT = {"regression": "failure", "incomparable": "error"}

# XML 1.0 has no place for these, not even escaped; a reason may quote a program's output.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(gate: Mapping[str, Any]) -> str:
    """One suite, one case a row: regression fails, incomparable errs, the undecided are skipped.

    Parameters
    ----------
    gate : mapping
        ``rules``, ``rows`` and ``reason`` as the gate's JSON has them.
    """
    rules, rows = gate["rules"], gate["rows"]
    states = Counter(row["state"] for row in rows)
    suite = ElementTree.Element(
        "testsuite",
        name=f"gate {rules}",
        tests=str(max(1, len(rows))),
        failures=str(states["regression"]),
        errors=str(states["incomparable"] or int(not rows)),
        skipped=str(states["inconclusive"] + states["skipped"]),
    )
    for row in rows:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"gate.{rules}.{short_hash(row['hash'])}",
            name=_clean(" ".join(filter(None, (row["rule"], row["metric"])))),
        )
        if row["state"] != "pass":
            ElementTree.SubElement(
                case, _ELEMENT.get(row["state"], "skipped"), message=_clean(_message(row))
            )
    if not rows:
        case = ElementTree.SubElement(suite, "testcase", classname="gate", name=rules)
        ElementTree.SubElement(case, "error", message=_clean(gate["reason"] or "nothing compared"))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _message(row: Mapping[str, Any]) -> str:
    parts = [row["state"]]
    if row["value"] is not None:
        parts.append(f"{row['value']:.4g}")
    if row["ci_low"] is not None and row["ci_high"] is not None:
        parts.append(f"[{row['ci_low']:.4g}, {row['ci_high']:.4g}]")
    if row["limit"] is not None:
        parts.append(f"limit {row['limit']:.4g}")
    if row["reason"]:
        parts.append(row["reason"])
    return ", ".join(parts)


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)
