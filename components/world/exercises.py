"""A world with a task for each inference-time technique, and what a correct answer to each is."""

import json
import random
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from components.world import exercise_texts as texts
from components.world.facts import Facts, Question, Split
from components.world.gold import stated_value
from components.world.randomness import check_count
from components.world.vocabulary import ENGLISH
from components.world.worth import Worth

Task = Literal["sums", "facts", "seen", "rare", "records"]
SUM = re.compile(r"what is (\d+)\+(\d+) \?")
TOTAL = re.compile(r"the sum is (\d+)|\A\s*(\d+)[\s.]*\Z")


@dataclass(frozen=True)
class Exercise:
    """A question and its answer: a number, or a value word of the relation that the question asks about a name."""

    task: Task
    text: str
    reference: str
    name: str = ""
    relation: str = ""

    def is_solved(self, answer: str) -> bool:
        """Whether any string is a correct answer:

        sums               "the sum is <number>", the last one if there are several, or the number alone
        facts, seen, rare  states the true value of the name asked about, and no other, see gold.stated_value
        records            is the JSON object {relation: value} and nothing else
        """
        if self.task == "sums":
            totals = [said or alone for said, alone in TOTAL.findall(answer)]
            return totals[-1:] == [self.reference]
        if self.task == "records":
            return _parsed(answer) == {self.relation: self.reference}
        question = Question(self.text, self.name, self.relation, self.reference)
        return stated_value(ENGLISH, question, ENGLISH.words(answer)) == self.reference


@dataclass(frozen=True)
class Exercises:
    """Five tasks, each of which a different technique should help with:

    sums     of two numbers: written steps, and a calculator
    facts    that the crowd of the demonstrations often gets wrong: votes, careful examples
    seen     the same, but about questions that demonstrations and comparisons ask: a reward model, which knows them
    rare     facts about names that training states nowhere: retrieval, and look-up
    records  facts as JSON, which the crowd breaks every second time: constrained output

    num_names: of common names, whose facts are in the corpus. num_rare: names whose facts are only in `encyclopedia`.
    digits: of each number of a sum. num_sums: held-out ones. held_out_share: of the questions about common names.
    In English. practice.Practice adds the records to train on, with the methods of World.
    Raises ValueError for a number out of range.
    """

    seed: int = 0
    num_names: int = 32
    num_rare: int = 8
    digits: int = 3
    num_sums: int = 24
    held_out_share: float = 0.25

    def __post_init__(self) -> None:
        assert self.facts  # built now, so that its errors are raised now
        check_count("num_rare", self.num_rare, 1, len(ENGLISH.possible_names) - self.num_names)
        check_count("digits", self.digits, 1, 6)
        check_count("num_sums", self.num_sums, 1, 9 * 10 ** (self.digits - 1))

    @cached_property
    def facts(self) -> Facts:
        """The common names, and what is true about them."""
        return Facts(self.seed, self.num_names, held_out_share=self.held_out_share)

    def rng(self, *key: str | int) -> random.Random:
        """This world's generator for the purpose named by key."""
        return self.facts.rng("exercises", self.num_names, self.num_rare, self.digits, *key)

    @cached_property
    def other_names(self) -> tuple[str, ...]:
        """Every name that is not a common one, in random order; the first num_rare are the rare ones."""
        others = [name for name in ENGLISH.possible_names if name not in self.facts.names]
        return tuple(self.rng("others").sample(others, len(others)))

    @cached_property
    def rare(self) -> tuple[Question, ...]:
        """The questions about rare names."""
        rng = self.rng("rare")
        return tuple(one for name in self.other_names[: self.num_rare] for one in texts.invented(name, rng))

    @cached_property
    def held_out_sums(self) -> tuple[tuple[int, int], ...]:
        """Pairs of numbers that training has neither in this order nor in the other."""
        rng = self.rng("sums")
        pairs: dict[tuple[int, int], None] = {}
        while len(pairs) < self.num_sums:
            pairs[texts.numbers(self.digits, rng)] = None
        return tuple(pairs)

    def training_sum(self, rng: random.Random) -> tuple[int, int]:
        """Two numbers whose sum is not held out."""
        while True:
            pair = texts.numbers(self.digits, rng)
            if pair not in self.held_out_sums and pair[::-1] not in self.held_out_sums:
                return pair

    def questions(self, split: Split) -> list[Exercise]:
        """The exercises of a split. Training has as many sums as are held out; all rare facts are held out."""
        if split == "all":
            return self.questions("train") + self.questions("held_out")
        held_out, known = split == "held_out", self.facts.questions(split)
        rng = self.rng("training sums")
        sums = self.held_out_sums if held_out else [self.training_sum(rng) for _ in range(self.num_sums)]
        made = [Exercise("sums", texts.sum_question(*pair), str(sum(pair))) for pair in sums]
        made += [_about("facts", one, one.text) for one in known]
        made += [_about("rare", one, one.text) for one in self.rare if held_out]
        return made + [_about("records", one, texts.as_record(one.text)) for one in known]

    def prompts(self, split: Split = "train") -> list[dict[str, str]]:
        """Prompt records: {"prompt", "reference", "task", "name", "relation"}.

        The held-out ones have the task "seen" as well: as many of the questions that demonstrations and comparisons ask
        as there are held-out facts. These are not among the training prompts, which data would drop one of.
        """
        seen = self.facts.questions("train")[: len(self.facts.questions("held_out"))]
        asked = self.questions(split)
        if split == "held_out":
            asked += [_about("seen", one, one.text) for one in seen]
        elif split == "train":
            known = {one.text for one in seen}
            asked = [one for one in asked if one.task != "facts" or one.text not in known]
        fields = [asdict(one) for one in asked]
        return [{"prompt": one.pop("text"), **one} for one in fields]

    def encyclopedia(self) -> list[str]:
        """All that is true about each name, common and rare: what retrieval and look-up search."""
        rng = self.rng("encyclopedia")
        by_name: dict[str, list[Question]] = {}
        for question in (*self.facts.questions("all"), *self.rare):
            by_name.setdefault(question.name, []).append(question)
        return [texts.entry(questions, rng) for questions in by_name.values()]

    def examples(self, count: int = 3) -> list[dict[str, str]]:
        """Training questions with their true answers, as the turns of a careful person: user, assistant, user, …"""
        chosen = self.rng("examples").sample(self.facts.questions("train"), count)
        return [turn for one in chosen for turn in texts.exchange(one.text, self.facts.statement(one))]

    @cached_property
    def _by_text(self) -> Mapping[str, Exercise]:
        return {one.text: one for one in self.questions("all")}

    def judge(self, question: str, answer: str, finished: bool) -> Worth:
        """Whether the answer is correct; gold is 1 if it also ends, else 0.

        Raises ValueError if the world has no such question.
        """
        asked = SUM.fullmatch(question)
        if asked:
            exercise = Exercise("sums", question, str(int(asked[1]) + int(asked[2])))
        elif question in self._by_text:
            exercise = self._by_text[question]
        else:
            raise ValueError(f"question: got {question!r}, expected one such as {next(iter(self._by_text))!r}")
        solved = exercise.is_solved(answer)
        return Worth(float(solved and finished), solved)


def _about(task: Task, question: Question, text: str) -> Exercise:
    return Exercise(task, text, question.answer, question.name, question.relation)


def _parsed(answer: str) -> Any:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        return None
