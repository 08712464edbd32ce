"""The command `bridges`: what a person does with checkpoints from a shell.

Exit status: 0 done, 1 the two ends differ, 2 it cannot be done. An error is one screen on the standard error, or
`{"error": …}` on the standard output under `--json`; never a traceback. What a command prints is on the standard output,
progress on the standard error.

Nothing heavy is imported before a command runs: `bridges --help` needs no JAX.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from converters._failure import cannot, ended
from converters._given import aside, planned, proof
from converters._options import FILE, FRAMEWORK, JSON, MODELS, PART, PROOF, READING, TARGET, reader_options

DIFFERS = 1


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
    for stream in (sys.stdout, sys.stderr) if args is None else ():
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be in the terminal's encoding, nor in any
            stream.reconfigure(errors="backslashreplace")
    try:
        return bridges.main(given, prog_name="bridges", standalone_mode=False) or 0
    except click.exceptions.Exit as err:
        return err.exit_code
    except click.UsageError as err:
        return cannot(given, err.format_message(), err.ctx.get_usage() if err.ctx else "")
    except click.ClickException as err:
        return cannot(given, err.format_message())
    except (KeyboardInterrupt, click.Abort):
        return cannot(given, "Interrupted. Nothing was written that is not complete.")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of the pipe has gone; so has the need for more
        return 0
    except Exception as err:
        if os.environ.get("BRIDGES_TRACEBACK"):
            raise
        return ended(given, err)


def _print(as_json: bool, data: Callable[[], Any], text: Callable[[], str]) -> None:
    from converters._outline import printable

    # Names come from files; none of them is to steer the terminal.
    click.echo(json.dumps(data(), indent=1) if as_json else "\n".join(map(printable, text().split("\n"))))


@bridges.command()
@click.argument("file", type=FILE)
@click.option("--depth", type=click.IntRange(1), help="Show that many levels; count what lies deeper.")
@click.option("--all", "everything", is_flag=True, help="Do not fold numbered modules that are alike.")
@FRAMEWORK
@PART
@READING
@JSON
def inspect(
    file: str,
    depth: int | None,
    everything: bool,
    framework: str | None,
    part: str | None,
    src_format: str | None,
    namedtuples: Sequence[str],
    as_json: bool,
) -> None:
    """Show what FILE holds: its tree, with shapes, dtypes, kinds, sizes, and which layers they look like.

    No array is read. Example:

    \b
        bridges inspect params.pkl --depth 2
    """
    from converters._inspect import Inspection

    found = Inspection.of(file, src_format, framework, part, **reader_options(namedtuples))
    _print(as_json, found.to_dict, lambda: found.text(depth, not everything))


@bridges.command()
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@click.option("--specs-only", is_flag=True, help="Compare paths, shapes and dtypes; read no array.")
@click.option(
    "--tolerance", type=click.FloatRange(0), default=0.0, help="Of the largest number of an array. Default: 0."
)
@JSON
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
@click.argument("src", type=FILE)
@click.argument("dst", type=FILE)
@MODELS
@TARGET
@READING
@JSON
def plan(as_json: bool, **given: Any) -> None:
    """Show what `convert` with the same arguments would do: every entry, its way, and how exact it is.

    No array is read and nothing is written. Example:

    \b
        bridges plan params.pkl model.msgpack --into nets.py:model --input 'float32[1,8]'
    """
    job = planned(**given)

    def data() -> dict[str, Any]:
        made = json.loads(job.plan.to_json()) if job.plan is not None else None
        reasons = list(job.plan.reasons) if job.plan is not None else []
        return {
            "verdict": job.verdict,
            "reasons": reasons,
            "notes": list(job.notes),
            "nbytes": job.nbytes,
            "plan": made,
        }

    _print(as_json, data, lambda: str(job))


@bridges.command()
@click.argument("src", type=FILE)
@click.argument("dst", type=FILE)
@MODELS
@TARGET
@READING
@click.option("--back", is_flag=True, help="Go back: SRC is what was converted; its manifest says how.")
@click.option("--no-manifest", is_flag=True, help="Write no DST.manifest.json; there is then no way back.")
@JSON
def convert(back: bool, no_manifest: bool, as_json: bool, **given: Any) -> None:
    """Convert the checkpoint SRC to DST: planned in full first, then written one array at a time, whole or not at all.

    With neither a model nor a mapping nor --to, only the format changes. The state of an optimizer goes along. Examples:

    \b
        bridges convert params.pkl model.msgpack --into nets.py:model --input 'float32[1,8]'
        bridges convert params.pkl params.safetensors --to flat
        bridges convert --back model.msgpack params-again.pkl
    """
    from converters._back import convert_back
    from converters._convert import run
    from converters._progress import Progress

    if back:
        lacking = [
            name
            for name in ("from_model", "into", "inputs", "mapping", "to", "framework", "part", "optimizer")
            if given[name]
        ]
        if lacking:
            raise click.UsageError(
                f"--back takes everything from the manifest: leave out --{lacking[0].replace('_', '-')}."
            )
        with Progress("converting back", quiet=as_json) as progress:
            done = convert_back(
                given["src"], given["dst"], format=given["to_format"], overwrite=given["overwrite"], progress=progress
            )
    else:
        job = planned(**given)
        with aside(), Progress("converting", job.nbytes, quiet=as_json) as progress:
            done = run(job, overwrite=given["overwrite"], manifest=not no_manifest, progress=progress)
    _print(as_json, done.to_dict, lambda: str(done))


@bridges.command()
@click.argument("from_model", metavar="FROM", type=FILE)
@click.argument("into", metavar="INTO", type=FILE)
@click.option(
    "--input", "inputs", metavar="INPUT", type=FILE, multiple=True, help="An input of the models, as for convert."
)
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write the mapping there.")
@click.option("--overwrite", is_flag=True, help="Replace the file that is there.")
@JSON
@click.pass_context
def infer(
    ctx: click.Context,
    from_model: str,
    into: str,
    inputs: Sequence[str],
    output: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Find which variables of the model FROM are which of the model INTO, and write it as a mapping to read and edit.

    Both models are run on random values: what they compute decides, names only order the candidates. What could not be
    placed is listed with the reason. Without inputs only names, shapes and conventions are looked at. Exit status 1 if
    something is not placed or the models differ. Example:

    \b
        bridges infer old.py:forward new.py:model --input 'float32[1,8]' -o mapping.toml
    """
    from converters._infer import Inferred
    from converters._inputs import parse
    from converters._models import load
    from converters._progress import Steps

    args, kwargs = parse(inputs, 0)
    with aside(), Steps("inferring", quiet=as_json) as progress:
        found = Inferred.of(load(from_model), load(into), args, kwargs, progress.at)
    if output:
        found.write(output, overwrite)
    elif not as_json:
        from converters._outline import printable

        click.echo("\n".join(map(printable, found.summary.split("\n"))), err=True)
    _print(as_json, found.to_dict, lambda: f"{output}: {found.summary}" if output else found.toml)
    ctx.exit(0 if found.complete else DIFFERS)


