"""A member's preprocessing: an ordered list of named steps from its bundle.

The list lives with the weights, so training, evaluation and the night run the same code.
Examples: Holste (section 2.1) is ``min_max`` then ``resize`` to 256 x 256, stretched; Maga is
``resize`` to 512 x 512 then ``clahe``; the pediatric classifier ``equalise`` then ``resize``;
Novikov ends with ``standardise`` by training-set statistics.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from schema.bundle import BundleError
from worker.film.levels import count_levels, look_up
from worker.film.prepared import FloatArray

BoolArray = npt.NDArray[np.bool_]
_LEVELS = 65536
_CLAHE_LEVELS = 256


@dataclass
class _State:
    """What flows through the steps: ``film`` (rows, columns), its valid pixels, the channels at the end.

    Steps put new arrays in place of these and never write into them: other members' steps begin with the same.
    """

    film: FloatArray
    valid: BoolArray | None
    channels: int = 1

    def inside(self) -> FloatArray:
        """The valid pixels, flat; all of them when none are valid."""
        if self.valid is None or not self.valid.any():
            return self.film.ravel()
        return self.film[self.valid]

    def tensor(self) -> FloatArray:
        """float32 (channels, height, width), contiguous."""
        return np.ascontiguousarray(np.broadcast_to(self.film, (self.channels, *self.film.shape)), np.float32)


def _stretch(state: _State, low: float, high: float) -> None:
    if high <= low:
        state.film = np.zeros_like(state.film)
        return
    film = state.film - np.float32(low)
    film /= np.float32(high - low)
    state.film = np.clip(film, 0.0, 1.0, out=film)


def _min_max(state: _State) -> None:
    inside = state.inside()
    _stretch(state, float(inside.min()), float(inside.max()))


def _percentile(state: _State, low: float, high: float) -> None:
    bounds = np.percentile(state.inside(), (low, high))
    _stretch(state, float(bounds[0]), float(bounds[1]))


def _levels(film: FloatArray) -> npt.NDArray[np.uint16]:
    levels = film * np.float32(_LEVELS - 1)
    np.clip(levels, 0.0, _LEVELS - 1, out=levels)
    return np.rint(levels, out=levels).astype(np.uint16)


def _equalise(state: _State) -> None:
    levels = _levels(state.film)
    counts = count_levels(levels, state.valid if state.valid is not None and state.valid.any() else None)
    cumulative = np.cumsum(counts).astype(np.float64)
    first = cumulative[int(np.flatnonzero(counts)[0])]
    span = cumulative[-1] - first
    table = np.clip((cumulative - first) / span, 0.0, 1.0) if span > 0 else np.zeros(_LEVELS)
    state.film = look_up(table.astype(np.float32), levels)


def _clahe(state: _State, clip_limit: float, tiles: int) -> None:
    # A tile has some thousand pixels: spread over 65,536 bins none is full, and no limit ever clips.
    levels = np.rint(np.clip(state.film, 0.0, 1.0) * np.float32(_CLAHE_LEVELS - 1)).astype(np.uint8)
    equalised = cv2.createCLAHE(clipLimit=clip_limit, tileGridSize=(tiles, tiles)).apply(levels)
    state.film = equalised.astype(np.float32) / np.float32(_CLAHE_LEVELS - 1)


_MODES = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR}


def _resize(state: _State, height: int, width: int, mode: str, fit: str) -> None:
    rows, columns = state.film.shape
    if fit == "longest_side":
        scale = min(height / rows, width / columns)
        inner = (max(1, round(rows * scale)), max(1, round(columns * scale)))
    else:
        inner = (height, width)
    film = cv2.resize(state.film, inner[::-1], interpolation=_MODES[mode])
    valid = state.valid
    if valid is not None:
        valid = cv2.resize(valid.view(np.uint8), inner[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.bool_)
    if inner != (height, width):
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        padded, inside = np.zeros((height, width), np.float32), np.zeros((height, width), np.bool_)
        place = (slice(top, top + inner[0]), slice(left, left + inner[1]))
        padded[place], inside[place] = film, True if valid is None else valid
        film, valid = padded, inside
    state.film, state.valid = np.asarray(film, np.float32), valid


def _standardise(state: _State, mean: float, std: float) -> None:
    state.film = (state.film - np.float32(mean)) / np.float32(std)


def _channels(state: _State, count: int) -> None:
    state.channels = count


Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 4096


@dataclass(frozen=True)
class _Step:
    """A step's function, what each key may hold, and the keys that may be left out."""

    run: Callable[..., None]
    keys: Mapping[str, Check]
    defaults: Mapping[str, Any]


def _step(run: Callable[..., None], keys: Mapping[str, Check] | None = None, **defaults: Any) -> _Step:
    return _Step(run, keys or {}, defaults)


