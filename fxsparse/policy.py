"""A policy: which techniques a model is compiled with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from .errors import PolicyError
from .mask_techniques import MASK_TECHNIQUES
from .techniques import TECHNIQUES, Technique, closest

_KNOWN = {**TECHNIQUES, **MASK_TECHNIQUES}


class Policy:
    """Techniques in the order in which they were given; two policies with equal techniques are equal.

    Raises:
        PolicyError: something that is no technique was given.
    """

    def __init__(self, *techniques: Technique) -> None:
        for item in techniques:
            if not isinstance(item, Technique):
                raise PolicyError(f"a Policy is made of techniques such as fxs.SWAT(weight_sparsity=0.9), got {item!r}")
        self.techniques = techniques

    def __iter__(self) -> Iterator[Technique]:
        return iter(self.techniques)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self.techniques == other.techniques

    def __hash__(self) -> int:
        return hash(self.techniques)

    def __repr__(self) -> str:
        return f"Policy({', '.join(map(repr, self.techniques))})"

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain data, which ``from_dict`` turns back."""
        return {"techniques": [technique.to_dict() for technique in self.techniques]}

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "the policy") -> Policy:
        """The policy that plain data describes.

        Raises:
            PolicyError: an unknown or missing key, technique or value; the message names the place and the closest name.
        """
        if not isinstance(data, dict) or set(data) != {"techniques"} or not isinstance(data["techniques"], list):
            got = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
            hint = closest(got[0], ["techniques"]) if isinstance(got, list) and got else ""
            raise PolicyError(f"{source}: expected one key 'techniques' with a list, got {got}{hint}")
        return cls(*(_technique(item, f"{source}: technique {index + 1}") for index, item in enumerate(data["techniques"])))

    def save(self, path: str | Path) -> None:
        """Writes the policy as YAML, or as JSON if the name ends in .json."""
        target = Path(path)
        data = self.to_dict()
        text = json.dumps(data, indent=2) + "\n" if target.suffix == ".json" else yaml.safe_dump(data, sort_keys=False)
        target.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """The policy in a YAML or JSON file.

        Raises:
            PolicyError: the file is missing, cannot be parsed, or does not describe a policy.
        """
        source = Path(path)
        try:
            text = source.read_text(encoding="utf-8")
            data = json.loads(text) if source.suffix == ".json" else yaml.safe_load(text)
        except FileNotFoundError:
            near = closest(source.name, [path.name for path in source.parent.glob("*") if path.is_file()])
            raise PolicyError(f"there is no policy file {str(source)!r}{near}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyError(f"the policy file {str(source)!r} cannot be read: {error}") from None
        except (json.JSONDecodeError, yaml.YAMLError) as error:
            kind = "JSON" if source.suffix == ".json" else "YAML"
            raise PolicyError(f"the policy file {str(source)!r} is not valid {kind}: {error}") from None
        return cls.from_dict(data, source=str(source))


def _technique(item: Any, where: str) -> Technique:
    if not isinstance(item, dict) or "technique" not in item:
        raise PolicyError(f"{where}: expected a mapping with a key 'technique', got {item!r}")
    name = item["technique"]
    if not isinstance(name, str) or name not in _KNOWN:
        raise PolicyError(f"{where}: unknown technique {name!r}{closest(name, _KNOWN)}; known: {', '.join(_KNOWN)}")
    kind = _KNOWN[name]
    settings = {key: value for key, value in item.items() if key != "technique"}
    known = {field.name: field for field in fields(kind)}
    for key in settings:
        if key not in known:
            raise PolicyError(f"{where} ({name}): unknown key {key!r}{closest(key, known)}; known: {', '.join(known)}")
    missing = [key for key, field in known.items() if field.default is MISSING and key not in settings]
    if missing:
        raise PolicyError(f"{where} ({name}): {', '.join(missing)} is missing")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})


def as_policy(given: Policy | Technique | str | Path | None) -> Policy:
    """A policy from what ``compile`` accepts: itself, a technique, a preset's name, or a file's path.

    Raises:
        PolicyError: a name that is neither a preset nor a file.
    """
    from .preset_policies import preset_policy, presets

    if given is None:
        return Policy()
    if isinstance(given, Policy):
        return given
    if isinstance(given, Technique):
        return Policy(given)
    if isinstance(given, str) and given in presets():
        return preset_policy(given)
    if isinstance(given, (str, Path)):
        if Path(given).suffix in (".yaml", ".yml", ".json") or Path(given).exists():
            return Policy.load(given)
        raise PolicyError(
            f"{str(given)!r} is neither a preset nor a policy file{closest(given, presets())}; presets: {', '.join(presets())}"
        )
    raise PolicyError(f"a policy is a fxs.Policy, a preset's name or a file's path, got {type(given).__name__}")
