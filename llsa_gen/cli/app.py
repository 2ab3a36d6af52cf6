# SPDX-License-Identifier: Apache-2.0
"""The program ``llsa-gen``: its verbs, its help and the one place where errors end it."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Sequence
from typing import Any

import click

from llsa_gen import __version__
from llsa_gen.cli import bench, build, check, clean, demo, doctor, plan, tune
from llsa_gen.cli import list as list_verb
from llsa_gen.cli.failure import EXIT_CODES, EXIT_OK, EXIT_USAGE, close_stdout, noted_interrupts, report
from llsa_gen.environment import DEBUG_VARIABLE
from llsa_gen.errors import did_you_mean

VERBS = (build, plan, check, list_verb, doctor, clean, demo, bench, tune)
"""The modules of the verbs, in the order of the help."""

_HELP = """Generates specialised kernels for LLSA, trainable log-linear sparse attention, from a small specification.

\b
Examples:
  llsa-gen build --block 16 --k 8             generate and compile the kernels of one spec
  llsa-gen plan --levels 3 --tokens 262144    what would be built and what it costs
  llsa-gen list                               the specs of the catalogue
  llsa-gen doctor                             what this machine can compile and run
"""

_EPILOG = "\n".join(
    [
        "\b",
        "Exit codes:",
        *(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES),
        "",
        "\b",
        f"Environment: {DEBUG_VARIABLE}=1 shows tracebacks, LLSA_GEN_CACHE_DIR is the folder of compiled kernels,",
        "LLSA_GEN_BUILD=0 keeps calls from building kernels on first use, LLSA_GEN_TUNING is the folder of tuning",
        "records, and LLSA_GEN_TUNING=0 leaves them alone.",
    ]
)


class Program(click.Group):
    """A group whose every way to fail is one message and one documented exit status."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "llsa-gen",
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command line; ends the process unless ``standalone_mode`` is off, which returns the exit status."""
        words = list(sys.argv[1:] if args is None else args)
        with noted_interrupts() as interrupted:
            try:
                _prepare_streams()
                status = super().main(words, prog_name, complete_var, standalone_mode=False, **extra)
                sys.stdout.flush()
                code = status if isinstance(status, int) else EXIT_OK
            except SystemExit as error:
                code = self._exit(error, words)
            except BaseException as error:  # noqa: BLE001  # the last stop before the process ends
                code = _fail(KeyboardInterrupt() if interrupted.is_set() else error, words)
        if standalone_mode:
            sys.exit(code)
        return code

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the options before the verb; without anything at all, the help is the answer."""
        if not args:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(EXIT_USAGE)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the verb; a typing error gets the nearest one as a hint."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            hint = did_you_mean(args[0], self.commands) or f"the verbs are {', '.join(self.commands)}"
            raise click.UsageError(f"there is no verb {args[0]!r}: {hint}", ctx)
        return super().resolve_command(ctx, args)

    def _exit(self, error: SystemExit, words: list[str]) -> int:
        """The status of an exit asked for; click turns a closed pipe into one."""
        if isinstance(error.__context__, BrokenPipeError):
            return _fail(error.__context__, words)
        return error.code if isinstance(error.code, int) else EXIT_OK


def _fail(error: BaseException, words: list[str]) -> int:
    if isinstance(error, OSError):
        _drop_unwritable_stdout()
    options = words[: words.index("--")] if "--" in words else words
    return report(error, words, as_json="--json" in options)


def _drop_unwritable_stdout() -> None:
    """Gives up stdout where it cannot be written, or the interpreter would fail a second time when it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        close_stdout()


def _prepare_streams() -> None:
    """Lets every character through: a terminal that cannot show one gets an escape instead.

    Raises:
        OSError: There is no stdout. A missing stderr only means that nobody wants to read it.
    """
    if sys.stderr is None:
        sys.stderr = io.StringIO()
    if sys.stdout is None:
        raise OSError(errno.EBADF, "stdout is closed")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


@click.group(
    cls=Program,
    help=_HELP,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="llsa-gen")
def program() -> None:
    """The root of the command line."""


for _verb in VERBS:
    program.add_command(_verb.command)
