"""Options that several commands of `bridges` have, and the type of the names of files among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from converters._frameworks import FRAMEWORKS

Command = Callable[..., Any]


class Name(click.Path):
    """The name of a file, there or not, which shells complete."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; a variable of the shell may not be set.", param, ctx)
        return value


FILE = Name()
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


READING = together(
    click.option(
        "--format", "src_format", metavar="NAME", help="The file's format, where its content is not to decide."
    ),
    click.option(
        "--namedtuple",
        "namedtuples",
        metavar="MODULE.CLASS=FIELD,…",
        multiple=True,
        help="A NamedTuple of your own in a pickle, with its fields.",
    ),
)
FRAMEWORK = click.option(
    "--framework", type=click.Choice(list(FRAMEWORKS)), help="What SRC is of, where it does not show."
)
PART = click.option(
    "--part", metavar="PATH", help="Where in SRC the variables are ('0/params'), where it does not show."
)
MODELS = together(
    click.option(
        "--from-model", metavar="REF", type=FILE, help="The model that SRC is of: file.py:name or package.module:name."
    ),
    click.option("--into", metavar="REF", type=FILE, help="The model that the target is for."),
    click.option(
        "--input",
        "inputs",
        metavar="INPUT",
        type=FILE,
        multiple=True,
        help="An input of the models: 'float32[4,8]', 'int32[2,5]<1000', batch.npz, train=true.",
    ),
    click.option(
        "--mapping", metavar="FILE", type=FILE, help="A mapping (TOML); it goes before the shipped conventions."
    ),
    FRAMEWORK,
    PART,
)
TARGET = together(
    click.option("--to", type=click.Choice(list(FRAMEWORKS)), help="The target's framework, without --into."),
    click.option("--to-format", metavar="NAME", help="The target's format, where the ending of DST does not say."),
    click.option(
        "--optimizer",
        metavar="NAME",
        help="Whose state SRC holds, where SRC keeps no tuples (msgpack, Orbax): adam, … of optax, or file.py:name.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace what is at DST, once the new one is complete."),
)

PROOF = together(
    click.argument("src", type=FILE),
    click.argument("dst", type=FILE, required=False),
    MODELS,
    READING,
    click.option(
        "--train-from", metavar="REF", type=FILE, help="The model that SRC is of, in training mode; with --train-into."
    ),
    click.option("--train-into", metavar="REF", type=FILE, help="The model that the target is for, in training mode."),
    click.option(
        "--optimizer", metavar="NAME", help="Compare a training step, too: adam, sgd, … of optax, or file.py:name."
    ),
    click.option("--seed", type=int, default=0, help="For inputs of which only the shape is given. Default: 0."),
)


def reader_options(namedtuples: Sequence[str]) -> dict[str, Any]:
    """Returns the options of a format's reader."""
    classes = {}
    for text in namedtuples:
        name, equals, fields = text.partition("=")
        if not equals or not all(field.isidentifier() for field in fields.split(",")):
            raise click.UsageError(f"--namedtuple {text!r}: write my.module.TrainingState=params,state,opt_state")
        classes[name] = tuple(fields.split(","))
    return {"namedtuples": classes} if classes else {}
