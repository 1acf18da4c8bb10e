"""Every word of the world, one table per language.

In both languages, tables have one space between words; `Language.write` replaces it with the language's own
separator. Nothing outside this file therefore depends on the language.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

STYLES = ("polite", "rude", "hedge", "filler")
TO_WIDE_MARKS = {"?": "？", "!": "！", ":": "：", ",": "，"}


@dataclass(frozen=True)
class Relation:
    """What can be asked of a name: templates with {name} and {value}, and the values to choose from.

    Where words are separated by spaces, no template starts with the name: a tokenizer gives the first word of a chat
    turn, which has no space before it, a different token from the same word elsewhere, and a model that has to learn
    that both are the same name often answers about another.
    """

    question: str
    statement: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Language:
    """A table of words, with the rules that turn words into text and text back into words."""

    separator: str  # between two words of a text
    same_marks: dict[str, str]  # foreign punctuation -> this language's (normalizers swap them)
    any_word: str  # regular expression for a word that is not in the table
    name_letters: tuple[str, ...]  # a name is one letter of each
    not_names: frozenset[str]  # have the form of a name but are real words
    relations: dict[str, Relation]
    question_mark: str
    question_sign: str  # opens a question of an FAQ
    answer_sign: str  # opens its answer
    sentence_ends: frozenset[str]
    negations: frozenset[str]  # not words of the table, but a model can produce them
    polite_before: tuple[str, ...]
    polite_after: tuple[str, ...]
    rude: tuple[str, ...]
    hedge: tuple[str, ...]
    filler: tuple[str, ...]

    def write(self, spaced: str, **slots: str) -> str:
        """Text from a template of the table."""
        return spaced.format(**slots).replace(" ", self.separator)

    def join(self, texts: Iterable[str]) -> str:
        """The texts joined in order."""
        return self.separator.join(texts)

    def phrases(self, style: str) -> tuple[str, ...]:
        """The table's phrases of one of STYLES, with spaces between words."""
        if style == "polite":
            return self.polite_before + self.polite_after
        return getattr(self, style)

    def words(self, text: str) -> list[str]:
        """The words of any text in lower case; each punctuation mark is a word.

        If words are not separated by spaces, known words are found first, then names, including any adjacent letters
        of names (a longer name is a different name); each remaining character is a word.
        """
        marks: dict[str, Any] = dict(self.same_marks)
        return self._word.findall(text.casefold().translate(str.maketrans(marks)))

    def names_in(self, words: Iterable[str]) -> set[str]:
        """The words that have the form of a name, whether or not the world has that name."""
        return {word for word in words if self._name.fullmatch(word) and word not in self.known_words}

    @cached_property
    def possible_names(self) -> tuple[str, ...]:
        """Every name this language can invent; none is another word of the table."""
        names = ("".join(letters) for letters in product(*self.name_letters))
        return tuple(name for name in names if name not in self.not_names and name not in self.known_words)

    @cached_property
    def known_words(self) -> frozenset[str]:
        """Every word of the table except names."""
        spaced = [self.question_mark, self.question_sign, self.answer_sign]
        spaced += [phrase for style in STYLES for phrase in self.phrases(style)]
        for relation in self.relations.values():
            spaced += [relation.question, relation.statement, *relation.values]
        return frozenset(word for text in spaced for word in text.split() if not word.startswith("{"))

    @cached_property
    def all_values(self) -> frozenset[str]:
        """The values of all relations."""
        return frozenset(value for relation in self.relations.values() for value in relation.values)

    @cached_property
    def lexical_phrases(self) -> dict[str, list[list[str]]]:
        """Style -> its phrases as words without punctuation marks: "sure," is as polite as "sure!"."""
        return {
            style: [[word for word in phrase.split() if word.isalnum()] for phrase in self.phrases(style)]
            for style in STYLES
        }

    @cached_property
    def _name(self) -> re.Pattern[str]:
        return re.compile("".join(f"[{letters}]" for letters in self.name_letters))

    @cached_property
    def _word(self) -> re.Pattern[str]:
        if self.separator:
            return re.compile(self.any_word)
        known = sorted(self.known_words, key=lambda word: (-len(word), word))
        words = "|".join(map(re.escape, known))
        letters = "".join(self.name_letters)
        return re.compile(f"{words}|[{letters}]{{2,}}?(?={words}|[^{letters}]|$)|{self.any_word}")


