"""The words of the report that a newcomer does not know, in plain English."""

import re

TERMS: tuple[tuple[str, str, str], ...] = (  # term, where it stands (a regular expression), what it means
    ("held-out prompts", r"held-out (prompt|question|pair)", "those that no stage was trained on"),
    (
        "base",
        r"\bbase\b",
        "the model after pretraining on raw text: it continues documents and was not taught to answer",
    ),
    (
        "sft",
        r"\bsft\b",
        "supervised fine-tuning: the base model after imitating demonstrations; all later methods start from it",
    ),
    (
        "ppo",
        r"\bppo\b",
        "proximal policy optimization: the model samples answers and is moved toward those with a high score of the "
        "reward model",
    ),
    ("grpo", r"\bgrpo\b", "as ppo, each answer judged against the others to its prompt instead of by a value model"),
    ("rloo", r"\brloo\b", "REINFORCE, each answer judged against the mean of the others to its prompt"),
    (
        "dpo",
        r"\bdpo\b",
        "direct preference optimization: trained on the comparisons themselves, without a reward model",
    ),
    ("rejection", r"\brejection\b", "fine-tuning on those of the model's own answers that the reward model likes best"),
    (
        "gold score",
        r"\bgold\b",
        "what the judge of the built-in world, which knows every fact, gives an answer: 1 if it is right, else −0.5, "
        "and more or less for manners and length; at most 1.25",
    ),
    (
        "reward model's score",
        r"reward model's score|\bscore of rollouts",
        "what the reward model, trained on comparisons, gives an answer; only differences count: it bets e^d to 1 "
        "on an answer that scores d more than another",
    ),
    (
        "KL",
        r"\bKL\b",
        "Kullback–Leibler divergence, how far a model moved from sft: over its own answers, the mean of "
        "log p(model) − log p(sft); 0 where nothing changed",
    ),
    ("nats", r"\bnats\b", "units of information counted with the natural logarithm; one is 1.44 bits"),
    (
        "95 % interval",
        r"95 % interval",
        "low and high end, in brackets; of 100 made this way, 95 hold the true value for prompts of this kind",
    ),
    ("likeliest answer", r"likeliest answer", "the most probable token at each step (greedy), instead of a sample"),
    (
        "wins against sft",
        r"\bwins? against sft|beats sft",
        "how often an answer is worth more than one of sft to the same prompt, ties counting half; 50 % is a draw",
    ),
    (
        "entropy",
        r"\bentropy\b",
        "how open the choice of words is: 0 where one is certain, 0.69 nats where two are equally likely",
    ),
    (
        "distinct responses",
        r"distinct responses",
        "different answers to a prompt, as a share of all samples: diversity",
    ),
    (
        "bits per byte",
        r"bits per byte",
        "how badly text of the pretraining kind is predicted, whatever the tokenizer; less is better",
    ),
    (
        "best of n",
        r"\bbest[- ]of[- ](n\b|\d+)",
        "of n answers of sft the one that the reward model scores highest: no training, n times the sampling",
    ),
    ("majority vote", r"majority", "the value that most of k answers give"),
    (
        "calibration error (ECE)",
        r"\bECE\b",
        "how far the share of correct choices is from the confidence in them, on average; 0 is perfect",
    ),
    ("margin", r"\bmargins?\b", "the score of the better answer less that of the worse one"),
    ("confidence", r"\bconfidence\b", "the probability that the reward model gives to its own choice, σ(|margin|)"),
    ("rollouts", r"\brollouts?\b", "the answers that a policy samples to be trained on"),
    ("loss", r"\bloss\b", "what training makes small: −log p of the next token, or of the right choice of two answers"),
    ("FLOPs", r"\bFLOPs\b", "floating-point operations, the amount of computing"),
    ("tokens", r"\btokens\b", "the pieces of text that a model reads and writes"),
)


class Glossary:
    """Explains each term once."""

    def __init__(self) -> None:
        self._left = list(TERMS)

    def explain(self, text: str) -> list[tuple[str, str]]:
        """(term, explanation) of the terms in a text that were not explained before, and of those that explain them."""
        found = []
        while new := [one for one in self._left if re.search(one[1], text, re.IGNORECASE)]:
            self._left = [one for one in self._left if one not in new]
            found += [(term, meaning) for term, _, meaning in new]
            text = " ".join(meaning for _, _, meaning in new)
        return found
