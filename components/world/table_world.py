"""A world small enough to enumerate: a few questions, with every answer's true reward in a table."""

import math
import random
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, product
from typing import Any

from components.world.facts import Split
from components.world.randomness import Deck, check_count, generator
from components.world.worth import Worth

QUESTIONS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PAIRS = (2, 5)  # number of questions, each with an answer, per document of the corpus
STUBBORN = 0.7  # deviation of the noise in how common an answer is, added to minus its reward, whose deviation is 1


@dataclass(frozen=True)
class Question:
    """A one-letter question and its best answer."""

    text: str
    answer: str


@dataclass(frozen=True)
class TableWorld:
    """Questions A, B, … and a reward, sampled from the seed, for every answer of at most `longest` letters.

    Rewards are standard normal, rounded to hundredths; `other` is the reward of any other text, and of an answer that
    does not end. Demonstrations come from a skewed distribution in which low rewards are common (Zipf's law over an
    order that mostly follows increasing reward): the lesson to learn is that the best answers are the uncommon ones.
    temperature: of comparisons, P(i beats j) = σ((r_i − r_j) / temperature).
    The methods of Facts that data modules use have the same meaning here; no question is held out.
    Raises ValueError unless letters are distinct lower-case ASCII letters and all numbers are in range.
    """

    seed: int = 0
    letters: str = "abcd"
    num_prompts: int = 4
    longest: int = 2
    other: float = -3.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        good = self.letters.isascii() and self.letters.isalpha() and self.letters.islower()
        if not good or len(set(self.letters)) != len(self.letters):
            raise ValueError(f"letters: got {self.letters!r}, expected different lower-case letters such as 'abcd'")
        check_count("num_prompts", self.num_prompts, 1, len(QUESTIONS))
        check_count("longest", self.longest, 1, 4)
        if self.temperature <= 0:
            raise ValueError(f"temperature: got {self.temperature}, expected a number above 0")

    def rng(self, *key: str | int) -> random.Random:
        """This world's generator for the purpose named by key."""
        return generator("table", self.letters, self.num_prompts, self.longest, self.seed, *key)

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """Every answer with its own reward, the empty one first."""
        lengths = range(self.longest + 1)
        return tuple("".join(letters) for length in lengths for letters in product(self.letters, repeat=length))

    @cached_property
    def rewards(self) -> dict[str, dict[str, float]]:
        """Question → answer → reward."""
        return {
            question: {answer: round(rng.gauss(0.0, 1.0), 2) for answer in self.answers}
            for question, rng in ((q, self.rng("rewards", q)) for q in QUESTIONS[: self.num_prompts])
        }

    @cached_property
    def reference(self) -> dict[str, dict[str, float]]:
        """Question → answer → its share of demonstrations, above 0 for every answer."""
        shares = {}
        total = sum(1 / rank for rank in range(1, len(self.answers) + 1))
        for question, rewards in self.rewards.items():
            rng = self.rng("reference", question)
            liking = {answer: rng.gauss(0.0, STUBBORN) - reward for answer, reward in rewards.items()}
            order = sorted(self.answers, key=liking.__getitem__, reverse=True)
            shares[question] = {answer: 1 / rank / total for rank, answer in enumerate(order, 1)}
        return shares

    @cached_property
    def _cumulative(self) -> dict[str, list[float]]:
        return {q: list(accumulate(shares[a] for a in self.answers)) for q, shares in self.reference.items()}

    def sample(self, question: str, rng: random.Random) -> str:
        """An answer sampled from the reference distribution."""
        return rng.choices(self.answers, cum_weights=self._cumulative[question])[0]

    def corpus(self, num_documents: int, seed: int = 0) -> list[dict[str, str]]:
        """Text records: questions, each followed directly by an answer from the reference distribution."""
        check_count("num_documents", num_documents, 0)
        rng = self.rng("corpus", seed)
        asked = [rng.choices(list(self.rewards), k=rng.randint(*PAIRS)) for _ in range(num_documents)]
        return [{"text": "".join(q + self.sample(q, rng) for q in questions)} for questions in asked]

    def demonstrations(self, num: int, seed: int = 0) -> list[dict[str, list[dict[str, str]]]]:
        """Chat records of one exchange, every question equally often."""
        check_count("num", num, 0)
        rng = self.rng("demonstrations", seed)
        asked = Deck(list(self.rewards), rng)
        questions = [asked.take(1)[0] for _ in range(num)]
        return [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": self.sample(q, rng)}]}
            for q in questions
        ]

    def comparisons(
        self,
        num_prompts: int,
        completions: int = 4,
        noise: float = 0.0,
        seed: int = 0,
        split: Split = "train",
    ) -> list[dict[str, Any]]:
        """Preference records: distinct answers from the reference distribution, ranked by people who follow rewards.

        Rankings follow Plackett–Luce, by reward/temperature plus Gumbel noise, so every pair follows Bradley–Terry.
        noise: probability that a record's ranking is reversed.
        Raises ValueError if completions is below 2 or above the number of answers, noise is not in 0..1, or the split
        has no questions.
        """
        check_count("num_prompts", num_prompts, 0)
        check_count("completions", completions, 2, len(self.answers))
        if not 0 <= noise <= 1:
            raise ValueError(f"noise: got {noise}, expected a probability from 0 to 1")
        if not self.questions(split):
            raise ValueError(f"comparisons: split {split!r} has no questions; the table world holds none out")
        rng = self.rng("comparisons", seed)
        asked = Deck(list(self.rewards), rng)
        records = []
        for _ in range(num_prompts):
            question = asked.take(1)[0]
            sampled: dict[str, None] = {}
            while len(sampled) < completions:
                sampled[self.sample(question, rng)] = None
            liking = [
                self.rewards[question][answer] / self.temperature - math.log(rng.expovariate(1.0)) for answer in sampled
            ]
            order = sorted(liking, reverse=True)
            ranks = [order.index(one) for one in liking]
            if rng.random() < noise:  # sampled even if noise is 0, so that noise changes labels but never texts
                ranks = [max(ranks) - one for one in ranks]
            records.append({"prompt": question, "completions": list(sampled), "ranks": ranks})
        return records

    def questions(self, split: Split) -> list[Question]:
        """The questions of a split; all are training questions."""
        if split not in ("train", "held_out", "all"):
            raise ValueError(f"split: got {split!r}, expected train, held_out or all")
        found = [Question(question, max(table, key=table.__getitem__)) for question, table in self.rewards.items()]
        return [] if split == "held_out" else found

    def prompts(self, split: Split = "train") -> list[dict[str, str]]:
        """Prompt records, one per question: {"prompt", "reference"}; the reference is the best answer."""
        return [{"prompt": question.text, "reference": question.answer} for question in self.questions(split)]

    def judge(self, question: str, answer: str, finished: bool) -> Worth:
        """The true worth of the answer. Raises ValueError if the world has no such question."""
        if question not in self.rewards:
            raise ValueError(f"question: got {question!r}, expected one of {', '.join(self.rewards)}")
        table = self.rewards[question]
        gold = table.get(answer, self.other) if finished else self.other
        return Worth(gold, finished and answer in table and gold == max(table.values()))