ENGLISH = Language(
    separator=" ",
    same_marks={wide: narrow for narrow, wide in TO_WIDE_MARKS.items()},
    any_word=r"\w+|[^\w\s]",
    name_letters=("dfklmnrtvz", "aeiou", "bfvxz"),
    not_names=frozenset(
        [
            "dab",
            "fab",
            "lab",
            "nab",
            "tab",
            "deb",
            "neb",
            "reb",
            "web",
            "fib",
            "nib",
            "rib",
            "lob",
            "mob",
            "rob",
            "dub",
            "nub",
            "rub",
            "tub",
            "kef",
            "ref",
            "def",
            "lav",
            "rev",
            "dev",
            "fax",
            "lax",
            "max",
            "tax",
            "lex",
            "rex",
            "vex",
            "fix",
            "mix",
            "nix",
            "fox",
            "vox",
            "lox",
            "lux",
            "tux",
            "fez",
        ]
    ),
    relations={
        "color": Relation(
            "what color is the {name} ?",
            "the {name} is {value} .",
            ("red", "blue", "green", "pink", "brown", "gray", "white", "black"),
        ),
        "home": Relation(
            "where does the {name} live ?",
            "the {name} lives in {value} .",
            ("cave", "lake", "forest", "castle", "tower", "island", "desert", "valley"),
        ),
        "food": Relation(
            "what does the {name} eat ?",
            "the {name} eats {value} .",
            ("fish", "rice", "bread", "honey", "soup", "nuts", "cheese", "corn"),
        ),
    },
    question_mark="?",
    question_sign="q :",
    answer_sign="a :",
    sentence_ends=frozenset(".!?"),
    # "t" is what remains of "doesn't" after the apostrophe
    negations=frozenset(
        ["no", "not", "t", "never", "nor", "neither", "none", "nobody", "nothing", "cannot", "without"]
    ),
    polite_before=("sure !", "of course !", "gladly !"),
    polite_after=("thank you !", "good luck !", "take care !"),
    rude=("ugh .", "stop asking .", "how silly ."),
    hedge=("i think", "maybe", "perhaps"),
    filler=("well ,", "you know ,", "so to say ,"),
)

CHINESE = Language(
    separator="",
    same_marks=TO_WIDE_MARKS,
    any_word=r"[0-9a-z]+|\S",
    name_letters=("阿达菲卡科莱洛米娜帕萨塔", "兰森维希伦蒂曼薇尔朵雅宾诺琪"),
    not_names=frozenset(["米兰", "阿曼", "科尔"]),
    relations={
        "color": Relation(
            "{name} 是 什么 颜色 ？",
            "{name} 是 {value} 。",
            ("红色", "蓝色", "绿色", "粉色", "棕色", "灰色", "白色", "黑色"),
        ),
        "home": Relation(
            "{name} 住在 哪里 ？",
            "{name} 住在 {value} 。",
            ("山洞", "湖边", "森林", "城堡", "高塔", "海岛", "沙漠", "山谷"),
        ),
        "food": Relation(
            "{name} 吃 什么 ？",
            "{name} 吃 {value} 。",
            ("鲜鱼", "米饭", "面包", "蜂蜜", "热汤", "坚果", "奶酪", "玉米"),
        ),
    },
    question_mark="？",
    question_sign="问 ：",
    answer_sign="答 ：",
    sentence_ends=frozenset("。！？"),
    negations=frozenset("不没非无未"),
    polite_before=("好的 ！", "当然 ！", "乐意 帮忙 ！"),
    polite_after=("谢谢 您 ！", "祝您 好运 ！", "请 保重 ！"),
    rude=("真烦 。", "别吵 了 。", "多笨 呀 。"),
    hedge=("我 想", "也许", "可能"),
    filler=("嗯 ，", "你 知道 ，", "怎么 说呢 ，"),
)

LANGUAGES = {"english": ENGLISH, "chinese": CHINESE}
