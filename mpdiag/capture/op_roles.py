"""What each operator call holds that FP16 could harm: outputs, logits, squares, sums, constants, whole numbers.

The same reader serves the FP32 iteration, where values are counted, and the FP16 one, where types are noted: who is
told decides. Where a value came from is remembered as far as a role depends on it: a product of two activations that
reaches a softmax is attention's logits, a softmax's result in a logarithm is a probability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from mpdiag.capture import op_names
from mpdiag.capture.attention import logits_of, rows_to_read
from mpdiag.capture.inner_sums import summed_inside
from mpdiag.capture.op_constants import constants_in
from mpdiag.capture.op_values import EXACT_INTEGERS, Listener, Row, RowKey, Value
from mpdiag.capture.op_watch import OpCall
from mpdiag.formats import FP16
from mpdiag.operations import OpRole
from mpdiag.target.batches import tensors_in


@dataclass(frozen=True)
class Past:
    """What is known of a tensor. row: where it was made. product: the product of two activations it stems from.

    probability: it is a softmax's result. halved: it was FP16 before autocast widened it. marks: large constants and
    whole numbers that it holds. masked: a mask's constant is among them, or was added since. constant: the number that
    a scalar tensor was made from.
    """

    row: Row | None = None
    product: Row | None = None
    probability: bool = False
    halved: bool = False
    marks: tuple[Row, ...] = ()
    masked: bool = False
    constant: float | None = None


class RoleReader:
    """Tells a listener of the values in each operator call it is shown."""

    def __init__(self, model: torch.nn.Module, listener: Listener) -> None:
        self._listener = listener
        self._pasts = WeakTensorKeyDictionary()
        self._weights = {_address(parameter) for parameter in model.parameters()} - {None}
        self._marks: tuple[Row, ...] = ()  # large constants of the call that is running,
        self._masks = False  # and whether one of them is a mask's

    def before(self, call: OpCall) -> None:
        """Note the constants: also of a call that is going to fail on them."""
        self._marks, self._masks = (), False
        if not call.backward:
            for argument, number, dtype in constants_in(call, lambda tensor: self._past(tensor).constant):
                key = _key(call, OpRole.CONSTANT, argument)
                row = (key, self._listener.note(Value(key, dtype, constant=number)))
                if abs(number) >= FP16.overflows_at:
                    self._marks += (row,)
                self._masks |= number <= -FP16.max / 2

    def failed(self, call: OpCall, error: Exception) -> None:
        """Note that the call raised, in the rows it was about to fill."""
        for key in (_key(call, self._role(call)), *(row[0] for row in self._marks)):
            self._listener.refused(key, error)

    def returned(self, tensor: torch.Tensor) -> None:
        """A module returns a tensor."""
        past = self._past(tensor)
        if past.row is not None:
            self._listener.returned(past.row[0])

    def after(self, call: OpCall, result: Any) -> None:
        """Note what the call gave."""
        made = [t for t in tensors_in(result) if t.is_floating_point() or t.is_complex()]
        if not made or any(t.is_nested for t in (*made, *call.args) if isinstance(t, torch.Tensor)):
            return
        if op_names.is_rename(call.func):
            if not call.backward:
                self._renamed(call, made)
        elif op_names.creates(call.func):
            if not call.backward:
                self._created(call, made[0])
        elif call.backward:
            self._note_output(call, made)
        else:
            self._computed(call, made)

    def _past(self, tensor: Any) -> Past:
        found = self._pasts.get(tensor) if isinstance(tensor, torch.Tensor) else None
        return found if isinstance(found, Past) else Past()

    def _renamed(self, call: OpCall, made: Sequence[torch.Tensor]) -> None:
        name = op_names.base_name(call.func)
        given = [a for a in call.args if isinstance(a, torch.Tensor)]
        if not given:
            return
        source = given[-1] if name == "copy" else given[0]
        past = self._past(source) if self._inherits(call) else Past()
        past = replace(past, marks=past.marks + self._marks, masked=past.masked or self._masks)
        if name == "lift_fresh" and source.dim() == 0 and source.device.type == "cpu":
            past = replace(past, constant=float(source))  # torch.tensor(-1e9) and the like
        to_half = made[0].dtype == torch.float16 and source.dtype != torch.float16
        if not source.is_floating_point() and not source.is_complex():
            past = Past(marks=self._whole_numbers(call, made[0], source))
        elif to_half:
            for row in past.marks:
                self._listener.halved(row)
            if call.place.emulated is not None and past.row is not None:
                self._listener.halved(past.row)  # an emulated operator's result, on its way out
            past = replace(past, halved=False)
        elif source.dtype == torch.float16 and made[0].dtype == torch.float32:
            past = replace(past, halved=True)
        for tensor in made:
            self._pasts[tensor] = past

    def _inherits(self, call: OpCall) -> bool:
        name = op_names.base_name(call.func)
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in call.func._schema.returns)
        return views or name == "copy" or name in op_names.INHERITS

    def _whole_numbers(self, call: OpCall, made: torch.Tensor, source: torch.Tensor) -> tuple[Row, ...]:
        """The row of integers that become floating-point numbers, where FP16 cannot hold them all."""
        if source.dtype == torch.bool or not source.numel() or float(source.double().abs().max()) <= EXACT_INTEGERS:
            return ()
        return (self._note(call, OpRole.INTEGERS, made.dtype, (made,)),)

    def _created(self, call: OpCall, made: torch.Tensor) -> None:
        number: float | None = None
        if made.dim() == 0 and call.op in ("scalar_tensor", "full") and isinstance(call.args[-1], int | float):
            number = float(call.args[-1])
        self._pasts[made] = Past(marks=self._marks, masked=self._masks, constant=number)

    def _computed(self, call: OpCall, made: list[torch.Tensor]) -> None:
        name = op_names.base_name(call.func)
        given = [a for a in call.args if isinstance(a, torch.Tensor)]
        pasts = [self._past(a) for a in given]
        if name == "arange":  # no whole numbers beyond 2048: the row is dropped in the end
            self._pasts[made[0]] = Past(marks=(self._note(call, OpRole.INTEGERS, made[0].dtype, (made[0],)),))
            return
        self._note_inside(call, name, given, pasts, made)
        self._masks |= name in op_names.ELEMENTWISE and any(p.masked for p in pasts)
        row = self._note_output(call, made)
        product = None
        if name in op_names.PRODUCTS and not any(_address(t) in self._weights for t in given[-2:]):
            product = row
        elif name in op_names.ELEMENTWISE:
            product = next((p.product for p in pasts if p.product is not None), None)
        probable = name in op_names.SOFTMAX or (name in op_names.GUARDS and any(p.probability for p in pasts))
        self._pasts[made[0]] = Past(row, product, probable, marks=self._marks, masked=self._masks)

    def _note_inside(
        self, call: OpCall, name: str, given: Sequence[torch.Tensor], pasts: Sequence[Past], made: list[torch.Tensor]
    ) -> None:
        """What goes into the operator, and what only exists inside it."""
        if name in op_names.SOFTMAX or name == "exp":
            if pasts[0].product is not None:
                self._listener.attends(pasts[0].product)
            if name != "exp":
                held = torch.float16 if pasts[0].halved else given[0].dtype
                self._note(call, OpRole.LOGITS, held, (given[0],), masked=pasts[0].masked)
        elif name in op_names.LOGARITHMS and pasts[0].probability:
            self._note(call, OpRole.PROBABILITY, torch.float16 if pasts[0].halved else given[0].dtype, (given[0],))
        elif op_names.is_fused_attention(call.func):
            # kernels of attention keep logits in FP32, whatever the type of queries and keys
            rows = rows_to_read(given[0], given[1])
            logits = lambda: logits_of(given[0], given[1], call.kwargs.get("scale"), rows)
            self._note(call, OpRole.LOGITS, torch.float32, derived=logits, read=(rows.read, rows.total))
        else:
            for role, derived in summed_inside(call, made[0]):
                # torch's kernels of norms and means accumulate FP16 elements in FP32
                self._note(call, role, torch.float32, derived=derived)

    def _note_output(self, call: OpCall, made: list[torch.Tensor]) -> Row:
        if not call.backward and op_names.has_side_results(call.func):
            made = made[:1]
        masked = self._masks and not call.backward
        return self._note(call, self._role(call), _held(call, made[0]), tuple(made), masked=masked)

    def _role(self, call: OpCall) -> OpRole:
        """The role of what a call gives."""
        name = op_names.base_name(call.func)
        if call.backward:
            return OpRole.OUTPUT
        if name in op_names.SUMS:
            return OpRole.SUM
        squares = (name == "mul" and _same(*call.args[:2])) or (name == "pow" and _is_two(call.args[1]))
        return OpRole.SQUARE if squares else OpRole.OUTPUT

    def _note(
        self,
        call: OpCall,
        role: OpRole,
        dtype: torch.dtype,
        numbers: tuple[torch.Tensor, ...] = (),
        derived: Callable[[], torch.Tensor] | None = None,
        read: tuple[int, int] | None = None,
        masked: bool = False,
    ) -> Row:
        key = _key(call, role)
        return key, self._listener.note(Value(key, dtype, numbers, derived, read, masked=masked))


def _key(call: OpCall, role: OpRole, argument: str | None = None) -> RowKey:
    return RowKey(call.place.module, call.backward, call.op, role, argument, call.place.source)


def _held(call: OpCall, made: torch.Tensor) -> torch.dtype:
    """The type a result is stored in on a GPU: an operator that is emulated in FP32 gives 16 bits there.

    The parts of attention do not: CUDA's kernels, and its composite version too, keep them in FP32.
    """
    emulated = call.place.emulated
    if emulated is None or made.dtype != torch.float32:
        return made.dtype
    parts = "scaled_dot_product" in emulated[0] and not call.op.startswith("scaled_dot_product")
    return made.dtype if parts else emulated[1]


def _same(one: Any, other: Any) -> bool:
    """Whether two operands are one tensor."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)) or one.dim() == 0:
        return False
    here = _address(one)
    if here is None or here != _address(other):
        return one is other
    return one.shape == other.shape and one.stride() == other.stride()


def _is_two(exponent: Any) -> bool:
    return isinstance(exponent, int | float) and exponent == 2


def _address(tensor: torch.Tensor) -> int | None:
    """Where a tensor's elements begin; None where it has no storage of its own, as a sparse one."""
    return tensor.data_ptr() if tensor.layout == torch.strided and not tensor.is_nested else None
