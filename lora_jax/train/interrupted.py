"""What training raises when it was asked to stop; in a file of its own, so that the command line names it without importing JAX."""


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM, SIGINT) and did, with a checkpoint at `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"Stopped at step {step}; a checkpoint was written. The same command goes on from there.")
        self.step = step
