"""Which values of a validation's metric are better: the lower or the higher ones."""

BETTER = {  # by mode, the metrics of validations that can select; for others, such as a length, neither is better
    "min": ("loss", "perplexity", "bits_per_byte", "ece", "wrong_name", "reverse_kl", "forward_kl", "response_kl"),
    "max": ("accuracy", "accuracy_length_matched", "margin", "score", "gold", "correct"),
}


def mode_of(metric: str) -> str | None:
    """min or max, whichever is better; None for a metric that is not listed. metric: with or without val/."""
    return next((mode for mode, names in BETTER.items() if metric.removeprefix("val/") in names), None)
