"""What the steps of a run read: shuffled activations, and where there is a KL finish then whole sequences."""

from typing import Any

from torch import Tensor

from hfsae.inputs.streams import PeekableStream
from hfsae.kl_finish.finish import KLFinish


class RunStream:
    """The batches of each step of a run; can be saved and resumed at any step.

    Args:
        stream: Shuffled activations.
        finish: The last steps, where they look at the language model's predictions too; None for none.
        batches: Batches of gradient accumulation in a step.
    """

    def __init__(self, stream: PeekableStream, finish: KLFinish | None, batches: int):
        self._stream = stream
        self._finish = finish
        self._batches = batches

    def finish_at(self, step: int) -> KLFinish | None:
        """The KL finish, where a step belongs to it."""
        return self._finish if self._finish is not None and step >= self._finish.first_step else None

    def of_step(self, step: int) -> list[dict[str, Tensor]]:
        """Rows by hook point of each batch of the next step.

        Args:
            step: Steps taken before.

        Raises:
            StopIteration: If there are no more.
        """
        if (finish := self.finish_at(step)) is None:
            return [next(self._stream) for _ in range(self._batches)]
        if not finish.is_open:
            finish.open_at(self._stream.source_state())
        return finish.next_batches()

    def peek(self, batches: int) -> list[dict[str, Tensor]]:
        """The next batches of shuffled activations, which will be given out again."""
        return self._stream.peek(batches)

    def state_dict(self) -> dict[str, Any]:
        """Where the next step begins to read, in values that JSON can hold."""
        reader = self._finish if self._finish is not None and self._finish.is_open else self._stream
        return reader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where `state_dict` was called."""
        if self._finish is not None:
            self._finish.load_state_dict(state)
        if self._finish is None or not self._finish.is_open:
            self._stream.load_state_dict(state)

    def close(self) -> None:
        """Closes the stream of activations."""
        self._stream.close()
