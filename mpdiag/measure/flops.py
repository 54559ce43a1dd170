"""The FLOPs of one training step, counted operator by operator on an eager FP32 run of its own; nothing is timed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpdiag.costs.kernels import Flops
from mpdiag.measure.autograd_owners import Owners
from mpdiag.measure.flop_formulas import RECURRENT, Formula, aten, formulas, grouped_by_torch
from mpdiag.measure.steady import ON_DEVICE_BATCHES
from mpdiag.target import Job, Start
from mpdiag.target.batches import tensors_in
from mpdiag.target.job import ONLY
from mpdiag.target.user_code import guarded
from mpdiag.training.precision import FP32_IEEE
from mpdiag.training.session import Session, open_session

# operators of these words multiply matrices; without a formula they are told as uncounted
_PRODUCT_WORDS = re.compile(
    r"(^|_)(b?mm|mv|matmul|conv|convolution|gemm|attention|rnn|lstm|gru|bilinear|trilinear)(_|$|\d)"
)
# the elementwise part of a cell, whose products come before it; and what lays weights out
_NO_PRODUCT = re.compile(r"^aten\.(_thnn_fused_\w+|_(use_)?cudnn_rnn_flatten_weight)")
_GROUPS = 9  # the position of `groups` among convolution_backward's arguments


def flops_of(job: Job, start: Start, device: torch.device) -> Flops:
    """Count one step of a job: forward and backward, by operator and by module. The optimizer has no product to count.

    Of the batches that a timed run rotates, two are counted where all have the same shapes: if they come out the same
    one stands for all. Else all are, and the mean is given. Raises MpdiagError with what the user's code raised.
    """
    batches = list(islice(start.batches, ON_DEVICE_BATCHES))
    with open_session(job, start, FP32_IEEE, device) as session:
        counted = [count_step(session, session.place(batch)) for batch in batches[:2]]
        differ = len({shapes_of(batch) for batch in batches}) > 1 or len({each.executed for each in counted}) > 1
        if differ:  # also without a difference in shapes: lengths of sequences may be packed in a tensor
            counted += [count_step(session, session.place(batch)) for batch in batches[2:]]
    return mean_of(counted)


def shapes_of(batch: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes of a batch's tensors."""
    return tuple(tuple(tensor.shape) for tensor in tensors_in(batch))


def mean_of(counted: Sequence[Flops]) -> Flops:
    """One record for the counts of several batches: the first where they are equal, else the mean of all."""
    first = counted[0]
    by_batch = tuple(each.executed for each in counted)
    if len(set(by_batch)) == 1:
        return replace(first, by_batch=by_batch)

    def mean(counts: Sequence[int]) -> int:
        return round(sum(counts) / len(counts))

    modules = dict.fromkeys(name for each in counted for name in each.by_module)
    operators = dict.fromkeys(name for each in counted for name in each.by_op)
    return Flops(
        forward=mean([each.forward for each in counted]),
        backward=mean([each.backward for each in counted]),
        recomputed=mean([each.recomputed for each in counted]),
        by_module={
            name: (mean([f for f, _ in parts]), mean([b for _, b in parts]))
            for name in modules
            for parts in [[each.by_module.get(name, (0, 0)) for each in counted]]
        },
        by_op={name: mean([each.by_op.get(name, 0) for each in counted]) for name in operators},
        corrections=tuple(f"{told}, in the first batch" for told in first.corrections),
        notes=first.notes,
        uncounted=tuple(sorted({name for each in counted for name in each.uncounted})),
        by_batch=by_batch,
    )


def count_step(session: Session, batch: Any) -> Flops:
    """Count one step of an eager session on a batch that it has placed."""
    owners = Owners(session.model)
    counter = FlopCounter(owners.now)
    with guarded("counting FLOPs"), owners.followed(), counter, session.region():
        for name, loss in session.job.losses(session.model, batch):
            session.model.zero_grad(set_to_none=True)
            owners.claim(loss, "")
            with counter.backward():
                loss.sum().backward()
            for key, optimizer in session.optimizers.items():
                if name in (key, ONLY):
                    optimizer.step()
    return counter.result()


