"""What reading a scene left out or took elsewhere than the file says: nothing is lost unsaid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from escherjax.data.images import View
from escherjax.errors import UserError, listed


@dataclasses.dataclass
class Findings:
    """What a reader of scenes adds to, for whoever reports it."""

    missing: dict[int, str] = dataclasses.field(default_factory=dict)  # place of a view -> reason
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)  # picture -> reason, short
    remarks: list[str] = dataclasses.field(default_factory=list)  # sentences

    def present(self, views: Sequence[View], min_views: int) -> list[View]:
        """The views that have a picture.

        Raises UserError where some have none and fewer than `min_views`, or than half, are left.
        """
        kept = [view for place, view in enumerate(views) if place not in self.missing]
        if self.missing and (len(kept) < min_views or len(kept) < len(self.missing)):
            raise UserError(
                f"{len(self.missing)} of {len(views)} pictures are missing; {len(kept)} are left, "
                f"at least {max(min_views, (len(views) + 1) // 2)} are needed: "
                f"{listed(list(self.missing.values()))}"
            )
        return kept

    def notes(self) -> dict[str, Any]:
        """What there is to report, by name."""
        return {
            name: value
            for name, value in (("left_out", self.left_out), ("remarks", self.remarks))
            if value
        }

    def sentences(self, num_views: int) -> list[str]:
        """The same for people, of a scene of so many views that was opened with what it lacks."""
        if not self.missing:
            return self.remarks
        places = sorted(self.missing)
        named = ", ".join(map(str, places[:10])) + (", ..." if len(places) > 10 else "")
        lacking = f"{len(places)} of {num_views} pictures are missing: those of views {named}."
        return [*self.remarks, lacking]
