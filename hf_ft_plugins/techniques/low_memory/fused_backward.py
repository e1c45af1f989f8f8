"""`FusedBackward`: any torch optimizer, stepped tensor by tensor while the backward pass runs.

    optimizer = FusedBackward(torch.optim.AdamW(model.parameters(), lr=1e-4))
    Trainer(..., optimizers=(optimizer, None))

As soon as the gradient of a parameter is complete, the parameter is stepped and its gradient is freed, so that no two
gradients need to be alive at once (LOMO: Lv et al. 2023, arXiv:2306.09782, 3.1; here for every optimizer that treats
each tensor alone). The weights that come out are those of the optimizer stepped after the backward pass, bit for bit.

What is different is whatever needs all gradients at once: clipping by their norm (`Clipping`), and a step that is
skipped because one of them is not finite.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.state import GradientState

from ... import lr_scale, mends
from ...errors import PluginError
from .clipping import Clipping, norm_of, total_of
from .folding import Folding
from .large_tensors import rows_are_exact, step_by_rows
from .settings import NAME
from .tensor_step import StepOne, refuse_inseparable, step_tensor
from .tied_embeddings import TiedEmbedding, tied_embeddings

logger = logging.getLogger(__name__)


class FusedBackward(torch.optim.Optimizer):
    """Steps `optimizer` within the backward pass.

    Hooks are put on the parameters when it is made, and again after each step on those that have come since (unfrozen,
    or put in their place by FSDP2). What they leave, for whatever reason, `step()` steps.

    Args:
        optimizer: over leaf tensors; a gradient's step must depend on nothing but its own tensor and its group.
        clipping: what to do instead of clipping by the norm of all gradients; None: nothing.
        two_pass: whether the passes come twice, first under `measuring`; for whoever runs them (`LowMemoryCallback`).
        in_backward: False: all gradients are kept until `step()`, which steps and frees them one by one. So they can
            be accumulated, clipped by their norm, and changed, as with any optimizer; only the optimizer's own
            temporary memory is saved.
        names: of the parameters, by id, for messages.
        reduce: called with each parameter whose gradient is complete on this rank, to make it the mean over ranks in
            place (`MeanOverRanks`).
        left: parameters whose gradients somebody else reduces after the hook is called; they are stepped by `step()`.
        folding: takes the gradient of each micro-batch at once (`folding_of(optimizer)`).
        micro_batches: how many of them make the current step; for `folding`.

    Under gradient accumulation it waits for the last micro-batch, as `accelerate` tells it, unless there is `folding`.
    Then weights change in the last micro-batch; if a gradient is not finite, the moments keep what came before it.

    Raises:
        PluginError: the optimizer does not treat each tensor alone; in the backward pass, where a gradient comes twice
            in one step or is sparse.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        clipping: Clipping | None = None,
        two_pass: bool = False,
        in_backward: bool = True,
        names: dict[int, str] | None = None,
        reduce: Callable[[torch.Tensor], None] | None = None,
        left: Iterable[torch.Tensor] = (),
        folding: Folding | None = None,
        micro_batches: Callable[[], int] = lambda: 1,
    ) -> None:
        # No `super().__init__`: groups, state and hooks are those of `optimizer`.
        refuse_inseparable(optimizer)
        self._step_one: StepOne = step_by_rows if rows_are_exact(optimizer) else step_tensor
        self.optimizer = optimizer
        self.clipping = clipping
        self.two_pass = two_pass
        self.in_backward = in_backward
        self.reduce = reduce
        self.folding = folding
        self.micro_batches = micro_batches
        self.skipped_steps = 0
        self._names = names or {}
        self._left = {id(parameter) for parameter in left}
        self._kept: dict[int, Any] = {}
        self._tied: dict[int, TiedEmbedding] = {}
        self._handles: dict[int, Any] = {}
        self._places: dict[int, tuple[int, int]] = {}
        self._begin_step()
        if clipping is not None:
            clipping.begin(self.param_groups[0])
        self.attach()

    # ---- what a torch optimizer is ----

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: Any) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> Any:
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: Any) -> None:
        self.optimizer.defaults = defaults

    def __getattr__(self, name: str) -> Any:
        # What only some optimizers have, such as `train` and `eval` of the schedule-free ones.
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.optimizer!r})"

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(param_group)
        self.attach()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    # ---- the backward pass ----

    def attach(self) -> None:
        """Put hooks on all parameters that learn and have none yet."""
        if not self.in_backward:
            return
        self._find_places()
        for gone in self._handles.keys() - self._places.keys():
            self._handles.pop(gone).remove()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad and id(parameter) not in self._handles:
                    handle = parameter.register_post_accumulate_grad_hook(self._gradient_is_there)
                    self._handles[id(parameter)] = handle

    def _find_places(self) -> None:
        self._places = {
            id(parameter): (index, position)
            for index, group in enumerate(self.param_groups)
            for position, parameter in enumerate(group["params"])
        }

    def take_tied_embeddings(self, model: torch.nn.Module) -> None:
        """Let gradients of embeddings that are tied to the head of `model` be added in place, until `detach`."""
        if self.in_backward:
            taken = tied_embeddings(model, self._handles.keys() - self._left)
            self._tied = {id(tied.weight): tied for tied in taken}

    def detach(self) -> None:
        """Take all hooks away; from then on `step()` does everything."""
        for tied in self._tied.values():
            tied.let_go()
        self._tied = {}
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def _begin_step(self) -> None:
        self._total: Any = None
        self._stepped: set[int] = set()
        # Parameters with a part of this step in their moments, whose weights have not moved yet.
        self._begun: dict[int, torch.Tensor] = {}
        self._is_finite = True
        self._measured: float | None = None
        self._measures = False

    def _gradient_is_there(self, parameter: torch.Tensor) -> None:
        last = GradientState().sync_gradients
        if id(parameter) in self._tied:
            self._tied[id(parameter)].complete()
        if not (last or self.folding is not None):
            return
        if id(parameter) in self._left:
            # The first of two passes gave the mean over ranks; this rank's own gradient of the second is of no use.
            parameter.grad = self._kept.pop(id(parameter), parameter.grad)
            return
        if parameter.grad is None:  # what an autograd function of its own may give
            return
        if id(parameter) in self._stepped:
            raise PluginError(
                f"{NAME}: the gradient of {self._name(parameter)} came twice in one step, the second time after it was "
                "applied. Checkpointing with use_reentrant=True does so to layers that are used several times, and so "
                "does a second backward pass: set gradient_checkpointing_kwargs={'use_reentrant': False}, or "
                "fused=false.",
                code="training-arguments",
                mend=[
                    mends.set_argument("gradient_checkpointing_kwargs", {"use_reentrant": False}),
                    mends.set_option(NAME, "fused", False),
                ],
            )
        if last:
            self._stepped.add(id(parameter))
        if self.reduce is not None:
            self.reduce(parameter)
        self._apply(parameter, last=last, count=1 if self.folding is None else self.micro_batches())

    def _apply(self, parameter: torch.Tensor, *, last: bool = True, count: int = 1) -> None:
        """Step one parameter with its gradient, of one of `count` micro-batches, and free the gradient."""
        gradient = parameter.grad
        if gradient.is_sparse:
            raise PluginError(
                f"{NAME}: the gradient of {self._name(parameter)} is sparse, and what is computed of it here needs a "
                "dense one. Make the layer with sparse=False.",
                code="model-unsuited",
            )
        norm = norm_of(gradient)
        self._total = total_of(self._total, norm * count**0.5)
        if not self._measures:
            # One that is not finite spoils the step from here on: the weights stay as they are.
            self._is_finite = self._is_finite and bool(torch.isfinite(norm))
            index, position = self._place(parameter)
            # A rate of 0 by a factor means that the tensor rests, its optimizer's state too.
            if self._is_finite and lr_scale.scale_of(self.param_groups[index]) != 0:
                if self.clipping is not None:
                    gradient.mul_(self._coefficient(norm * count))
                if self.folding is None:
                    self._step_one(self.optimizer, index, position)
                else:
                    self._fold(self.folding, parameter, gradient, last=last, count=count)
        parameter.grad = None

    def _fold(
        self, folding: Folding, parameter: torch.Tensor, gradient: torch.Tensor | None, *, last: bool, count: int
    ) -> None:
        group = self.param_groups[self._place(parameter)[0]]
        scaled = {**group, "lr": group["lr"] * lr_scale.scale_of(group)}
        first = id(parameter) not in self._begun
        folding.fold(parameter, gradient, scaled, first=first, last=last, count=count)
        if last:
            self._begun.pop(id(parameter), None)
        else:
            self._begun[id(parameter)] = parameter

    def _coefficient(self, norm: torch.Tensor) -> Any:
        assert self.clipping is not None
        if self._measured is not None:
            return self.clipping.exact(self._measured)
        return self.clipping.coefficient(self.param_groups[0], norm, self._total)

    def _place(self, parameter: torch.Tensor) -> tuple[int, int]:
        index, position = self._places.get(id(parameter), (-1, -1))
        groups = self.param_groups
        known = 0 <= index < len(groups) and position < len(groups[index]["params"])
        if not known or groups[index]["params"][position] is not parameter:
            # Groups are split, and parameters replaced, after the optimizer is made.
            self._find_places()
        return self._places[id(parameter)]

    def _name(self, parameter: torch.Tensor) -> str:
        return self._names.get(id(parameter), f"a parameter of shape {tuple(parameter.shape)}")

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Backward passes in this block change nothing; afterwards the step is clipped by the norm they gave.

        For clipping exactly by the norm of all gradients in a second backward pass (LOMO, 3.3.1).
        """
        self._begin_step()
        self._measures = True
        yield
        total = self.norm_of_step()
        for parameter in self._remaining():
            if id(parameter) in self._left:
                self._kept[id(parameter)] = parameter.grad
            parameter.grad = None
        self._begin_step()
        self._measured = 0.0 if total is None else float(total)

    # ---- after the backward pass ----

    def norm_of_step(self) -> torch.Tensor | None:
        """The norm of all gradients of the current step, before clipping; None where it is not taken here."""
        if not self.in_backward:
            return None
        total = self._total
        for parameter in self._remaining():
            total = total_of(total, norm_of(parameter.grad))
        return torch.zeros(()) if total is None else total

    def _remaining(self) -> list[torch.Tensor]:
        return [one for group in self.param_groups for one in group["params"] if one.grad is not None]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step what the backward pass has left, and get ready for the next one.

        Returns:
            What `closure`, which computes the loss and its gradients, returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter in self._remaining():
            if self.in_backward:
                self._apply(parameter)
            else:
                self._step_one(self.optimizer, *self._place(parameter))
                parameter.grad = None
        if self.folding is not None and self._is_finite:
            for parameter in list(self._begun.values()):
                self._fold(self.folding, parameter, None, last=True, count=1)
        if self.in_backward:
            if not self._is_finite:
                self.skipped_steps += 1
                logger.warning("%s: a gradient was not finite; the rest of the step was dropped.", NAME)
            elif self.clipping is not None and self._total is not None:
                self.clipping.remember(self.param_groups[0], self._total)
            self.attach()
        self._begin_step()
        return loss
