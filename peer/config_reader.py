"""YAML to checked values, with every mistake found in one reading.

The idea: the text is only *composed* into nodes, which know their lines, and walked beside a msgspec structure that
says what belongs where. A value that does not fit becomes a problem with file, line, field, what was found and what
was expected, and reading goes on. No YAML tag, anchor or type guess can make anything but text, numbers, true/false,
lists and sections; `1e-3` is a number here (YAML 1.2), which PyYAML's own loaders read as text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard, get_args, get_origin

import msgspec
import yaml

from crowdsurf.protocol.errors import MisuseError
from crowdsurf.protocol.manifest import Name

CONFIG_BYTES_MAX = 1 << 20
"""A config is some dozens of lines; a larger file was named by mistake."""

INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1
"""What msgpack, and so a manifest, can carry everywhere."""

_INTEGER = re.compile(r"[-+]?[0-9]{1,4000}")  # Python refuses to read longer ones
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CHOICES = re.compile(r"\^\(?([a-z0-9_|]+)\)?(\$|\\Z)")
_PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq"))


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One mistake. `line` is None where there is no file (environment, command line)."""

    source: str
    line: int | None
    field: str
    text: str

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        return ": ".join(part for part in (place, self.field, self.text) if part)


class ConfigErrors(MisuseError):
    """All mistakes of a config, one a line, in the order of the file."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.line is None, problem.line or 0)))
        super().__init__("\n".join(map(str, self.problems)))


def is_section(kind: Any) -> TypeGuard[type[msgspec.Struct]]:
    """Is this field type a structure of fields?"""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def fields_of(
    kind: type[msgspec.Struct], path: str = "", leave_out: Sequence[str] = ()
) -> dict[str, msgspec.structs.FieldInfo]:
    """The fields of a section by name; `path` (`""` or `section.`) and the name together are not in `leave_out`."""
    return {info.name: info for info in msgspec.structs.fields(kind) if path + info.name not in leave_out}


def unknown_field(name: str, known: Sequence[str]) -> str:
    """The sentence for a field that does not exist, with the closest one that does."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
    return f"found an unknown field; {hint}"


