"""The command `bridges`: what a person does with checkpoints from a shell.

Exit status: 0 done, 1 the two ends differ, 2 it cannot be done. An error is one screen on the standard error, or
`{"error": …}` on the standard output under `--json`; never a traceback. What a command prints is on the standard output,
progress on the standard error.

Nothing heavy is imported before a command runs: `bridges --help` needs no JAX.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

DIFFERS, CANNOT = 1, 2
SCREEN = 40  # lines of an error

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class _Commands(click.Group):
    """The commands in the order in which a person meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="jax-bridges", message="%(package)s %(version)s")
def bridges() -> None:
    """Convert JAX checkpoints between Haiku, Flax Linen, Flax NNX and flat files, and prove it.

    \b
    Look at a file:          bridges inspect params.pkl
    Compare two:             bridges diff before.safetensors after.safetensors
    See what would happen:   bridges plan params.pkl --into nets.py:model --input 'float32[1,28,28,1]'
    Do it:                   bridges convert params.pkl model.msgpack --into nets.py:model --input 'float32[1,28,28,1]'
    Prove it:                bridges verify params.pkl --from-model old.py:forward --into nets.py:model --input …

    A command's own --help has more. Files: Haiku pickles, npz, Flax msgpack, Orbax, safetensors, by content.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # files are converted in NumPy; set it to verify on a device
    given = list(sys.argv[1:] if args is None else args)
    try:
        return bridges.main(given, prog_name="bridges", standalone_mode=False) or 0
    except click.exceptions.Exit as err:
        return err.exit_code
    except click.UsageError as err:
        return _cannot(given, err.format_message(), err.ctx.get_usage() if err.ctx else "")
    except click.ClickException as err:
        return _cannot(given, err.format_message())
    except (KeyboardInterrupt, click.Abort):
        return _cannot(given, "Interrupted. Nothing was written that is not complete.")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of the pipe has gone; so has the need for more
        return 0
    except Exception as err:
        if os.environ.get("BRIDGES_TRACEBACK"):
            raise
        return _cannot(given, _explained(err))


def _explained(err: Exception) -> str:
    known = sys.modules.get("bridges.core._errors")
    if known is not None and isinstance(err, known.BridgeError):
        return str(err)
    if isinstance(err, (OSError, MemoryError)):
        return f"{type(err).__name__}: {err}"
    return (
        f"{type(err).__name__}: {err}\nThis error was not foreseen. BRIDGES_TRACEBACK=1 in the environment shows where it"
        " arose; please report it."
    )


def _cannot(given: Sequence[str], text: str, usage: str = "") -> int:
    if "--json" in given:
        click.echo(json.dumps({"error": text}))
        return CANNOT
    lines = text.splitlines()
    if len(lines) > SCREEN:
        lines = [*lines[: SCREEN - 1], f"… and {len(lines) - SCREEN + 1} more lines; --json has them all"]
    from converters._outline import printable

    shown = "\n".join(map(printable, lines))
    click.echo(f"{usage}\n\n{shown}" if usage else f"bridges: {shown}", err=True)
    return CANNOT


def _print(as_json: bool, data: Callable[[], Any], text: Callable[[], str]) -> None:
    click.echo(json.dumps(data(), indent=1) if as_json else text())


@bridges.command()
@click.argument("file")
@click.option("--depth", type=click.IntRange(1), help="Show that many levels; count what lies deeper.")
@click.option("--all", "everything", is_flag=True, help="Do not fold numbered modules that are alike.")
@click.option("--format", "format_", metavar="NAME", help="The file's format, where its content is not to decide.")
@_JSON
def inspect(file: str, depth: int | None, everything: bool, format_: str | None, as_json: bool) -> None:
    """Show what FILE holds: its tree, with shapes, dtypes, kinds, sizes, and which layers they look like.

    No array is read. Example:

    \b
        bridges inspect params.pkl --depth 2
    """
    from converters._inspect import Inspection

    found = Inspection.of(file, format_)
    _print(as_json, found.to_dict, lambda: found.text(depth, not everything))


@bridges.command()
@click.argument("a")
@click.argument("b")
@click.option("--specs-only", is_flag=True, help="Compare paths, shapes and dtypes; read no array.")
@click.option(
    "--tolerance", type=click.FloatRange(0), default=0.0, help="Of the largest number of an array. Default: 0."
)
@_JSON
@click.pass_context
def diff(ctx: click.Context, a: str, b: str, specs_only: bool, tolerance: float, as_json: bool) -> None:
    """Compare two checkpoints, of any two formats: paths, shapes and dtypes, then values.

    Exit status 1 if they differ. Example:

    \b
        bridges diff before.msgpack after.safetensors --tolerance 1e-6
    """
    from bridges.core._flat import flatten
    from converters import formats
    from converters._diff import differences
    from converters._outline import printable
    from converters._progress import Progress

    here, there = (flatten(formats.read(end).tree) for end in (a, b))
    total = sum(getattr(x, "nbytes", 0) for x in here.values())
    with Progress("comparing", total, quiet=as_json) as progress:
        found = list(differences(here, there, values=not specs_only, tolerance=tolerance, progress=progress))
    same = f"{len(here)} entries are the same{' but for their values, which were not read' * specs_only}."

    def text() -> str:
        lines = [f"{printable(d.path)}: {printable(str(d))}" for d in found]
        return "\n".join([*lines, f"{len(found)} differences; a is {a}, b is {b}."]) if found else same

    from dataclasses import asdict

    _print(as_json, lambda: {"a": a, "b": b, "differences": list(map(asdict, found))}, text)
    ctx.exit(DIFFERS if found else 0)


@bridges.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete the commands and options.

    \b
        bridges completion bash >> ~/.bashrc
        bridges completion zsh >> ~/.zshrc
        bridges completion fish > ~/.config/fish/completions/bridges.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None, "click completes these three"
    click.echo(found(bridges, {}, "bridges", "_BRIDGES_COMPLETE").source())
