"""What every command has: ``--import``, and no option twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dynamicvit.errors import InputError
from dynamicvit.utils.plugins import import_plugin, load_plugins

_IMPORT = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="Import a module that registers families or methods; may be repeated.",
        rich_help_panel="Extensions",
    ),
]


class Command(TyperCommand):
    """A command that refuses an option given twice, of which click would take the last."""

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
        return super().parse_args(ctx, args)


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


def with_imports(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a command, which first imports the modules of ``--import``."""

    @wraps(function)
    def command(*args: Any, imports: list[str] | None, **kwargs: Any) -> Any:
        load_plugins()
        for name in imports or ():
            import_plugin(name)
        return function(*args, **kwargs)

    signature = inspect.signature(function, eval_str=True)
    option = inspect.Parameter(
        "imports", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_IMPORT
    )
    parameters = {**signature.parameters, option.name: option}
    command.__signature__ = signature.replace(parameters=list(parameters.values()))
    command.__annotations__ = {name: each.annotation for name, each in parameters.items()}
    return command
