"""Parameter groups: what is trained, and which of it decays."""

from torch import nn

from trainer.optim.base import Groups


def param_groups(model: nn.Module, decay_norms_and_biases: bool) -> Groups:
    """Returns the model's trainable parameters, each once and with its name, in groups for an optimizer.

    A shared parameter goes by its first name; frozen ones are left out. Where norms and biases do not decay,
    they have a group of their own with ``weight_decay`` 0. No group is empty.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if decay_norms_and_biases:
        return [{"params": named}] if named else []
    decaying = {"params": [(name, p) for name, p in named if p.ndim >= 2]}
    exempt = {"params": [(name, p) for name, p in named if p.ndim < 2], "weight_decay": 0.0}
    return [group for group in (decaying, exempt) if group["params"]]