class FlopCounter(TorchDispatchMode):
    """Adds up the operators that run within it. owner: the module at work, asked with whether this is the backward."""

    supports_higher_order_operators = True

    def __init__(self, owner: Callable[[bool], str] = lambda _: "") -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it without types
        self._owner = owner
        self._formulas: dict[Any, Formula] = formulas()
        self._in_backward = False
        self._counts: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self._grouped = [0, 0]
        self._uncounted: set[str] = set()
        self._causal = False

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Within it, operators are of the backward pass; those that autograd watches there are computed again."""
        self._in_backward = True
        try:
            yield
        finally:
            self._in_backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        packet = getattr(func, "_overloadpacket", func)
        formula = self._formulas.get(packet)
        if formula is None and hasattr(func, "decompose"):
            with self:
                made = func.decompose(*args, **kwargs)
                if made is not NotImplemented:
                    return made
        out = func(*args, **kwargs)
        if formula is None:
            self._leave_out(str(packet))
            return out
        try:
            count = int(formula(*args, **kwargs, out_val=out))
        except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            self._uncounted.add(str(packet))  # torch's own formulas refuse some shapes; the step itself is fine
            return out
        again = self._in_backward and torch.is_grad_enabled()  # autograd's own backward runs with it off
        phase = "recomputed" if again else "backward" if self._in_backward else "forward"
        self._counts[self._owner(self._in_backward), str(packet), phase] += count
        if packet is aten.convolution_backward and args[_GROUPS] > 1:
            self._grouped[0] += grouped_by_torch(*args, **kwargs, out_val=out)
            self._grouped[1] += count
        self._causal = self._causal or ("attention" in str(packet) and _is_causal(func, args, kwargs))
        return out

    def _leave_out(self, name: str) -> None:
        namespace, _, operator = name.partition(".")
        ours = namespace in ("aten", "prim", "prims", "profiler")
        product = _PRODUCT_WORDS.search(operator) and not _NO_PRODUCT.search(name)
        if product or not ours:
            self._uncounted.add(name)

    def result(self) -> Flops:
        """What was counted so far."""
        phases: defaultdict[str, int] = defaultdict(int)
        modules: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        operators: defaultdict[str, int] = defaultdict(int)
        for (module, operator, phase), count in self._counts.items():
            phases[phase] += count
            operators[operator] += count
            if phase != "recomputed":
                modules[module][phase == "backward"] += count
        return Flops(
            forward=phases["forward"],
            backward=phases["backward"],
            recomputed=phases["recomputed"],
            by_module={name: (f, b) for name, (f, b) in modules.items()},
            by_op=dict(sorted(operators.items(), key=lambda item: -item[1])),
            corrections=tuple(self._corrections(operators)),
            notes=tuple(self._notes(phases["recomputed"])),
            uncounted=tuple(sorted(self._uncounted)),
        )

    def _corrections(self, operators: dict[str, int]) -> Iterator[str]:
        torchs, ours = self._grouped
        if torchs != ours:
            yield f"backward of grouped convolutions: {ours:,} (torch's counter says {torchs:,})"
        missing = {
            "recurrent layers": [n for n in operators if n in RECURRENT],
            "matrix-vector products": [n for n in operators if n in ("aten.mv", "aten.addmv", "aten.dot", "aten.vdot")],
            "attention on the CPU": [n for n in operators if "attention_for_cpu" in n],
        }
        for what, names in missing.items():
            if names:
                yield f"{what}: {sum(operators[n] for n in names):,} (torch's counter says 0)"

    def _notes(self, recomputed: int) -> Iterator[str]:
        if self._causal:
            yield "causal attention is counted in full, as is the custom; half of its scores are masked"
        if recomputed:
            yield f"checkpointing computes {recomputed:,} a second time, which are not part of the model's FLOPs"


def _is_causal(func: Any, args: Any, kwargs: Any) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return given.get("is_causal") is True
