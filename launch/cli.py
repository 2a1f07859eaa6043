"""What every entry point does around its work: flags, logging, one-sentence errors."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging
from jaxlib import version as jaxlib_version
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import is_config_flag

from launch import compilation_cache, log


class _PathParser(flags.ArgumentParser):
    syntactic_help = "a path, local or gs://"

    def parse(self, argument: str) -> str:
        from var_jax.paths import resolve

        return str(resolve(argument)) if argument else argument


def define_path(name: str, default: str | None, help: str) -> flags.FlagHolder[str]:
    """A flag that names a place in the ways that `paths.resolve` knows; '' is none."""
    return flags.DEFINE(_PathParser(), name, default, help, serializer=flags.ArgumentSerializer())


_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the whole traceback of an error.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0; found by itself on Cloud TPU."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.", 1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", 0)
_SINGLE_HOST = flags.DEFINE_bool("single_host", False, "Do not join other hosts.")
_COMPILATION_CACHE = define_path(
    "compilation_cache",
    None,
    "Folder of compiled programs, so that a restart need not compile; '' is none. By default "
    "below ~/.cache/var_jax, at most 4 GiB; with several processes WORKDIR/.compiled.",
)

flags.disclaim_key_flags()  # What the functions here define is the command's, in its --help too.

#: Flags in which the hosts of one run differ, or may.
_PER_PROCESS = ("process_id", "coordinator", "num_processes", "single_host", "traceback")

#: Errors whose message is meant for the user; anything else is a bug and shows its traceback.
_USER_ERRORS = (ValueError, KeyError, OSError)

#: What flags may say that floating point images span, where a file leaves it open.
VALUE_RANGES = ("-1..1", "0..1", "0..255")

_ROOT = pathlib.Path(__file__).parents[1]

_CPU_LIBRARY_FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def prefer_fast_cpu_convolutions() -> None:
    """On CPUs, XLA's own convolutions in place of YNNPACK's, the default. With jaxlib 0.10 these,
    and above all their gradients, take up to 2.7 times as long; with 0.12 as long, but they are
    less exact. Call it before JAX compiles anything.

    The two round differently. The choice hangs on the machine and not on what is installed there,
    so that the packages for the tests change no number of a run.
    """
    # A flag that a library does not know ends the process: name it only to those that do.
    known = (0, 10) <= jaxlib_version.__version_info__[:2] <= (0, 12)
    before = os.environ.get("XLA_FLAGS", "")
    if known and _CPU_LIBRARY_FLAG not in before and not _tpu_reads_flags():
        os.environ["XLA_FLAGS"] = f"{before} {_CPU_LIBRARY_FLAG}=-individual_convolution".strip()


def _tpu_reads_flags() -> bool:
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not importlib.util.find_spec("libtpu"):
        return False
    from var_jax.parallel import distributed

    return distributed.has_tpu_chips()


def run(main: Callable[..., None], *, words: Sequence[str] = (), on_cpu: bool = False) -> None:
    """Parses flags and runs `main`; expected errors end with one line and exit status 2.

    Args:
      main: is given what stands in the command line without a flag.
      words: what those are, in this order.
      on_cpu: leave the accelerators to others; on a TPU only one process can hold it.
    """

    def guarded(argv: list[str]) -> None:
        given = argv[1:]
        if len(given) > len(words):
            where = f"other options than {' and '.join(words)} are" if words else "every option is"
            raise app.UsageError(f"Unknown argument {given[len(words)]!r}; {where} --flags.")
        if len(given) < len(words):
            raise app.UsageError(f"Give {words[len(given)]}.")
        log.show()
        try:
            _resolve_config_paths()
            compilation_cache.use_local(_COMPILATION_CACHE.value)
            main(*given)
        except (*_user_errors(), AssertionError, RuntimeError) as error:
            message = _message(error)
            if _TRACEBACK.value or message is None:
                raise
            print(f"Error: {message}", file=sys.stderr)
            sys.exit(2)

    # Without an accelerator the TPU plugin prints pages about its absence.
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    if on_cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    prefer_fast_cpu_convolutions()
    if words:
        flags.FLAGS.set_gnu_getopt(True)  # flags may stand behind them
    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """Ends with one sentence where a flag or the config is wrong."""
    has_config = "config" in flags.FLAGS and is_config_flag(flags.FLAGS["config"])
    if has_config:
        flags.FLAGS["config"].parser = _ConfigParser(flags.FLAGS["config"].parser)
    try:
        rest = flags.FLAGS(argv)
        if has_config and flags.FLAGS["config"].value is not None:
            from var_jax import build

            build.check_config(flags.FLAGS["config"].value)
    except (flags.Error, ValueError) as error:
        if "--traceback" in argv:
            raise
        print(f"Error: {'; '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
    return rest


def find_config(path: str) -> str:
    """Where the config FILE[:VARIANT] lies; configs/... is also found away from a clone.

    Raises:
      ConfigError: there is none.
    """
    from var_jax import build

    file, colon, variant = os.path.expanduser(path).partition(":")
    places = [file]
    if pathlib.PurePath(file).parts[:1] == ("configs",):
        places += [str(root / file) for root in (_ROOT / "var_jax", _ROOT)]
    for place in places:
        if os.path.isfile(place):
            return f"{place}{colon}{variant}"
    raise build.ConfigError(f"There is no config file {file}; configs/ has examples.")


class _ConfigParser(flags.ArgumentParser):
    """Reads --config=FILE[:VARIANT] and makes room for each --config.<key>=<value>.

    Every key that is known can be set, also one that the file leaves out.
    """

    def __init__(self, parser: flags.ArgumentParser) -> None:
        self._parser = parser

    def parse(self, path: str) -> ConfigDict:
        from var_jax import build

        path = find_config(path)
        try:
            config = self._parser.parse(path)
        except (TypeError, ValueError) as error:
            # The flag's own text holds a whole traceback.
            raise build.ConfigError(str(error.__context__)) from None
        given = {}
        for arg, following in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=True):
            if match := re.match(r"--?(?:no)?config\.([^=\[]+)(?:[^=]*=(.*))?", arg, re.DOTALL):
                given[match[1]] = following if match[2] is None else match[2]
        build.make_room(config, given)
        return config


@contextlib.contextmanager
def session(
    workdir: str | None, data_paths: Sequence[str] = (), config: ConfigDict | None = None
) -> Iterator[Callable[[int], bool]]:
    """Joins all hosts, checks them, and yields what tells after each step whether to stop.

    All hosts must have been given the same flags and the same config.

    Args:
      workdir: every host must be able to write there; None if nothing is written.
      data_paths: every host must be able to read them.
      config: of the command, if it has one.
    """
    from var_jax import build
    from var_jax.parallel import distributed

    agree = _given_flags()
    if config is not None:
        settings = build.flat(config)
        agree |= {f"setting {path}": repr(value) for path, (value, _) in settings.items()}
    distributed.initialize(
        workdir=workdir,
        data_paths=data_paths,
        agree=agree,
        coordinator=_COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
        skip=_SINGLE_HOST.value,
    )
    compilation_cache.use_shared(_COMPILATION_CACHE.value, workdir)
    with distributed.StopSignal() as signal:
        yield signal.requested


def scored(output: str | None, score: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """What all hosts score together, and process 0 writes as JSON; None on the others."""
    from var_jax import paths

    file = paths.resolve(output) if output else None
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    with session(str(file.parent) if file is not None else None):
        values = score()
    import jax

    if jax.process_index():
        return None
    if file is not None:
        paths.write_json(file, values)
    return values


def on_one_host() -> None:
    """What a command calls in place of `session` that does not join other hosts, nor waits for
    them: where there are some it ends with a sentence."""
    from var_jax.parallel import distributed

    if (_NUM_PROCESSES.value or 1) > 1:
        raise ValueError("This command runs on one host; leave out --num_processes.")
    distributed.check_one_host()


def _given_flags() -> dict[str, str]:
    """This command's flags that all hosts must have alike, by what to call them in an error."""
    found = {}
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        for flag in defined:
            of_config = flag.name == "config" or flag.name.startswith("config.")
            ours = module == sys.argv[0] or module.startswith("launch.")
            if ours and not of_config and flag.name not in _PER_PROCESS:
                found[f"flag --{flag.name}"] = repr(flag.value)
    return found


