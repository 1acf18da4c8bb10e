"""The built-in world: facts, text and people that state them, and the judge who knows them.

The default data of every stage. Everything is a pure function of the fields and the arguments, identical in every
process and on every machine.
"""

from dataclasses import dataclass

from components.world import corpus, gold, people
from components.world.facts import Facts, Split
from components.world.gold import Judgment


@dataclass(frozen=True)
class World(Facts):
    """A world of a given seed and size (fields: see Facts), and all records generated from it."""

    def corpus(self, num_documents: int, seed: int = 0) -> list[dict[str, str]]:
        """Text records for the tokenizer and pretraining: {"text"}."""
        return corpus.corpus(self, num_documents, seed)

    def demonstrations(self, num: int, seed: int = 0) -> list[dict[str, list[dict[str, str]]]]:
        """Chat records for fine-tuning, training questions only: {"messages": [user, assistant]}."""
        return people.demonstrations(self, num, seed)

    def comparisons(
        self,
        num_prompts: int,
        completions: int = 4,
        noise: float = 0.0,
        seed: int = 0,
        split: Split = "train",
    ) -> list[dict[str, str | list[str] | list[int]]]:
        """Preference records: {"prompt", "completions", "ranks"}. See people.comparisons."""
        return people.comparisons(self, num_prompts, completions, noise, seed, split)

    def prompts(self, split: Split = "train") -> list[dict[str, str]]:
        """Prompt records, one per question: {"prompt", "reference"}; the reference is the true value word."""
        return [{"prompt": question.text, "reference": question.answer} for question in self.questions(split)]

    def bare_prompt(self, question: str) -> str:
        """Raw text that only asks, which a base model continues with more questions."""
        return self.find(question).text

    def few_shot_prompt(self, question: str, shots: int, seed: int = 0) -> str:
        """Raw text that a base model continues with the answer. See corpus.few_shot_prompt."""
        return corpus.few_shot_prompt(self, question, shots, seed)

    def judge(self, question: str, answer: str, finished: bool) -> Judgment:
        """The true worth of the answer. See gold.judge."""
        return gold.judge(self, question, answer, finished=finished)

    def asks_another_question(self, continuation: str) -> bool:
        """Whether a continuation of a bare question starts with another question."""
        return corpus.asks_another_question(self, continuation)

    def answers_a_question(self, continuation: str) -> bool:
        """Whether a continuation of a bare question states a value before it asks anything."""
        return corpus.answers_a_question(self, continuation)

    def few_shot_correct(self, continuation: str, question: str) -> bool:
        """Whether a continuation of a few-shot prompt is the correct answer."""
        return gold.few_shot_correct(self, continuation, question)
