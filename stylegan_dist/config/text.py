"""Reads YAML text that somebody else may have written, within bounds. An error is one line."""

from __future__ import annotations

from typing import Any

import yaml

from stylegan_dist.records import shorten

MAX_BYTES = 1 << 17    # of a configuration; a whole one has 4 KiB, and PyYAML needs seconds for a megabyte
MAX_DEPTH = 20         # of lists and mappings inside each other
MAX_NODES = 10_000     # values, each use of an alias counted anew


def read_yaml(text: str) -> Any:
    """The value in a YAML text.

    Raises:
        ValueError: one line, which begins with the line's number where that is known: the text is too long, not YAML, nested
            too deeply, blown up by aliases, has a key twice, or a value that its tag (`!!int`) does not fit.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has {len(text)} characters, more than the {MAX_BYTES} that it may have")
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{f'line {mark.line + 1}: ' if mark else ''}{problem}") from None
    except Exception as error:  # PyYAML's constructors raise nearly every kind for values that do not fit their tags
        raise ValueError(f"a value that does not fit its tag ({type(error).__name__}: {error})") from None


class _StrictLoader(yaml.SafeLoader):
    """Refuses legal YAML that is always a mistake in a configuration."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} deep", self.peek_event().start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_document(self) -> yaml.Node | None:
        node = super().compose_document()
        if node is not None:
            _count(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception:  # as in read_yaml, but here it is known where
            value = shorten(node.value) if isinstance(node, yaml.ScalarNode) else f"this {node.id}"
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(None, None, f"{value} is no {kind}", node.start_mark) from None

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        """Refuse a key that is given twice. PyYAML would forget the first."""
        if isinstance(node, yaml.MappingNode):  # another one is refused by super()
            seen = set()
            for key, _ in node.value:  # before super() puts the keys of a `<<` merge among them
                if not isinstance(key, yaml.ScalarNode):
                    continue  # refused by super()
                if key.value in seen:
                    problem = f"the key {shorten(key.value)} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _count(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a node stands for once all aliases in it are written out."""
    if node not in known:
        known[node] = MAX_NODES + 1  # holds while it is being counted: a node inside itself has no end
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
        known[node] = 1 + sum(_count(part, known) for part in parts)
    if known[node] > MAX_NODES:
        raise yaml.composer.ComposerError(None, None, f"more than {MAX_NODES} values, aliases written out", node.start_mark)
    return known[node]
