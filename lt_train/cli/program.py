"""What `lt-train` and `lt-sweep` share: exit codes, signals, log output and the options of every command.

Exit codes: 0 done, 1 failed, 2 invalid input, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from lt_train.core.errors import LongtailError, SpecError, StorageError, first_line

EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 invalid input, 130 interrupted."

KIND = "KIND [NAME=VALUE]..."
"""Metavar of options that take a component and its parameters as several words."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
AllowImport = Annotated[
    list[str],
    typer.Option(
        "--allow-import",
        metavar="MODULE",
        help="Also use the components of this module or package. Its code is executed. May be repeated.",
        show_default=False,
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print debug messages too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors to standard error.")]

_LOGGERS = ("lt_train", "sweeps")
_log = logging.getLogger(__name__)


class Program(TyperGroup):
    """The root command: turns errors and signals into messages and exit codes."""

    interrupted: ClassVar[str] = "interrupted"

    @staticmethod
    def on_sigterm(number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM like Ctrl-C."""
        raise KeyboardInterrupt

    def invoke(self, ctx: Any) -> Any:
        """Run a command and exit with its code."""
        signal.signal(signal.SIGTERM, self.on_sigterm)
        with _log_to_stderr():
            try:
                code = super().invoke(ctx)
                sys.stdout.flush()  # here, where a closed pipe is still handled
            except SpecError as error:
                code = error.exit_code
                _log.error("%s", "\n".join(error.problems))
            except LongtailError as error:
                code = error.exit_code
                _log.error("%s: %s", ctx.info_name, error)
            except KeyboardInterrupt:
                code = 130
                _log.error("%s: %s", ctx.info_name, self.interrupted)
            except BrokenPipeError:  # the reader of our output has exited, as in `| head`
                code = 1
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            except OSError as error:
                code = StorageError.exit_code
                place = "" if error.filename is None else f"cannot access {error.filename}: "
                _log.error("%s: %s%s", ctx.info_name, place, error.strerror or first_line(error))
                _log.debug("the error in full:", exc_info=True)
        raise typer.Exit(code or 0)


class Command(TyperCommand):
    """A command whose component options take several words: `--dataset KIND NAME=VALUE NAME=VALUE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line."""
        options = {name for param in self.params if param.metavar == KIND for name in param.opts}
        return super().parse_args(ctx, list(_repeated(args, options)))

    def invoke(self, ctx: Any) -> Any:
        """Run the command, or only record its parameters for `parse`."""
        if isinstance(ctx.obj, _Parsed):
            ctx.obj.update(ctx.params)
            return 0
        return super().invoke(ctx)


class _Parsed(dict[str, Any]):
    """The parameters of a command that is parsed and not run."""


def _repeated(words: Sequence[str], options: set[str]) -> Iterator[str]:
    """`--dataset a b c` as `--dataset a --dataset b --dataset c`, for the given options."""
    option, first = None, False
    for word in words:
        if word.startswith("-"):
            name = word.partition("=")[0]
            option, first = (name if name in options else None), word == name
            yield word
        else:
            if option is not None and not first:
                yield option
            first = False
            yield word


def group(cls: type[Program], help: str) -> typer.Typer:
    """The Typer application of a program: plain help texts, completion, no decorated tracebacks."""
    return typer.Typer(
        cls=cls,
        help=f"{help}\n\n{EXIT_CODES}",
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def command(
    app: typer.Typer, name: str, example: str, *, imports: bool = True
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Register a function as the command `name` of `app`; its docstring is the help text.

    Adds the options of every command: `--verbose`, `--quiet` and, with `imports`, `--allow-import`. The function gets
    the allowed packages if it has a parameter `allow_import`.
    """

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        signature = inspect.signature(function, eval_str=True)
        takes_packages = "allow_import" in signature.parameters

        @functools.wraps(function)
        def run(*, verbose: bool, quiet: bool, allow_import: Sequence[str] = (), **values: Any) -> int | None:
            _set_level(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
            if allow_import:
                _allow_imports(allow_import)
            if takes_packages:
                values["allow_import"] = list(allow_import)
            return function(**values)

        added: dict[str, tuple[Any, Any]] = {"allow_import": (AllowImport, [])} if imports else {}
        added |= {"verbose": (Verbose, False), "quiet": (Quiet, False)}
        parameters = {name: one for name, one in signature.parameters.items() if name != "allow_import"} | {
            name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in added.items()
        }
        run.__signature__ = signature.replace(parameters=[*parameters.values()])  # type: ignore[attr-defined]
        run.__annotations__ = {name: one.annotation for name, one in parameters.items()}
        app.command(name, cls=Command, epilog=f"\b\nExample:\n  {example}")(run)
        return function

    return register


def run_program(app: typer.Typer, name: str, argv: Sequence[str] | None) -> int:
    """Run a program and return its exit code; usage errors give 2.

    Args:
        app: the program's commands.
        name: of the program, as messages show it.
        argv: words of the command line; None for those of this process.
    """
    try:
        typer.main.get_command(app).main(args=argv, prog_name=name)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def parse(app: typer.Typer, name: str, argv: Sequence[str]) -> dict[str, Any]:
    """The parameters that a command line gives to its command, which is not run.

    Raises:
        ValueError: the command line is invalid; the message is what the program prints.
    """
    parsed, printed = _Parsed(), io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
            typer.main.get_command(app).main(args=list(argv), prog_name=name, obj=parsed)
    except SystemExit as ended:
        if ended.code:
            raise ValueError(printed.getvalue()) from None
    return dict(parsed)


def log_notes(notes: Iterable[str]) -> None:
    """Write notes on data or results to the log."""
    for note in notes:
        _log.info("note: %s", note)


def positive(value: float | None) -> float | None:
    """Option callback: a finite number above 0, or none."""
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"must be above 0, got {value}")
    return value


def user_path(text: str) -> Path:
    """A path in which `~` is the home directory."""
    return Path(text).expanduser()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(importlib.metadata.version("longtail-sweeps"))
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


def _allow_imports(packages: Sequence[str]) -> None:
    from lt_train.core.plugins import ALLOWED_VARIABLE

    os.environ[ALLOWED_VARIABLE] = ",".join(packages)
    sys.path.append(os.getcwd())  # last, so that no file here shadows a library


class _Stderr(logging.Handler):
    """Writes plain messages to standard error; those that cannot be written, as on a full disk, are dropped."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        with contextlib.suppress(OSError):
            print(f"{prefix}{self.format(record)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    handler, loggers = _Stderr(), [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False  # libraries add handlers to the root logger, which would print each message twice
    _set_level(logging.INFO)
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


def _set_level(level: int) -> None:
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(level)
