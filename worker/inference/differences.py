"""What is different about two bundles, by what they say about themselves?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: Parts of a manifest that are compared, in this order. Name, version, date and file digests always differ.
SECTIONS = ("regions", "findings", "members", "temperature", "postprocess", "data", "metrics", "recipe")

#: The names of an interval's ends.
_ENDS = (("low", "high"), ("interval",))
#: What stands beside the number in such a table.
_BESIDE = ("low", "high", "interval", "replicates")


@dataclass(frozen=True)
class Difference:
    """One thing that two manifests say differently; None where one says nothing.

    ``what`` is a path inside the section, its parts joined by dots: ``"left_lung.origin"``.
    """

    section: str
    what: str
    first: str | None
    second: str | None

    def to_json(self) -> dict[str, str | None]:
        """As plain values."""
        return asdict(self)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """The differences between two manifests as in ``bundle.json``, section by section, by name."""
    found = []
    ours, theirs = _sections(first), _sections(second)
    for section in SECTIONS:
        mine, other = dict(_leaves(ours[section])), dict(_leaves(theirs[section]))
        for what in sorted(mine.keys() | other.keys()):
            if mine.get(what) != other.get(what):
                found.append(Difference(section, what, mine.get(what), other.get(what)))
    return found


def _sections(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "regions": {region["name"]: _without(region, "name") for region in manifest["regions"]},
        "findings": {each["finding"]: {"threshold": each["threshold"]} for each in manifest["findings"]},
        "members": {
            member["name"]: {**_without(member, "name"), "digest": manifest["files"].get(member["onnx"], "")[:16]}
            for member in manifest["members"]
        },
        "temperature": {"temperature": manifest["temperature"]},
        "postprocess": manifest.get("postprocess", {}),
        "data": {"digest": manifest["data_digest"][:16], "parity films": len(manifest["parity_films"])},
        "metrics": manifest["metrics"],
        "recipe": manifest["recipe"],
    }


def _without(table: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in names}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path → what stands there, in words; a number with its interval is one thing."""
    if isinstance(value, Mapping) and (value or not path) and not _is_interval(value):
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}" if path else str(key))
    else:
        yield path, _words(value)


def _is_interval(table: Mapping[str, Any]) -> bool:
    return any(all(end in table for end in ends) for ends in _ENDS)


def _words(value: Any) -> str:
    if isinstance(value, Mapping) and _is_interval(value):
        low, high = (value["low"], value["high"]) if "low" in value else value["interval"]
        number = next((each for key, each in value.items() if key not in _BESIDE), None)
        return f"{_words(number)} ({_words(low)}-{_words(high)})"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence | Mapping):
        return ", ".join(map(_step_words, value)) if isinstance(value, Sequence) else ""
    return "–" if value is None else str(value)


def _step_words(value: Any) -> str:
    """An item of a list; a preprocessing step reads ``resize(height=256, width=256)``."""
    if not isinstance(value, Mapping):
        return _words(value)
    rest = ", ".join(f"{key}={_words(each)}" for key, each in value.items() if key != "step")
    return f"{value.get('step', '')}({rest})" if rest else str(value.get("step", ""))