def _resolve_config_paths() -> None:
    configs = [flags.FLAGS[name].value for name in flags.FLAGS]
    for config in configs:
        if isinstance(config, ConfigDict):
            from var_jax import build

            build.resolve_paths(config)


def _message(error: Exception) -> str | None:
    """What to tell the user; None for a bug, which shows its traceback."""
    if isinstance(error, _user_errors()):
        return error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    # JAX says that there is no device by a RuntimeError, or by an assertion without a word.
    if str(error) and not str(error).startswith("Unable to initialize backend"):
        return None
    import jax

    try:
        jax.devices()
        return None
    except (AssertionError, RuntimeError) as problem:
        reason = f" ({' '.join(str(problem).split())})" if str(problem) else ""
    asked = os.environ.get("JAX_PLATFORMS", "")
    return (
        f"JAX finds no device for JAX_PLATFORMS={asked!r}{reason}; set JAX_PLATFORMS=cpu, or "
        "install JAX for this machine's accelerator (jax[tpu], jax[cuda13])."
    )


def _user_errors() -> tuple[type[Exception], ...]:
    from var_jax.checkpoint.files import CheckpointError
    from var_jax.parallel.distributed import PreflightError
    from var_jax.train.log import TrainingDiverged

    return (*_USER_ERRORS, CheckpointError, PreflightError, TrainingDiverged)


