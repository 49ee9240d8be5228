"""The console that every command prints on: a name is text there, never markup or a command."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from fedshift.protocol.words import visible


class PlainConsole(Console):
    """Prints texts as they are. ``[red]`` and ``:smile:`` stay what they say, numbers get no colour
    of their own, and a control character shows as a mark, in whatever it stands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def tell(self, sentence: str) -> None:
        """Print a sentence, wrapped by the terminal; the first word of a finding is coloured."""
        line = Text(sentence)
        line.highlight_regex(r"^error\b", "red")
        line.highlight_regex(r"^warning\b", "yellow")
        self.print(line, soft_wrap=True)

    def warn(self, sentences: Iterable[str]) -> None:
        """Print each as a warning."""
        for sentence in sentences:
            self.print(f"Warning: {sentence}", style="yellow")

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a text of what was printed; see :meth:`rich.console.Console.render_str`."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render anything; see :meth:`rich.console.Console.render`."""
        if isinstance(renderable, Text) and visible(renderable.plain) != renderable.plain:
            renderable = renderable.copy()
            renderable.plain = visible(renderable.plain)  # As long as before, so styles stay put.
        return super().render(renderable, options)
