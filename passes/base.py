"""What a graph pass is: a rewrite that says, as data, what it changed and what it left alone."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import final

from torch import fx

from fxsparse.errors import PassError

from .graph import Snapshot, differences


@dataclass(frozen=True, kw_only=True)
class Change:
    """One rewrite that was made.

    Attributes:
        site: the parameter concerned, by its qualified name; empty if none is.
        graph: path of the module whose graph was changed; empty for the root.
        node: the node that now computes the result.
        what: what was done. why: the rule that asked for it.
        added, removed, rewired: names of the nodes that appeared, went, or got other arguments.
        made_by: name of the pass, which it need not fill in itself.
    """

    site: str
    node: str
    what: str
    why: str
    graph: str = ""
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    rewired: tuple[str, ...] = ()
    made_by: str = ""


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Something that was to be rewritten and is left exact, with the reason."""

    site: str
    reason: str
    graph: str = ""


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """The outcome of one pass over one graph."""

    name: str
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]


class GraphPass(abc.ABC):
    """A rewrite of one graph, in place.

    A subclass implements ``rewrite``: it matches first and mutates afterwards, and returns a Change for everything it
    edited and a Skip for everything it was asked to edit and did not. Calling the pass checks that the claims are facts.
    """

    @property
    def name(self) -> str:
        """What the pass does, in snake case."""
        words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(self).__name__)
        return words.lstrip("_")

    def requires(self, gm: fx.GraphModule) -> None:  # noqa: B027 (a pass need not have requirements)
        """Raises PassError if the pass cannot run on this graph."""

    @abc.abstractmethod
    def rewrite(self, gm: fx.GraphModule) -> tuple[Change | Skip, ...]:
        """Edits the graph, and says what was edited and what was not."""

    def ensures(self, gm: fx.GraphModule) -> None:  # noqa: B027 (nor promises)
        """Raises PassError if the result is not what the pass promises."""

    @final
    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Runs the pass.

        Raises:
            PassError: a requirement or promise does not hold, or the reported changes are not the observed ones.
        """
        self.requires(gm)
        before = Snapshot(gm.graph)
        outcome = self.rewrite(gm)
        changes = tuple(replace(item, made_by=self.name) for item in outcome if isinstance(item, Change))
        self._compare(changes, differences(before, Snapshot(gm.graph)))
        if changes:
            try:
                gm.graph.lint()
            except (RuntimeError, ValueError) as error:
                raise PassError(f"pass {self.name} left an ill-formed graph: {str(error).splitlines()[0]}") from error
            gm.recompile()
        self.ensures(gm)
        return PassResult(name=self.name, changes=changes, skips=tuple(item for item in outcome if isinstance(item, Skip)))

    def _compare(self, changes: tuple[Change, ...], observed: dict[str, frozenset[str]]) -> None:
        added, removed, rewired = (frozenset(name for change in changes for name in getattr(change, kind)) for kind in observed)
        claims = {"added": added - removed, "removed": removed - added, "rewired": rewired - removed - added}
        for kind, names in observed.items():
            claimed = claims[kind]
            if claimed != names:
                raise PassError(
                    f"pass {self.name} reports other changes than it made: {kind} but not reported {sorted(names - claimed)}, "
                    f"reported but not {kind} {sorted(claimed - names)}"
                )