def shown(value: object) -> str:
    """A value as the user wrote it, short enough for a sentence."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_value(value: object, kind: Any) -> tuple[Any, str | None]:
    """`value` as `kind`, and None; or None and the sentence that says what was found and what is expected."""
    outside = isinstance(value, int) and not INTEGER_MIN <= value <= INTEGER_MAX
    # The finite check: parameters have no range of their own, and 1e999 reads as infinity.
    outside = outside or (isinstance(value, float) and value - value != 0.0)
    try:
        if not outside:
            return msgspec.convert(value, kind), None
    except msgspec.ValidationError:
        pass
    return None, f"found {shown(value)}, expected {expectation(kind)}"


def expectation(kind: Any) -> str:
    """What a field takes, in words, from its type and its msgspec.Meta: the description, or else the bounds."""
    return _words(msgspec.inspect.type_info(kind))


def _words(info: msgspec.inspect.Type) -> str:
    match info:
        case msgspec.inspect.Metadata(extra_json_schema={"description": description}):
            return str(description)
        case msgspec.inspect.IntType():
            return "a whole number" + _range(info)
        case msgspec.inspect.FloatType():
            return "a number" + _range(info)
        case msgspec.inspect.StrType():
            return _text_words(info)
        case msgspec.inspect.StructType(cls=section):
            return section_words(list(fields_of(section)))
        case msgspec.inspect.DictType():
            return "a section of `name: value` lines"
        case msgspec.inspect.VarTupleType(item_type=item, max_length=most):
            return f"a list of at most {most} items, each {_words(item)}"
        case msgspec.inspect.UnionType():
            return "a finite number (a whole one of at most 64 bits), text, or true or false"
    raise TypeError(f"no words for {info}")


def section_words(names: Sequence[str]) -> str:
    """What stands where a section belongs."""
    return f"a section with the fields {', '.join(names)}"


def _range(info: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    """` from 1 to 9`, `, above 0 and at most 9`, …; empty without bounds."""
    if info.ge is not None and info.le is not None:
        return f" from {_number(info.ge)} to {_number(info.le)}"
    named = (("above", info.gt), ("at least", info.ge), ("at most", info.le), ("below", info.lt))
    limits = " and ".join(f"{word} {_number(bound)}" for word, bound in named if bound is not None)
    return f", {limits}" if limits else ""


def _number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _text_words(info: msgspec.inspect.StrType) -> str:
    if info.pattern is None:
        return "text"
    if info == msgspec.inspect.type_info(Name):
        return "a name of 1 to 64 letters, digits and _ . + -, the first a letter or digit"
    choices = _CHOICES.fullmatch(info.pattern)
    return " or ".join(choices[1].split("|")) if choices else f"text like {info.pattern}"


def plain_scalar(text: str) -> int | float | bool | str | None:
    """What unquoted text means: nothing, true/false, a whole number, a number, or itself (YAML 1.2, core schema)."""
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    return text


@dataclass(slots=True)
class ConfigReader:
    """Reads one file beside one structure. `problems` and `lines` (field path → line) fill while it reads.

    `leave_out` has the dotted paths of fields that a config cannot set.
    """

    source: str
    leave_out: Sequence[str] = ()
    problems: list[ConfigProblem] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)

    def read(self, text: str, kind: type[msgspec.Struct]) -> dict[str, Any]:
        """The valid values of `text`, as plain nested dictionaries by field name; the rest is in `problems`."""
        try:
            node = yaml.compose(text, Loader=yaml.BaseLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else None
            self._report(line, "", f"not valid YAML: {error.problem}")
            return {}
        except yaml.YAMLError as error:
            self._report(None, "", f"not valid YAML: {error}")
            return {}
        except RecursionError:
            self._report(None, "", "not a config: nested too deeply")
            return {}
        if node is None:
            names = list(fields_of(kind, "", self.leave_out))
            self._report(None, "", f"the file is empty, expected {section_words(names)}")
            return {}
        return self._section(node, kind, "")

    def _report(self, line: int | None, path: str, text: str) -> None:
        self.problems.append(ConfigProblem(self.source, line, path, text))

    def _section(self, node: yaml.Node, kind: type[msgspec.Struct], path: str) -> dict[str, Any]:
        fields = fields_of(kind, path, self.leave_out)
        entries = self._entries(node, path, section_words(list(fields)))
        if entries is None:
            return {}
        values = {}
        for name, child in entries.items():
            if name not in fields:
                self._report(self.lines[path + name], path + name, unknown_field(name, list(fields)))
            else:
                values[name] = self._value(child, fields[name].type, path + name)
        for name, info in fields.items():
            if info.required and name not in entries:
                line = node.start_mark.line + 1
                self._report(line, path + name, f"is required and missing; expected {expectation(info.type)}")
        return {name: value for name, value in values.items() if value is not None}

    def _entries(self, node: yaml.Node, path: str, expected: str) -> dict[str, yaml.Node] | None:
        """The children of a mapping by key, None if it is no mapping; repeated keys and keys that are no text are
        reported and left out."""
        if not isinstance(node, yaml.MappingNode):
            found = shown(self._plain(node, path))
            self._report(node.start_mark.line + 1, path.rstrip("."), f"found {found}, expected {expected}")
            return None
        entries: dict[str, yaml.Node] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self._report(line, path.rstrip("."), "found a list or section as a field's name, expected text")
            elif key.value in entries:
                first = self.lines[path + key.value]
                self._report(line, path + key.value, f"found a second time, expected once (first in line {first})")
            else:
                entries[key.value] = child
                self.lines[path + key.value] = line
        return entries

    def _value(self, node: yaml.Node, kind: Any, path: str) -> Any:
        """One field's value, or None if it was reported."""
        if is_section(kind):
            return self._section(node, kind, path + ".")
        if get_origin(kind) is dict:
            return self._parameters(node, kind, path + ".")
        value, problem = check_value(self._plain(node, path), kind)
        if problem:
            self._report(node.start_mark.line + 1, path, problem)
        return value

    def _parameters(self, node: yaml.Node, kind: Any, path: str) -> dict[str, Any]:
        name_kind, value_kind = get_args(kind)
        values = {}
        for name, child in (self._entries(node, path, expectation(kind)) or {}).items():
            _, problem = check_value(name, name_kind)
            if problem:
                self._report(self.lines[path + name], path.rstrip("."), problem)
            values[name] = self._value(child, value_kind, path + name)
        return {name: value for name, value in values.items() if value is not None}

    def _plain(self, node: yaml.Node, path: str) -> Any:
        """The Python value of a node that must be a scalar or a list of scalars."""
        if node.tag not in _PLAIN_TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self._report(node.start_mark.line + 1, path.rstrip("."), f"found the tag {tag}; configs have no tags")
        if isinstance(node, yaml.SequenceNode):
            return [child.value if isinstance(child, yaml.ScalarNode) else "a section" for child in node.value]
        if isinstance(node, yaml.ScalarNode):
            return plain_scalar(node.value) if node.style is None else node.value
        return {key.value: "…" for key, _ in node.value if isinstance(key, yaml.ScalarNode)}


def resolve(kind: type[msgspec.Struct], path: str, leave_out: Sequence[str] = ()) -> tuple[Any, str | None]:
    """The type of the field at a dotted path such as `rule.parameters.tau`, and None; or None and a sentence."""
    current: Any = kind
    before = ""
    for name in path.split("."):
        if is_section(current):
            fields = fields_of(current, before, leave_out)
            if name not in fields:
                return None, unknown_field(name, list(fields))
            current = fields[name].type
        elif get_origin(current) is dict:
            name_kind, current = get_args(current)
            _, problem = check_value(name, name_kind)
            if problem:
                return None, problem
        else:
            return None, f"found a field inside `{before.rstrip('.')}`, which has none"
        before += name + "."
    return current, None


def place(values: dict[str, Any], path: str, value: object) -> None:
    """Set the value at a dotted path in nested dictionaries."""
    *sections, last = path.split(".")
    for name in sections:
        values = values.setdefault(name, {})
    values[last] = value


def mentions(sentence: str, path: str) -> bool:
    """Does the sentence name the field at this dotted path?"""
    return re.search(rf"(?<![\w.]){re.escape(path)}\b", sentence) is not None


def locate(sentences: Sequence[str], source: str, lines: Mapping[str, int]) -> list[ConfigProblem]:
    """Rules that span fields as problems: each stands at the last of the fields that its sentence names."""
    problems = []
    for sentence in sentences:
        named = [(line, path) for path, line in lines.items() if mentions(sentence, path)]
        line, path = max(named, default=(None, ""))
        problems.append(ConfigProblem(source, line, path, sentence))
    return problems
