"""The names in the world, the facts about them, and which questions are held out."""

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from components.world.randomness import Deck, check_count, generator
from components.world.vocabulary import LANGUAGES, Language

Split = Literal["train", "held_out", "all"]


@dataclass(frozen=True)
class Question:
    """A question of the world and its true answer, one of the relation's value words."""

    text: str
    name: str
    relation: str
    answer: str


def statement_of(language: Language, question: Question, value: str | None = None) -> str:
    """The sentence that answers question, with its answer or the given value."""
    template = language.relations[question.relation].statement
    return language.write(template, name=question.name, value=value or question.answer)


@dataclass(frozen=True)
class Facts:
    """Invented names, and one value per name and relation, all determined by the fields.

    seed:            a different seed gives a different world: other names, facts and held-out questions.
    num_names:       times 3 relations = number of facts and of questions.
    held_out_share:  share of the questions kept out of all post-training; their facts are in the corpus.
    Raises ValueError if num_names is below 2 or above what the language can invent, if held_out_share is not in
    0..0.5, or if the language is unknown.
    """

    seed: int = 0
    num_names: int = 36
    language: Literal["english", "chinese"] = "english"
    held_out_share: float = 1 / 3

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ValueError(f"language: got {self.language!r}, expected one of {', '.join(LANGUAGES)}")
        check_count("num_names", self.num_names, 2, len(self.vocabulary.possible_names))
        if not 0 <= self.held_out_share <= 0.5:
            raise ValueError(f"held_out_share: got {self.held_out_share}, expected a share from 0 to 0.5")

    def rng(self, *key: str | int) -> random.Random:
        """This world's generator for the purpose named by key."""
        return generator("world", self.language, self.seed, *key)

    @cached_property
    def vocabulary(self) -> Language:
        """The language of this world."""
        return LANGUAGES[self.language]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The num_names invented names."""
        return tuple(self.rng("names").sample(self.vocabulary.possible_names, self.num_names))

    @cached_property
    def facts(self) -> dict[tuple[str, str], str]:
        """(name, relation) -> value; every value of a relation is used equally often, to within one."""
        facts = {}
        for key, relation in self.vocabulary.relations.items():
            values = Deck(relation.values, self.rng("facts", key))
            facts.update({(name, key): values.take(1)[0] for name in self.names})
        return facts

    @cached_property
    def _held_out(self) -> frozenset[tuple[str, str]]:
        """(name, relation) of held-out questions: relations take turns, and no name repeats before all were used."""
        names = self.rng("held out").sample(self.names, self.num_names)
        relations = list(self.vocabulary.relations)
        count = round(self.held_out_share * len(self.facts))
        places = (divmod(number, self.num_names) for number in range(count))
        return frozenset((names[place], relations[(place + lap) % len(relations)]) for lap, place in places)

    @cached_property
    def _all_questions(self) -> tuple[Question, ...]:
        relations = self.vocabulary.relations
        return tuple(
            Question(self.vocabulary.write(relations[relation].question, name=name), name, relation, value)
            for (name, relation), value in self.facts.items()
        )

    @cached_property
    def _by_words(self) -> dict[tuple[str, ...], Question]:
        return {tuple(self.vocabulary.words(question.text)): question for question in self._all_questions}

    def questions(self, split: Split) -> list[Question]:
        """The questions of a split; train and held_out are disjoint and together are all."""
        if split == "all":
            return list(self._all_questions)
        if split not in ("train", "held_out"):
            raise ValueError(f"split: got {split!r}, expected train, held_out or all")
        wanted = split == "held_out"
        held_out = self._held_out
        return [one for one in self._all_questions if ((one.name, one.relation) in held_out) == wanted]

    def is_question(self, text: str) -> bool:
        """Whether text is exactly one question of this world, ignoring spacing and case."""
        return tuple(self.vocabulary.words(text)) in self._by_words

    def find(self, text: str) -> Question:
        """The question equal to text, ignoring spacing and case. Raises ValueError if this world has none."""
        if not self.is_question(text):
            example = self._all_questions[0].text
            raise ValueError(
                f"question: got {text!r}, expected one of the {len(self._all_questions)} questions of the "
                f"world with seed {self.seed}, such as {example!r}. List them with questions('all')"
            )
        return self._by_words[tuple(self.vocabulary.words(text))]

    def statement(self, question: Question, value: str | None = None) -> str:
        """The sentence that answers question, with the true value or the given one."""
        return statement_of(self.vocabulary, question, value)

    def renamed(self, text: str, name: str, other: str) -> str:
        """The words of text with `name` replaced by `other`."""
        return self.vocabulary.join(other if word == name else word for word in self.vocabulary.words(text))
