"""What a task is: a name, a typed configuration, and a function that measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.measure.columns import Column
from orchestrator.measure.figures import Figure
from orchestrator.measure.metric import Metric, MetricSpec
from orchestrator.measure.recorder import Recorder

if TYPE_CHECKING:
    from orchestrator.model.expectation import Expectation

Identity = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What a pure task found for one configuration.

    Attributes
    ----------
    metrics : mapping of str to Metric
        Values and absences; the same names for every configuration of the task.
    facts : mapping of str to str
        What is no number (what bounds a step, what limits a context).
    infeasible : str or None
        One line why the configuration cannot be, though its figures are known.
    """

    metrics: Mapping[str, Metric]
    facts: Mapping[str, str] = field(default_factory=dict)
    infeasible: str | None = None


@dataclass(frozen=True)
class Task:
    """A measured workload, found by its registered name.

    The module that defines one must import in milliseconds: heavy libraries are imported inside
    ``run``, and named in ``preload`` so that the fork server has them ready.

    Attributes
    ----------
    name : str
        ``task=<name>``; built-in tasks are modules of ``tasks``, others come through the
        entry-point group ``orchestrator.tasks``.
    config : type
        Dataclass with the task's options (a Hydra structured config). Its field ``name`` is the
        task's.
    run : callable
        ``run(identity, recorder)``: measures. ``identity`` is the trial's plain configuration
        (``task``, ``model``, ``quant``, ``protocol``, ``device``, ``seed``). Raises ``TaskError``s.
    check : callable
        ``check(identity)``: None, or one line why this cannot be done (infeasible), found without
        loading anything. Called in the driver while planning.
    preload : tuple of str, or callable
        Modules the fork server imports before it forks (never bitsandbytes); or
        ``preload(identity)``, which gives them.
    whole_node : bool
        On a CPU-only node a trial takes every core unless ``resources.cpus`` says otherwise.
    metrics : tuple of MetricSpec
        What its own metrics are; those that the protocol defines are declared already
        (``measure.vocabulary``). Of one that nobody declares, name and unit say what they can.
    headline : tuple of str
        Metrics for the final table, in order; the first decides ratios. ``name.*`` stands for all
        that begin so.
    columns : tuple of Column
        What its table derives from samples; ``headline`` says by their names where they stand.
    named : tuple of str
        Facts that are words and belong beneath each trial of its table (``bottleneck``).
    figures : tuple of Figure
        What its report draws; by default figures of the headline metrics.
    evaluate : callable or None
        ``evaluate(identity)`` for a pure task, which measures nothing: all its trials are computed
        in one process and recorded as one run with a table. Raises ``TaskError``s.
    secrets : callable
        ``secrets(identity)``: names of variables with secrets that its process gets. It gets no
        others, but for what a gated model of the hub is fetched with.
    packages : callable or None
        ``packages(identity)``: names of the distributions that its numbers depend on. By default
        those of ``preload``, and bitsandbytes where the weights are quantized by it.
    content : callable or None
        ``content(identity)``: digests by name of what it reads beside its configuration, None for
        one that cannot be had now. By default the files of ``identity["model"]``; of a pure task
        nothing. Its formulas belong here, too.
    expect : callable or None
        ``expect(identity, config)``: what arithmetic says of the trial, from the model's Hugging
        Face configuration (None: as far as it can be had without loading anything). None where it
        says nothing; raises :class:`ConfigError` with the reason.
    on_engine : bool
        Whether its model is run by the engine that ``engine=`` chooses; of other tasks the engine
        is no part.
    under_load : bool
        Whether it is put under the load that ``load=`` chooses.
    unread : tuple of str
        Groups, and dotted options, that change nothing of what it measures (``protocol``). A
        line says so where one is asked for.
    own_cores : int
        Cores that it needs for itself, beside those that the model computes on.
    """

    name: str
    config: type
    run: Callable[[Identity, Recorder], None]
    check: Callable[[Identity], str | None] = lambda identity: None
    preload: tuple[str, ...] | Callable[[Identity], tuple[str, ...]] = ()
    whole_node: bool = True
    metrics: tuple[MetricSpec, ...] = ()
    headline: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    named: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    evaluate: Callable[[Identity], Evaluation] | None = None
    secrets: Callable[[Identity], tuple[str, ...]] = lambda identity: ()
    packages: Callable[[Identity], tuple[str, ...]] | None = None
    content: Callable[[Identity], Mapping[str, str | None]] | None = None
    expect: Callable[[Identity, Mapping[str, Any] | None], Expectation | None] | None = None
    on_engine: bool = False
    under_load: bool = False
    unread: tuple[str, ...] = ()
    own_cores: int = 0

    def preload_for(self, identity: Identity) -> tuple[str, ...]:
        """What to import beforehand for this configuration."""
        return self.preload(identity) if callable(self.preload) else self.preload

    def packages_for(self, identity: Identity) -> tuple[str, ...]:
        """Names of the distributions that the numbers of this configuration depend on."""
        if self.packages is not None:
            return self.packages(identity)
        preloaded = dict.fromkeys(module.partition(".")[0] for module in self.preload_for(identity))
        quantized = identity["quant"].get("scheme", "none") != "none"
        return (*preloaded, *(["bitsandbytes"] if preloaded and quantized else []))

    @property
    def is_pure(self) -> bool:
        """Whether it only computes."""
        return self.evaluate is not None
