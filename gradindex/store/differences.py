"""What differs between the headers of two stores, in words."""

from typing import Any

from gradindex.store.manifest import Header


def compare(saved: Header, wanted: Header) -> list[str]:
    """Return what differs between two headers, in words; empty if they describe the same store."""
    return model_differences(saved, wanted) + [
        f"{name} is {getattr(saved, name)!r}, not {getattr(wanted, name)!r}"
        for name in (
            "rows",
            "sketch",
            "seed",
            "shard_rows",
            "batch_size",
            "task",
            "columns",
            "threads",
            "deterministic",
            "metric",
            "row_type",
            "first",
            "origin",
        )
        if getattr(saved, name) != getattr(wanted, name)
    ]


def model_differences(saved: Header, wanted: Header) -> list[str]:
    """Return how two headers' models differ, in words: parameter sets first, then the first changed weight.

    Parameters are compared by their place, as the hashes are keyed: Keras numbers the names it makes up anew.
    """
    before, now = saved.parameters, wanted.parameters
    if [_form(p) for p in before] != [_form(p) for p in now]:
        return _parameter_differences({p["name"]: p for p in before}, {p["name"]: p for p in now})
    changed = [name for (_, old), (name, new) in zip(saved.state, wanted.state, strict=False) if old != new]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        return [f"parameter {changed[0]!r}{more} has other values"]
    if len(saved.state) != len(wanted.state):
        return [f"the model has {len(wanted.state)} weights and statistics, not {len(saved.state)}"]
    return []


def _form(parameter: dict[str, Any]) -> tuple[int, list[int]]:
    return parameter["position"], list(parameter["shape"])


def _parameter_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    gone, new = [name for name in before if name not in now], [name for name in now if name not in before]
    found = [f"parameter {name!r} is missing" for name in gone[:3]]
    found += [f"parameter {name!r} was not indexed" for name in new[:3]]
    found += [
        f"parameter {name!r} had shape {tuple(before[name]['shape'])}, now {tuple(now[name]['shape'])}"
        for name in before
        if name in now and list(before[name]["shape"]) != list(now[name]["shape"])
    ][:3]
    return found or ["the parameters come in another order, or others are trainable"]
