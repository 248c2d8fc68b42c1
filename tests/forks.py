"""The server that tests fork their processes from: it has imported all that a run imports, and done nothing else.

A process that is forked from it starts in a tenth of a second, instead of the three that the imports take.
"""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "trainer.cli.train",
        "trainer.training.run",
        "tests.distributed.models",
        "torch._inductor",  # torch.use_deterministic_algorithms imports it
    ]
)
