"""The arithmetic of a run: float32, TF32, bfloat16 or float16 with a loss scale."""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.amp import GradScaler

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast and loss scaling by the name of a precision. Parameters stay float32 in all of them.

    Args:
        name: ``fp32``, ``tf32``, ``bf16`` or ``fp16``. fp16 works on CPUs too, slowly.
        device: where the model runs.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device_type = device.type
        self.compute_dtype = AUTOCAST.get(name)
        """Of the forward and backward pass where autocast lowers it; None: that of the parameters."""
        self.scaler = GradScaler(device.type, enabled=name == "fp16")
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = name == "tf32"
        if name == "tf32" and device.type != "cuda":
            warnings.warn(f"precision=tf32 changes nothing on {device.type}: it is fp32 there", stacklevel=2)

    def autocast(self) -> AbstractContextManager[object]:
        """A context for forward passes, which lowers their precision if this one does."""
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, self.compute_dtype)