@bridges.command()
@PROOF
@JSON
@click.pass_context
def verify(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
    """Prove that the model INTO computes with the converted variables what FROM_MODEL computes with SRC.

    Outputs, gradients and (with --optimizer) a training step are compared in several precisions. Where they differ, the
    first layer that differs is named, with the likely reason. DST is the converted file; without it the conversion is
    made in memory. Exit status 1 if they differ. Example:

    \b
        bridges verify params.pkl model.msgpack --from-model old.py:forward --into new.py:model --input batch.npz
    """
    with aside():
        found = proof(**given)
    _print(as_json, found.to_dict, lambda: str(found))
    ctx.exit(0 if found.ok else DIFFERS)


@bridges.command()
@PROOF
@click.option("-o", "--output", type=click.Path(dir_okay=False), required=True, help="The HTML file to write.")
@click.option("--overwrite", is_flag=True, help="Replace the file that is there.")
@JSON
@click.pass_context
def report(ctx: click.Context, /, output: str, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Verify, and write what was found as a page that needs no network: both trees side by side, every check.

    Exit status 1 if the models differ. Example:

    \b
        bridges report params.pkl --from-model old.py:forward --into new.py:model --input batch.npz -o report.html
    """
    from converters._atomic import replacing

    with aside():
        found = proof(**given)
    with replacing(output, overwrite) as temporary:
        temporary.write_text(found.html(), "utf-8")
    _print(as_json, lambda: {"report": output, "verdict": found.verdict}, lambda: f"{output}: {found.verdict}")
    ctx.exit(0 if found.ok else DIFFERS)


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
