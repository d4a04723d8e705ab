"""The flags that all experiments have, and how a command that fails ends.

Absl keeps flags in one table for the whole process: with one definition here, any of
the mains can be imported beside any other.
"""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment, and what follows a colon chooses among its forms: "
    "FILE.py:method=granet,sparsity=0.95",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where results and the record go.")
VERBOSE = flags.DEFINE_integer("verbose", 0, "1 logs what libraries do, too.")


def refusal(message: str) -> SystemExit:
    """Returns what to raise where a command ends with one sentence and code 2."""
    print(f"error: {message}", file=sys.stderr)
    return SystemExit(2)


def _parse(arguments: Sequence[str]) -> list[str]:
    """Parses flags; a mistake gives one sentence instead of a traceback."""
    try:
        return flags.FLAGS(list(arguments))
    except (AttributeError, KeyError) as error:  # of a locked ConfigDict
        raise refusal(_unknown_key(str(error))) from None
    except (ValueError, TypeError, OSError, flags.Error) as error:
        # A config file that raises comes with its traceback, the reason on the last
        # line.
        lines = str(error).strip().split("\n")
        reason = lines[-1] if "Traceback" in str(error) else lines[0]
        raise refusal(reason.removeprefix("ValueError: ")) from None


def _unknown_key(text: str) -> str:
    """Makes a sentence of what ml_collections says of a key that does not exist."""
    words = re.findall(r"\w+", text.replace(r"\n", " "))
    near = (
        f"; did you mean {words[4]!r}?" if words[1:4] == ["Did", "you", "mean"] else ""
    )
    return f"config has no key {words[0]!r}{near or '.'}"


def run(experiment: Callable[[ConfigDict, str], Any]) -> None:
    """Runs an experiment of the configuration and the workdir on the command line.

    Exits with 2 and one sentence where a flag, the configuration, a folder or the data
    is refused, and with 130 on Ctrl-C, after which the same command goes on.
    """

    def main(arguments: Sequence[str]) -> None:
        if len(arguments) > 1:
            raise refusal(f"only flags are understood; got {list(arguments[1:])}.")
        config, workdir = CONFIG.value, WORKDIR.value
        if config is None or workdir is None:
            raise refusal("--config=FILE and --workdir=DIR must be given.")
        try:
            config.lock()
        except OSError as error:  # the file that --config names is not there
            reason = str(error).strip().split("\n")[-1].strip()
            raise refusal(f"config cannot be read: {reason}") from None
        if not VERBOSE.value:  # Orbax tells of every file at level INFO
            logging.set_verbosity(logging.WARNING)
        try:
            experiment(config, workdir)
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on from here.", file=sys.stderr)
            raise SystemExit(130) from None
        except (ValueError, OSError) as error:
            if VERBOSE.value:
                raise
            raise refusal(str(error)) from None

    app.run(main, flags_parser=_parse)
