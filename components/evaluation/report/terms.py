"""The report's technical terms, explained to newcomers."""

import re

TERMS: tuple[tuple[str, str, str], ...] = (  # term, pattern (a regular expression) that finds it, meaning
    ("held-out prompts", r"held-out (prompt|question|pair)", "prompts that no stage after pretraining was trained on"),
    (
        "base",
        r"\bbase\b",
        "the model after pretraining on raw text: it continues documents and was never taught to answer",
    ),
    (
        "sft",
        r"\bsft\b",
        "supervised fine-tuning: the base model trained to imitate demonstrations; all later methods start from it",
    ),
    (
        "ppo",
        r"\bppo\b",
        "proximal policy optimization: the model samples answers and is moved toward those that the reward model "
        "scores highly",
    ),
    (
        "grpo",
        r"\bgrpo\b",
        "like ppo, but comparing each answer with the others to its prompt instead of using a value model",
    ),
    (
        "gspo",
        r"\bgspo\b",
        "like grpo, but with one probability ratio for a whole answer, in place of one for each token",
    ),
    (
        "cispo",
        r"\bcispo\b",
        "like grpo, but every token is learned from, with a bounded weight; grpo ignores those that moved too far",
    ),
    ("rloo", r"\brloo\b", "REINFORCE with each answer compared with the mean of the others to its prompt"),
    (
        "dpo",
        r"\bdpo\b",
        "direct preference optimization: trained directly on the comparisons, without a reward model",
    ),
    (
        "kto",
        r"\bkto\b",
        "Kahneman–Tversky optimization: trained directly on answers that are labeled good or bad one by one, without "
        "comparisons",
    ),
    (
        "simpo",
        r"\bsimpo\b",
        "simple preference optimization: like dpo, but by the mean log-probability of an answer's tokens, and with "
        "nothing that keeps the model near sft",
    ),
    (
        "orpo",
        r"\borpo\b",
        "odds ratio preference optimization: imitates the better answers of comparisons and raises their odds over the "
        "worse ones",
    ),
    (
        "distill",
        r"\bdistill\b",
        "the model samples answers, and at each of their tokens learns the probabilities that another model, its "
        "teacher, gives to every next token",
    ),
    ("rejection", r"\brejection\b", "fine-tuning on the model's own answers that the reward model scores highest"),
    (
        "gold score",
        r"\bgold\b",
        "the score that the judge of the built-in world, who knows every fact, gives an answer: 1 if it is correct, "
        "else −0.5, adjusted for manners and length; at most 1.25",
    ),
    (
        "reward model's score",
        r"reward model's score|\bscore of rollouts",
        "the score that the reward model, trained on comparisons, gives an answer; only differences count: a lead of d "
        "means odds of e^d to 1 for the higher one",
    ),
    (
        "KL",
        r"\bKL\b",
        "Kullback–Leibler divergence, how far a model moved from sft: the mean over its own answers of "
        "log p(model) − log p(sft); 0 if nothing changed",
    ),
    ("nats", r"\bnats\b", "units of information based on the natural logarithm; one nat is 1.44 bits"),
    (
        "95% interval",
        r"95% interval",
        "its low and high ends, in brackets; 95 of 100 such intervals contain the true value for prompts of this kind",
    ),
    (
        "likeliest answer",
        r"likeliest answer",
        "the most probable token at each step (greedy), instead of sampling",
    ),
    (
        "wins against sft",
        r"\bwins? against sft|beats sft",
        "how often an answer is better than one of sft's to the same prompt, counting ties as half; 50% is a draw",
    ),
    (
        "at equal length",
        r"at equal length",
        "what the share of wins would be if both answers were equally long, so that a reward model's taste for long "
        "answers does not count",
    ),
    (
        "entropy",
        r"\bentropy\b",
        "how uncertain the next token is: 0 if one is certain, 0.69 nats if two are equally likely",
    ),
    (
        "distinct responses",
        r"distinct responses",
        "the share of a prompt's samples that are different answers: diversity",
    ),
    (
        "bits per byte",
        r"bits per byte",
        "how badly text like that of pretraining is predicted, independent of the tokenizer; lower is better",
    ),
    (
        "best of n",
        r"\bbest[- ]of[- ](n\b|\d+)",
        "the answer that the reward model scores highest among n answers of sft: no training, n times the sampling",
    ),
    ("majority vote", r"majority", "the value that most of k answers give"),
    (
        "calibration error (ECE)",
        r"\bECE\b",
        "how far the share of correct choices is from the confidence in them, on average; 0 is perfect",
    ),
    ("margin", r"\bmargins?\b", "the score of the better answer minus that of the worse one"),
    ("confidence", r"\bconfidence\b", "the probability that the reward model gives to its own choice, σ(|margin|)"),
    ("rollouts", r"\brollouts?\b", "the answers that a policy samples for its own training"),
    (
        "loss",
        r"\bloss\b",
        "what training minimizes: −log p of the next token, or of the correct choice of two answers",
    ),
    ("FLOPs", r"\bFLOPs\b", "floating-point operations, the amount of compute"),
    ("tokens", r"\btokens\b", "the units of text that a model reads and writes"),
)


class Glossary:
    """Explains each term once."""

    def __init__(self) -> None:
        self._left = list(TERMS)

    def explain(self, text: str) -> list[tuple[str, str]]:
        """(term, explanation) for the terms in a text not explained before, and for terms used in the explanations."""
        entries = []
        while new := [term for term in self._left if re.search(term[1], text, re.IGNORECASE)]:
            self._left = [term for term in self._left if term not in new]
            entries += [(term, meaning) for term, _, meaning in new]
            text = " ".join(meaning for _, _, meaning in new)
        return entries
