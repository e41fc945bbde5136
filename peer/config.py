"""The two configs: the organizer's, which becomes the manifest, and the node's, which may differ from peer to peer.

The idea: the manifest's own types say what a config may hold, so there is no second list of fields and bounds. A file
with several mistakes reports all of them at once (`ConfigErrors`). Whether task and rule take their parameters is
for task and rule to say, in the worker.
"""

from __future__ import annotations

import copy
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from crowdsurf.peer.config_reader import (
    CONFIG_BYTES_MAX,
    ConfigErrors,
    ConfigProblem,
    ConfigReader,
    check_value,
    fields_of,
    is_section,
    locate,
    mentions,
    place,
    plain_scalar,
    resolve,
)
from crowdsurf.protocol import limits
from crowdsurf.protocol.errors import MisuseError, Refusal
from crowdsurf.protocol.ids import Digest, PeerId, peer_id_from_public_key
from crowdsurf.protocol.manifest import (
    Manifest,
    decode_manifest,
    encode_manifest,
    manifest_problems,
)

FILLED_IN = ("organizer", "founders", "protocol_version", "task.dataset_digest")
"""Manifest fields that a config cannot set: `create` fills them in."""

PRESETS = ("digits", "text", "text-gpt2")
"""Configs that come with the program and are taken by name."""

ENVIRONMENT_PREFIX = "CROWDSURF_"

_SOMEBODY = peer_id_from_public_key(bytes(32))
"""Stands for organizer and founders while a config is checked without them."""


_STAND_INS: dict[str, dict[str, Any]] = {
    "task": {"name": "unnamed"},
    "optimizer": {"name": "sgd", "learning_rate": 1.0},
}


