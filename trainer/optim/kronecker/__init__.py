"""Optimizers that precondition by matrices, K-FAC and its relatives, and AdaHessian, by the Hessian's diagonal.

Where to find what: ``rows.py`` the rows that layers multiply and the factors that they make ·
``preconditioned_sgd.py`` what is done with a preconditioned gradient · ``layerwise.py`` which layers are
preconditioned, and when they are watched · a file for each optimizer.
"""

from trainer.registry import import_submodules

import_submodules(__name__)
