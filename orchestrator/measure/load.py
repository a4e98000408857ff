"""What a server under load is asked for: options of ``load=``, which are part of a trial."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.measure.options import bounded, choice
from orchestrator.measure.registry import Registry


@dataclass
class Load:
    """What every kind of load has.

    Attributes
    ----------
    requests, duration_s : int or None, float or None
        What is measured ends with so many requests due, or after so long: whichever comes first.
        With neither, 100 requests.
    ramp_s, warmup_s : float
        Load before that is not measured: it grows over ``ramp_s``, then stays for ``warmup_s``.
    lengths : str
        Of prompts and outputs about ``task.prompt_tokens`` and ``task.new_tokens``, which are their
        means: ``fixed``, ``normal`` or ``lognormal``.
    spread : float or None
        Standard deviation of lengths that are not fixed, over their mean.
    prefix_share : float
        Share of each prompt that all prompts begin with. Above 0 the server may keep what it has
        read: that is what is measured then.
    """

    requests: int | None = bounded(None, low=1)
    duration_s: float | None = bounded(None, low=0.001)
    ramp_s: float = bounded(0.0, low=0)
    warmup_s: float = bounded(2.0, low=0)
    lengths: str = choice("fixed", "normal", "lognormal")
    spread: float | None = bounded(None, low=0.001, high=2.0)
    prefix_share: float = bounded(0.0, low=0, high=0.999)


@dataclass
class ClosedLoad(Load):
    """``concurrency`` users, each of whom sends the next request when the last is answered."""

    name: str = "closed"
    concurrency: int = bounded(1, low=1)


@dataclass
class OpenLoad(Load):
    """Requests at ``rate`` a second, whether or not earlier ones are answered.

    Attributes
    ----------
    arrivals : str
        ``constant``; ``poisson``; or ``gamma``, with the coefficient of variation of the gaps.
    burstiness : float or None
        That coefficient: 1 is Poisson's, above it they come in bursts.
    """

    name: str = "open"
    rate: float = bounded(1.0, low=0.001)
    arrivals: str = choice("poisson", "constant", "gamma")
    burstiness: float | None = bounded(None, low=0.05, high=20.0)


@dataclass
class TraceLoad(Load):
    """Requests as they came once: a file of JSON lines in the form of Mooncake's traces.

    Attributes
    ----------
    trace : str
        Each line: ``timestamp`` (ms), ``input_length``, ``output_length`` and ``hash_ids``, which
        name the blocks of 512 tokens that a prompt begins with.
    speed : float
        How much faster than it was recorded.
    """

    name: str = "trace"
    trace: str = ""
    speed: float = bounded(1.0, low=0.001)


@dataclass(frozen=True)
class LoadKind:
    """``load=<name>``; ``config`` is the dataclass of its options."""

    config: type[Load]


CLOSED, OPEN, TRACE = map(LoadKind, (ClosedLoad, OpenLoad, TraceLoad))
LOADS = Registry(
    "load",
    LoadKind,
    None,
    {name: f"{__name__}:{name.upper()}" for name in ("closed", "open", "trace")},
)