class _Unchecked(Manifest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A manifest whose rules across fields are not yet checked, so that all broken ones can be listed at once."""

    def __post_init__(self) -> None:
        """Nothing: `manifest_problems` is asked instead."""


@dataclass(frozen=True, slots=True)
class ConfigDraft:
    """A checked config that lacks only what `create` fills in."""

    source: str
    """File name, for messages."""
    values: Mapping[str, Any]
    """Nested plain values by field name; absent means the manifest's default."""
    lines: Mapping[str, int]
    """Line of every field in the file, by dotted path."""

    def build(
        self, organizer: PeerId, founders: Sequence[PeerId], dataset_digest: Digest, **overrides: object
    ) -> Manifest:
        """The manifest.

        `overrides` are values by dotted path that replace the file's, for example `steps=5` or
        `**{"rule.name": "mean", "rule.parameters": {}}`; None means not given. Raises ConfigErrors with every problem.
        """
        values = copy.deepcopy(dict(self.values))
        problems = []
        for path, value in overrides.items():
            if value is None:
                continue
            kind, problem = resolve(Manifest, path, FILLED_IN)
            if problem is None:
                value, problem = check_value(value, kind)
            if problem is None:
                place(values, path, value)
            else:
                problems.append(ConfigProblem("override", None, path, problem))
        draft = _assemble(values, organizer, founders, dataset_digest)
        problems += locate(manifest_problems(draft), self.source, self.lines)
        if problems:
            raise ConfigErrors(problems)
        try:
            return decode_manifest(encode_manifest(draft))
        except Refusal as refusal:
            raise ConfigErrors([ConfigProblem(self.source, None, "", refusal.detail)]) from refusal


def load_config(path_or_preset: str | Path) -> ConfigDraft:
    """Read an organizer's config from a YAML file, or a preset by its name.

    Raises ConfigErrors with every problem, and MisuseError if there is no such file or preset.
    """
    source, text = _read(path_or_preset)
    reader = ConfigReader(source, FILLED_IN)
    values = reader.read(text, Manifest)
    broken = {problem.field for problem in reader.problems}
    # A field in error stands at its default here, so what is said about it across fields would be a guess.
    across = locate(manifest_problems(_assemble(values, _SOMEBODY, (_SOMEBODY,), Digest(b""))), source, reader.lines)
    across = [problem for problem in across if not any(field and mentions(problem.text, field) for field in broken)]
    if reader.problems or across:
        raise ConfigErrors(reader.problems + across)
    return ConfigDraft(source, values, reader.lines)


def preset_text(name: str) -> str:
    """The YAML of one of PRESETS, with its explanations."""
    return importlib.resources.files("crowdsurf.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def _assemble(
    values: Mapping[str, Any], organizer: PeerId, founders: Sequence[PeerId], dataset_digest: Digest
) -> _Unchecked:
    """Plain values as a manifest. Required values that are missing get a stand-in; the reader has reported them."""
    fields: dict[str, Any] = {"name": "unnamed", **values}
    for name, info in fields_of(Manifest).items():
        if is_section(info.type):
            fields[name] = info.type(**{**_STAND_INS.get(name, {}), **values.get(name, {})})
    fields["task"] = msgspec.structs.replace(fields["task"], dataset_digest=bytes(dataset_digest))
    return _Unchecked(organizer=organizer, founders=tuple(founders), **fields)


def _read(path_or_preset: str | Path) -> tuple[str, str]:
    """The name to show and the text of a preset or file. Raises MisuseError."""
    if str(path_or_preset) in PRESETS:
        return f"{path_or_preset}.yaml", preset_text(str(path_or_preset))
    path = Path(path_or_preset)
    if not path.exists() and not path.suffix:
        raise MisuseError(f"there is no preset or file named {path}; the presets are {', '.join(PRESETS)}")
    return str(path), _read_file(path)


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise MisuseError(f"cannot read the config {path}: {error.strerror}") from error
    if len(data) > CONFIG_BYTES_MAX:
        raise MisuseError(f"{path} is no config: it has more than {CONFIG_BYTES_MAX} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MisuseError(f"{path} is no config: it is not UTF-8 text") from error


Address = Annotated[
    str,
    msgspec.Meta(
        max_length=limits.ADDRESS_BYTES_MAX,
        pattern=r"^/[!-~]+\Z",
        description="a multiaddress such as /ip4/203.0.113.7/tcp/31337",
    ),
]
"""Text of a multiaddress; the transport understands it, or says which one it does not."""
Addresses = Annotated[tuple[Address, ...], msgspec.Meta(max_length=limits.ADDRESSES_PER_PEER_MAX)]


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may differ from peer to peer: no field here changes what honest peers compute or decide."""

    home: Annotated[str, msgspec.Meta(min_length=1, max_length=4096, description="a folder")] = "~/.crowdsurf"
    """Folder of the key, the journals and the models; `~` is the user's home."""
    listen: Addresses = ("/ip4/0.0.0.0/tcp/0",)
    """Multiaddresses to listen on; port 0 takes a free one."""
    announce: Addresses = ()
    """Multiaddresses to tell others instead, where a router forwards a port; empty: what the transport finds."""
    device: Annotated[
        str, msgspec.Meta(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)\Z", description="auto, cpu, cuda or cuda:NUMBER")
    ] = "auto"
    """`auto` takes CUDA when there is a device and the CPU otherwise; `cuda:1` names one."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    """CPU threads of the compute worker."""
    log_level: Annotated[str, msgspec.Meta(pattern=r"^(debug|info|warning|error)\Z")] = "info"
    """Least severe message that is logged."""


def load_node_config(path: str | Path | None = None, environment: Mapping[str, str] | None = None) -> NodeConfig:
    """The node config: defaults, then the YAML file, then the `CROWDSURF_*` variables of `environment`.

    Raises ConfigErrors with every problem of both, and MisuseError if the file cannot be read.
    """
    values: dict[str, Any] = {}
    problems: list[ConfigProblem] = []
    if path is not None:
        reader = ConfigReader(str(path))
        values = reader.read(_read_file(Path(path)), NodeConfig)
        problems = reader.problems
    overrides, override_problems = node_overrides(environment or {})
    if problems or override_problems:
        raise ConfigErrors(problems + override_problems)
    return NodeConfig(**{**values, **overrides})


def node_overrides(environment: Mapping[str, str]) -> tuple[dict[str, Any], list[ConfigProblem]]:
    """Node config values set by environment variables (`CROWDSURF_THREADS=2`), and what is wrong with them.

    Lists are separated by commas. An empty variable counts as not set. Other `CROWDSURF_*` variables belong to the
    command line and are left alone, but a near miss of one of ours is reported.
    """
    fields = fields_of(NodeConfig)
    values: dict[str, Any] = {}
    problems = []
    for name, info in fields.items():
        variable = ENVIRONMENT_PREFIX + name.upper()
        text = environment.get(variable, "")
        if not text:
            continue
        is_list = isinstance(msgspec.inspect.type_info(info.type), msgspec.inspect.VarTupleType)
        is_number = isinstance(msgspec.inspect.type_info(info.type), msgspec.inspect.IntType)
        plain: object = text.split(",") if is_list else plain_scalar(text) if is_number else text
        values[name], problem = check_value(plain, info.type)
        if problem:
            problems.append(ConfigProblem("environment", None, variable, problem))
    return values, problems
