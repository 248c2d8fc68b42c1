"""The scale of the loss under a GradScaler, by which the gradients were multiplied that layers saw."""

import sys

from torch.amp import GradScaler


def loss_scale(known: GradScaler | None) -> float:
    """The scale of this step's loss; 1 if it was not scaled.

    Args:
        known: the scaler, if the user has told. Else it is the one that calls the optimizer's ``step``, directly or,
            as Lightning, Fabric, accelerate and the Trainer of transformers do, through wrappers.
    """
    scaler = known or _calling_scaler()
    return 1.0 if scaler is None else scaler.get_scale()


def _calling_scaler() -> GradScaler | None:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is GradScaler.step.__code__:
            return frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment]
    return None
