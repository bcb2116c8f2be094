"""The account of every file that `pack` or `index` meets: what became of it, in numbers that add up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

NAMED = 5            # of the files that are left out for one reason
_REASONS = 32        # told apart; the rest are "others"
_NAME_LETTERS = 200  # a name in an archive can be as long as its maker likes
_OTHERS = "left out for other reasons"


@dataclass
class Group:
    """Files that were left out for one reason."""

    files: int = 0
    names: list[str] = field(default_factory=list)  # the first ones


@dataclass
class Account:
    """What became of the files of a source. Its size is bounded, whatever the source holds."""

    files: int = 0      # that were met, counted where they were met
    samples: int = 0    # that became samples
    labels: int = 0     # that gave samples their classes
    left_out: dict[str, Group] = field(default_factory=dict)  # by reason

    def leave_out(self, reason: str, names: Iterable[str]) -> None:
        """Files that were met become no samples. Their order decides which are named."""
        if reason not in self.left_out and len(self.left_out) >= _REASONS:
            reason = _OTHERS
        for name in names:
            group = self.left_out.setdefault(reason, Group())
            group.files += 1
            if len(group.names) < NAMED:
                group.names.append(printable(name))

    def add(self, other: Account) -> None:
        """The account of another part of the source, which comes after this one."""
        self.files += other.files
        self.samples += other.samples
        self.labels += other.labels
        for reason, group in other.left_out.items():
            self.leave_out(reason, group.names)
            known = self.left_out.get(reason) or self.left_out[_OTHERS]
            known.files += group.files - len(group.names)

    def check(self) -> None:
        """Raises RuntimeError when a file has been lost on the way, which is a fault of this program."""
        told = self.samples + self.labels + sum(group.files for group in self.left_out.values())
        if told != self.files:
            raise RuntimeError(f"{self.files} files were met, {told} are accounted for: {self.record()}")

    def record(self) -> dict:
        """For `index.json`."""
        groups = [{"reason": reason, "files": group.files, "names": group.names} for reason, group in self.left_out.items()]
        return {"files": self.files, "samples": self.samples, "labels": self.labels, "left_out": groups}

    def lines(self) -> list[str]:
        """For people: all numbers, and some names."""
        left = sum(group.files for group in self.left_out.values())
        parts = [(self.samples, "samples"), (self.labels, "with labels"), (left, "left out")]
        lines = [f"files: {self.files} ({', '.join(f'{number} {what}' for number, what in parts if number)})"]
        for reason, group in sorted(self.left_out.items(), key=lambda item: -item[1].files):
            names = ", ".join(repr(name if len(name) <= 80 else name[:77] + "...") for name in group.names[:3])
            lines.append(f"  {group.files} {reason}: {names}{', ...' * (group.files > 3)}")
        return lines


def unicode(name: str) -> str:
    """A name from outside that JSON can hold: bytes that are not UTF-8 become text such as "\\udce9"."""
    return name.encode("utf-8", "backslashreplace").decode()


def printable(name: str) -> str:
    """As `unicode`, and not too long."""
    shown = unicode(name)
    return shown if len(shown) <= _NAME_LETTERS else shown[:_NAME_LETTERS - 3] + "..."
