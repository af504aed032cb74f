"""The errors that qpatch raises. Every message says what is wrong and what to do."""


class QpatchError(ValueError):
    """Base class: catch this to catch every error that qpatch raises on purpose."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows in place of a traceback: the message alone, because it says what to do."""
        return [f"{type(self).__name__}: {self}"]


class InputError(QpatchError):
    """Images, labels, networks or arguments that do not fit the contract of a public function."""


class ParameterError(QpatchError):
    """An unknown or ill-typed parameter of a notebook, profile, attack or quantizer."""


class DataError(QpatchError):
    """Data that is missing, truncated, or whose checksum is not the expected one."""


class StoreError(QpatchError):
    """A stored artefact that is damaged, or a folder that cannot be written."""


def one_of(value, allowed, what: str):
    """Return `value` if it is in `allowed`; otherwise raise a ParameterError that lists the choices.

    Args:
        value: what the caller asked for.
        allowed: the valid choices, in the order in which to show them.
        what: the noun for the message, for instance "bit-width".
    """
    allowed = list(allowed)
    if value not in allowed:
        import difflib

        near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ParameterError(f"unknown {what} {value!r}; choose one of {', '.join(map(str, allowed))}.{hint}")
    return value
