"""Chain of thought: the model writes its steps before the answer.

Sources: Wei et al. 2022; Kojima et al. 2022 for the instruction alone.
"""

from dataclasses import dataclass

from components.prompting.technique import Answer, Answers, Generate, Query, Step


@dataclass(frozen=True)
class ChainOfThought:
    """Asks for steps, by an instruction after the last message of the user.

    marker: a text that precedes the answer, such as "Answer:": what follows the last one is the answer, and what comes
    before it goes to the trace. An answer without the marker stays as it is, as do all if it is None.
    """

    instruction: str = "Think step by step."
    marker: str | None = None

    def __post_init__(self) -> None:
        if self.marker == "":
            raise ValueError("chain_of_thought: marker: expected a text that is not empty, or none")

    def __call__(self, generate: Generate, query: Query) -> Answers:
        made = generate(query.worded(after=self.instruction))
        return made._replace(answers=[self._divided(answer) for answer in made.answers])

    def _divided(self, answer: Answer) -> Answer:
        if self.marker is None or self.marker not in answer.text:
            return answer
        steps, _, said = answer.text.rpartition(self.marker)
        return answer._replace(text=said.strip(), trace=(*answer.trace, Step("chain_of_thought", steps.strip())))
