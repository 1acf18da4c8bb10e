"""A generator that answers from a script, and remembers what it was asked."""

from components.prompting.technique import Answer, Answers, Query, Tokens


class Scripted:
    """Gives the script's answers in turn, texts or Answers. A prompt takes as many tokens as it has words in all, an
    answer as many as its own."""

    def __init__(self, *script):
        self.script, self.queries = [Answer(one) if isinstance(one, str) else one for one in script], []

    def __call__(self, query):
        self.queries.append(query)
        answers, self.script = self.script[: query.n], self.script[query.n :]
        assert len(answers) == query.n, "the script is over"
        read = sum(len(message["content"].split()) for message in query.messages)
        return Answers(answers, Tokens(read, sum(len(one.text.split()) for one in answers)))


def question(text="what color is fev ?", **settings):
    return Query([{"role": "user", "content": text}], **settings)
