"""What every command has: ``--import``, ``--overwrite``, ``--debug``, and no option twice."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from dynamicvit.errors import InputError
from dynamicvit.utils.outputs import rules
from dynamicvit.utils.plugins import import_plugin, load_plugins
from dynamicvit.utils.words import shortened
from dynamicvit_command import without_types

_MORE = "Extensions and errors"
_IMPORT = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="Import a module that registers families or methods; may be repeated.",
        rich_help_panel=_MORE,
    ),
]
_OVERWRITE = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that dynamicvit did not write.")
]
_DEBUG = Annotated[
    bool, typer.Option("--debug", help="Print the traceback of an error.", rich_help_panel=_MORE)
]

#: Types as ``--help`` calls them.
_TYPES: dict[Any, str] = {int: "NUMBER", float: "NUMBER", Path: "PATH"}

#: Options that name what is written; all others may name what is read.
_WRITTEN = {"--output", "--json", "--plot", "--save-kept"}

#: The largest number of any option, and of some: more takes all memory, or ends the process.
_MOST = 1 << 20
_MOST_OF = {"seed": (1 << 32) - 1, "threads": 1 << 8, "workers": 1 << 8}


class Command(TyperCommand):
    """A command that replaces none of its inputs, and no files of others.

    It refuses an option given twice, of which click would take the last.
    """

    def get_params(self, ctx: Any) -> Any:
        """All options and arguments."""
        return without_types(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        """Run the command under the rules for its outputs."""
        with rules(self._inputs(ctx), overwrite=ctx.params["overwrite"]):
            return super().invoke(ctx)

    def _inputs(self, ctx: Any) -> Iterator[str]:
        """All that may name a file to read."""
        for parameter in self.params:
            if _WRITTEN.isdisjoint(parameter.opts):
                value = ctx.params.get(parameter.name)
                for each in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(each, str | os.PathLike):
                        yield os.fspath(each)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line.

        Raises:
            InputError: naming the option and its values.
        """
        given = list(args)
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option in order:
            single = option.param_type_name == "option" and not option.multiple
            if single and not getattr(option, "is_flag", False) and order.count(option) > 1:
                values = " and ".join(_values(given, option.opts))
                raise InputError(f"{max(option.opts, key=len)} is given twice, {values}: give one")
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            for each in value if isinstance(value, list | tuple) else [value]:
                _check_number(parameter, each)
        return rest


def _check_number(parameter: Any, value: Any) -> None:
    """Refuse a number that no command can use; what else it may be, the command knows."""
    most = _MOST_OF.get(parameter.name, _MOST)
    if isinstance(value, int | float) and not abs(value) <= most:
        option = max(parameter.opts, key=len)
        raise InputError(f"{option} {shortened(value)}: give a finite number, at most {most:,}")


def _values(words: list[str], names: list[str]) -> list[str]:
    """What follows an option's names."""
    found = []
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            found.append(value if equals else " ".join(words[place + 1 : place + 2]))
        elif word[:1] == "-" and word[:2] in names:  # -oFOLDER
            found.append(word[2:])
    return found


def with_common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a command with the options of every command."""

    @wraps(function)
    def command(*args: Any, imports: list[str] | None, **kwargs: Any) -> Any:
        load_plugins()
        for name in imports or ():
            import_plugin(name)
        common = {"overwrite", "debug"}  # Command and the program itself see to these
        return function(*args, **{name: kwargs[name] for name in kwargs.keys() - common})

    signature = inspect.signature(function, eval_str=True)
    parameters = dict(signature.parameters)
    for parameter in parameters.values():
        _name_type(parameter.annotation)
    for name, default, option in (
        ("overwrite", False, _OVERWRITE),
        ("imports", None, _IMPORT),
        ("debug", False, _DEBUG),
    ):
        parameters[name] = inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option
        )
    command.__signature__ = signature.replace(parameters=list(parameters.values()))
    command.__annotations__ = {name: each.annotation for name, each in parameters.items()}
    return command


def _name_type(annotation: Any) -> None:
    """Let ``--help`` show a plain word for the type of an option that names none."""
    kind, about = get_args(annotation)
    for each in (kind, *get_args(kind), *chain(*map(get_args, get_args(kind)))):
        if about.metavar is None and each in _TYPES:
            about.metavar = _TYPES[each]
