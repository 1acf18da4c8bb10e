"""Makes a model's text safe to print on a terminal."""

# a model's text must not move the cursor or change colors
VISIBLE: dict[int, str | None] = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160))}
VISIBLE |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): None}
