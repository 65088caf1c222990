"""The correction of a fit's training steps, with a forward hook for a module that nobody changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_fair.integration.label_set_correction import LabelSetCorrection
from lightning_fair.integration.run import Run
from lightning_fair.integration.step_checks import check_reference, check_sample_weights, warn_of_no_mixin
from lightning_fair.integration.step_correction import StepCorrection, is_transformed

if TYPE_CHECKING:
    import lightning.pytorch as L

_MAX_LISTED = 12  # candidates in a message


def set_up_correction(run: Run, pl_module: L.LightningModule) -> None:
    """Give the run, and the module if it has the mixin, the correction of its training steps, and set a hook if needed.

    A module without the mixin whose settings need it gives a warning.
    """
    assert run.source is not None
    settings, has_mixin = run.settings, hasattr(pl_module, "_step_correction")
    has_hook = settings.correction == "logits" and (settings.logits is not None or not has_mixin)
    if run.step_correction is not None:
        run.step_correction.close()  # of a search
    check_reference(run.source, settings, run.class_names)
    if run.sampler is not None and run.sampler.controller.label_kind is not None and settings.correction == "weights":
        check_sample_weights(run.sampler, settings.exponent)
    if not (has_mixin or has_hook):
        warn_of_no_mixin(pl_module, settings, several_labels=run.source.controller.label_kind is not None)
        return
    kind = StepCorrection if run.source.controller.label_kind is None else LabelSetCorrection
    step = kind(run.source.controller, pl_module.device, settings, noun=run.noun)
    run.step_correction = step
    if has_mixin:
        pl_module._step_correction = step  # type: ignore[assignment]
    if has_hook:
        hook_logits(pl_module, settings.logits, step)


class LogitsHook:
    """Adds the offsets of the batch's draw to the output of a submodule, in training steps and with gradients alone.

    A copy or a pickle of the submodule has a hook that does nothing: a teacher is not trained.
    """

    def __init__(self, step: StepCorrection) -> None:
        self.step = step

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:  # noqa: ARG002
        """Return the adjusted logits; None leaves the output as it is."""
        if not (self.step.is_open and torch.is_grad_enabled()):
            return None
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(
                f"The output of {self.step.hooked} must be a floating point tensor of logits, got {kind}. Name the "
                "submodule whose output are the logits: FairSampling(logits=...)."
            )
        if not (output.requires_grad or is_transformed() or torch.compiler.is_compiling()):
            return None  # of a frozen teacher; within these two, the output does not show it
        outputs = getattr(module, "out_features", None)  # of one sample, two logits look as one logit of two
        return self.step.adjust(output, outputs=outputs)


def hook_logits(pl_module: L.LightningModule, name: str | None, step: StepCorrection) -> None:
    """Let a hook adjust the output of the submodule ``name``, or of the only one that fits, until ``step`` is closed.

    Raises:
        ValueError: If there is no submodule of that name, or without a name not exactly one linear layer has as many
            outputs as there are classes, or one if there are two classes.
    """
    if name is None:
        name = _find_head(pl_module, step)
        rank_zero_info(
            f"FairSampling adjusts the logits of {_describe(name, pl_module.get_submodule(name))}, the only linear "
            f"layer with {_num_outputs(step)}."
        )
    try:
        head = pl_module.get_submodule(name) if name else None
    except AttributeError:
        head = None
    if head is None:
        raise ValueError(f"{type(pl_module).__name__} has no submodule {name!r}. {_list_candidates(pl_module, step)}")
    step.follow_hook(name, head.register_forward_hook(LogitsHook(step)))
    # Code that was compiled before has no hook in it, and its guards do not look for hooks.
    torch.compiler.reset()


def _find_head(pl_module: L.LightningModule, step: StepCorrection) -> str:
    heads = _heads(pl_module, step.num_classes)
    if len(heads) != 1:
        number = "several linear layers" if heads else "no linear layer"
        raise ValueError(
            f"FairSampling(correction='logits') needs the submodule whose output are the logits. {number.capitalize()} "
            f"of {type(pl_module).__name__} {'have' if heads else 'has'} {_num_outputs(step)}. "
            f"{_list_candidates(pl_module, step)}"
        )
    return next(iter(heads))


def _heads(pl_module: L.LightningModule, num_classes: int) -> dict[str, nn.Linear]:
    sizes = (1, 2) if num_classes == 2 else (num_classes,)
    return {name: layer for name, layer in _linear_layers(pl_module).items() if layer.out_features in sizes}


def _linear_layers(pl_module: L.LightningModule) -> dict[str, nn.Linear]:
    """Return the linear layers that are trained; all of them if none is. A teacher, for example, is frozen."""
    layers = {name: layer for name, layer in pl_module.named_modules() if isinstance(layer, nn.Linear)}
    trained = {name: layer for name, layer in layers.items() if any(p.requires_grad for p in layer.parameters())}
    return trained or layers


def _num_outputs(step: StepCorrection) -> str:
    return "one or two outputs" if step.num_classes == 2 else f"{step.num_classes} outputs"


def _list_candidates(pl_module: L.LightningModule, step: StepCorrection) -> str:
    heads = _heads(pl_module, step.num_classes)
    layers = heads or _linear_layers(pl_module)
    listed = ", ".join(_describe(name, layer) for name, layer in list(layers.items())[-_MAX_LISTED:])
    larger = "" if heads else "if the data lack some of its classes, set num_classes=... and empty_classes='skip'; "
    return (
        f"Its linear layers are {listed or 'none'}. Name the submodule, for example "
        f"FairSampling(logits={next(reversed(heads), 'model.fc')!r}); {larger}"
        "or call self.adjusted_logits(logits) of ImportanceWeightedMixin; or set correction='weights' or 'none'."
    )


def _describe(name: str, layer: nn.Module) -> str:
    return f"{name} ({layer.in_features} -> {layer.out_features})" if isinstance(layer, nn.Linear) else name
