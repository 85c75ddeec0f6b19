"""How long is trained, and how fast is learned."""

import math
import time
from dataclasses import dataclass, field


@dataclass
class Schedule:
    """A warm-up, then half a cosine down to a fraction, over time or over iterations: whichever ends first."""

    peak: float
    seconds: float
    iterations: int | None
    warm_up: int = 50
    floor: float = 0.02
    iteration: int = 0
    start: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    @property
    def share(self) -> float:
        by_count = self.iteration / self.iterations if self.iterations else 0.0
        return max(self.elapsed / self.seconds, by_count)

    def advance(self, optimizer) -> bool:
        """Sets the learning rate of the next iteration; false at the end."""
        if self.share >= 1:
            return False
        cosine = 0.5 * (1 + math.cos(math.pi * self.share))
        rate = self.peak * min(1.0, (self.iteration + 1) / self.warm_up) * (cosine * (1 - self.floor) + self.floor)
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.iteration += 1
        return True