#: Step name → what it does. ``min_max`` and ``percentile`` stretch to 0-1 over the valid pixels,
#: ``equalise`` is global histogram equalisation over them, ``clahe`` the contrast limited one, in
#: ``tiles`` x ``tiles`` parts and 256 grey levels, of which none counts more than ``clip_limit`` times the mean.
STEPS: dict[str, _Step] = {
    "min_max": _step(_min_max),
    "percentile": _step(
        _percentile,
        {"low": lambda v: _is_number(v) and 0 <= v < 50, "high": lambda v: _is_number(v) and 50 < v <= 100},
    ),
    "equalise": _step(_equalise),
    "clahe": _step(
        _clahe,
        {"clip_limit": lambda v: _is_number(v) and v > 0, "tiles": lambda v: _is_size(v) and v <= 64},
    ),
    "resize": _step(
        _resize,
        {
            "height": _is_size,
            "width": _is_size,
            "mode": lambda v: isinstance(v, str) and v in _MODES,
            "fit": lambda v: v in ("stretch", "longest_side"),
        },
        mode="area",
        fit="stretch",
    ),
    "standardise": _step(_standardise, {"mean": _is_number, "std": lambda v: _is_number(v) and v > 0}),
    "channels": _step(_channels, {"count": lambda v: _is_size(v) and v in (1, 3)}),
}


def apply(steps: Sequence[Mapping[str, Any]], film: FloatArray, valid: BoolArray | None) -> FloatArray:
    """Run a checked list of steps.

    Parameters
    ----------
    steps
        Each a mapping with ``step`` (its name) and its keys: see :data:`STEPS`.
    film
        float32 (rows, columns), 0-1, white is dense.
    valid
        bool of the same shape, or None when every pixel is valid.

    Returns
    -------
    float32 of shape (channels, height, width), contiguous.
    """
    return apply_plan({"": steps}, film, valid)[""]


def apply_plan(
    plan: Mapping[str, Sequence[Mapping[str, Any]]], film: FloatArray, valid: BoolArray | None
) -> dict[str, FloatArray]:
    """Run every member's list; what several lists begin with is done once.

    Members with the same list share one array.
    """
    tensors: dict[str, FloatArray] = {}
    # By the steps done so far.
    states = {"": _State(film, valid)}
    finished: dict[str, FloatArray] = {}
    for member, steps in plan.items():
        done = ""
        for step in steps:
            before, done = done, done + json.dumps(step, sort_keys=True)
            if done not in states:
                states[done] = replace(states[before])
                _run(step, states[done])
        if done not in finished:
            finished[done] = states[done].tensor()
        tensors[member] = finished[done]
    return tensors


def _run(step: Mapping[str, Any], state: _State) -> None:
    definition = STEPS[step["step"]]
    arguments = {**definition.defaults, **{key: value for key, value in step.items() if key != "step"}}
    definition.run(state, **arguments)


def check(steps: Sequence[Mapping[str, Any]], channels: int, height: int, width: int) -> None:
    """Refuse a list of steps that cannot run, does not end at (channels, height, width) or leaves borders.

    Raises
    ------
    BundleError
        An unknown step or key (with the nearest name), a missing or impossible value,
        another shape at the end, or a network's grid that does not cover the whole film and nothing
        else: :func:`worker.film.geometry.to_film_grid` could not lay its masks back.
    """
    size: tuple[int, int] | None = None
    count = 1
    for position, step in enumerate(steps, 1):
        _check_step(position, step)
        if step["step"] == "resize":
            size = (step["height"], step["width"])
            if step.get("fit") == "longest_side":
                raise BundleError(
                    f"Preprocessing step {position} (resize) fits films by their longest side, but masks and heat maps "
                    "are laid over the whole film: use fit = 'stretch'."
                )
        elif step["step"] == "channels":
            count = step["count"]
    if size != (height, width) or count != channels:
        made = f"{count} x {size[0]} x {size[1]}" if size else "the film's own size"
        raise BundleError(
            f"The preprocessing ends at {made} but the network takes {channels} x {height} x {width}: "
            "correct the member's resize or channels step."
        )


def _check_step(position: int, step: Mapping[str, Any]) -> None:
    if not isinstance(step, Mapping):
        raise BundleError(f"Preprocessing step {position} must be an object with the key 'step'.")
    name = step.get("step")
    if not isinstance(name, str) or name not in STEPS:
        raise BundleError(f"Preprocessing step {position} is {name!r}, which is not known{_nearest(name, STEPS)}.")
    definition = STEPS[name]
    for key, value in step.items():
        if key == "step":
            continue
        if key not in definition.keys:
            hint = _nearest(key, definition.keys)
            raise BundleError(f"Preprocessing step {position} ({name}) has no key {key!r}{hint}.")
        if not definition.keys[key](value):
            raise BundleError(f"Preprocessing step {position} ({name}): {key} cannot be {value!r}.")
    missing = [key for key in definition.keys if key not in step and key not in definition.defaults]
    if missing:
        raise BundleError(f"Preprocessing step {position} ({name}) lacks {', '.join(missing)}.")


def _nearest(name: Any, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(name), list(known), 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known) or 'none'}"
