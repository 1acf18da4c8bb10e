"""What every world's judge says of an answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Worth:
    """gold: the true worth of the answer, on the world's own scale. correct: whether none is better."""

    gold: float
    correct: bool

    def metrics(self) -> dict[str, float]:
        """What is averaged over the responses of a rollout, by name."""
        return {"gold": self.gold, "correct": self.correct}
