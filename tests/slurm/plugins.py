"""Parts for jobs that are to be disturbed: ``plugins=[tests.slurm.plugins]``."""

import os
import signal
import time

from trainer.monitor import SINKS, Progress, Sink


@SINKS.register("slow")
class Slow(Sink):
    """Gives a tenth of a second to every step, so that there is time to disturb the run."""

    def tick(self, progress: Progress) -> None:
        time.sleep(0.1)


@SINKS.register("preempted")
class Preempted(Sink):
    """As if the run were preempted after its first step, at every start."""

    def tick(self, progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
