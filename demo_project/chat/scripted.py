"""The assistant's answers, in place of a language model. Like the answers of real models, they contain Markdown."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from django.conf import settings

from reliable_cable.runs.exceptions import RunFailed

#: Paragraphs of answers, by patterns of the prompts that they answer.
PARAGRAPHS = {
    r"offset|number|position": (
        "Every message of a stream has a number, its **offset**. The first one has 1, and there are no holes. A page "
        "remembers the last number that it saw:\n\n```js\n{ epoch: 'x7f2', offset: 42 }\n```\n\nSo after a break it "
        "can say exactly where it stopped, and the server can tell whether something is missing."
    ),
    r"epoch|restart": (
        "An **epoch** names one life of a stream's numbering. If the numbering ever had to begin again, the epoch "
        "changes with it, and a position from the old epoch is never mistaken for one of the new."
    ),
    r"cut|lost|lose|reconnect|offline|train": (
        "When a connection breaks, nothing is lost, because the stream keeps its messages:\n\n1. The page reconnects, "
        "and names its session and its positions.\n2. It is sent what it missed, *in order*.\n3. Then it is sent what "
        "is new.\n\nYou can try it now: cut the connection while this answer is being written."
    ),
    r"presence|who|member": (
        "**Presence** is kept by expiry. Each connection renews its members every few seconds. A member that is not "
        "renewed leaves, with one event, even if the server that held the connection was killed."
    ),
    r"token|stream|answer|model|llm": (
        "A task writes this answer, and belongs to no connection. It is a *run*:\n\n- Its text is saved once a "
        "second.\n- Its stream, `run:<id>`, has what is new.\n- A page that comes in the middle gets the text so far, "
        "and then the rest.\n\nAnswers may contain HTML, like <b onclick=\"alert('!')\">this</b>; the page shows it "
        "as text."
    ),
}
GENERAL = (
    "Hello! I am a small scripted assistant: I know a few things about reliable streams, and I repeat them patiently. "
    "Ask me about *offsets*, *epochs*, *lost connections*, *presence*, or how this answer reaches you."
)
CLOSING = "That is all I know about it. Ask me something else, or the same again: I never grow tired."
FAILING = "This one goes well for a while, and then, as real models do at times, it"


def words_of_answer(prompt: str) -> Iterator[str]:
    """Yield an answer word by word, `DEMO_TOKEN_DELAY` seconds apart. The same prompt always has the same answer.

    Raises:
        RunFailed: the prompt has a word that begins with "fail".
    """
    fails = re.search(r"\bfail", prompt, re.IGNORECASE)
    found = [text for pattern, text in PARAGRAPHS.items() if re.search(pattern, prompt, re.IGNORECASE)]
    text = FAILING if fails else "\n\n".join([*(found or [GENERAL]), CLOSING])
    for word in re.findall(r"\S+\s*", text):
        time.sleep(settings.DEMO_TOKEN_DELAY)
        yield word
    if fails:
        raise RunFailed("The model is not available; please try again.")
