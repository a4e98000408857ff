"""torch.compile as something measured: graphs, breaks, and the time it took, apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator.engines.transformers.compiler_setup import set_up_compiler
from orchestrator.measure import Infeasible, Recorder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

MOST_ROUNDS = 8


class CompileWatch:
    """Compiles a model or a function and counts what the compiler did.

    Parameters
    ----------
    model : callable
    recorder : Recorder
        Of this attempt, whose directory is the compiler's: no graph is there yet, ``compile_s`` is
        cold. What the compiler needs for any graph was made before, in a phase of its own.
    scope : str
        ``model``, or ``layer``: each decoder layer of a ``PreTrainedModel`` is compiled by itself,
        and as they are of one shape the first one's graph serves them all (PyTorch's documentation
        calls it regional compilation). What lies outside the layers runs eagerly.

    Attributes
    ----------
    forward : callable
        The compiled model.
    """

    def __init__(
        self, model: Callable[..., Any], recorder: Recorder, *, scope: str = "model"
    ) -> None:
        with recorder.phase("compiler", measured=False):
            # A cache that an earlier process filled would make compile_s ten times shorter.
            set_up_compiler(recorder.directory / "compiled")
        import torch

        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch._dynamo.utils.compilation_time_metrics.clear()
        torch._dynamo.utils.clear_compilation_metrics()
        self.forward: Callable[..., Any] = model
        if scope == "model":
            self.forward = torch.compile(model)
        else:
            for layer in decoder_layers(model):
                layer.compile()
        self._settled: tuple[int, int] | None = None

    def settle(self, work: Callable[[], object], *, most: int = MOST_ROUNDS) -> None:
        """Repeat ``work`` until it compiles nothing new: the cache grows, and shapes with it.

        Where the same work is warmed up next, one round will do (``most``), and
        :meth:`is_settled` tells after the warm-up whether it compiled nothing.
        """
        for _ in range(most):
            before = self._counts()
            work()
            if self._counts() == before:
                break
        self._settled = self._counts()

    def is_settled(self) -> bool:
        """Whether nothing was compiled since."""
        return self._counts() == self._settled

    def record(self, recorder: Recorder, *, one_graph: bool = False) -> None:
        """Record ``compile_s`` and counts; raises ``Mismatch`` if nothing was compiled.

        With ``one_graph`` also where there is more than one graph, or where one was compiled since
        :meth:`settle`.
        """
        from torch._dynamo.utils import calculate_time_spent

        graphs, breaks = self._counts()
        recorder.value("compile_s", "s", calculate_time_spent().get("total_wall_time", 0.0))
        recorder.value("compile_graphs", "1", graphs)
        recorder.value("compile_graph_breaks", "1", breaks)
        recorder.value("compile_recompiles", "1", _recompiles())
        recorder.fact("compiled_while_measured", not self.is_settled())
        asked, ok = "at least 1 graph", graphs > 0
        if one_graph:
            asked, ok = "1 graph, whole and settled", self._counts() == (1, 0) == self._settled
        recorder.engaged("compile", asked, f"{graphs} graphs, {breaks} breaks", ok=ok)

    @staticmethod
    def _counts() -> tuple[int, int]:
        from torch._dynamo.utils import counters

        return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The layers that ``model`` repeats: of the class that transformers never splits over devices.

    Raises
    ------
    Infeasible
        The model names no such class, or has no module of it.
    """
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise Infeasible(
            f"{type(model).__name__} does not say which of its modules are layers",
            where="task.compile_scope",
            fix="Compile it whole: task.compile_scope=model",
        )
    return layers


def _recompiles() -> int:
    """How often a function that had a graph already got another: a guard of the first failed."""
    from torch._dynamo.utils import get_compilation_metrics

    frames = [str(found.compile_id).split("/") for found in get_compilation_metrics()]
    return sum(len(ids) == 2 and ids[1].split("_")[0] != "0" for ids in frames)
