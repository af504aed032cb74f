"""How the workflow speaks to the user: whole lines, at once."""


def duration(seconds: float) -> str:
    """Seconds as a reader likes them: 7 s, 2 min 05 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def say(line: str) -> None:
    print(line, flush=True)