def define_inception_flags() -> tuple[flags.FlagHolder[str], flags.FlagHolder[str]]:
    """--inception and --inception_sha256."""
    return define_path("inception", None, "pt_inception weights (.pth)."), flags.DEFINE_string(
        "inception_sha256", None, "Hash, or its first digits, that the weights must have."
    )


def define_allow_mismatched_reference() -> flags.FlagHolder[bool]:
    """--allow_mismatched_reference."""
    return flags.DEFINE_bool(
        "allow_mismatched_reference", False, "Compare with a reference that does not fit."
    )


def define_sampling_flags() -> None:
    """--cfg, --cfg_schedule, --top_k, --top_p, --temperature, --smooth, --aspect over a run's
    settings, and --sampling for all others."""
    flags.DEFINE_list("cfg", None, "Guidance: one number, or one weight per level.")
    flags.DEFINE_enum(
        "cfg_schedule", None, ["linear", "constant"], "linear: cfg * k / (K - 1) at level k."
    )
    flags.DEFINE_list("top_k", None, "Most likely tokens kept, 0 for all; or one number per level.")
    flags.DEFINE_list("top_p", None, "Probability kept, 0 or 1 for all; or one number per level.")
    flags.DEFINE_list("temperature", None, "Divides the logits; or one number per level.")
    flags.DEFINE_bool("smooth", None, "Gumbel-softmax average of codes, for looks only.")
    flags.DEFINE_string("aspect", None, "Width and height, such as 16:9, where a model can.")
    flags.DEFINE_string(
        "sampling", None, "Further keys of config.sampling as JSON, such as another decoder."
    )


def sampling_settings() -> dict[str, Any]:
    """What the flags of sampling say, as keys and values of config.sampling."""
    settings = {}
    if flags.FLAGS["sampling"].value:
        settings.update(json_section("sampling", flags.FLAGS["sampling"].value))
    for name, kind in (("cfg", float), ("top_k", int), ("top_p", float), ("temperature", float)):
        given = flags.FLAGS[name].value
        if given is not None:
            found = numbers(name, given, kind)
            settings[name] = found[0] if len(found) == 1 else found
    for name in ("cfg_schedule", "smooth", "aspect"):
        if flags.FLAGS[name].value is not None:
            settings[name] = flags.FLAGS[name].value
    return settings


def decoder(config: ConfigDict, tokenizer_fingerprint: str) -> Any:
    """The checkpoint's decoder with the flags over its settings, printed level by level: a
    `build.LoadedDecoder`."""
    from var_jax import build
    from var_jax.evaluation.generated.sampling_run import describe_decoder

    made = build.load_decoder(config, tokenizer_fingerprint, sampling_settings())
    described = describe_decoder(made.decoder, build.pyramid(config))
    for name, values in described.items():
        if name.endswith("_by_level"):
            same = len(set(values)) == 1
            shown = values[0] if same else ", ".join(f"{value:.3g}" for value in values)
            logging.info("%s by level: %s.", name.removesuffix("_by_level"), shown)
    return made


def parse_labels(values: list[str], num_classes: int) -> Any:
    """Labels int32 [n] from text; -1 becomes num_classes, 'no class'."""
    import numpy as np

    labels = numbers("labels", values, int)
    for label in labels:
        if not -1 <= label < num_classes:
            raise ValueError(
                f"--labels has {label}, but the classes are 0..{num_classes - 1}, and -1 for 'no "
                "class'."
            )
    return np.array([num_classes if label < 0 else label for label in labels], np.int32)


def json_section(name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--{name} is {text!r}, which is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ValueError(f"--{name} is {text!r}; it must be JSON of keys and values.")
    return found


def numbers(name: str, values: list[str], kind: type) -> tuple[Any, ...]:
    """The numbers of a flag's list; raises ValueError where one is none."""
    try:
        return tuple(kind(v) for v in values)
    except ValueError:
        raise ValueError(
            f"--{name} takes numbers separated by commas, got {','.join(values)!r}."
        ) from None
