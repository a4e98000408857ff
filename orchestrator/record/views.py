"""A saved view of a sweep's attempts for the MLflow UI: columns, order and charts that matter.

MLflow's own table shows neither parameters nor metrics, and its charts show hundreds. What its menu
*Views* lists are tags of the experiment, which hold the state of its page as JSON (MLflow 3.17); an
older UI leaves them alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.record.params import flatten, legal_key

VIEW_ID = "results"
VIEW_NAME = "Results"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_ID}"

# As many columns as stand side by side on a usual screen.
MOST_PARAMS, MOST_METRICS = 6, 6
# As many axes as a chart of parallel coordinates has room for in a third of the page.
_MOST_AXES = 5
_RUNS_IN_A_CHART = 100


def varying_params(identities: Iterable[Mapping[str, Any]]) -> list[str]:
    """Parameters that tell trials apart, in the order of the configuration."""
    flat = [flatten(identity) for identity in identities]
    keys = dict.fromkeys(key for params in flat for key in params)
    return [key for key in keys if len({params.get(key) for params in flat}) > 1]


def results_view(
    metrics: Sequence[str], params: Sequence[str], *, at_ms: int, ascending: bool = True
) -> dict[str, str]:
    """The experiment's tag that makes ``Results`` one of its views.

    Parameters
    ----------
    metrics : sequence of str
        In the order of importance; the table is sorted by the first.
    params : sequence of str
        Those that tell the attempts apart. Those of an environment, which two releases of one
        package can make dozens of, are one column: the tag that names what matters of it.
    at_ms : int
        When the view was made, in milliseconds since 1970.
    ascending : bool
        Whether less of the first metric is better: the best attempt stands first.
    """
    numbers = [legal_key(name) for name in metrics[:MOST_METRICS]]
    axes = [key for key in params if not key.startswith("environment.")]
    tags = ["outcome", "verdict", *(["environment"] if len(axes) < len(params) else [])]
    axes = axes[:MOST_PARAMS]
    if not numbers:
        return {}
    columns = [f"tags.`{key}`" for key in tags] + [f"params.`{key}`" for key in axes]
    columns += [f"metrics.`{key}`" for key in numbers]
    state = {
        # Without the sweeps' own runs, which have no such metrics.
        "searchFilter": 'tags.kind = "attempt"',
        "orderByKey": f"metrics.`{numbers[0]}`",
        "orderByAsc": ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": [],
        "columnWidths": {},
        "runsHidden": [],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [
            {
                **_chart("PARALLEL", "axes", "Parallel Coordinates"),
                "selectedParams": axes[: _MOST_AXES - 2],
                "selectedMetrics": numbers[: max(2, _MOST_AXES - len(axes))],
                "showAllRuns": True,
            },
            *({**_chart("BAR", f"bar-{key}", key), "metricKey": key} for key in numbers),
        ],
        "compareRunSections": [_section(VIEW_ID, VIEW_NAME)],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }
    view = {"name": VIEW_NAME, "createdAt": at_ms, "updatedAt": at_ms, "state": json.dumps(state)}
    return {VIEW_TAG: json.dumps(view)}


def _chart(kind: str, name: str, title: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"{VIEW_ID}-{name}",
        "displayName": title,
        "runsCountToCompare": _RUNS_IN_A_CHART,
        "metricSectionId": VIEW_ID,
        "deleted": False,
        "isGenerated": False,
    }


def _section(uuid: str, name: str) -> dict[str, Any]:
    flags = {"display": True, "isReordered": False, "deleted": False, "isGenerated": False}
    return {"uuid": uuid, "name": name, **flags}
