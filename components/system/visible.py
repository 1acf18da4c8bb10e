"""Text of a model made safe to print in a terminal."""

# what a model writes must not move the cursor or change colours
VISIBLE: dict[int, str | None] = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160))}
VISIBLE |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): None}
