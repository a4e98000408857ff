"""What arithmetic expects of a trial: sizes, and the operations behind each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from orchestrator.errors import ConfigError
from orchestrator.model.operations import Operation
from orchestrator.model.roofline import Ceilings, Estimate, estimate


@dataclass(frozen=True)
class Transfer:
    """Bytes that come from outside the device's memory, at a rate that the attempt measured.

    Attributes
    ----------
    bandwidth : str
        The metric it was measured as, bytes a second.
    nbytes : int
    """

    bandwidth: str
    nbytes: int


@dataclass(frozen=True)
class Steps:
    """The operations that one time metric is made of.

    Attributes
    ----------
    ideal, eager : tuple of Operation
        As the best program would do it, held against the data sheet; and as the measured one does,
        held against the measured ceilings.
    transfers : tuple of Transfer
        What is brought in for it.
    overlapped : bool
        Transfers and operations go on at once; False: one after the other.
    """

    ideal: tuple[Operation, ...]
    eager: tuple[Operation, ...]
    transfers: tuple[Transfer, ...] = ()
    overlapped: bool = False

    def with_transfers(self, computing: Estimate, rates: Mapping[str, float]) -> Estimate | str:
        """``computing`` and the transfers; one line where a rate is not known."""
        stages = [computing]
        for transfer in self.transfers:
            if transfer.bandwidth not in rates:
                return f"{transfer.bandwidth} is measured in the attempt itself"
            seconds = transfer.nbytes / rates[transfer.bandwidth]
            stages.append(Estimate(seconds, {transfer.bandwidth: seconds}))
        if self.overlapped:
            return max(stages, key=lambda stage: stage.time_s)
        return reduce(add, stages)


@dataclass(frozen=True)
class Work:
    """What a utilisation is the share of: FLOPs done in a time, against the peak of a dtype.

    Attributes
    ----------
    flops : float
        Of one repetition.
    metric : str
        The time they took.
    dtype : str
        What the products are computed in.
    """

    flops: float
    metric: str
    dtype: str


@dataclass(frozen=True)
class Expectation:
    """What arithmetic says of a trial.

    Attributes
    ----------
    sizes_bytes : mapping of str to int
        By the name of the metric that measures it where there is one (``weights_bytes``).
    memory_bytes : int
        Of everything at its highest.
    steps : mapping of str to Steps, or callable
        By the name of the time metric; a function that makes them where making them costs, because
        planning mostly asks for sizes.
    floor_bytes : int or None
        What is needed for certain, to the byte: more than the device has is impossible. The rest of
        ``memory_bytes`` is an estimate of what a program holds for a moment.
    work : mapping of str to Work or str
        By the name of the utilisation (``mfu``), which is given against the measured peak too; one
        line where no peak is the whole.
    """

    sizes_bytes: Mapping[str, int]
    memory_bytes: int
    steps: Mapping[str, Steps] | Callable[[], Mapping[str, Steps]] = field(default_factory=dict)
    floor_bytes: int | None = None
    work: Mapping[str, Work | str] = field(default_factory=dict)

    def made_steps(self) -> Mapping[str, Steps]:
        """The steps, made if they were not yet."""
        return self.steps() if callable(self.steps) else self.steps

    def times_s(
        self,
        ceilings: Ceilings,
        *,
        measured: bool,
        rates: Mapping[str, float] | None = None,
    ) -> dict[str, Estimate | str]:
        """Each time metric's estimate, or one line why there is none.

        Parameters
        ----------
        measured : bool
            The ceilings are measured ones: take the program as it is, not the ideal one.
        rates : mapping of str to float, optional
            Of transfers, bytes a second.
        """
        found: dict[str, Estimate | str] = {}
        for name, steps in self.made_steps().items():
            try:
                computing = estimate(steps.eager if measured else steps.ideal, ceilings)
            except ConfigError as error:
                found[name] = str(error)
            else:
                found[name] = steps.with_transfers(computing, rates or {})
        return found
