"""AdaFisher. This folder depends on torch alone: it can be copied into any program as it is."""

from trainer.optim.adafisher.optimizer import AdaFisher, AdaFisherW, StateLayout

__all__ = ["AdaFisher", "AdaFisherW", "StateLayout"]
