"""What click refuses, said as every error is: what was got, what was expected, what to do."""

from __future__ import annotations

from typing import Final

import click
from click.core import ParameterSource

from warmer.errors import UsageError

_SERVE: Final = "serve_args"


def translate(exc: click.ClickException) -> UsageError:
    """Turn a refusal of click's into the error that `warmer` shows."""
    context = getattr(exc, "ctx", None)
    verb = "warmer" if context is None else context.command_path
    message, hint = _said(exc, context, verb)
    where = f"{verb} --help"
    return UsageError(message, reason="usage", hint=f"{hint}; {where}" if hint else where)


def _said(exc: click.ClickException, context: click.Context | None, verb: str) -> tuple[str, str]:
    """The message, and the hint beyond `--help`."""
    if isinstance(exc, click.NoSuchOption):
        meant = f"did you mean {' or '.join(exc.possibilities)}?" if exc.possibilities else ""
        own = context is not None and any(p.name == _SERVE for p in context.command.params)
        hint = "; ".join(filter(None, [meant, "flags of vllm serve come after --" if own else ""]))
        return f"got {exc.option_name}, expected an option of {verb}", hint
    if isinstance(exc, click.BadParameter) and exc.param is not None:
        return _of_value(exc, exc.param, context)
    if isinstance(exc, click.BadOptionUsage):
        many = "does not take" in exc.message
        got, expected = ("a value", "none") if many else ("no value", "one")
        return f"got {got} for {exc.option_name}, expected {expected}", ""
    return _of_words(exc.format_message().removesuffix("."), context)


def _of_value(
    exc: click.BadParameter, param: click.Parameter, context: click.Context | None
) -> tuple[str, str]:
    if isinstance(exc, click.MissingParameter):
        return f"got no {_name(param)}, expected one", _also(param, context)
    got, _, expected = exc.message.removeprefix("got ").partition(", expected ")
    if isinstance(param.type, click.types.BoolParamType):
        got, expected = got.partition(" is not a valid boolean")[0], "true or false"
    if expected:
        return f"got {_given(param, context)} {got}, expected {expected}", ""
    return f"got {_given(param, context)}: {got}, expected another value", ""


def _of_words(said: str, context: click.Context | None) -> tuple[str, str]:
    """What click has no class for, in every version that warmer runs with."""
    if said.startswith("No such command "):
        group = context.command if context is not None else None
        verbs = group.list_commands(context) if context and isinstance(group, click.Group) else []
        got = said.removeprefix("No such command ").split(". ")[0]
        return f"got {got}, expected a verb", ", ".join(verbs)
    if said.startswith("Got unexpected extra "):
        return f"got {said.removeprefix('Got unexpected ')}, expected no more words", ""
    return f"got words that mean nothing here ({said}), expected an option and its value", ""


def _name(param: click.Parameter) -> str:
    return (
        max(param.opts, key=len) if isinstance(param, click.Option) else param.human_readable_name
    )


def _given(param: click.Parameter, context: click.Context | None) -> str:
    """Name what gave the value: the option, its variable, or the key of the YAML file."""
    source = context and param.name and context.get_parameter_source(param.name)
    if source is ParameterSource.ENVIRONMENT:
        return str(param.envvar)
    if source is ParameterSource.DEFAULT_MAP:
        return f"{_name(param).lstrip('-')} in the file of --config:"
    return _name(param)


def _also(param: click.Parameter, context: click.Context | None) -> str:
    """Where else the value of an option may come from."""
    if not isinstance(param, click.Option):
        return ""
    file = context is not None and any(p.name == "config" for p in context.command.params)
    places = [f"the variable {param.envvar}", *(["a key in the file of --config"] if file else [])]
    return f"{' or '.join(places)} gives it too"
