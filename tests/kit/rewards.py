"""Reward functions, as a user writes them."""


def sevens(completion_ids):
    """How many tokens are 7."""
    return [float(ids.count(7)) for ids in completion_ids]


def short(completion_ids, finished):
    """−1 a token; does not apply to a response without an end."""
    return [-len(ids) if end else None for ids, end in zip(completion_ids, finished)]


def vowels(completions):
    """The share of letters that are vowels."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


def agrees(texts, reference):
    """Whether the reference's last word is in the response; does not apply without a reference."""
    return [None if one is None else float(one.split()[-1] in text) for text, one in zip(texts, reference)]
